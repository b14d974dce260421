"""Every kernel on every tier: right on all sizes and layouts, and not to be broken by arguments."""

import copy
import itertools
import math
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import in_child, rng_for
from hypothesis import given, settings
from hypothesis import strategies as st

from smallpebble import kernels
from smallpebble.kernels import reference
from smallpebble.kernels.catalogue import KERNELS, NAMES, WholeNumbers, compare, expect, same_bits
from smallpebble.shapes import Window

every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=NAMES)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ARITHMETIC = ("add", "sub", "mul", "div")
REFUSALS = (ValueError, TypeError, IndexError, MemoryError)


@pytest.fixture(autouse=True)
def _no_floating_point_warnings():
    # Oracles are plain NumPy, and NaN and infinity are meant to get through.
    with np.errstate(all="ignore"):
        yield


def windows_in(args):
    """The positions of the arguments that are windows."""
    return [i for i, value in enumerate(args) if isinstance(value, Window)]


def with_window(names=NAMES):
    """Kernels that take a window, or two."""
    chosen = [n for n in names if windows_in(_args(KERNELS[n], np.float32))]
    return pytest.mark.parametrize("kernel", [KERNELS[n] for n in chosen], ids=chosen)


def _args(kernel, dtype, case=0, rng=None):
    label, make = kernel.cases[case]
    return make(rng or rng_for(label), dtype)


def arrays_in(args):
    """(path, array) for each array among the arguments and in lists among them."""
    for i, value in enumerate(args):
        if isinstance(value, np.ndarray):
            yield (i,), value
        elif isinstance(value, list):
            yield from (((i, j), a) for j, a in enumerate(value) if isinstance(a, np.ndarray))


def put(args, path, value):
    """A copy of `args` with another value at one place."""
    args = [list(one) if isinstance(one, list) else one for one in args]
    if len(path) == 1:
        args[path[0]] = value
    else:
        args[path[0]][path[1]] = value
    return tuple(args)


def attempt(kernel, function, args):
    """The results, or the exception."""
    try:
        return kernel.run(function, args)
    except Exception as error:
        return error


def attempt_directly(function, args):
    try:
        got = function(*args)
    except Exception as error:
        return error
    return [np.asarray(one) for one in (got if isinstance(got, (tuple, list)) else [got])]


def close(got, want):
    """Equal shapes and dtypes, and values as near as their dtype lets one expect."""
    if len(got) != len(want):
        return False
    for a, b in zip(got, want):
        if a.shape != b.shape or a.dtype.newbyteorder("=") != b.dtype.newbyteorder("="):
            return False
        if a.dtype.kind in "fc":
            tolerance = 1e3 * float(np.finfo(a.dtype).eps)
            if not np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
                return False
        elif not np.array_equal(a, b):
            return False
    return True


# ------------------------------------------------------------------------------ right values


@every_kernel
@both_dtypes
def test_against_oracle(tier, kernel, dtype):
    function = getattr(tier, kernel.name)
    errors = {}
    for label, make in kernel.cases:
        args = make(rng_for(label), dtype)
        errors[label] = compare(kernel, kernel.run(function, args), args, dtype)
    assert {label: error for label, error in errors.items() if not error <= 1} == {}


@pytest.mark.parametrize("name", [k.name for k in KERNELS.values() if k.whole])
@both_dtypes
def test_exact_on_whole_numbers(tier, name, dtype):
    kernel = KERNELS[name]
    wrong = []
    for label, make in kernel.cases:
        args = make(WholeNumbers(rng_for(label)), dtype)
        expected = expect(kernel, args, dtype, whole=True)
        with kernels.use_conv("direct"):
            got = kernel.run(getattr(tier, name), args)
        if compare(kernel, got, args, dtype, expected):
            wrong.append(label)
    assert not wrong


@every_kernel
def test_realistic_sizes(kernel):
    """Where work is cut into blocks and shared by threads. One oracle serves all tiers."""
    modules = [kernels.load(t) for t, reason in kernels.tiers().items() if reason is None]
    for label, make, _ in kernel.bench:
        args = make(rng_for(label), np.float32)
        expected = expect(kernel, args, np.float32)
        for module in modules:
            got = kernel.run(getattr(module, kernel.name), args)
            error = compare(kernel, got, args, np.float32, expected)
            assert error <= 1, f"{module.__name__} {label}"


def test_matmul_around_blocks(tier):
    """Inner and outer sizes around powers of two, where packing changes its way."""
    kernel = KERNELS["matmul"]
    for m, k, n in ((129, 511, 7), (5, 1025, 65), (257, 33, 130), (64, 385, 257), (7, 64, 1031)):
        rng = WholeNumbers(rng_for(m, k, n))
        for flips in ((False, False), (True, False), (False, True)):
            args = kernel.make(((m, k), (k, n), *flips), rng, np.float32)
            expected = expect(kernel, args, np.float32, whole=True)
            assert compare(kernel, tier.matmul(*args), args, np.float32, expected) == 0


@every_kernel
@both_dtypes
def test_inputs_stay_as_they_are(tier, kernel, dtype):
    function = getattr(tier, kernel.name)
    for label, make in kernel.cases:
        args = make(rng_for(label), dtype)
        written = [path for path, _ in arrays_in(args) if path[0] in kernel.writes]
        before = {path: array.tobytes() for path, array in arrays_in(args)}
        function(*args)
        changed = [path for path, array in arrays_in(args) if array.tobytes() != before[path]]
        assert set(changed) <= set(written), label


@every_kernel
@both_dtypes
def test_results_are_new(tier, kernel, dtype):
    function = getattr(tier, kernel.name)
    for label, make in kernel.cases:
        args = make(rng_for(label), dtype)
        got = function(*args)
        results = list(got) if isinstance(got, (tuple, list)) else [got]
        for result in results:
            assert isinstance(result, (np.ndarray, np.generic)), label
            if isinstance(result, np.ndarray):
                assert type(result) is np.ndarray, label
                flags = result.flags
                assert flags.c_contiguous, label
                assert flags.writeable, label
                assert flags.aligned, label
                assert not any(np.may_share_memory(result, a) for _, a in arrays_in(args)), label
        before = [np.asarray(result).tobytes() for result in results]
        function(*args)
        function(*make(rng_for("other", label), dtype))
        assert [np.asarray(result).tobytes() for result in results] == before, label


def test_results_of_one_call_are_apart(tier):
    args = _args(KERNELS["maxpool2d"], np.float32)
    assert not np.may_share_memory(*tier.maxpool2d(*args))
    new = tier.adam_step(*_args(KERNELS["adam_step"], np.float32))
    assert not np.may_share_memory(*new)


@every_kernel
def test_by_keyword(tier, kernel):
    args = _args(kernel, np.float32)
    function = getattr(tier, kernel.name)
    names = kernel.oracle.__code__.co_varnames[: len(args)]
    want = kernel.run(function, args)
    got = kernel.run(lambda *args: function(**dict(zip(names, args))), args)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


# ------------------------------------------------------------------------------ memory layouts


class Subclass(np.ndarray):
    pass


def offset(array, count):
    """`array` in a larger buffer, `count` elements from its start."""
    buffer = np.zeros(array.size + count + 1, array.dtype)
    view = buffer[count : count + array.size].reshape(array.shape)
    view[...] = array
    return view


def unaligned(array):
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def spread(array, axis, step):
    """Every `step`-th element along an axis of a larger array, backwards if negative."""
    shape = list(array.shape)
    shape[axis] = array.shape[axis] * abs(step)
    buffer = np.full(shape, 77, array.dtype)
    view = buffer[(slice(None),) * (axis % array.ndim) + (slice(None, None, step),)]
    view[...] = array
    return view


def interior(array):
    buffer = np.full([size + 3 for size in array.shape], 77, array.dtype)
    view = buffer[(..., *(slice(1, size + 1) for size in array.shape))]
    view[...] = array
    return view


def swapped_axes(array, first, second):
    return np.array(array.swapaxes(first, second), order="C").swapaxes(first, second)


def byteswapped(array):
    return array.astype(array.dtype.newbyteorder())


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def meaningless(array):
    """A copy with odd strides where nothing moves: axes of length 1, or all if it is empty."""
    copy = array.copy(order="K")
    strides = [
        7 if size == 1 or not array.size else stride
        for size, stride in zip(copy.shape, copy.strides)
    ]
    return np.lib.stride_tricks.as_strided(copy, copy.shape, strides)


def layouts(array):
    """(name, another array) of the same shape; values differ where strides are zero."""
    yield "Fortran", np.array(array, order="F")
    yield "read-only", read_only(array)
    yield "byte-swapped", byteswapped(array)
    yield "unaligned", unaligned(array)
    yield "subclass", array.copy().view(Subclass)
    yield "with a dtype object of its own", pickle.loads(pickle.dumps(array))
    for count in range(1, 16):
        yield f"offset by {count}", offset(array, count)
    yield "interior", interior(array)
    yield "meaningless strides", meaningless(array)
    yield "Fortran, meaningless strides", meaningless(np.array(array, order="F"))
    for axis in range(array.ndim):
        yield f"last axis swapped with {axis}", swapped_axes(array, axis, -1)
        for step in (2, -1, -3):
            yield f"step {step} along {axis}", spread(array, axis, step)
        if array.shape[axis]:
            yield f"repeated along {axis}", np.broadcast_to(array.take([0], axis), array.shape)
    if array.size:
        yield "all strides zero", np.broadcast_to(array.flat[0], array.shape)


