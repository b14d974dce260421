"""What is in use and why: show_config; and the number of threads."""

from __future__ import annotations

import platform
import sys

import numpy as np

from . import kernels
from ._version import __version__
from .kernels import _alloc, _choice, _pool, _threads


class num_threads:
    """Use `n` threads in the kernels, inside of a ``with`` block.

    The number belongs to the whole process: blocks of several Python threads must not overlap.
    """

    def __init__(self, n: int) -> None:
        self._n = n

    def __enter__(self) -> num_threads:
        self._previous = get_num_threads()
        set_num_threads(self._n)
        return self

    def __exit__(self, *exc) -> None:
        set_num_threads(self._previous)


def get_num_threads() -> int:
    """How many threads the kernels may use, the calling one included."""
    return _pool.get_num_threads() if _pool else 1


def set_num_threads(n: int) -> None:
    """Let the kernels use `n` threads, the calling one included. The results do not depend on it.

    Raises
    ------
    ValueError, TypeError
        `n` is not an integer from 1 to 256.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"set_num_threads: expected an integer, got {n!r}")
    if not 1 <= n <= 256:
        raise ValueError(f"set_num_threads: expected 1 to 256 threads, got {n}")
    if _pool:
        _threads.use(_pool, int(n), "set_num_threads")


def release_memory() -> None:
    """Give the memory that is kept for results to come back to the system.

    Kernels keep the memory of large results that are gone, for the next ones: at most so much that,
    with what is in use, it is no more than what was in use at once before.
    """
    _alloc.release()


def _memory() -> dict:
    names = ("in use", "kept", "most in use at once")
    return {name: f"{n / 2**20:.1f} MiB" for name, n in zip(names, _alloc.held())}


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
