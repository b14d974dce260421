"""What is in use and why: show_config; and the number of threads."""

from __future__ import annotations

import platform
import sys

import numpy as np

from . import kernels
from ._version import __version__
from .kernels import _alloc, _choice, _pool, _threads
from .kernels._setting import Setting


def get_num_threads() -> int:
    """How many threads the kernels may use, the calling one included."""
    return _pool.get_num_threads() if _pool else 1


class set_num_threads(Setting):
    """Let the kernels use `n` threads, the calling one included: at once, or for a ``with`` block.

    >>> set_num_threads(3)            # from here on
    >>> with set_num_threads(3): ...  # inside of the block only

    The results do not depend on it. The number belongs to the whole process: blocks of several
    Python threads must not overlap.

    Raises
    ------
    ValueError, TypeError
        `n` is not an integer from 1 to 256.
    """

    def __init__(self, n: int) -> None:
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
            raise TypeError(f"set_num_threads: expected an integer, got {n!r}")
        if not 1 <= n <= _threads.MOST:
            raise ValueError(f"set_num_threads: expected 1 to {_threads.MOST} threads, got {n}")
        super().__init__((int(n), "set_num_threads"))

    def _now(self) -> tuple:
        return get_num_threads(), _threads.source

    def _set(self, how: tuple) -> None:
        if _pool:
            _threads.use(_pool, *how)

    def __repr__(self) -> str:
        return f"<threads: {get_num_threads()}>"


class num_threads:
    """`set_num_threads` for a ``with`` block only: nothing is set before the block begins."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._blocks = []

    def __enter__(self) -> num_threads:
        self._blocks.append(set_num_threads(self._n).__enter__())
        return self

    def __exit__(self, *exc) -> None:
        self._blocks.pop().__exit__(*exc)


def release_memory() -> None:
    """Give the memory that is kept for results to come back to the system, and scratch memory too.

    Kernels keep the memory of large results that are gone, for the next ones: at most so much that,
    with what is in use, it is no more than what was in use at once before. Scratch memory is that
    of the calling thread and of the pool, whose threads end and start again when they are wanted.
    """
    _alloc.release()
    if _pool:
        _pool.release_scratch()


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _memory() -> dict:
    names = ("in use", "kept", "most in use at once")
    return {name: _mib(nbytes) for name, nbytes in zip(names, _alloc.held())}


def show_config(mode: str = "stdout") -> dict | None:
    """Print which kernels are in use, and why, or return it as a dict (``mode="dict"``)."""
    config = {
        "smallpebble": __version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.system()} {platform.machine()}",
        "kernels": kernels.active(),
        "tiers": {
            tier: "in use" if tier == kernels.active() else reason or "available"
            for tier, reason in kernels.tiers().items()
        },
        "convolution": _choice.current(),
        "threads": get_num_threads(),
        "threads from": _threads.source,
        "memory of results": _memory(),
        "scratch memory": _mib(_pool.scratch_bytes() if _pool else 0),
    }
    if mode == "dict":
        return config
    if mode != "stdout":
        raise ValueError(f"show_config: mode must be 'stdout' or 'dict', got {mode!r}")
    for name, value in config.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, text in value.items():
                print(f"  {key:10} {text}")
        else:
            print(f"{name + ':':14} {value}")
    return None
