"""Never a byte out of bounds, no byte left unwritten.

Arrays lie flush against pages that must not be touched, in a forked child: a read or a write past
either end of any argument or result kills the child, and the test says at which case.
"""

import ctypes
import mmap
import os
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import in_child, needs_fork, rng_for
from test_kernels import arrays_in, attempt_directly, forged_arguments, liars, put, with_window

from smallpebble.kernels import _alloc, use_conv
from smallpebble.kernels.catalogue import KERNELS, NAMES, compare, flat, same_bits

needs_guards = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and mprotect")
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=NAMES)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
both_ends = pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
PAGE = mmap.PAGESIZE


def _forbid(address):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def guarded_empty(shape, dtype=float, at_end=True):
    """Like `numpy.empty`; a guard page follows its last byte or precedes its first. Full of NaN."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = int(np.prod(shape, dtype=object))
    pages = max(1, -(-count * dtype.itemsize // PAGE))
    room = mmap.mmap(-1, (pages + 2) * PAGE)
    room[PAGE : (pages + 1) * PAGE] = b"\xff" * (pages * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    _forbid(start)
    _forbid(start + (pages + 1) * PAGE)
    first = PAGE + (pages * PAGE - count * dtype.itemsize if at_end else 0)
    return np.ndarray(shape, dtype, room, first)


def guarded(args, at_end):
    """All arrays among `args`, each in a room of its own, with its axes in the same order there."""
    for path, array in arrays_in(args):
        axes = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        room = guarded_empty([array.shape[axis] for axis in axes], array.dtype, at_end)
        copy = room.transpose(np.argsort(axes).tolist())
        copy[...] = array
        args = put(args, path, copy)
    return args


@contextmanager
def results_from(empty):
    """Kernels take the memory of their results from `empty`."""
    usual, _alloc.empty = _alloc.empty, empty
    try:
        yield
    finally:
        _alloc.empty = usual


def guarded_results(at_end):
    return results_from(lambda *args: guarded_empty(*args, at_end=at_end))


def poisoned_empty(shape, dtype=float):
    """Like `numpy.empty`, every byte 255: NaN, unless it is written."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[...] = 255
    return array


@needs_fork
@both_ends
def test_the_guards_bite(at_end):
    """One byte too far, planted here, is a failure; the last byte is not."""

    def touch(at, beyond):
        at("beyond by", beyond)
        array = guarded_empty((3, 5), np.float32, at_end)
        assert np.isnan(array).all()
        address = array.ctypes.data + (array.nbytes - 1 + beyond if at_end else -beyond)
        ctypes.string_at(address, 1)

    in_child(lambda at: touch(at, 0))
    with pytest.raises(pytest.fail.Exception, match=r"killed by SIG(SEGV|BUS) at: beyond by 1"):
        in_child(lambda at: touch(at, 1))


@needs_fork
def test_a_hang_is_a_failure():
    with pytest.raises(pytest.fail.Exception, match="killed by SIGALRM at: the loop"):
        in_child(lambda at: (at("the loop"), threading.Event().wait()), seconds=1)


@needs_guards
@every_kernel
@both_dtypes
def test_guard_pages(compiled, kernel, dtype):
    """Every case, all operands and results at once, at both ends of a page; bits as elsewhere."""
    function = getattr(compiled, kernel.name)

    def sweep(at):
        for label, make in kernel.cases:
            args = make(rng_for(label), dtype)
            want = kernel.run(function, args)
            for at_end in (True, False):
                at(kernel.name, np.dtype(dtype), label, "end" if at_end else "start")
                tried = guarded(args, at_end)
                before = [array.tobytes() for _, array in arrays_in(args)]
                with guarded_results(at_end):
                    returned = function(*tried)
                got = flat([returned, *(tried[i] for i in kernel.writes)])
                assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
                after = [
                    (path, array.tobytes())
                    for path, array in arrays_in(tried)
                    if path[0] not in kernel.writes
                ]
                paths = [path for path, _ in arrays_in(args)]
                assert all(before[paths.index(path)] == data for path, data in after)

    in_child(sweep, seconds=100)


