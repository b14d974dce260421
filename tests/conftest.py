"""What all tests share: tiers of kernels, time limits, and children that may crash."""

import faulthandler
import mmap
import os
import signal
import traceback
import warnings
import zlib

# Oracles run on the BLAS of NumPy, whose threads spin: on a busy machine, for minutes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

with warnings.catch_warnings():
    # Without compiled kernels the import warns, which here would end all testing.
    warnings.simplefilter("ignore", UserWarning)
    from smallpebble import kernels

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

SECONDS = int(os.environ.get("SMALLPEBBLE_TEST_SECONDS", "120"))  # more under valgrind or qemu

# "address" or "thread" under a sanitizer (.ci/sanitize). Its locks may be held by nobody in a child
# of fork, which then hangs: what is tested in a child is then called directly.
SANITIZER = os.environ.get("SMALLPEBBLE_TEST_SANITIZER", "")
needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or bool(SANITIZER),
    reason="children of fork hang under a sanitizer" if SANITIZER else "needs fork",
)

_stderr = None


def pytest_configure(config):
    # A copy, because pytest redirects descriptor 2 while a test runs.
    global _stderr
    _stderr = os.dup(2)


def pytest_unconfigure(config):
    os.close(_stderr)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Guard pages first: a kernel that writes out of bounds fails there, before it ends pytest."""
    items.sort(key=lambda item: "guard_pages" not in item.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test that hangs, perhaps outside of Python, ends the run and shows where it stood."""
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=_stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def tier_parameters(skip_reference=False):
    """Every tier as a pytest parameter; those that cannot be used here are skipped, saying why."""
    chosen = os.environ.get("SMALLPEBBLE_KERNELS", "").strip().lower()
    for name, reason in kernels.tiers().items():
        if skip_reference and name == "reference":
            continue
        if chosen and name != chosen:
            reason = f"SMALLPEBBLE_KERNELS={chosen}"
        yield pytest.param(name, marks=[pytest.mark.skip(reason=reason)] if reason else [])


@pytest.fixture(scope="session", params=tier_parameters())
def tier(request):
    """The module of kernels of each tier."""
    return kernels.load(request.param)


@pytest.fixture(scope="session", params=tier_parameters(skip_reference=True))
def compiled(request):
    """The module of kernels of each compiled tier."""
    return kernels.load(request.param)


@pytest.fixture(autouse=True)
def _leave_kernels_as_they_were():
    before = kernels.active()
    yield
    if kernels.active() != before:
        kernels.use_kernels(before)


@pytest.fixture
def set_num_threads():
    """Sets the number of threads of the pool, which is put back afterwards."""
    pool = pytest.importorskip("smallpebble.kernels._pool")
    before = pool.get_num_threads()
    cores = os.cpu_count() or 1
    yield lambda count: pool.set_num_threads(count, cores)
    pool.set_num_threads(before, cores)


def rng_for(*what):
    """A generator that depends on what is tested and on nothing else."""
    return np.random.default_rng(zlib.crc32(" ".join(map(str, what)).encode()))


def in_child(function, seconds=60, memory=None):
    """Call ``function(at)`` in a forked process, so that a crash is one failing test.

    It says where it is with ``at(text)``. Exceptions, signals and hangs fail the test, quoting that
    text. `memory` is the number of bytes that the child may allocate.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    if SANITIZER:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(lambda *what: None)
    place = mmap.mmap(-1, 4096)

    def at(*what):
        text = " ".join(map(str, what)).encode()[:4095]
        place[:] = text.ljust(4096, b"\0")

    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # The time limit above is a thread, and forking beside a thread warns from Python 3.12 on.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            faulthandler.disable()
            warnings.simplefilter("ignore")  # of what NumPy does with hostile arguments
            signal.alarm(seconds)
            _limit(memory)
            function(at)
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc()[-30000:].encode())
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        message = pipe.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    where = place[:].rstrip(b"\0").decode(errors="replace")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        pytest.fail(f"killed by {name} at: {where}", pytrace=False)
    if status:
        pytest.fail(f"at: {where}\n{message}", pytrace=False)


def _limit(memory):
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is None or not os.path.exists("/proc/self/statm"):
        return
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