def plain(array):
    """The same values in C order, aligned, in native byte order, nobody else's."""
    return np.array(array, dtype=array.dtype.type, order="C")


@every_kernel
@both_dtypes
def test_every_layout(tier, kernel, dtype):
    function = getattr(tier, kernel.name)
    for case in (0, 1):
        args = _args(kernel, dtype, case)
        for path, array in arrays_in(args):
            for name, other in layouts(array):
                where = f"{kernel.cases[case][0]}, argument {path} {name}"
                before = other.tobytes()
                got = attempt(kernel, function, put(args, path, other))
                plain_args = put(args, path, plain(other))
                want = attempt(kernel, function, plain_args)
                assert other.tobytes() == before, where
                if isinstance(want, Exception):
                    assert type(got) is type(want), where
                    continue
                assert not isinstance(got, Exception), f"{where}: {got!r}"
                if tier is reference or path[0] in kernel.writes:
                    # Plain NumPy may keep the byte order of its input, and what is written does.
                    got = [plain(a) for a in got]
                state = path[0] in kernel.writes and name == "byte-swapped"
                if tier is reference or state:  # NumPy does these, in an order of its own
                    assert compare(kernel, got, plain_args, dtype) <= 1, where
                else:
                    assert len(got) == len(want), where
                    assert all(same_bits(a, b) for a, b in zip(got, want)), where


@both_dtypes
def test_small_products_have_the_bits_of_large_ones(compiled, dtype):
    """So that a batch has the same bits whether or not it is computed as one product."""
    rng = rng_for("small products")
    for m, k, n in itertools.product((1, 2, 3, 8), range(1, 10), (1, 2, 3, 8)):
        tall, b, bias = (rng.standard_normal(s).astype(dtype) for s in ((300, k), (k, n), (n,)))
        for row in ((), (bias,)):
            want = compiled.matmul(tall, b, *row)[:m]
            for a in (tall[:m].copy(), np.asfortranarray(tall[:m])):
                for other in (b, np.asfortranarray(b)):
                    assert same_bits(compiled.matmul(a, other, *row), want.copy()), (m, k, n)


def _with_zeros(rng, dtype, m, k, across):
    """A matrix that matmul takes for one of zeros, its rows or columns contiguous."""
    (a, _) = KERNELS["matmul"].make(((m, k), (k, 1), across, False, False, True), rng, dtype)
    return a


@both_dtypes
@pytest.mark.parametrize("across", (False, True), ids=("rows", "columns"))
def test_zeros_that_are_left_out_change_no_bits(compiled, dtype, across):
    """Beside many rows without zeros, products with 0 are not left out."""
    rng = rng_for("zeros", across)
    shapes = ((63, 300, 96), (63, 1300, 137), (200, 784, 100), (60, 40, 2100), (61, 129, 130))
    for m, k, n in shapes:
        a = _with_zeros(rng, dtype, m, k, across)
        b, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((k, n), (n,)))
        full = np.concatenate([a, np.ones((7 * m, k), dtype)])
        full = np.asfortranarray(full) if across else full
        for row in ((), (bias,)):
            want = compiled.matmul(full, b, *row)[:m].copy()
            assert same_bits(compiled.matmul(a, b, *row), want), (m, k, n)


@both_dtypes
@pytest.mark.parametrize("across", (False, True), ids=("rows", "columns"))
def test_zeros_times_what_is_not_finite(compiled, dtype, across, set_num_threads):
    """They are left out, and found to be no zeros of the product: so it is formed once more."""
    pool = pytest.importorskip("smallpebble.kernels._pool")
    set_num_threads(2)
    rng = rng_for("zeros", across)
    m, k, n = 200, 784, 100
    a = _with_zeros(rng, dtype, m, k, across)
    a[:, 5] = 0
    b = rng.standard_normal((k, n)).astype(dtype)
    before = pool.jobs()
    compiled.matmul(a, b)
    jobs = pool.jobs() - before
    for odd in (np.nan, np.inf, -np.inf):
        for column in (0, n - 1):
            other = b.copy()
            other[5, column] = odd
            before = pool.jobs()
            got = compiled.matmul(a, other)
            assert pool.jobs() - before > jobs
            assert np.isnan(got[:, column]).all()
            assert np.isfinite(np.delete(got, column, 1)).all()


@both_dtypes
def test_numbers_that_are_not_finite_among_zeros(tier, dtype):
    rng = rng_for("zeros")
    a, b = _with_zeros(rng, dtype, 200, 300, False), np.ones((300, 100), dtype)
    a[0, :], a[199, :], a[100, :] = 0, 0, -0.0
    a[0, 7], a[199, 299], a[100, 0], a[50, 50] = np.nan, np.inf, -np.inf, np.finfo(dtype).tiny / 4
    for each in (a, np.asfortranarray(a)):
        got = tier.matmul(each, b)
        assert np.isnan(got[0]).all()
        assert (got[199] == np.inf).all()
        assert (got[100] == -np.inf).all()
        assert np.isfinite(np.delete(got, (0, 100, 199), 0)).all()
    small = np.finfo(dtype).smallest_subnormal
    for place in ((31, 17), (59, 0), (0, 299)):
        alone = np.zeros_like(a)
        alone[place] = -small
        for each in (alone, np.asfortranarray(alone)):
            assert (tier.matmul(each, b * 4)[place[0]] == -4 * small).all(), place


@both_dtypes
def test_matmul_of_batches_that_are_not_aligned(tier, dtype):
    """Each matrix is packed, and the first one aligned: the others are a byte further on."""
    records = np.zeros(3, [("matrix", dtype, (5, 6)), ("byte", np.uint8)])
    records["matrix"] = rng_for("records").standard_normal((3, 5, 6))
    a, b = records["matrix"], np.ones((6, 4), dtype)
    assert a.strides[0] % a.itemsize and not a.flags.aligned
    for args in ((a, b), (a.swapaxes(1, 2), np.ones((5, 3), dtype)), (b.T, a.swapaxes(1, 2))):
        want = tier.matmul(*map(np.ascontiguousarray, args))
        assert compare(KERNELS["matmul"], tier.matmul(*args), args, dtype) <= 1
        assert tier.matmul(*args).shape == want.shape


@both_dtypes
def test_matmul_of_overlapping_windows(tier, dtype):
    """Operands whose rows share memory, as of `numpy.lib.stride_tricks.sliding_window_view`."""
    x = rng_for("windows").standard_normal(60).astype(dtype)
    kernel = KERNELS["matmul"]
    for m, k in ((5, 7), (9, 3), (40, 17), (1, 5), (33, 1)):
        a = np.lib.stride_tricks.sliding_window_view(x, k)[:m]
        for step in (1, 2):
            b = np.lib.stride_tricks.as_strided(x, (k, 11), (step * x.itemsize, x.itemsize))
            for args in ((a, b), (b.T, a.T), (a, plain(b)), (plain(a), b)):
                assert compare(kernel, tier.matmul(*args), args, dtype) <= 1
        batches = np.lib.stride_tricks.as_strided(x, (3, k, 4), (x.itemsize, 4 * x.itemsize, 4))
        if dtype == np.float32 and 4 * k + 3 < x.size:
            args = (a, batches)
            assert compare(kernel, tier.matmul(*args), args, dtype) <= 1


@every_kernel
@both_dtypes
def test_all_arguments_laid_out_otherwise(tier, kernel, dtype):
    function = getattr(tier, kernel.name)
    strange = [swapped_axes, lambda a, *_: spread(a, 0, -2), lambda a, *_: unaligned(a)]
    for change in strange:
        args = _args(kernel, dtype)
        other = args
        for path, array in arrays_in(args):
            other = put(other, path, change(array, 0, -1))
        assert compare(kernel, kernel.run(function, other), args, dtype) <= 1


# ------------------------------------------------------------------------------ other dtypes


def cast(args, dtype):
    """Real arrays among `args` in another dtype; whole numbers where it asks for them."""
    for path, array in arrays_in(args):
        if array.dtype.kind == "f":
            factor = 4 if np.dtype(dtype).kind in "iu" else 1
            args = put(args, path, (array * factor).astype(dtype))
    return args


@every_kernel
@pytest.mark.parametrize("other", [np.float16, np.longdouble, np.int64, np.int8, bool, complex])
def test_other_dtypes_go_to_the_reference(compiled, kernel, other):
    for case in (0, 1):
        args = cast(_args(kernel, np.float64, case), other)
        got = attempt(kernel, getattr(compiled, kernel.name), args)
        want = attempt(kernel, kernel.oracle, args)
        if isinstance(want, Exception):
            assert isinstance(got, REFUSALS), got
        else:
            assert not isinstance(got, Exception), got
            assert [a.dtype for a in got] == [b.dtype for b in want]
            assert close(got, want)


@every_kernel
@both_dtypes
def test_mixed_precision_as_in_the_reference(tier, kernel, dtype):
    other = np.float64 if dtype == np.float32 else np.float32
    for case in (0, 1):
        args = _args(kernel, dtype, case)
        for path, array in arrays_in(args):
            if array.dtype != dtype:
                continue
            mixed = put(args, path, array.astype(other))
            got = attempt(kernel, getattr(tier, kernel.name), mixed)
            want = attempt(kernel, kernel.oracle, mixed)
            if isinstance(want, Exception) or (kernel.writes and isinstance(got, Exception)):
                assert isinstance(got, REFUSALS), path  # an optimiser's state has one dtype
                continue
            assert not isinstance(got, Exception), f"{path}: {got!r}"
            assert [a.dtype for a in got] == [b.dtype for b in want], path
            for a, b in zip(got, want):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=str(path))