_CONVOLUTIONS = (
    (9, 33, (15, 13, 3, 3, 1, 1, "SAME"), 65),
    (5, 7, (31, 33, 5, 3, 2, 1, "SAME"), 35),
    (41, 65, (6, 5, 3, 3, 1, 1, "VALID"), 17),
    (3, 130, (9, 10, 1, 1, 1, 1, "VALID"), 71),
)
# Few channels in the third: where pixels get nothing, only the direct algorithm says exactly 0.
_POOLED = (
    *(
        (17, c, geometry, min(m, 65 if c < 65 else 15), 2, 2, 2, 2, "SAME")
        for _, c, geometry, m in _CONVOLUTIONS[:3]
    ),
    (2, 17, (61, 53, 3, 3, 1, 1, "SAME"), 33, 2, 2, 2, 2, "SAME"),
)
_POOLS = ((9, 33, (31, 29, 3, 3, 2, 2, "SAME")), (7, 65, (23, 21, 2, 2, 2, 2, "SAME")))
_BROADCASTS = (
    ((77, 131, 65), (131, 1)),
    ((1031, 129), (129,)),
    ((129, 1031), (129, 1)),
    ((39, 131, 48), (39, 1, 48)),
)
_PAIRS = (
    ((1031, 333), (333,)),
    ((1031, 33), (1031, 1)),
    ((77, 131, 35), (131, 1)),
    ((517, 1), (613,)),
    ((300007,), ()),
)
ODD_WORK = {
    "matmul": (
        ((203, 785), (785, 101)),
        ((131, 70), (70, 517), False, True),
        ((517, 203), (203, 67), True, False),
        ((7, 65, 33), (7, 33, 129)),
        ((7, 130), (130, 24208), False, False, True),  # read in long runs
    ),
    "conv2d": _CONVOLUTIONS,
    "conv2d_grad_images": _CONVOLUTIONS,
    "conv2d_grad_kernels": _CONVOLUTIONS,
    "conv2d_maxpool2d": _POOLED,
    "conv2d_maxpool2d_grad_images": _POOLED,
    "conv2d_maxpool2d_grad_kernels": _POOLED,
    "sum_to": _BROADCASTS,
    "broadcast_to": _BROADCASTS,
    **dict.fromkeys(("add", "sub", "mul", "div"), _PAIRS),
    "leaky_relu": (((333, 1031), ()),),
    "leaky_relu_grad_a": (((333, 1031), ()),),
    "softmax": (((1031, 131), None, 5), ((131, 1031), 0, 5)),
    "log_softmax": (((1031, 131), None, 5),),
    "softmax_grad_a": (((1031, 131), None, 5), ((131, 1031), 0, 5)),
    "log_softmax_grad_a": (((1031, 131), None, 5), ((40011, 13), None, 5)),
    "softmax_cross_entropy": ((1031, 131, np.int64, 5),),
    "softmax_cross_entropy_grad_logits": ((1031, 131, np.int64, 5),),
    "take": (((333, 517), 1031, np.int64),),
    "add_at": (((333, 517), 1031, np.int64),),
}


def shared_work(kernel, dtype, batch=24):
    """Sizes that are worth sharing among threads: those of the benchmarks, and awkward ones."""
    specs = [(batch, *spec[1:]) if spec[0] == 128 else spec for spec in kernel.timed]
    odd = _POOLS if "pool" in kernel.name or "patches" in kernel.name else ()
    for spec in (*specs, *ODD_WORK.get(kernel.name, odd)):
        yield spec, kernel.make(spec, rng_for(*spec), dtype)


@needs_guards
@every_kernel
def test_guard_pages_of_shared_work(compiled, kernel, set_num_threads):
    """The same where operands are cut into blocks and tasks; and right at these sizes."""
    set_num_threads(3)
    function = getattr(compiled, kernel.name)

    def sweep(at):
        for spec, args in shared_work(kernel, np.float32):
            at(kernel.name, spec)
            want = kernel.run(function, args)
            assert compare(kernel, want, args, np.float32) <= 1
            for at_end in (True, False):
                at(kernel.name, spec, "end" if at_end else "start")
                with guarded_results(at_end):
                    got = kernel.run(function, guarded(args, at_end))
                assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))

    in_child(sweep, seconds=100)


@needs_guards
@with_window()
def test_guard_pages_with_forged_windows(compiled, kernel):
    """Where nothing fits, nothing may be touched either."""
    function = getattr(compiled, kernel.name)

    def sweep(at):
        rng = rng_for("guarded", kernel.name)
        for i in range(400):
            args = forged_arguments(kernel, rng)
            at_end, algorithm = bool(i % 2), str(rng.choice(["direct", "winograd"]))
            what = [getattr(one, "shape", one) for one in args]
            at(kernel.name, algorithm, what, "end" if at_end else "start")
            with guarded_results(at_end), use_conv(algorithm):
                attempt_directly(function, guarded(args, at_end))

    in_child(sweep, memory=2**31)


@needs_guards
@every_kernel
@both_ends
def test_guard_pages_with_arrays_that_lie(compiled, kernel, at_end):
    """What an array says of itself in Python is not what its buffer holds."""
    function = getattr(compiled, kernel.name)

    def sweep(at):
        for i, dtype in enumerate((np.float32, np.float64)):
            label, make = kernel.cases[i]
            args = guarded(make(rng_for(label), dtype), at_end)
            for path, array in arrays_in(args):
                for claim, liar in liars(array):
                    at(kernel.name, np.dtype(dtype), label, path, claim)
                    with guarded_results(at_end):
                        attempt_directly(function, put(args, path, array.view(type(liar))))

    in_child(sweep, memory=2**31)


