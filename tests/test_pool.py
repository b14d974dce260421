"""The thread pool: the same bits whatever the threads do, through forks, refusals and other pools.

The catalogue drives it: a new kernel is tried here without a line of its own. Nothing is timed.
What is done to a whole process happens in an interpreter of its own, under a time limit.
"""

import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import SANITIZER, in_child, needs_fork
from test_kernels import arrays_in, put
from test_memory import results_from, shared_work

import smallpebble as sp
from smallpebble import kernels
from smallpebble.kernels import _threads
from smallpebble.kernels.catalogue import KERNELS, NAMES, same_bits

pool = pytest.importorskip("smallpebble.kernels._pool")

every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=NAMES)
PACKAGE = Path(sp.__file__).parent
SOURCES = Path(__file__).resolve().parents[1] / "csrc"
ALONE = {"add_at"}  # kernels that never use the pool
COUNTS = (1, 2, 3, 4, 7, 8)
REPEATS = 4 if SANITIZER else 20  # for each of five counts

needs_program = pytest.mark.skipif(
    bool(SANITIZER), reason="starts other programs, whose processes a sanitizer takes for its own"
)
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity"
)


@pytest.fixture(autouse=True)
def _threads_as_before():
    with sp.set_num_threads(sp.get_num_threads()):
        yield


def is_shared(kernel, function, args):
    """Whether two threads would both have work."""
    pool.set_num_threads(2, 2)
    before = pool.jobs()
    kernel.run(function, args)
    return pool.jobs() != before


@functools.cache
def smallest(name, dtype):
    """Arguments of the smallest work that the best tier shares among threads."""
    kernel, function = KERNELS[name], getattr(best(), name)
    for batch in (8, 128):
        work = [args for _, args in shared_work(kernel, dtype, batch)]
        sizes = [
            sum(a.nbytes for _, a in arrays_in([*args, kernel.run(function, args)]))
            for args in work
        ]
        for i in np.argsort(sizes):
            if is_shared(kernel, function, work[i]):
                return work[i]
    raise AssertionError(f"{name}: no work is large enough to be shared: see `ODD_WORK`")


def shared(kernel, function, dtype):
    """(arguments, results of one thread) of work that is shared among threads."""
    args = smallest(kernel.name, dtype)
    assert is_shared(kernel, function, args)
    pool.set_num_threads(1, 1)
    return args, kernel.run(function, args)


def all_shared(module, dtype=np.float32, names=NAMES):
    """(kernel, function, arguments, results) for every kernel that uses the pool."""
    for name in names:
        if name not in ALONE:
            function = getattr(module, name)
            yield KERNELS[name], function, *shared(KERNELS[name], function, dtype)


def best():
    """The module of the best compiled tier that can be used here."""
    return kernels.load(next(t for t, reason in kernels.tiers().items() if reason is None))


def equal(got, want):
    return len(got) == len(want) and all(map(same_bits, got, want))


def tasks():
    """The threads of this process, as the system lists them."""
    return set(os.listdir("/proc/self/task"))


def becomes_true(condition, seconds=10):
    """Wait for it: a thread that has ended, such as the watchdog of the last test, stays listed."""
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.001)
    return true


def start(code, *args, **environment):
    """A new interpreter that runs `code` on this package.

    Warnings are errors, but for those that Python gives when a process with threads forks: other
    libraries do that.
    """
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "SMALLPEBBLE_KERNELS": None, **environment}
    source = ["-c", code] if isinstance(code, str) else [str(code)]
    warnings = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    return subprocess.Popen(
        [sys.executable, *warnings, *source, *map(str, args)],
        env={name: text for name, text in environment.items() if text is not None},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code, *args, seconds=100, **environment):
    """What such an interpreter prints, once it has ended well."""
    process = start(code, *args, **environment)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"hangs\n{out}\n{err}", pytrace=False)
    if process.returncode:
        pytest.fail(f"exit code {process.returncode}\n{out}\n{err}", pytrace=False)
    return out.strip()


# ------------------------------------------------------------------------------------- same bits


