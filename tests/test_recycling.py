"""Memory of large results is handed out again: aligned, bounded, never to two at once."""

import gc
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import SANITIZER, in_child, needs_fork, rng_for
from test_kernels import arrays_in
from test_memory import shared_work

import smallpebble as sp
from smallpebble.kernels import _alloc
from smallpebble.kernels.catalogue import KERNELS, NAMES, same_bits

memory = pytest.importorskip("smallpebble.kernels._memory")

SMALLEST = 16384  # bytes: what is smaller is NumPy's own
HEADER = 64  # bytes in front of an array
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=NAMES)


@pytest.fixture(autouse=True)
def _nothing_kept():
    gc.collect()
    memory.release()
    yield
    gc.collect()
    memory.release()


def used():
    return memory.held()[0]


def kept():
    return memory.held()[1]


def bound(most):
    """What may be held where so much has been in use at once."""
    return most + most // 4 + (4 << 20)


def new(nbytes, value=None):
    array = memory.empty((nbytes,), np.dtype(np.uint8))
    if value is not None:
        array[...] = value
    return array


def sizes():
    """Around every border of two classes of size, and of large pages."""
    for power in range(14, 24):
        for eighth in range(8, 16):
            border = (eighth << power) // 8
            yield from (border - HEADER - 1, border - HEADER, border - HEADER + 1, border)
    yield from (2**21 - HEADER, 2**21, 2**25 + 5, 2**26)


def test_large_arrays_are_aligned_and_fit():
    for nbytes in sizes():
        before = used()
        array = new(nbytes, 7)
        assert array.nbytes == nbytes
        assert array.flags.owndata and array.flags.writeable and array.flags.c_contiguous
        if nbytes < SMALLEST:
            assert used() == before
            continue
        assert array.ctypes.data % 64 == 0
        assert nbytes + HEADER <= used() - before <= 1.125 * (nbytes + HEADER) + 512
        del array
        assert used() == before


def test_results_of_kernels_come_from_here():
    a = np.ones((64, 64), np.float32)
    before = used()
    y = sp.kernels.matmul(a, a)
    if sp.kernels.active() != "reference":
        assert used() > before and y.ctypes.data % 64 == 0
    del y
    assert used() == before


def test_small_arrays_do_not():
    before = memory.held()
    for shape in ((), (0,), (3, 0, 2**40), (SMALLEST - 1,)):
        array = memory.empty(shape, np.dtype(np.uint8))
        assert array.shape == shape
    assert memory.held() == before


def test_memory_is_handed_out_again():
    for nbytes in (SMALLEST, 100_000, 5 << 20):
        array = new(nbytes + 8)
        address = array.ctypes.data
        del array
        assert kept() >= nbytes
        others = [new(nbytes)]
        assert others[0].ctypes.data == address
        others.append(new(nbytes))
        assert others[1].ctypes.data != address
        del others


def test_live_arrays_share_nothing():
    rng = rng_for("apart")
    live = []
    for i in range(600):
        live.append((i % 251, new(int(rng.choice([SMALLEST, 17000, 20000, 70000])), i % 251)))
        for _ in range(int(rng.integers(0, 3))):
            if live:
                value, array = live.pop(int(rng.integers(len(live))))
                assert np.all(array == value)
    for value, array in live:
        assert np.all(array == value)
    places = sorted((a.ctypes.data, a.nbytes) for _, a in live)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(places))


def test_little_more_is_held_than_was_once_in_use():
    rng = rng_for("bound")
    live, most = [], 0
    for _ in range(1500):
        if rng.random() < 0.5 and len(live) > 1:
            live.pop(int(rng.integers(len(live))))
        else:
            live.append(new(int(np.exp(rng.uniform(np.log(SMALLEST), np.log(3e6))))))
        most = max(most, used())
        in_use, waiting, said = memory.held()
        assert said == most
        assert in_use + waiting <= bound(most)
        assert sum(a.nbytes + HEADER for a in live) <= in_use
        if len(live) > 30:
            del live[::2]
    del live
    assert used() == 0


def test_steps_of_a_few_sizes_find_their_memory_again():
    last = new(600_000)
    for step in range(20):
        new(150_000)  # is gone at once
        last = new(600_000)  # while the last step's is still there
        assert step < 2 or kept() >= 750_000
    del last


def test_release_gives_everything_back():
    arrays = [new(100_000 * i) for i in range(1, 9)]
    in_use = used()
    del arrays[::2]
    assert kept() > 0
    sp.release_memory()
    assert memory.held() == (used(), 0, used())
    assert 0 < used() < in_use
    del arrays
    sp.release_memory()
    assert memory.held() == (0, 0, 0)
    sp.release_memory()


