"""Which algorithm the compiled convolutions use, read by them at every call."""

from __future__ import annotations

import os

from ._setting import Setting

ALGORITHMS = ("auto", "direct", "winograd")


def check(name: str) -> str:
    """`name`, if it is one of the algorithms; else a ValueError."""
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}")
    return name


class use_conv(Setting):
    """Choose the algorithm of `conv2d` and its gradients: at once, or for a ``with`` block.

    Parameters
    ----------
    algorithm : "auto", "direct" or "winograd"
        "winograd" is taken for 3x3 windows with stride 1, and "direct" for all others; "auto" takes
        it where it is faster. Their errors are alike beside the largest numbers of a tile of 5x5
        pixels; by Winograd's algorithm small outputs beside large ones lose digits, a NaN or
        infinity spreads over its tile, and sums of integers are not exact. Behind max-pooling
        "auto" may also sum the kernels' gradient over the largest outputs alone, in another order.

    The choice holds for the whole process. `SMALLPEBBLE_CONV` sets it from outside.
    """

    def __init__(self, algorithm: str) -> None:
        super().__init__(check(algorithm))

    def _now(self) -> str:
        return current()

    def _set(self, name: str) -> None:
        global algorithm
        algorithm = name


def current() -> str:
    """The algorithm in use."""
    return algorithm


try:
    algorithm = check(os.environ.get("SMALLPEBBLE_CONV", "").strip().lower() or "auto")
except ValueError as error:
    raise ImportError(f"SMALLPEBBLE_CONV: {error}") from None