# ------------------------------------------------------------------------------ NaN and infinity


SPECIAL = ("maxpool2d", "leaky_relu", "leaky_relu_grad_a")  # tried by tests of their own


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SPECIAL])
@both_dtypes
def test_nan_and_infinity_get_through(tier, name, dtype):
    """Put one anywhere, beside zeros and beside numbers: it is seen where the definition says."""
    kernel = KERNELS[name]
    for case in (0, 1, -1):
        args = _args(kernel, dtype, case)
        # long double, because BLAS libraries have their own ways with 0 * NaN
        wide = cast(args, np.longdouble)
        for path, array in arrays_in(args):
            if array.dtype.kind != "f" or not array.size:
                continue
            flats = {
                0,
                array.size // 2,
                array.size - 1,
                *rng_for(name).integers(array.size, size=3),
            }
            for odd in (np.nan, np.inf, -np.inf):
                for flat in flats:
                    for zeros in (False, True):
                        with kernels.use_conv("direct"):
                            _check_one(tier, kernel, (args, wide), path, flat, odd, zeros)


def _check_one(tier, kernel, both, path, flat, odd, zeros):
    made = []
    for args in both:
        for other, array in arrays_in(args):
            if zeros and other != path and array.dtype.kind == "f":
                args = put(args, other, np.zeros_like(array))
        for other, array in arrays_in(args):
            if other == path:
                array = array.copy()
                array[np.unravel_index(flat, array.shape)] = odd
                args = put(args, path, array)
        made.append(args)
    got = kernel.run(getattr(tier, kernel.name), made[0])
    want = kernel.run(kernel.oracle, made[1])
    for a, b in zip(got, want, strict=True):
        message = f"{odd} in argument {path} at {flat}" + " among zeros" * zeros
        np.testing.assert_allclose(a, b.astype(a.dtype), rtol=1e-3, atol=1e-3, err_msg=message)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_leaky_relu_on_special_values(tier, dtype):
    info = np.finfo(dtype)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, info.max, info.min, info.tiny, -info.tiny]
    special += [info.smallest_subnormal, -info.smallest_subnormal, 1, -1]
    for size in range(1, 40):
        a = np.resize(np.array(special, dtype), size)[::-1].copy()
        for alpha in (0.02, 0.0, 1.0, -1.0, np.inf, np.nan):
            assert same_bits(tier.leaky_relu(a, alpha), reference.leaky_relu(a, alpha))
            for g in (a[::-1].copy(), np.ones(size, dtype)):
                got = tier.leaky_relu_grad_a(g, a, alpha)
                assert same_bits(got, reference.leaky_relu_grad_a(g, a, alpha))


@pytest.mark.parametrize("name", ARITHMETIC)
@both_dtypes
def test_arithmetic_on_special_values(tier, name, dtype):
    """Bits and warnings are NumPy's, whatever it has been told to do about the latter."""
    info = np.finfo(dtype)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, info.max, info.min, info.tiny, -info.tiny]
    special += [info.smallest_subnormal, 1, -1]
    function, oracle = getattr(tier, name), getattr(reference, name)
    values = np.array(special, dtype)
    odd = np.resize(np.repeat(values, len(values)), (1700, len(values)))
    others = np.resize(values, odd.shape)  # together, all pairs
    for a, b in (
        (odd, others),
        (odd, values),
        (values, others),
        (odd, others.reshape(-1)[:1700, None]),
        *((odd, np.array(x)) for x in values),
        *((np.array(x), odd) for x in values),
    ):
        with np.errstate(all="ignore"):
            assert same_bits(function(a, b), oracle(a, b))
    one = np.ones(18000, dtype)
    for a, b in ((0, 0), (1, 0), (np.inf, np.inf), (info.max, info.max), (info.tiny, info.tiny)):
        one[17001] = a
        other = np.full(len(one), b, dtype)
        for state in ("warn", "raise", "ignore"):
            with np.errstate(all=state), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                got = attempt_directly(function, (one, other))
                said, caught[:] = [str(w.message) for w in caught], []
                want = attempt_directly(oracle, (one, other))
                assert said == [str(w.message) for w in caught]
            assert type(got) is type(want)
            assert isinstance(want, Exception) or same_bits(got[0], want[0])


@both_dtypes
def test_broadcasting_keeps_the_sign_of_zero(tier, dtype):
    a = np.array([[0.0], [-0.0], [np.nan], [-np.inf]], dtype)
    for n in (2, 3, 17, 70, 300):
        assert same_bits(tier.broadcast_to(a, (4, n)), reference.broadcast_to(a, (4, n)))
        assert same_bits(
            tier.broadcast_to(a[:, 0], (n, 4)), reference.broadcast_to(a[:, 0], (n, 4))
        )


@both_dtypes
def test_sums_of_infinities(tier, dtype):
    for size in range(2, 70):
        a = np.ones((3, size), dtype)
        a[1, 0], a[1, -1], a[2, size // 2] = np.inf, -np.inf, np.nan
        got = tier.sum_to(a, (3, 1))
        assert got[0, 0] == size
        assert np.isnan(got[1:]).all()
        assert np.isnan(tier.sum_to(a, ()))


@both_dtypes
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 16, 17, 33])
def test_max_pooling_of_odd_values(tier, dtype, channels):
    window = Window((5, 6), (3, 3), (2, 2), "SAME")
    rng = rng_for(channels)
    negative = -1 - rng.random((2, 5, 6, channels)).astype(dtype)
    values, indices = tier.maxpool2d(negative, window)
    assert values.max() <= -1  # padding is no zero
    assert same_bits(tier.maxpool2d_gather(negative, indices, window), values)

    lowest = np.full_like(negative, -np.inf)
    values, indices = tier.maxpool2d(lowest, window)
    assert np.all(values == -np.inf)
    assert np.array_equal(indices, reference.maxpool2d(lowest, window)[1])

    for nan_share in (0.05, 0.5, 1):
        odd = np.where(rng.random(negative.shape) < nan_share, np.nan, negative).astype(dtype)
        odd[rng.random(odd.shape) < 0.1] = np.inf
        odd[rng.random(odd.shape) < 0.1] = -np.inf
        got, want = tier.maxpool2d(odd, window), reference.maxpool2d(odd, window)
        assert same_bits(got[0], want[0])
        assert np.array_equal(got[1], want[1])

    zeros = rng.choice(np.array([0.0, -0.0], dtype), negative.shape)
    got, want = tier.maxpool2d(zeros, window), reference.maxpool2d(zeros, window)
    assert same_bits(got[0], want[0])
    assert np.array_equal(got[1], want[1])


def test_max_pooling_finds_the_first_nan(tier):
    images = np.array([3, np.nan, 9, np.nan], np.float32).reshape(1, 2, 2, 1)
    values, indices = tier.maxpool2d(images, Window((2, 2), (2, 2), (2, 2), "VALID"))
    assert np.isnan(values).all()
    assert indices.item() == 1


@both_dtypes
def test_padding_takes_no_part(tier, dtype):
    """An infinite weight that falls on padding is not multiplied by a zero there."""
    window = Window((4, 5), (3, 3), (1, 1), "SAME")
    images = np.ones((2, 4, 5, 3), dtype)
    weights = np.full((3, 3, 3, 4), np.inf, dtype)
    assert np.all(tier.conv2d(images, weights, window) == np.inf)
    g = np.ones((2, 4, 5, 4), dtype)
    assert np.all(tier.conv2d_grad_images(g, weights, window) == np.inf)
    assert np.all(tier.conv2d_grad_kernels(np.full_like(g, np.inf), images, window) == np.inf)
    assert np.all(tier.avgpool2d(np.full_like(images, np.inf), window) == np.inf)