def test_release_frees_scratch_as_well():
    a = np.ones((400, 400), np.float32)
    sp.kernels.matmul(a, a)
    sp.release_memory()
    pool = pytest.importorskip("smallpebble.kernels._pool")
    before = pool.scratch_bytes()
    sp.kernels.matmul(a, a)
    if sp.kernels.active() != "reference":
        assert pool.scratch_bytes() > before
    sp.release_memory()
    assert pool.scratch_bytes() == before


def test_show_config_says_what_is_held(capsys):
    array = new(3 << 20)
    config = sp.show_config("dict")
    assert config["memory of results"]["in use"] == f"{used() / 2**20:.1f} MiB"
    assert used() > array.nbytes
    assert set(config["memory of results"]) == {"in use", "kept", "most in use at once"}
    assert config["scratch memory"].endswith(" MiB")
    sp.show_config()
    printed = capsys.readouterr().out
    assert f"in use     {config['memory of results']['in use']}" in printed
    assert "scratch memory" in printed


@pytest.mark.parametrize("nbytes", [2**46, 2**50, 2**62, 2**63 - 4096, 2**63 - 64, 2**63 - 1])
def test_absurd_sizes_are_a_memory_error(nbytes):
    before = memory.held()
    with pytest.raises((MemoryError, ValueError)):
        new(nbytes)
    with pytest.raises((MemoryError, ValueError)):
        memory.empty((2**31, 2**31, 2**31), np.dtype(np.float64))
    assert memory.held()[0] == before[0]
    new(SMALLEST)


def test_a_size_that_was_refused_is_not_remembered():
    """A request that failed was never in use, so it lets no more be kept."""
    memory.release()

    def refused(at):
        with pytest.raises(MemoryError):
            new(2**33)
        assert memory.held()[2] < 2**33

    in_child(refused, memory=2**31)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory")
def test_what_is_kept_is_given_back_before_a_request_fails():
    def fill(at):
        new(700 << 20)  # so much may be held from now on
        new(250 << 20)  # both would be too much
        assert kept() < 300 << 20
        small = new(20 << 20)
        others = np.empty(560 << 20, np.uint8)  # NumPy's own
        blocks = [new(10 << 20) for _ in range(30)]
        del blocks
        assert kept() > 300 << 20
        array = new(350 << 20)
        assert array.size + small.size + others.size == 930 << 20

    in_child(fill, memory=1000 << 20)


def test_resized_arrays_keep_their_numbers():
    for start in (SMALLEST, 50_000, 3 << 20):
        array = new(start)
        array[...] = np.resize(np.arange(251, dtype=np.uint8), start)
        for size in (start * 2, start * 2 + 1, start // 2, 100, start, 3, 5 << 20, 0, SMALLEST):
            old = array.copy()
            array.resize((size,), refcheck=False)
            least = min(size, old.size)
            assert array.size == size and np.array_equal(array[:least], old[:least])
            assert not array[least:].any()
            array[...] = np.resize(np.arange(7, 240, dtype=np.uint8), size)
        del array
        assert used() == 0


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype):DeprecationWarning")
def test_every_other_way_to_end_an_array():
    """What takes the memory over, or refers to it, keeps it."""
    array = new(100_000, 3)
    view = array[10:20]
    buffer = memoryview(array)
    del array
    other = new(100_000, 9)
    assert view.tolist() == [3] * 10 and buffer[5] == 3
    del view
    assert buffer[99_999] == 3
    buffer.release()
    array = other
    array.shape = (1000, 100)
    array.dtype = np.int8
    byteswapped = array.byteswap(inplace=True)
    assert byteswapped is array
    del array, other, byteswapped
    assert used() == 0


def test_other_arrays_are_numpys_own():
    """The hook is set for the moment of making an array: not before or after."""
    before = memory.held()
    arrays = [np.empty(100_000), np.zeros(50_000), np.ones((300, 300)).copy()]
    with pytest.raises((TypeError, ValueError)):
        memory.empty((-1, SMALLEST * -1), np.dtype(np.uint8))
    arrays.append(np.empty(100_000))
    assert memory.held() == before and len(arrays) == 4


