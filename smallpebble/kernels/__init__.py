"""The only switch: each kernel's name bound to its compiled function, or to its NumPy reference.

``kernels.conv2d`` and its siblings are public and work on plain ndarrays. They exist in tiers: one
compiled module per instruction set (``avx512``, ``avx2``, ``baseline``), and ``reference``, the
NumPy text in `reference.py`. The best tier that the processor offers is bound when this package is
imported; the environment variable ``SMALLPEBBLE_KERNELS`` or `use_kernels` choose by hand.
"""

from __future__ import annotations

import importlib
import os
import warnings

from . import _threadpoolctl, _threads, reference
from ._choice import use_conv
from ._setting import Setting
from .catalogue import NAMES

TIERS = ("avx512", "avx2", "baseline", "reference")  # best first


class NativeKernelsMissing(UserWarning):
    """No compiled kernels are installed: everything works, at NumPy's speed."""


def _why_not(tier: str) -> str | None:
    """None if `tier` can be used on this machine, else the reason."""
    if tier == "reference":
        return None
    try:
        from . import _cpu
    except ImportError:
        return "not compiled"
    if tier not in _cpu.tiers():
        return "not supported by this processor or operating system"
    try:
        importlib.import_module(f"{__name__}._{tier}")
    except ImportError as error:
        return f"not compiled ({error})"
    return None


def tiers() -> dict[str, str | None]:
    """Every tier, best first: None where it can be used here, else why not."""
    return {tier: _why_not(tier) for tier in TIERS}


def load(tier: str):
    """The module that holds the kernels of one tier, without binding them.

    Raises
    ------
    ValueError
        `tier` is unknown, or cannot be used on this machine (the message says why).
    """
    if tier not in TIERS:
        raise ValueError(f"unknown kernel tier {tier!r}: choose one of {', '.join(TIERS)}")
    if tier == "reference":
        return reference
    reason = _why_not(tier)
    if reason is not None:
        raise ValueError(f"kernel tier {tier!r} cannot be used: {reason}")
    return importlib.import_module(f"{__name__}._{tier}")


def active() -> str:
    """The name of the tier in use."""
    return _active


def _bind(tier: str) -> None:
    global _active
    module = load(tier)
    globals().update({name: getattr(module, name) for name in NAMES})
    _active = tier


class use_kernels(Setting):
    """Bind the kernels of one tier: at once, or for a ``with`` block.

    >>> use_kernels("reference")            # from here on
    >>> with use_kernels("baseline"): ...   # inside of the block only

    The choice holds for the whole process. Raises ValueError for a tier that is unknown or cannot
    be used here.
    """

    def __init__(self, tier: str) -> None:
        super().__init__(tier)

    def _now(self) -> str:
        return _active

    def _set(self, tier: str) -> None:
        _bind(tier)

    def __repr__(self) -> str:
        return f"<kernels: {_active}>"


def _choose() -> str:
    chosen = os.environ.get("SMALLPEBBLE_KERNELS", "").strip().lower()
    if chosen:
        try:
            load(chosen)
        except ValueError as error:
            raise ImportError(f"SMALLPEBBLE_KERNELS={chosen}: {error}") from None
        return chosen
    best = next(tier for tier in TIERS if _why_not(tier) is None)
    if best == "reference" and not os.environ.get("SMALLPEBBLE_PURE"):
        warnings.warn(
            "SmallPebble was installed without its compiled kernels and runs on plain NumPy, "
            "several times slower. Install it where there is a C compiler, or set "
            "SMALLPEBBLE_PURE=1 to silence this.",
            NativeKernelsMissing,
            stacklevel=3,
        )
    return best


try:
    from . import _pool
except ImportError:
    _pool = None
else:
    _threads.start(_pool)
    _threadpoolctl.start(_pool)
_active = "reference"
_bind(_choose())
__all__ = [
    *NAMES,
    "TIERS",
    "NativeKernelsMissing",
    "active",
    "load",
    "reference",
    "tiers",
    "use_conv",
    "use_kernels",
]