@both_dtypes
def test_softmax_of_far_apart_rows(tier, dtype):
    a = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [0, -np.inf, 0]], dtype)
    got = tier.softmax(a)
    np.testing.assert_array_equal(got[0], [1, 0, 0])
    np.testing.assert_allclose(got[1], 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(got[2], [0.5, 0, 0.5])
    got = tier.log_softmax(a)
    np.testing.assert_array_equal(got[0], [0, -1e4, -2e4])
    assert got[2, 1] == -np.inf
    losses = tier.softmax_cross_entropy(a, np.array([2, 0, 1]))
    np.testing.assert_allclose(losses, [2e4, math.log(3), np.inf], rtol=1e-6)
    info = np.finfo(dtype)
    extreme = np.array([[info.max, info.min], [info.min, info.min], [info.max, info.max]], dtype)
    np.testing.assert_array_equal(tier.softmax(extreme), [[1, 0], [0.5, 0.5], [0.5, 0.5]])


@both_dtypes
def test_softmax_over_the_whole_range(tier, dtype):
    """exp and log on their way from 1 to underflow, at every position of a vector."""
    lowest = -110 if dtype == np.float32 else -760
    kernel = KERNELS["softmax"]
    for n in (513, 514, 515):
        a = np.linspace(lowest, 0, n).astype(dtype)
        assert compare(kernel, tier.softmax(a), (a,), dtype) <= 1
        assert compare(KERNELS["log_softmax"], tier.log_softmax(a), (a,), dtype) <= 1


def odd_rows(count, width, dtype):
    """Rows of numbers, some with NaN or infinity first, last, alone, or everywhere."""
    rng = rng_for("rows", count, width)
    a = (rng.standard_normal((count, width)) * rng.choice([1, 30], (count, 1))).astype(dtype)
    special = [np.nan, np.inf, -np.inf, 0.0, np.finfo(dtype).max, np.finfo(dtype).min]
    for row, value in zip(range(0, count, 3), special * 3):
        place = (slice(None), 0, -1, width // 2)[int(rng.integers(4))]
        a[row, place] = value
    return a


def row_kernels(tier, count, width):
    """(name, function of rows that a slice picks from) of softmax and its losses."""
    rng = rng_for("labels", count, width)
    labels, g = rng.integers(0, width, count), rng.standard_normal(count)
    yield "softmax", lambda a, pick: tier.softmax(a[pick])
    yield "log_softmax", lambda a, pick: tier.log_softmax(a[pick])
    rows = rng.standard_normal((count, width))

    def adjoint(function):
        def of_rows(a, pick):
            y = np.where(np.isfinite(a), np.clip(a, -1, 0), a)
            return function(rows[pick].astype(a.dtype), y[pick])

        return of_rows

    yield "softmax_grad_a", adjoint(tier.softmax_grad_a)
    yield "log_softmax_grad_a", adjoint(tier.log_softmax_grad_a)
    yield (
        "softmax_cross_entropy",
        lambda a, pick: tier.softmax_cross_entropy(a[pick], labels[pick]),
    )
    yield (
        "softmax_cross_entropy_grad_logits",
        lambda a, pick: tier.softmax_cross_entropy_grad_logits(
            g[pick].astype(a.dtype), a[pick], labels[pick]
        ),
    )


@both_dtypes
def test_a_row_does_not_depend_on_its_batch(compiled, dtype):
    """The same bits alone, in any place of any batch, and for any number of threads."""
    for width in (*range(1, 41), 63, 64, 65, 100, 129, 515):
        count = 37
        a = odd_rows(count, width, dtype)
        for name, function in row_kernels(compiled, count, width):
            want = function(a, slice(None))
            for size in (1, 2, 3, 7, 15, 16, 17, 31):
                for first in range(0, count, 5):
                    pick = slice(first, first + size)
                    assert same_bits(function(a, pick), want[pick]), (name, width, pick)
            for pick in (slice(None, None, -1), np.arange(37) * 5 % 37):
                assert same_bits(function(a, pick), want[pick]), (name, width)


@both_dtypes
def test_a_row_does_not_depend_on_threads(compiled, dtype, set_num_threads):
    for width in (1, 2, 7, 10, 31, 32, 33, 40):
        count = 41 * (-(-70_000 // (41 * width)))
        a = np.tile(odd_rows(41, width, dtype), (count // 41, 1))
        for name, function in row_kernels(compiled, count, width):
            found = []
            for threads in (1, 2, 3, 5):
                set_num_threads(threads)
                found.append(function(a, slice(None)))
            assert all(same_bits(one, found[0]) for one in found), (name, width)
            set_num_threads(3)
            for first in (0, 1, 13, count - 50):
                pick = slice(first, first + 50)
                assert same_bits(function(a, pick), found[0][pick]), (name, width)


@both_dtypes
def test_rows_with_nan_and_infinity(tier, dtype):
    """Not a number where the definition says so, and right beside it."""
    for width in (*range(1, 41), 64, 65):
        count = 37
        a = odd_rows(count, width, dtype)
        exact = dict(row_kernels(reference, count, width))
        for name, function in row_kernels(tier, count, width):
            got = function(a, slice(None))
            want = exact[name](a.astype(np.longdouble), slice(None)).astype(dtype)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=f"{name} {width}")


# ------------------------------------------------------------------------------ wrong arguments

NO_ARRAYS = (None, 1, 1.5, "text", b"bytes", [1.0, 2.0], (), object(), range(3), np.float32(1))
ODD_SCALARS = (None, "text", b"b", [], object(), 1j, np.nan, np.inf, -1, 2**31, 2**63, 10**400)


def wrong_arrays(array):
    """(what, array) that does not fit, or must not be mistaken for one that does."""
    yield "an axis in front", array[None]
    yield "an axis at the end", array[..., None]
    yield "no axes", np.array(1, array.dtype)
    if array.ndim:
        yield "flat", array.ravel()
        yield "32 axes", array.reshape(array.shape + (1,) * (32 - array.ndim))
    for axis, size in enumerate(array.shape):
        yield f"empty along {axis}", array.take([], axis)
        if size:
            yield f"longer along {axis}", np.concatenate([array, array.take([0], axis)], axis)
            yield f"shorter along {axis}", array.take(range(size - 1), axis)
            yield f"one along {axis}", array.take([0], axis)
            yield f"index along {axis}", np.asarray(array.take(0, axis))
    for dtype in ("c16", "O", "U8", "M8[s]", "?", "f2", "i1", "u8"):
        yield dtype, array.astype("i8").astype(dtype)
    yield "structured", np.zeros(array.shape, [("x", array.dtype), ("y", "i4")])
    yield "void", np.zeros(array.shape, f"V{array.itemsize}")


def agrees_or_refuses(tier, got, want, may_refuse=False, refusals=REFUSALS):
    """As the reference; where that raises, or `may_refuse`, one of the exceptions promised."""
    if tier is reference:
        return True  # it raised, or is what others are compared with: there was no crash
    if isinstance(want, Exception) or (may_refuse and isinstance(got, Exception)):
        return isinstance(got, refusals)
    return not isinstance(got, Exception) and close(got, want)


def _refusal_report(got, want):
    return f"got {got!r:.500}, the reference {want!r:.500}"


@every_kernel
def test_wrong_arrays(tier, kernel):
    function = getattr(tier, kernel.name)

    def sweep(at):
        wrong = []
        for case in (0, 1):
            args = _args(kernel, np.float32, case)
            for path, array in arrays_in(args):
                for what, other in wrong_arrays(array):
                    at(kernel.name, kernel.cases[case][0], path, what)
                    tried = put(args, path, other)
                    got = attempt(kernel, function, tried)
                    want = attempt(kernel, kernel.oracle, tried)
                    # NumPy takes huge unsigned indices for negative ones, a scalar for a row, and
                    # whatever broadcasts for a gradient: nobody has to.
                    lax = what in ("u8", "no axes") or bool(kernel.writes)
                    # Arrays of objects are divided by Python.
                    refusals = (*REFUSALS, ZeroDivisionError)
                    if not agrees_or_refuses(tier, got, want, lax, refusals):
                        wrong.append(f"{path} {what}: {_refusal_report(got, want)}")
        assert not wrong, "\n".join(wrong)

    in_child(sweep, memory=2**31)


@every_kernel
def test_no_arrays(compiled, kernel):
    function = getattr(compiled, kernel.name)

    def sweep(at):
        args = _args(kernel, np.float32)
        wrong = []
        for path, _ in arrays_in(args):
            for other in NO_ARRAYS:
                at(kernel.name, path, other)
                got = attempt_directly(function, put(args, path, other))
                if kernel.name in ARITHMETIC or (kernel.name == "add_at" and path != (0,)):
                    # Here NumPy's own rules hold: operands, indices and addends need not be arrays.
                    want = attempt_directly(kernel.oracle, put(args, path, other))
                    fine = agrees_or_refuses(compiled, got, want, may_refuse=True)
                else:
                    fine = isinstance(got, TypeError) and kernel.name in str(got)
                if not fine:
                    wrong.append(f"{path} {other!r}: {got!r:.300}")
        assert not wrong, "\n".join(wrong)

    in_child(sweep, memory=2**31)


@every_kernel
def test_wrong_scalars(tier, kernel):
    """Shapes, axes, slopes, steps and rates that make no sense: refused, or as the reference."""
    function = getattr(tier, kernel.name)

    def sweep(at):
        args = list(_args(kernel, np.float32))
        arity = kernel.oracle.__code__.co_argcount
        args += list(kernel.oracle.__defaults__ or ())[len(args) - arity :] * (len(args) < arity)
        wrong = []
        for i, value in enumerate(args):
            if isinstance(value, (np.ndarray, Window)):
                continue
            odd = [*ODD_SCALARS, args[0]]
            if isinstance(value, tuple):
                odd += [(*value[:-1], one) for one in ODD_SCALARS]
                odd += [(*value, 0), (*value, -1), (2**40, 2**40), (1,) * 70, value[:-1]]
            if isinstance(value, list) and not isinstance(value[0], np.ndarray):
                odd += [[one] * len(value) for one in (*ODD_SCALARS, 0, 0.5)]
                odd += [value[:-1], [*value, 1], tuple(value)]
            for other in odd:
                at(kernel.name, i, repr(other)[:200])
                tried = put(args, (i,), other)
                got = attempt_directly(function, copy.deepcopy(tried))
                want = attempt_directly(kernel.oracle, copy.deepcopy(tried))
                # OverflowError is what Python says where no machine number is large enough.
                if not agrees_or_refuses(tier, got, want, True, (*REFUSALS, OverflowError)):
                    wrong.append(f"{i} {other!r:.100}: {_refusal_report(got, want)}")
        assert not wrong, "\n".join(wrong)

    in_child(sweep, memory=2**31)


@every_kernel
def test_wrong_number_of_arguments(tier, kernel):
    function = getattr(tier, kernel.name)
    args = _args(kernel, np.float32)
    for tried in ((), (*args,) * 5):
        with pytest.raises(TypeError):
            function(*tried)
    with pytest.raises(TypeError):
        function(*args, unknown=1)


FORGED = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 50, 257, 2**31 - 1, 2**31, 2**32 + 1, 2**62)
FORGED += (2**63 - 1, 2**63, 10**30, math.nan, 1.5, None, "3", [2])


@with_window()
def test_forged_windows(tier, kernel):
    """A window made by hand is no promise: kernels look for themselves."""
    function = getattr(tier, kernel.name)

    def sweep(at):
        wrong = []
        for case in (0, 1):
            args = _args(kernel, np.float32, case)
            windows = windows_in(args)
            for positions in [[i] for i in windows] + [windows] * (len(windows) > 1):
                for slot, name in enumerate(Window._fields):
                    for value in FORGED:
                        tried = args
                        for i in positions:
                            forged = list(args[i])
                            forged[slot] = value
                            tried = put(tried, (i,), Window._make(forged))
                        what = (positions, name, value)
                        _try_forged(tier, kernel, function, tried, what, at, wrong)
        assert not wrong, "\n".join(wrong)

    in_child(sweep, memory=2**31, seconds=100)


@both_dtypes
def test_windows_of_one_pixel_that_leave_pixels_out(tier, dtype):
    """No product of whole matrices: fewer outputs than pixels."""

    def sweep(at):
        rng = rng_for("one pixel")
        x, k = (rng.standard_normal(s).astype(dtype) for s in ((3, 10, 10, 20), (1, 1, 20, 33)))
        for oh, ow in ((5, 10), (10, 4), (1, 1)):
            at(oh, ow)
            window = Window._make((10, 10, 1, 1, 1, 1, 0, 0, oh, ow))
            g = rng.standard_normal((3, oh, ow, 33)).astype(dtype)
            for name, args in (
                ("conv2d", (x, k, window)),
                ("conv2d_grad_images", (g, k, window)),
                ("conv2d_grad_kernels", (g, x, window)),
            ):
                got = getattr(tier, name)(*args)
                assert compare(KERNELS[name], got, args, dtype) <= 1, (name, oh, ow)

    in_child(sweep)


@pytest.mark.parametrize("threads", (1, 3))
def test_an_index_into_padding_is_refused_in_every_image(tier, threads, set_num_threads):
    """The rows of one image that see whole windows end with it."""
    set_num_threads(threads)
    window = Window._make((10, 1, 3, 1, 1, 1, 1, 0, 2, 1))
    g, indices = np.ones((2, 2, 1, 1), np.float32), np.ones((2, 2, 1, 1), np.uint8)
    tier.maxpool2d_scatter(g, indices, window)
    for image in (0, 1):
        wrong = indices.copy()
        wrong[image, 0] = 0  # above the image
        with pytest.raises(IndexError):
            tier.maxpool2d_scatter(g, wrong, window)


@both_dtypes
@pytest.mark.parametrize("channels", (1, 3, 8, 21))
def test_scatter_of_negative_zeros(tier, dtype, channels):
    """A sum of -0.0 that begins with 0 is 0.0, wherever in memory it is."""
    for kernel, strides in (((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 3), (1, 1))):
        window = Window((9, 9), kernel, strides, "SAME")
        x = rng_for("zeros").standard_normal((2, 9, 9, channels)).astype(dtype)
        _, indices = tier.maxpool2d(x, window)
        g = np.full(indices.shape, -0.0, dtype)
        want = reference.maxpool2d_scatter(g, indices, window)
        assert same_bits(tier.maxpool2d_scatter(g, indices, window), want)


def _try_forged(tier, kernel, function, tried, what, at, wrong):
    at(kernel.name, *what)
    got = attempt(kernel, function, tried)
    if tier is reference:
        return
    want = attempt(kernel, kernel.oracle, tried)
    if not agrees_or_refuses(tier, got, want, may_refuse=True):
        wrong.append(f"{what}: {_refusal_report(got, want)}")


def random_window(rng):
    """Ten small numbers, mostly sensible one by one and seldom together."""
    low = -2 if rng.random() < 0.2 else 1
    h, w, kh, kw, sy, sx, oh, ow = map(int, rng.integers(low, 9, 8))
    top, left = map(int, rng.integers(-1, 6, 2))
    if rng.random() < 0.1:  # a pixel after the other, perhaps not all of them
        kh = kw = sy = sx = 1
        top = left = 0
    return [h, w, kh, kw, sy, sx, top, left, oh, ow]


def random_pooling(rng):
    """Two windows, the second over the outputs of the first; often there is nothing wrong."""
    first, second = random_window(rng), random_window(rng)
    if rng.random() < 0.6:
        size, kernel, strides = (tuple(map(int, rng.integers(1, 5, 2))) for _ in range(3))
        first = list(Window(size, kernel, strides, "SAME"))
    if rng.random() < 0.3:  # for Winograd's algorithm
        first = list(Window(tuple(map(int, rng.integers(3, 9, 2))), (3, 3), (1, 1), "VALID"))
    if rng.random() < 0.9:
        second[:2] = first[-2:]
    if rng.random() < 0.9:
        second[4:6] = np.maximum(second[2:4], second[4:6]).tolist()
    if rng.random() < 0.5 and min(second[:6]) > 0:
        sizes = [tuple(second[i : i + 2]) for i in (0, 2, 4)]
        second = list(Window(*sizes, "SAME"))
    return first, second


def forged_arguments(kernel, rng):
    """Arrays that have the shapes that windows claim, consistent or not, and these windows."""
    second, end = None, ()
    if "conv2d_maxpool2d" in kernel.name:
        forged, second = random_pooling(rng)
        ph, pw = (max(0, size) for size in second[-2:])
        end = (Window._make(second), 0.25)
    else:
        forged = random_window(rng)
    h, w, kh, kw, _, _, _, _, oh, ow = (max(0, size) for size in forged)
    n, c, m = (int(size) for size in rng.integers(1, 6, 3))
    if second:
        n, c, m = (17, 5 * c, 9 * m) if rng.random() < 0.8 else (n, c, m)
        most = max(1, second[2] * second[3]) if rng.random() < 0.9 else 256
        codes = rng.integers(0, most, (n, ph, pw, m)).astype(np.uint8)
        codes += 128 * rng.integers(0, 2, codes.shape).astype(np.uint8)
    images, outputs = (n, h, w, c), (n, oh, ow, c)

    def real(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    indices = rng.integers(0, max(1, kh * kw), outputs).astype(np.uint8)
    arrays = {
        "conv2d": lambda: [real(*images), real(kh, kw, c, m)],
        "conv2d_grad_images": lambda: [real(n, oh, ow, m), real(kh, kw, c, m)],
        "conv2d_grad_kernels": lambda: [real(n, oh, ow, m), real(*images)],
        "conv2d_maxpool2d": lambda: [real(*images), real(kh, kw, c, m)],
        "conv2d_maxpool2d_grad_images": lambda: [real(*codes.shape), codes, real(kh, kw, c, m)],
        "conv2d_maxpool2d_grad_kernels": lambda: [real(*codes.shape), codes, real(*images)],
        "patches_sum": lambda: [real(n, oh, ow, kh, kw, c)],
        "maxpool2d_gather": lambda: [real(*images), indices],
        "maxpool2d_scatter": lambda: [real(*outputs), indices],
        "avgpool2d_grad_images": lambda: [real(*outputs)],
    }.get(kernel.name, lambda: [real(*images)])()
    return (*arrays, Window._make(forged), *end)


@with_window()
def test_forged_windows_with_arrays_to_match(tier, kernel):
    function = getattr(tier, kernel.name)

    def sweep(at):
        rng = rng_for("forged", kernel.name)
        wrong = []
        for _ in range(400):
            args = forged_arguments(kernel, rng)
            what = [args[i] for i in windows_in(args)]
            with kernels.use_conv(str(rng.choice(["direct", "winograd"]))):
                _try_forged(tier, kernel, function, args, what, at, wrong)
        assert not wrong, "\n".join(wrong)

    in_child(sweep, memory=2**31, seconds=100)


@with_window()
def test_no_windows(tier, kernel):
    args = _args(kernel, np.float32)
    function = getattr(tier, kernel.name)

    def sweep(at):
        for position in windows_in(args):
            window = args[position]
            short = tuple.__new__(Window, tuple(window)[:4])
            long = tuple.__new__(Window, (*window, 1, 2))
            lying = type("Lying", (Window,), {"h": 10**6, "oh": property(lambda self: 10**6)})
            inside_out = lying._make(window)
            for other in (None, 3, "window", tuple(window)[:3], [], object(), args[0]):
                at(kernel.name, position, repr(other)[:100])
                got = attempt_directly(function, put(args, (position,), other))
                assert isinstance(got, Exception)
                assert tier is reference or isinstance(got, REFUSALS), repr(got)
            for other in (short, long, inside_out, tuple(window), list(window)):
                at(kernel.name, position, type(other), len(other))
                attempt_directly(function, put(args, (position,), other))

    in_child(sweep, memory=2**31)


@pytest.mark.parametrize("kernel", [(2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (3, 2**30)])
def test_windows_far_larger_than_images(tier, kernel):
    """Allowed with padding "SAME": only cells that lie on the image may cost time or memory."""

    def sweep(at):
        window = Window((3, 4), kernel, (1, 2), "SAME")
        images = rng_for(kernel).standard_normal((2, 3, 4, 5)).astype(np.float32)
        pooled = images[:, :, :2].copy()
        indices = reference.maxpool2d(images, window)[1]
        assert (window.oh, window.ow) == (3, 2)
        for name, arrays in {
            "maxpool2d": (images,),
            "maxpool2d_gather": (images, indices),
            "maxpool2d_scatter": (pooled, indices),
            "avgpool2d": (images,),
            "avgpool2d_grad_images": (pooled,),
        }.items():
            at(name, window)
            args = (*arrays, window)
            got = KERNELS[name].run(getattr(tier, name), args)
            assert compare(KERNELS[name], got, args, np.float32) <= 1
        for name, arrays in {
            "conv2d": (images, np.ones((3, 3, 5, 2), np.float32)),
            "conv2d_grad_kernels": (pooled, images),
            "patches": (images,),
        }.items():
            at(name, window)
            got = attempt_directly(getattr(tier, name), (*arrays, window))
            assert name == "patches" or isinstance(got, REFUSALS) or got[0].size < 2**28

    in_child(sweep, memory=2**31, seconds=20)


def test_images_that_are_empty(tier):
    """No images, or no channels: an empty result, as in the reference, or a ValueError."""
    window = Window((4, 5), (2, 3), (1, 2), "SAME")
    n_o = (window.oh, window.ow)
    pool = Window(n_o, (2, 2), (2, 2), "SAME")
    p_o = (pool.oh, pool.ow)
    sizes = ((0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 0, 0), (17, 0, 2), (17, 3, 0), (17, 0, 0))
    for n, c, m in sizes:
        images, g = np.ones((n, 4, 5, c), np.float32), np.ones((n, *n_o, m), np.float32)
        weights, pooled = np.ones((2, 3, c, m), np.float32), np.ones((n, *n_o, c), np.float32)
        indices = np.ones(pooled.shape, np.uint8)
        gp, codes = np.ones((n, *p_o, m), np.float32), np.zeros((n, *p_o, m), np.uint8)
        for name, arrays in {
            "conv2d_maxpool2d": (images, weights),
            "conv2d_maxpool2d_grad_images": (gp, codes, weights),
            "conv2d_maxpool2d_grad_kernels": (gp, codes, images),
            "conv2d": (images, weights),
            "conv2d_grad_images": (g, weights),
            "conv2d_grad_kernels": (g, images),
            "patches": (images,),
            "patches_sum": (np.ones((n, *n_o, 2, 3, c), np.float32),),
            "maxpool2d": (images,),
            "maxpool2d_gather": (images, indices),
            "maxpool2d_scatter": (pooled, indices),
            "avgpool2d": (images,),
            "avgpool2d_grad_images": (pooled,),
        }.items():
            args = (*arrays, window, *((pool, 0.25) if "conv2d_max" in name else ()))
            got = attempt(KERNELS[name], getattr(tier, name), args)
            want = attempt(KERNELS[name], getattr(reference, name), args)
            if isinstance(want, Exception):
                assert isinstance(got, ValueError), name
            else:
                assert isinstance(got, ValueError) or close(got, want), f"{name} {n, c, m}: {got!r}"


# ------------------------------------------------------------------------------ wrong numbers


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "softmax_cross_entropy_grad_logits"])
def test_labels(tier, name):
    function = getattr(tier, name)
    logits, g = np.ones((3, 4), np.float32), np.ones(3, np.float32)
    more = (g,) if "grad" in name else ()

    def sweep(at):
        for bad in (-1, 4, 5, 2**31, -(2**31), 2**32, 2**32 + 1, 2**63 - 1, -(2**63)):
            for position in range(3):
                at(bad, position)
                labels = np.zeros(3, np.int64)
                labels[position] = bad
                with pytest.raises(IndexError):
                    function(*more, logits, labels)
        with pytest.raises(IndexError):
            function(*more, logits, np.array([0, 2**64 - 1, 0], np.uint64))
        with pytest.raises(IndexError):
            function(*more, logits, np.array([0, 255, 0], np.uint8))
        with pytest.raises(IndexError):
            function(*more, logits, np.array([0, -1, 0], np.int8))
        for dtype in (float, bool, object, complex, "U1"):
            at(dtype)
            with pytest.raises(TypeError):
                function(*more, logits, np.zeros(3, dtype))
        for labels in (
            np.zeros(2, int),
            np.zeros(4, int),
            np.zeros((3, 1), int),
            np.zeros((), int),
        ):
            at(labels.shape)
            with pytest.raises(ValueError, match=r"\("):
                function(*more, logits, labels)
        with pytest.raises(IndexError):
            function(*more, logits[:, :0], np.zeros(3, int))
        with pytest.raises(ValueError, match=r"\("):
            function(*more, logits[0], np.zeros(4, int))

    in_child(sweep)


@pytest.mark.parametrize("name", ["take", "add_at"])
@both_dtypes
def test_indices_out_of_range(tier, name, dtype):
    function = getattr(tier, name)
    table = np.ones((5, 3), dtype)

    def sweep(at):
        for bad in (5, 6, -6, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63)):
            for position in (0, 3, 6):
                at(bad, position)
                indices = np.zeros(7, np.int64)
                indices[position] = bad
                more = (np.ones((7, 3), dtype),) if name == "add_at" else ()
                with pytest.raises(IndexError):
                    function(table, indices, *more)
        two = (np.ones((2, 3), dtype),) if name == "add_at" else ()
        for indices in (np.array([0, 200], np.uint8), np.array([0, -6], np.int8)):
            at(indices)
            with pytest.raises(IndexError):
                function(table, indices, *two)
        for bad in (2**64 - 1, 2**64 - 5, 2**63):
            # NumPy takes these for negative numbers.
            args = (table, np.array([0, bad], np.uint64), *two)
            got = attempt_directly(function, args)
            want = attempt_directly(getattr(reference, name), args)
            assert isinstance(got, (IndexError, TypeError)) or close(got, want), got
        with pytest.raises(IndexError):
            more = (np.ones((1, 3), dtype),) if name == "add_at" else ()
            function(table[:0], np.zeros(1, np.int64), *more)

    in_child(sweep)


def test_take_needs_integers(tier):
    table = np.ones((5, 3), np.float32)
    for indices in (np.zeros(2), np.zeros(5, bool), np.zeros((2, 2), int), np.zeros((), int)):
        with pytest.raises((ValueError, TypeError)):
            tier.take(table, indices)
    with pytest.raises((ValueError, TypeError, IndexError)):
        tier.take(np.array(1.0, np.float32), np.zeros(1, int))


@pytest.mark.parametrize("name", ["maxpool2d_gather", "maxpool2d_scatter"])
@both_dtypes
def test_pooling_indices(tier, name, dtype):
    """Indices may come from anywhere: none may reach beyond its window or beyond the image."""
    function, oracle = getattr(tier, name), getattr(reference, name)
    window = Window((5, 5), (3, 3), (2, 2), "SAME")  # the first window sees padding above and left
    images = rng_for(name).standard_normal((2, 5, 5, 9)).astype(dtype)
    first = images if "gather" in name else images[:, :3, :3].copy()
    shape = (2, window.oh, window.ow, 9)

    def sweep(at):
        for index_dtype in (np.uint8, np.int64, np.int32, np.uint64, np.int8):
            good = np.full(shape, 4, index_dtype)
            got, want = function(first, good, window), oracle(first, good, window)
            assert close([got], [want]), index_dtype
            info = np.iinfo(index_dtype)
            for bad in (9, 10, 100, 255, -1, -9, 2**31, 2**32 + 4, 2**62, info.max, info.min, 0):
                if not info.min <= bad <= info.max or (bad == 0 and info.min == 0):
                    bad = 9
                for position in ((0, 0, 0, 0), (1, 2, 2, 8), (1, 0, 1, 7), (0, 1, 1, 4)):
                    at(index_dtype, bad, position)
                    indices = good.copy()
                    indices[position] = bad
                    if bad == 0 and position[1] and position[2]:
                        continue  # cell 0 is padding in the first row and column only
                    with pytest.raises(IndexError):
                        function(first, indices, window)
        for cell in range(9):
            for oy in range(3):
                for ox in range(3):
                    indices = np.full(shape, 4, np.uint8)
                    indices[1, oy, ox, 3] = cell
                    at(cell, oy, ox)
                    got = attempt_directly(function, (first, indices, window))
                    want = attempt_directly(oracle, (first, indices, window))
                    if isinstance(want, Exception):
                        assert isinstance(got, IndexError)
                    else:
                        assert close(got, want)

    in_child(sweep)


def test_shapes_that_do_not_broadcast(tier):
    a = np.ones((3, 4), np.float32)
    for shape in ((3,), (4, 3), (2, 4), (3, 4, 1), (0, 4), (3, 0), (-1, 4), (2**31, 4), (2**63, 4)):
        with pytest.raises(REFUSALS):
            tier.sum_to(a, shape)
    for shape in ((3,), (4,), (3, 5), (3, 4, 1), (0, 4), (-1, 4), (2**62, 3, 4), (2**63, 3, 4), ()):
        with pytest.raises(REFUSALS):
            tier.broadcast_to(a, shape)
    with pytest.raises(ValueError, match=r"\d"):
        tier.matmul(a, a)
    with pytest.raises(ValueError, match=r"\d"):
        tier.matmul(np.ones((2, 3, 4), np.float32), np.ones((3, 4, 5), np.float32))
    with pytest.raises(ValueError, match=r"."):
        tier.matmul(np.array(1, np.float32), a)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_grad_a", "log_softmax_grad_a"])
def test_axes(tier, name):
    function = getattr(tier, name)
    count = 2 if name.endswith("_grad_a") else 1
    a = (np.ones((2, 3, 4), np.float32),) * count
    for axis in (0, 1, 2, -1, -2, -3, np.int64(1)):
        assert close([function(*a, axis)], [getattr(reference, name)(*a, int(axis))])
    for axis in (3, -4, 2**31, -(2**31), 2**63 - 1):
        with pytest.raises((ValueError, IndexError)):  # NumPy's AxisError is both
            function(*a, axis)
    for axis in (1.0, "1", 1j):
        with pytest.raises(TypeError):
            function(*a, axis)
    with pytest.raises(ValueError, match=r"\w"):
        function(*(np.ones((2, 0), np.float32),) * count)
    got = attempt_directly(function, (np.array(3, np.float32),) * count)
    assert isinstance(got, REFUSALS) or got[0] == (1 if name == "softmax" else 0)


@pytest.mark.parametrize("name", ["softmax_grad_a", "log_softmax_grad_a"])
def test_adjoints_of_softmax_want_g_of_the_same_shape(tier, name):
    y = np.ones((2, 3), np.float32)
    for shape in ((3,), (2, 1), (2, 4), (3, 2), (2, 3, 1), ()):
        with pytest.raises(ValueError, match=name):
            getattr(tier, name)(np.ones(shape, np.float32), y)
    got = getattr(tier, name)(np.ones((2, 3)), y)  # each in its own dtype, as NumPy does
    assert got.dtype == np.float64


@both_dtypes
def test_exp_of_any_y(tier, dtype):
    """log_softmax gives nothing above 0, but the adjoint is right there too."""
    lowest = -110 if dtype == np.float32 else -760
    kernel = KERNELS["log_softmax_grad_a"]
    for n in (7, 31, 33, 513, 515):
        for highest in (0, 1e-30, 3, 80):
            y = np.linspace(lowest, highest, n).astype(dtype)
            for order in (1, -1):
                args = (np.ones(n, dtype), y[::order].copy())
                assert compare(kernel, tier.log_softmax_grad_a(*args), args, dtype) <= 1


# ------------------------------------------------------------------------------ hostile objects


def liars(array):
    """Views that say something else of themselves in Python than their buffers hold."""
    other = np.dtype({4: np.float64, 8: np.float32}.get(array.itemsize, np.int64))
    claims = [{"dtype": other}, {"dtype": np.dtype(object)}, {"size": 10**9}, {"size": 1}]
    if array.ndim:
        first, *rest = array.shape
        for size in (2 * first + 3, first // 2, 10**6, 0):
            claims += [{"shape": (size, *rest)}, {"shape": (*array.shape[:-1], size)}]
        claims += [{"shape": (10**6,) * array.ndim}, {"shape": (), "ndim": 0}]
        claims += [{"strides": (10**6,) * array.ndim}, {"ndim": array.ndim + 1}]
        claims += [{"strides": (10**6,) * array.ndim, "shape": (7 * first, *rest)}]
    claims += [{"shape": (1,) * 9, "ndim": 9, "dtype": other}]
    claims += [{"flags": SimpleNamespace(c_contiguous=True, aligned=True, writeable=True)}]
    for claim in claims:
        as_said = {name: property(lambda self, value=value: value) for name, value in claim.items()}
        liar = type("Liar", (np.ndarray,), as_said)
        yield claim, array.view(liar)
        if array.ndim:
            yield f"{claim} of every second", spread(array, 0, 2).view(liar)


class Spoiler:
    """A number that, on being asked for its value, does something else first."""

    def __init__(self, value, action):
        self.value, self.action = value, action

    def __index__(self):
        self.action()
        return self.value

    __int__ = __index__

    def __float__(self):
        self.action()
        return float(self.value)


def _shrink(array):
    try:
        array.resize((0,), refcheck=False)
    except ValueError:
        pass  # it is held by somebody: the best answer


def test_arguments_that_change_arrays(tier):
    def sweep(at):
        for dtype in (np.float32, np.float64):
            a = np.ones((64, 64), dtype)
            at("sum_to")
            attempt_directly(tier.sum_to, (a, (Spoiler(64, lambda a=a: _shrink(a)), 1)))
            a = np.ones((64, 1), dtype)
            at("broadcast_to")
            attempt_directly(tier.broadcast_to, (a, (64, Spoiler(64, lambda a=a: _shrink(a)))))
            for name in ("softmax", "log_softmax", "softmax_grad_a", "log_softmax_grad_a"):
                a = np.ones((64, 64), dtype)
                at(name)
                spoiler = Spoiler(1, lambda a=a: _shrink(a))
                arrays = (a, a) if name.endswith("_grad_a") else (a,)
                attempt_directly(getattr(tier, name), (*arrays, spoiler))
            a, g = np.ones((64, 64), dtype), np.ones((64, 64), dtype)
            at("leaky_relu")
            attempt_directly(tier.leaky_relu, (a, Spoiler(1, lambda a=a: _shrink(a))))
            at("leaky_relu_grad_a")
            attempt_directly(tier.leaky_relu_grad_a, (g, g, Spoiler(1, lambda g=g: _shrink(g))))
            for kernel in KERNELS.values():
                for position in windows_in(_args(kernel, dtype)):
                    for slot in range(10):
                        at(kernel.name, position, slot)
                        args = _args(kernel, dtype)
                        spoilt = list(args[position])
                        spoilt[slot] = Spoiler(
                            spoilt[slot], lambda args=args: [_shrink(a) for _, a in arrays_in(args)]
                        )
                        tried = put(args, (position,), Window._make(spoilt))
                        attempt_directly(getattr(tier, kernel.name), tried)

    in_child(sweep, memory=2**31)


def test_adam_step_with_lists_that_change(tier):
    def sweep(at):
        for dtype in (np.float32, np.float64):
            for i in range(5):
                for replacement in ([], [None] * 2, [np.ones(1, dtype)] * 2):
                    at(dtype, i, replacement)
                    args = list(_args(KERNELS["adam_step"], dtype))
                    args = [list(one) if isinstance(one, list) else one for one in args]

                    def action(args=args, i=i, replacement=replacement):
                        args[i][:] = replacement

                    args[4][0] = Spoiler(3, action)
                    attempt_directly(tier.adam_step, args)
                    args = list(_args(KERNELS["adam_step"], dtype))
                    for rate in range(5, 9):
                        args[rate] = Spoiler(1, action)
                    attempt_directly(tier.adam_step, args)

    in_child(sweep, memory=2**31)


# ------------------------------------------------------------------------------ Adam


def adam_arguments(dtype=np.float32):
    return [list(a) if isinstance(a, list) else a for a in _args(KERNELS["adam_step"], dtype)]


def _state(args):
    return [hash(array.tobytes()) for array in (*args[2], *args[3])]


@both_dtypes
@pytest.mark.parametrize("position", range(5))
def test_adam_step_refuses_lists_of_other_lengths(tier, position, dtype):
    for change in (lambda one: one[:1], lambda one: [*one, one[0]], lambda one: []):
        args = adam_arguments(dtype)
        before = _state(args)
        args[position] = change(args[position])
        with pytest.raises(REFUSALS):
            tier.adam_step(*args)
        assert not set(_state(args)) - set(before), "the state was changed before the refusal"


@both_dtypes
@pytest.mark.parametrize("position", range(4))
def test_adam_step_refuses_arrays_of_other_shapes(tier, position, dtype):
    for change in (lambda a: a[:-1], lambda a: a[:1], lambda a: a[None], lambda a: a[:0]):
        args = adam_arguments(dtype)
        args[position][1] = change(args[position][1])
        before = _state(args)
        with pytest.raises(REFUSALS):
            tier.adam_step(*args)
        assert _state(args) == before, "the state was changed before the refusal"


@both_dtypes
@pytest.mark.parametrize("position", [2, 3])
def test_adam_step_refuses_a_state_that_cannot_be_written(tier, position, dtype):
    args = adam_arguments(dtype)
    args[position][1] = read_only(args[position][1])
    before = _state(args)
    with pytest.raises(REFUSALS):
        tier.adam_step(*args)
    assert _state(args) == before, "the state was changed before the refusal"


@both_dtypes
@pytest.mark.parametrize("position", [2, 3])
def test_adam_step_writes_into_any_layout(tier, position, dtype):
    for name in (n for n, _ in layouts(np.ones((3, 4)))):
        args = adam_arguments(dtype)
        other = dict(layouts(args[position][0]))[name]
        if not other.flags.writeable:
            continue
        other[...] = args[position][0]
        want = KERNELS["adam_step"].run(tier.adam_step, args)
        args[position][0] = other
        got = tier.adam_step(*args)
        assert close([*got, *args[2], *args[3]], want), name
        assert args[position][0] is other


@both_dtypes
def test_adam_step_over_many_steps(tier, dtype):
    """Two runs of 50 steps, one of them in float64 by the oracle, stay together."""
    rng = rng_for("adam")
    shapes = ((5, 3), (7,))
    wide = [[rng.standard_normal(s) for s in shapes], *([np.zeros(s) for s in shapes],) * 1]
    p64, m64, v64 = wide[0], wide[1], [np.zeros(s) for s in shapes]
    p, m, v = ([a.astype(dtype) for a in one] for one in (p64, m64, v64))
    for t in range(1, 51):
        gradients = [np.sin(a * t) for a in p64]
        rates = ([t] * 2, 0.01, 0.9, 0.999, 1e-8)
        p = tier.adam_step(p, [a.astype(dtype) for a in gradients], m, v, *rates)
        p64 = reference.adam_step(p64, gradients, m64, v64, *rates)
    for a, b in zip(p, p64):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@both_dtypes
@pytest.mark.parametrize("beta1, beta2", [(0.9, 0.999), (0.5, 0.99999), (0.0, 0.99999999)])
def test_adam_step_rounds_no_beta(tier, beta1, beta2, dtype):
    """Means over thousands of gradients: a rounded beta would shift all of them one way."""
    rng = rng_for("beta")
    m, v = np.zeros(256, dtype), np.zeros(256, dtype)
    m64, v64 = np.zeros(256), np.zeros(256)
    p = np.zeros(256, dtype)
    for t in range(1, 2001):
        g = rng.uniform(0.5, 1.5, 256).astype(dtype)
        tier.adam_step([p], [g], [m], [v], [t], 0.01, beta1, beta2, 1e-8)
        m64 = beta1 * m64 + (1 - beta1) * g.astype(float)
        v64 = beta2 * v64 + (1 - beta2) * np.square(g.astype(float))
    for mean, wide in ((m, m64), (v, v64)):
        assert abs(np.mean(mean / wide - 1)) <= np.finfo(dtype).eps


def test_adam_step_with_zero_gradients(tier):
    args = adam_arguments()
    for i in (1, 2, 3):
        args[i] = [np.zeros_like(a) for a in args[i]]
    for new, old in zip(tier.adam_step(*args), args[0]):
        np.testing.assert_array_equal(new, old)


def test_adam_step_refuses_steps_before_the_first(compiled):
    for step in (0, -1, -(2**63)):
        args = adam_arguments()
        args[4] = [step] * 2
        before = _state(args)
        with pytest.raises(REFUSALS):
            compiled.adam_step(*args)
        assert _state(args) == before


# ------------------------------------------------------------------------------ any size at all

sizes = st.integers(1, 9)
channels = st.integers(1, 40)


@st.composite
def geometries(draw):
    h, w = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    padding = draw(st.sampled_from(["SAME", "VALID"]))
    most = (h, w) if padding == "VALID" else (7, 7)
    kh, kw = draw(st.integers(1, min(5, most[0]))), draw(st.integers(1, min(5, most[1])))
    return (h, w, kh, kw, draw(st.integers(1, 4)), draw(st.integers(1, 4)), padding)


@st.composite
def broadcasts(draw):
    large = tuple(draw(st.lists(st.integers(0, 6), max_size=6)))
    small = tuple(1 if draw(st.booleans()) else size for size in large)
    return large, small[draw(st.integers(0, len(small))) :] if 1 not in large else small


@st.composite
def pairs(draw):
    """Shapes that broadcast, as a rule to some ten thousand results."""
    shape = [draw(st.sampled_from([1, 2, 3, 5, 10, 17, 40, 100])) for _ in range(4)]
    shape[draw(st.integers(0, 3))] = draw(st.integers(0, 300))
    while math.prod(shape) > 200_000:
        shape.remove(max(shape))
    one, two = (tuple(1 if draw(st.booleans()) else size for size in shape) for _ in "ab")
    return one[draw(st.integers(0, len(one))) :], two


@st.composite
def products(draw):
    m, k, n = (draw(st.integers(0, 40)) for _ in range(3))
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    alone = [tuple(1 if draw(st.booleans()) else size for size in batch) for _ in "ab"]
    a, b = (shape[draw(st.integers(0, len(shape))) :] for shape in alone)
    vectors = draw(st.sampled_from([(False, False)] * 3 + [(True, False), (False, True)]))
    a_shape = (k,) if vectors[0] else (*a, m, k)
    b_shape = (k,) if vectors[1] else (*b, k, n)
    flips = [draw(st.booleans()) and len(shape) > 1 for shape in (a_shape, b_shape)]
    return a_shape, b_shape, *flips, not vectors[1] and draw(st.booleans())


shapes = st.lists(st.integers(0, 8), max_size=4).map(tuple)


@st.composite
def rows(draw):
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return shape, axis, draw(st.sampled_from([1, 5, 100]))


@st.composite
def pooled(draw):
    """A convolution, and a pooling of its outputs whose windows do not overlap."""
    geometry = draw(geometries())
    window = Window(geometry[:2], geometry[2:4], geometry[4:6], geometry[6])
    padding = draw(st.sampled_from(["SAME", "VALID"]))
    kernel = [draw(st.integers(1, min(4, size))) for size in (window.oh, window.ow)]
    strides = [size + draw(st.integers(0, 2)) for size in kernel]
    n = draw(sizes | st.integers(16, 20))
    return n, draw(channels), geometry, draw(channels), *kernel, *strides, padding


indices = st.sampled_from([np.int64, np.int32, np.uint8, np.int8, np.uint64])
convolutions = st.tuples(sizes, channels, geometries(), channels)
pools = st.tuples(sizes, channels, geometries())
elements = st.tuples(shapes, st.sampled_from([(), (0.0,), (0.5,), (-2.0,)]))
losses = st.tuples(st.integers(0, 9), st.integers(1, 40), indices, st.sampled_from([1, 30]))
tables = st.tuples(
    st.tuples(st.integers(1, 9)) | st.tuples(st.integers(1, 9), channels) | st.just((3, 2, 5)),
    st.integers(0, 20),
    indices,
)
adams = st.tuples(st.lists(shapes.filter(len), max_size=3).map(tuple), st.integers(1, 10**6))

SPECS = {
    "matmul": products(),
    "conv2d": convolutions,
    "conv2d_grad_images": convolutions,
    "conv2d_grad_kernels": convolutions,
    "conv2d_maxpool2d": pooled(),
    "conv2d_maxpool2d_grad_images": pooled(),
    "conv2d_maxpool2d_grad_kernels": pooled(),
    "patches": pools,
    "patches_sum": pools,
    "maxpool2d": pools,
    "maxpool2d_gather": pools,
    "maxpool2d_scatter": pools,
    "avgpool2d": pools,
    "avgpool2d_grad_images": pools,
    "sum_to": broadcasts(),
    "broadcast_to": broadcasts(),
    **dict.fromkeys(ARITHMETIC, pairs()),
    "leaky_relu": elements,
    "leaky_relu_grad_a": elements,
    "softmax": rows(),
    "log_softmax": rows(),
    "softmax_grad_a": rows(),
    "log_softmax_grad_a": rows(),
    "softmax_cross_entropy": losses,
    "softmax_cross_entropy_grad_logits": losses,
    "add_at": tables,
    "take": tables,
    "adam_step": adams,
}


@st.composite
def laid_out(draw, array, byte_orders):
    """The same values, laid out in some way."""
    how = draw(st.integers(0, 7 if byte_orders else 6))
    axis = draw(st.integers(0, max(0, array.ndim - 1)))
    if how == 0 or (array.ndim == 0 and how in (2, 3)):
        return array
    if how == 1:
        return np.array(array, order="F")
    if how == 2:
        return spread(array, axis, draw(st.sampled_from([2, -1, -2])))
    if how == 3:
        return swapped_axes(array, axis, -1)
    if how == 4:
        return interior(array) if draw(st.booleans()) else read_only(array)
    if how == 5:
        return unaligned(array) if draw(st.booleans()) else offset(array, draw(st.integers(1, 15)))
    if how == 6:
        return meaningless(array)
    return byteswapped(array)


@every_kernel
def test_any_size_and_layout(tier, kernel):
    def sweep(at):
        @settings(max_examples=10)
        @given(data=st.data())
        def check(data):
            dtype = data.draw(st.sampled_from([np.float32, np.float64]))
            spec = data.draw(SPECS[kernel.name])
            at(kernel.name, np.dtype(dtype), spec)
            args = kernel.make(spec, np.random.default_rng(data.draw(st.integers(0, 99))), dtype)
            tried = args
            for path, array in arrays_in(args):
                byte_orders = tier is not reference and path[0] not in kernel.writes
                tried = put(tried, path, data.draw(laid_out(array, byte_orders)))
            # Most of a gradient that comes through a pooling is 0, and so may its sums be.
            sparse = kernel.name.startswith("conv2d_maxpool2d_grad")
            with kernels.use_conv("direct" if sparse else "auto"):
                got = kernel.run(getattr(tier, kernel.name), tried)
            error = compare(kernel, got, args, dtype)
            assert error <= 1

        check()

    in_child(sweep, seconds=100)


def test_add_at_takes_indices_in_any_order(tier):
    """Indices in Fortran order pair with b as they stand, not as they lie in memory."""
    index = np.array([[0, 1, 2], [3, 4, 5]])
    b = np.arange(6, dtype=np.float32).reshape(2, 3)
    for other in (index, np.asfortranarray(index), index.T.copy().T, index[:, ::-1][:, ::-1]):
        got = tier.add_at(np.zeros(10, np.float32), other, b)
        assert got.tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0]