@every_kernel
def test_same_bits_for_any_number_of_threads(compiled, kernel, set_num_threads):
    function = getattr(compiled, kernel.name)
    was_shared = False
    for dtype in (np.float32, np.float64):
        for spec, args in shared_work(kernel, dtype, batch=8):
            set_num_threads(1)
            before = pool.jobs()
            want = kernel.run(function, args)
            assert pool.jobs() == before, "one thread needs no pool"
            for count in COUNTS[1:] if dtype == np.float32 else (3,):
                set_num_threads(count)
                assert equal(kernel.run(function, args), want), (spec, count)
            was_shared |= pool.jobs() != before
    assert was_shared == (kernel.name not in ALONE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_of_products_for_any_number_of_threads(compiled, dtype, set_num_threads):
    """Columns beyond whole vectors, a long inner axis, rows copied, one row, one column."""
    kernel = KERNELS["matmul"]
    shapes = ((200, 130, 100), (97, 300, 33), (64, 9001, 5), (24, 20000, 40))
    shapes += ((53, 600, 131), (301, 1030, 90), (1, 3000, 301), (3000, 1, 131))
    for m, k, n in shapes:
        # transposed or not, and with a bias
        for flips in ((False, False), (True, False), (False, True), (False, False, True)):
            args = kernel.make(((m, k), (k, n), *flips), np.random.default_rng(k), dtype)
            assert is_shared(kernel, compiled.matmul, args), (m, k, n)
            set_num_threads(1)
            want = kernel.run(compiled.matmul, args)
            for count in COUNTS[1:]:
                set_num_threads(count)
                assert equal(kernel.run(compiled.matmul, args), want), (m, k, n, flips, count)


@every_kernel
def test_same_bits_for_any_place_in_memory(compiled, kernel, set_num_threads):
    """Operands and results at each of the 16 places that a float32 has in a cache line."""
    if kernel.name in ALONE:
        pytest.skip("does not use the pool")
    function = getattr(compiled, kernel.name)

    def placed(shape, dtype=float, at=0):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        room = np.empty(size + 128, np.uint8)
        first = -room.ctypes.data % 64 + at * dtype.itemsize % 64
        return room[first : first + size].view(dtype).reshape(shape)

    args, want = shared(kernel, function, np.float32)
    set_num_threads(3)
    for at in range(16):
        moved = args
        for i, (path, array) in enumerate(arrays_in(args)):
            copy = placed(array.shape, array.dtype, at + 5 * i)
            copy[...] = array
            moved = put(moved, path, copy)
        with results_from(lambda *args, at=at: placed(*args, at=3 * at)):
            assert equal(kernel.run(function, moved), want), at


@every_kernel
def test_same_bits_in_every_run(compiled, kernel, set_num_threads):
    """A hundred runs (fewer under a sanitizer): which thread takes which task is left to chance."""
    if kernel.name in ALONE:
        pytest.skip("does not use the pool")
    function = getattr(compiled, kernel.name)
    args, want = shared(kernel, function, np.float32)
    for count in COUNTS[1:]:
        set_num_threads(count)
        for i in range(REPEATS):
            assert equal(kernel.run(function, args), want), (count, i)


def test_same_bits_for_many_callers(compiled, set_num_threads):
    """Six Python threads, one pool, every kernel: everybody gets the right bits."""
    work = list(all_shared(compiled))
    set_num_threads(3)
    barrier, wrong = threading.Barrier(6), []

    def call(i):
        barrier.wait(60)
        for kernel, function, args, want in work[i:] + work[:i]:
            if not equal(kernel.run(function, args), want):
                wrong.append(kernel.name)

    threads = [threading.Thread(target=call, args=(i,)) for i in (0, 0, 1, 2, 5, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_thread_pool_executor(compiled, set_num_threads):
    work = list(all_shared(compiled, np.float64))
    set_num_threads(2)
    with ThreadPoolExecutor(4) as executor:
        waiting = [executor.submit(k.run, f, args) for k, f, args, _ in work * 2]
        for (kernel, _, _, want), result in zip(work * 2, waiting, strict=True):
            assert equal(result.result(100), want), kernel.name


def test_the_number_of_threads_changes_under_way(compiled, set_num_threads):
    """The bits stay, and nobody waits for a worker that is no more."""
    kernel = KERNELS["matmul"]
    args, want = shared(kernel, compiled.matmul, np.float32)
    done = threading.Event()

    def change():
        for count in itertools.cycle(COUNTS):
            if done.is_set():
                return
            set_num_threads(count)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            assert equal(kernel.run(compiled.matmul, args), want)
    finally:
        done.set()
        thread.join(60)
    assert not thread.is_alive()


# ------------------------------------------------------------------------------------------ fork


@needs_fork
def test_every_kernel_after_fork(compiled, set_num_threads):
    """The pool is running when the process forks; parent, child and grandchild all go on."""
    work = list(all_shared(compiled))
    set_num_threads(3)

    def compute(at, who):
        for kernel, function, args, want in work:
            at(kernel.name, who)
            assert equal(kernel.run(function, args), want)

    def child(at):
        compute(at, "in the child")
        in_child(lambda at: compute(at, "in the grandchild"))
        compute(at, "in the child, after its own fork")

    compute(lambda *what: None, "in the parent")
    in_child(child, seconds=100)
    compute(lambda *what: None, "in the parent")


def fork():
    """A child that dies of what takes it more than a minute."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
    return child


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_hundred_forks(set_num_threads):
    """Kernels before and after each, parent and child computing at the same time."""
    work = itertools.cycle(list(all_shared(best())))
    set_num_threads(3)
    before = pool.jobs()
    for i in range(200):
        kernel, function, args, want = next(work)
        assert equal(kernel.run(function, args), want), i
        child = fork()
        if child == 0:
            try:
                os._exit(0 if all(equal(kernel.run(function, args), want) for _ in "ab") else 1)
            finally:
                os._exit(2)
        assert equal(kernel.run(function, args), want), i
        assert os.waitpid(child, 0)[1] == 0, f"fork {i}, {kernel.name}"
    assert pool.jobs() - before >= 400


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forks_while_other_threads_compute(set_num_threads):
    """A fork waits for the job that is running, and the child inherits no lock."""
    module = best()
    kernel = KERNELS["matmul"]
    args, want = shared(kernel, module.matmul, np.float32)
    set_num_threads(3)
    done, wrong = threading.Event(), []

    def compute():
        while not done.is_set():
            if not equal(kernel.run(module.matmul, args), want):
                wrong.append(1)

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(20):
            child = fork()
            if child == 0:
                try:
                    os._exit(0 if equal(kernel.run(module.matmul, args), want) else 1)
                finally:
                    os._exit(2)
            assert os.waitpid(child, 0)[1] == 0, i
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


# -------------------------------------------------------------------------- processes and others

PROGRAM = '''
import os, sys
import numpy as np
import smallpebble as sp
from smallpebble.kernels import _pool

def work(seed):
    """A convolution, its gradients and a product, large enough to be shared."""
    rng = np.random.default_rng(seed)
    window = sp.Window((24, 24), (3, 3), (1, 1), "SAME")
    images = rng.standard_normal((6, 24, 24, 16)).astype(np.float32)
    filters = rng.standard_normal((3, 3, 16, 24)).astype(np.float32)
    y = sp.kernels.conv2d(images, filters, window)
    more = (
        sp.kernels.conv2d_grad_images(y, filters, window),
        sp.kernels.conv2d_grad_kernels(y, images, window),
        sp.kernels.matmul(y.reshape(-1, 24), filters.reshape(24, -1)),
    )
    return b"".join(a.tobytes() for a in (y, *more))

def count(_):
    return sp.get_num_threads(), int(os.environ.get("OMP_NUM_THREADS", 0))

def main():
    way = sys.argv[1]
    with sp.set_num_threads(1):
        want = [work(i) for i in range(8)]
    sp.set_num_threads(3)
    before = _pool.jobs()
    assert [work(i) for i in range(8)] == want
    assert _pool.jobs() > before
    if way in ("fork", "spawn", "forkserver"):
        import multiprocessing
        with multiprocessing.get_context(way).Pool(2) as processes:
            got = processes.map(work, range(8), chunksize=1)
    elif way == "ProcessPoolExecutor":
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(2) as processes:
            got = list(processes.map(work, range(8)))
    else:
        import joblib
        with joblib.parallel_config(way):
            got = joblib.Parallel(2)(joblib.delayed(work)(i) for i in range(8))
            if way == "loky":
                counts = joblib.Parallel(2)(joblib.delayed(count)(i) for i in range(4))
                assert all(ours == asked for ours, asked in counts), counts
    assert got == want
    assert [work(i) for i in range(8)] == want
    print("right")

if __name__ == "__main__":
    main()
'''


@needs_program
@pytest.mark.parametrize(
    "way",
    ["fork", "spawn", "forkserver", "ProcessPoolExecutor"]
    + [f"joblib {backend}" for backend in ("threading", "loky", "multiprocessing")],
)
def test_processes_and_pools_of_others(tmp_path, way):
    way = way.split()
    if way[0] == "joblib":
        pytest.importorskip("joblib", reason="joblib is not installed: see the extra `test`")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {"OMP_NUM_THREADS": None, "JOBLIB_TEMP_FOLDER": str(tmp_path)}
    assert run(tmp_path / "program.py", way[-1], **environment) == "right"


INTERRUPTED = """
import signal, sys
import numpy as np
import smallpebble as sp

# What runs the tests in the background may have them ignore it, and passes that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
a = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
with sp.set_num_threads(1):
    want = sp.kernels.matmul(a, a).tobytes()
sp.set_num_threads(3)
for i in range(10):
    try:
        print("computing", flush=True)
        while True:
            assert sp.kernels.matmul(a, a).tobytes() == want
    except KeyboardInterrupt:
        pass
    assert sp.kernels.matmul(a, a).tobytes() == want
before = sp.kernels._pool.jobs()
assert sp.kernels.matmul(a, a).tobytes() == want
assert sp.kernels._pool.jobs() > before
print("right")
"""


@needs_program
def test_control_c_leaves_the_pool_usable():
    process = start(INTERRUPTED)
    stop = threading.Timer(100, process.kill)
    stop.start()
    try:
        for i in range(10):
            assert process.stdout.readline() == "computing\n", process.stderr.read()
            time.sleep(0.001 * i)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        stop.cancel()
        process.kill()
        process.communicate()
    assert (out, process.returncode) == ("right\n", 0), err


REFUSED = """
import os, resource, sys, threading
import numpy as np
import smallpebble as sp
from smallpebble.kernels import _pool

granted = int(sys.argv[1])
a = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
with sp.set_num_threads(1):
    want = sp.kernels.matmul(a, a).tobytes()
if os.geteuid() == 0:  # the limit does not hold for root
    os.setgroups([])
    os.setresgid(*[54321] * 3)
    os.setresuid(*[54321] * 3)
limit = 1 + granted if granted else 0
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
sp.set_num_threads(4)
before = _pool.jobs()
for _ in range(20):
    assert sp.kernels.matmul(a, a).tobytes() == want
helpers = len(os.listdir("/proc/self/task")) - 1
shared = _pool.jobs() - before
try:
    threading.Thread(target=int).start()
except RuntimeError:
    assert (helpers, bool(shared)) == (granted, bool(granted)), (helpers, shared)
    print("right")
else:
    print("not refused")
"""


@needs_program
@needs_proc
@pytest.mark.parametrize("granted", [0, 1])
def test_threads_that_the_system_refuses(granted):
    """With none the caller does all of the work; with fewer than wanted, those share it."""
    if granted and os.geteuid() != 0:
        pytest.skip("counts the processes of a user who has no others, so root has to become one")
    answer = run(REFUSED, granted)
    if answer == "not refused":
        pytest.skip("RLIMIT_NPROC does not hold here")
    assert answer == "right"


def test_the_pool_by_itself(tmp_path):
    """`pool_stress.c`: callers, nested runs, forks, and threads that are refused now and then."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    stress = Path(__file__).with_name("pool_stress.c")
    if compiler is None or not SOURCES.is_dir():
        pytest.skip("needs GCC and the sources")
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCES}"]
    if SANITIZER:
        flags.append(f"-fsanitize={SANITIZER}")
    if SANITIZER == "address":
        flags.append("-DFORKS=0")
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    options = os.environ.get("TSAN_OPTIONS", "")  # children start threads here, which it refuses
    environment["TSAN_OPTIONS"] = f"{options}:die_after_fork=0"
    program = str(tmp_path / "stress")
    for command in ([compiler, *flags, str(stress), "-o", program], [program]):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


# ------------------------------------------------------------------------------ number of threads


def test_set_num_threads_at_once_and_for_a_block():
    before, origin = sp.get_num_threads(), _threads.source
    sp.set_num_threads(3)
    assert sp.get_num_threads() == 3
    assert sp.show_config("dict")["threads from"] == "set_num_threads"
    with sp.set_num_threads(5) as block:
        assert sp.get_num_threads() == 5
        assert repr(block) == "<threads: 5>"
        with pytest.raises(ZeroDivisionError), sp.set_num_threads(np.int64(2)):
            assert sp.get_num_threads() == 2
            1 / 0  # noqa: B018
        assert sp.get_num_threads() == 5
    assert sp.get_num_threads() == 3
    with sp.set_num_threads(before):
        pass
    assert sp.get_num_threads() == 3
    _threads.use(pool, before, origin)
    with sp.set_num_threads(before + 1):
        pass
    assert sp.show_config("dict")["threads"] == before
    assert sp.show_config("dict")["threads from"] == origin


def test_the_most_threads_are_as_many_in_c(set_num_threads):
    set_num_threads(100_000)
    assert pool.get_num_threads() == _threads.MOST


def test_num_threads_is_for_a_block():
    before = sp.get_num_threads()
    block = sp.num_threads(before + 1)
    assert sp.get_num_threads() == before
    for _ in range(2):
        with block:
            assert sp.get_num_threads() == before + 1
        assert sp.get_num_threads() == before


@pytest.mark.parametrize("n", [0, -1, 257, 2**63, 1.5, "2", None, True])
def test_a_wrong_number_of_threads_is_refused(n):
    before = sp.show_config("dict")
    with pytest.raises((ValueError, TypeError), match="set_num_threads"):
        sp.set_num_threads(n)
    assert sp.show_config("dict") == before


@needs_proc
def test_workers_start_when_wanted_and_end_when_not(set_num_threads):
    module = best()
    kernel, function, args, _ = next(all_shared(module))
    set_num_threads(1)
    others = tasks()
    for count in (4, 2, 8, 1):
        set_num_threads(count)
        kernel.run(function, args)
        assert count == 1 or tasks() - others
        assert becomes_true(lambda most=count - 1: len(tasks() - others) <= most), tasks() - others


GRANTED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"cpu.max": "max 100000"}, GRANTED),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "100001 100000"}, min(2, GRANTED)),
        ({"cpu.max": "12800000 100000"}, min(128, GRANTED)),
        ({"cpu.max": "0 100000"}, GRANTED),
        ({"cpu.max": ""}, GRANTED),
        ({"cpu.max": "nonsense"}, GRANTED),
        ({"cpu.max": "1 2 3"}, GRANTED),
        ({"cpu.max": b"\xff\xfe 100000"}, GRANTED),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, min(2, GRANTED)),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, GRANTED),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "0"}, GRANTED),
        ({"cpu/cpu.cfs_quota_us": b"\xff", "cpu/cpu.cfs_period_us": "100000"}, GRANTED),
        ({"cpu/cpu.cfs_quota_us": "100000"}, GRANTED),
        ({}, GRANTED),
    ],
)
def test_quota_of_a_container(tmp_path, monkeypatch, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    found, limit = _threads.available_cores(str(tmp_path))
    assert found == cores
    assert limit == "the CPU quota of the container" or cores == GRANTED
    monkeypatch.setattr(_threads.available_cores, "__defaults__", (str(tmp_path),))
    for name in ("SMALLPEBBLE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    _threads.start(pool)
    config = sp.show_config("dict")
    assert (config["threads"], config["threads from"]) == (cores, limit)


def test_threads_from_the_environment(monkeypatch):
    monkeypatch.delenv("SMALLPEBBLE_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert _threads.default_threads() == (3, "OMP_NUM_THREADS")
    monkeypatch.setenv("SMALLPEBBLE_NUM_THREADS", "5")
    assert _threads.default_threads() == (5, "SMALLPEBBLE_NUM_THREADS")
    monkeypatch.setenv("SMALLPEBBLE_NUM_THREADS", "9999")
    assert _threads.default_threads() == (_threads.MOST, "SMALLPEBBLE_NUM_THREADS")
    monkeypatch.setenv("SMALLPEBBLE_NUM_THREADS", "many")
    threads, source = _threads.default_threads()
    assert threads == 3 and source.startswith("OMP_NUM_THREADS") and "'many'" in source


MASKED = """
import os, sys
os.sched_setaffinity(0, set(map(int, sys.argv[1].split(","))))
import numpy as np
import smallpebble as sp

a = np.ones((300, 300), np.float32)
sp.kernels.matmul(a, a)
tasks = len(os.listdir("/proc/self/task"))
print(sp.get_num_threads(), tasks, sp.show_config("dict")["threads from"])
"""


@needs_program
@needs_proc
@needs_affinity
def test_affinity_mask():
    """As many threads as the mask has processors, unless the environment says otherwise."""
    free = {"SMALLPEBBLE_NUM_THREADS": None, "OMP_NUM_THREADS": None}
    mask = sorted(os.sched_getaffinity(0))
    assert run(MASKED, mask[-1], **free) == "1 1 the affinity mask"
    said = run(MASKED, mask[-1], **{**free, "SMALLPEBBLE_NUM_THREADS": "2"})
    assert said == "2 2 SMALLPEBBLE_NUM_THREADS"
    if _threads.available_cores()[0] > 1:
        both = ",".join(map(str, mask[:2]))
        assert run(MASKED, both, **free) == "2 2 the affinity mask"


# ---------------------------------------------------------------------------------- threadpoolctl

LIMITED = """
import numpy as np
import smallpebble as sp
from smallpebble.kernels import _pool

def ours():
    (found,) = [i for i in threadpoolctl.threadpool_info() if i["internal_api"] == "smallpebble"]
    return found

def jobs():
    before = _pool.jobs()
    sp.kernels.matmul(a, a)
    return _pool.jobs() - before

a = np.ones((300, 300), np.float32)
assert (ours()["num_threads"], ours()["version"]) == (3, sp.__version__)
assert ours()["filepath"] == os.path.realpath(_pool.__file__)
assert jobs() > 0
with threadpoolctl.threadpool_limits(1, user_api="blas"):
    assert sp.get_num_threads() == 3
assert sp.show_config("dict")["threads from"] == "SMALLPEBBLE_NUM_THREADS"
for limits in (1, {"smallpebble": 1}):
    with threadpoolctl.threadpool_limits(limits):
        assert (sp.get_num_threads(), ours()["num_threads"], jobs()) == (1, 1, 0)
        assert sp.show_config("dict")["threads from"] == "threadpoolctl"
    assert sp.get_num_threads() == 3 and jobs() > 0
threadpoolctl.threadpool_limits(100_000, user_api="smallpebble")
assert sp.get_num_threads() == 256
assert type(threadpoolctl.__loader__) is type(threadpoolctl.__spec__.loader) is type(np.__loader__)
print("right")
"""


@needs_program
@pytest.mark.parametrize(
    "imports",
    [
        "import threadpoolctl, smallpebble",
        "import smallpebble, threadpoolctl",
        "import smallpebble; from threadpoolctl import threadpool_info; import threadpoolctl",
        """
import smallpebble
paths, sys.path[:] = sys.path[:], []
try:
    import threadpoolctl
except ImportError:
    sys.path[:] = paths
    import threadpoolctl
""",
    ],
    ids=["before", "after", "by name", "not at first"],
)
def test_threadpoolctl_sees_and_limits_the_pool(imports):
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed: see `test`")
    before, after = "import os, sys\nfinders = sys.meta_path[:]", "assert sys.meta_path == finders"
    assert run("\n".join([before, imports, after, LIMITED]), SMALLPEBBLE_NUM_THREADS="3") == "right"


# ---------------------------------------------------------------------------------------- scratch


def test_scratch_memory_is_counted_and_released():
    module = best()
    work = list(all_shared(module, names=[n for n in NAMES if n.startswith(("conv2d", "matmul"))]))
    pool.release_scratch()
    before = pool.scratch_bytes()
    for kernel, function, args, want in work:
        assert equal(kernel.run(function, args), want)
    held = pool.scratch_bytes()
    assert held > before
    for kernel, function, args, want in work:
        assert equal(kernel.run(function, args), want)
    assert pool.scratch_bytes() == held, "is kept for the next call"
    pool.release_scratch()
    assert pool.scratch_bytes() == before
    pool.release_scratch()
    for kernel, function, args, want in work:
        assert equal(kernel.run(function, args), want)
    assert pool.scratch_bytes() == held
    pool.release_scratch()


def test_released_scratch_memory_is_that_of_the_workers_too(set_num_threads):
    """Products of a batch are tasks, which use scratch memory of the threads that take them."""
    module = best()
    a = np.ones((64, 30, 300), np.float32)
    b = np.ones((64, 33, 300), np.float32).swapaxes(1, 2)
    pool.release_scratch()
    before = pool.scratch_bytes()
    set_num_threads(1)
    assert (module.matmul(a, b) == 300).all()
    alone = pool.scratch_bytes()
    assert alone > before
    set_num_threads(3)
    for _ in range(2):  # once more, with workers that start again
        while pool.scratch_bytes() <= alone:  # a worker that is late finds no task left
            assert (module.matmul(a, b) == 300).all()
        pool.release_scratch()
        assert pool.scratch_bytes() == before


def test_scratch_memory_goes_with_its_thread():
    module = best()
    ((kernel, function, args, _),) = all_shared(module, names=["matmul"])
    pool.release_scratch()
    before, seen = pool.scratch_bytes(), []

    def call():
        kernel.run(function, args)
        seen.append(pool.scratch_bytes())

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(seen) > before
    while pool.scratch_bytes() != before:  # Python's thread ends before the system's
        time.sleep(0.001)