def test_arrays_outlive_their_threads():
    made = {}

    def make(i):
        made[i] = new(100_000 + i, i)
        new(200_000, 255)

    threads = [threading.Thread(target=make, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    new(100_000, 77)
    assert all(np.all(made[i] == i) and made[i].size == 100_000 + i for i in range(8))
    made.clear()
    assert used() == 0


def test_threads_make_and_free_at_once():
    wrong, before = [], used()
    passed = []  # arrays made by one thread and freed by another

    def work(seed):
        rng, live = np.random.default_rng(seed), []
        for i in range(400):
            value = (seed * 31 + i) % 256
            live.append((value, new(int(rng.integers(SMALLEST, 90_000)), value)))
            if len(live) > 6:
                value, array = live.pop(int(rng.integers(6)))
                if not np.all(array == value):
                    wrong.append((seed, i))
                passed.append(array)
                if len(passed) > 4:
                    try:
                        passed.pop(0)
                    except IndexError:
                        pass

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not wrong
    passed.clear()
    gc.collect()
    assert used() == before
    assert sum(memory.held()[:2]) <= bound(memory.held()[2])


@needs_fork
def test_forks_have_memory_of_their_own():
    array, freed = new(100_000, 5), new(100_000, 6)
    del freed
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            new(50_000, 1)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for i in range(20):

            def child(at, i=i):
                assert np.all(array == 5)
                mine = new(100_000, i)
                array[...] = i
                sp.kernels.matmul(np.ones((128, 128), np.float32), np.ones((128, 128), np.float32))
                assert np.all(mine == i)
                memory.release()

            in_child(child, seconds=20)
            assert np.all(array == 5)
    finally:
        stop.set()
        thread.join(20)


@every_kernel
def test_freed_memory_does_not_show_in_results(compiled, kernel):
    """Blocks that were left full of NaN go to results, all of which is written."""
    function, tried = getattr(compiled, kernel.name), 0
    for label, args in shared_work(kernel, np.float32, batch=4):
        want = kernel.run(function, args)
        for _ in range(2):
            dirty = [new(a.nbytes, 255) for a in (*want, *want) if a.nbytes >= SMALLEST]
            tried += len(dirty)
            del dirty
            got = kernel.run(function, args)
            assert all(same_bits(a, b) for a, b in zip(got, want, strict=True)), label
            live = [a.copy() for a in got]
            again = kernel.run(function, args)
            assert all(same_bits(a, b) for a, b in zip(got, live, strict=True)), label
            for a in got:
                assert not any(np.may_share_memory(a, b) for b in again)
                assert not any(np.may_share_memory(a, b) for _, b in arrays_in(args))
    if not tried:
        pytest.skip("its results are small")


def test_training_leaks_nothing():
    """A thousand steps of a small net: as much in use after each as after the first."""
    rng = rng_for("leak")
    images = rng.standard_normal((16, 10, 10, 2)).astype(np.float32)
    labels = rng.integers(0, 4, 16)
    net = [
        sp.Variable(rng.standard_normal(shape).astype(np.float32) / 9)
        for shape in ((3, 3, 2, 16), (3, 3, 16, 16), (64, 4))
    ]
    adam, seen = sp.Adam(), []

    def step():
        h = sp.maxpool2d(sp.leaky_relu(sp.conv2d(images, net[0])), 2, 2, strides=[2, 2])
        h = sp.maxpool2d(sp.leaky_relu(sp.conv2d(h, net[1], "VALID")), 2, 2, strides=[2, 2])
        logits = sp.matmul(sp.reshape(h, (16, 64)), net[2])
        loss = sp.sum(sp.softmax_cross_entropy(logits, labels))
        adam.training_step(net, sp.get_gradients(loss))

    for i in range(1000):
        step()
        if i % 100 == 9:
            seen.append((memory.held(), len(gc.get_objects())))
    gc.collect()
    assert len({held for held, _ in seen[1:]}) == 1, seen
    assert seen[-1][1] - seen[1][1] < 100


WITHOUT = """
import sys
sys.modules["smallpebble.kernels._memory"] = None
import numpy as np
import smallpebble as sp
from smallpebble.kernels import _alloc

assert _alloc.empty is np.empty and _alloc.held() == (0, 0, 0)
a = np.ones((200, 200), np.float32)
assert np.all(sp.kernels.matmul(a, a) == 200)
sp.release_memory()
print(sp.show_config("dict")["memory of results"]["in use"])
"""


@pytest.mark.skipif(bool(SANITIZER), reason="starts another program")
def test_without_the_module_it_is_numpys_memory():
    paths = [str(Path(sp.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    assert done.stdout.strip() == "0.0 MiB", done.stderr


def test_what_kernels_use():
    assert _alloc.empty is memory.empty
