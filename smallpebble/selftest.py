"""Every compiled kernel against its NumPy oracle, on the machine where it is to be trusted."""

from __future__ import annotations

import sys
import zlib

import numpy as np

from . import kernels
from .kernels.catalogue import KERNELS, compare, expect

_DTYPES = (np.float32, np.float64)


def self_test(tier: str | None = None, verbose: bool = True) -> bool:
    """Try every kernel on small arrays of all awkward sizes; True if all are right. Takes seconds.

    Parameters
    ----------
    tier : str, optional
        "avx512", "avx2", "baseline" or "reference"; by default every compiled tier that this
        machine can use.
    verbose : bool
        Print a table: the largest error of each kernel, as a fraction of its proven bound. 0 is
        equality of all bits; above 1 is wrong.

    Raises
    ------
    ValueError
        `tier` is unknown, or cannot be used here. A kernel that fails raises nothing: it is
        reported, and the result is False.
    """
    say = print if verbose else _say_nothing
    if tier is not None:
        modules = {tier: kernels.load(tier)}
    else:
        modules = {}
        for name, reason in kernels.tiers().items():
            if reason is None and name != "reference":
                modules[name] = kernels.load(name)
            elif reason is not None:
                say(f"{name}: {reason}")
    if not modules:
        say("No compiled kernels: the NumPy reference is in use, and needs no comparison.")
        return True

    say(f"{'largest error / bound':34}{'cases':>5}", *(f"{name:>10}" for name in modules))
    failures = []
    for kernel in KERNELS.values():
        worst, count = _try(kernel, modules, failures)
        columns = (f"{worst[name]:10.2g}{' ' if worst[name] <= 1 else '!'}" for name in modules)
        say(f"{kernel.name:34}{count:5}", *columns, sep="")
    for failure in failures[:20]:
        say("FAILED", failure)
    if len(failures) > 20:
        say(f"... and {len(failures) - 20} more")
    say(f"{len(failures)} failures" if failures else "All kernels are right.")
    return not failures


def _try(kernel, modules, failures):
    """The largest error of one kernel in each of `modules`, and how many cases were tried."""
    worst = dict.fromkeys(modules, 0.0)
    cases = kernel.cases
    for label, make in cases:
        for dtype in _DTYPES:
            args = make(np.random.default_rng(zlib.crc32(label.encode())), dtype)
            expected = expect(kernel, args, dtype)
            for name, module in modules.items():
                where = f"{name} {kernel.name} {np.dtype(dtype)} {label}"
                try:
                    got = kernel.run(getattr(module, kernel.name), args)
                    error = compare(kernel, got, args, dtype, expected)
                except Exception as trouble:
                    error = np.inf
                    where += f": {type(trouble).__name__}: {trouble}"
                if error > 1:
                    failures.append(f"{where} (error {error:.3g} times the bound)")
                worst[name] = max(worst[name], error)
    return worst, len(cases) * len(_DTYPES)


def _say_nothing(*_, **__):
    pass


if __name__ == "__main__":
    sys.exit(not self_test(*sys.argv[1:2]))