@needs_guards
@every_kernel
def test_guard_pages_with_strides(compiled, kernel):
    """Views whose first or last element lies at the edge: copied without a step too far."""
    function = getattr(compiled, kernel.name)

    def strided(array, axis, at_end, backwards):
        shape = list(array.shape)
        shape[axis] *= 2
        room = guarded_empty(shape, array.dtype, at_end)
        pick = [slice(None)] * array.ndim
        pick[axis] = slice(1, None, 2) if at_end else slice(None, None, 2)
        view = room[tuple(pick)]
        if backwards:
            pick[axis] = slice(None, None, -1)
            view = view[tuple(pick)]
        view[...] = array
        return view

    def sweep(at):
        for i, (label, make) in enumerate(kernel.cases):
            dtype = (np.float32, np.float64)[i % 2]
            args = make(rng_for(label), dtype)
            for path, array in arrays_in(args):  # in the order that copies of views have
                args = put(args, path, array.copy())
            want = kernel.run(function, args)
            for axis in range(min(4, max((a.ndim for _, a in arrays_in(args)), default=0))):
                for at_end in (True, False):
                    backwards = bool((i + axis) % 3 == 0)
                    at(kernel.name, np.dtype(dtype), label, axis, at_end, backwards)
                    tried = args
                    for path, array in arrays_in(args):
                        if array.ndim > axis:
                            tried = put(tried, path, strided(array, axis, at_end, backwards))
                    with guarded_results(at_end):
                        got = kernel.run(function, tried)
                    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))

    in_child(sweep, seconds=100)


@every_kernel
@both_dtypes
def test_every_byte_of_a_result_is_written(compiled, kernel, dtype):
    """Memory that a kernel gets is full of NaN; none of it is left, and none was needed zero."""
    function = getattr(compiled, kernel.name)
    asked = []

    def counted(shape, dtype=float):
        asked.append(shape)
        return poisoned_empty(shape, dtype)

    for label, make in kernel.cases:
        args = make(rng_for(label), dtype)
        want = kernel.run(function, args)
        with results_from(counted):
            got = kernel.run(function, args)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True)), label
    assert asked, f"{kernel.name} does not take its memory from _alloc.empty"


@every_kernel
def test_a_failed_allocation_is_a_memory_error(compiled, kernel):
    def fail(shape, dtype=float):
        raise MemoryError("planted")

    args = kernel.cases[0][1](rng_for(0), np.float32)
    before = [array.tobytes() for _, array in arrays_in(args)]
    with results_from(fail), pytest.raises(MemoryError, match="planted"):
        getattr(compiled, kernel.name)(*args)
    assert [array.tobytes() for _, array in arrays_in(args)] == before


@every_kernel
def test_no_reference_is_lost_or_kept(compiled, kernel):
    """Arguments are let go of, after a result and after an error."""
    function = getattr(compiled, kernel.name)
    args = kernel.cases[0][1](rng_for(0), np.float32)
    arrays = [array for _, array in arrays_in(args)]
    wrong = (np.ones((2, 2, 2, 2, 2, 2, 2), np.float32), *args[1:])
    kernel.run(function, args)
    before = [sys.getrefcount(a) for a in arrays]
    for _ in range(5):
        kernel.run(function, args)
        attempt_directly(function, wrong)
    assert [sys.getrefcount(a) for a in arrays] == before


@both_dtypes
def test_adam_step_changes_nothing_where_memory_ends(compiled, dtype):
    """Whichever of its requests fails, and also where state is copied to be packed."""
    kernel = KERNELS["adam_step"]
    make = max((make for _, make in kernel.cases), key=lambda make: len(make(rng_for(0), dtype)[0]))
    for strided in (False, True):
        for last in range(10):
            args = make(rng_for(0), dtype)
            if strided:
                for path, array in arrays_in(args):
                    args = put(args, path, np.repeat(array, 2).reshape(*array.shape, 2)[..., 0])
            before, asked = [array.tobytes() for _, array in arrays_in(args)], []

            def fail(shape, dtype=float, asked=asked, last=last):
                asked.append(shape)
                if len(asked) > last:
                    raise MemoryError("planted")
                return np.empty(shape, dtype)

            if last >= len(args[0]):
                break
            with results_from(fail), pytest.raises(MemoryError, match="planted"):
                compiled.adam_step(*args)
            assert [array.tobytes() for _, array in arrays_in(args)] == before
        assert last > 0
