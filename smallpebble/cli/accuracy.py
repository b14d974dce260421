"""The accuracy of the compiled convolutions and of `matmul`: a part of ``bench``.

u is the unit roundoff of the dtype, K the number of products in a sum, and |a||b| the kernel on
absolute values. What is right is the NumPy reference in a wider dtype: float64 for float32, long
double for float64.

Direct kernels are judged number by number. |error| <= (K + 2) u |a||b| holds for a sum in any
order. The gate, 4 u |a||b|, is no theorem: it is what the largest error in 48x48 sums of standard
normal products keeps to as a rule, for any K. One draw in a few goes beyond, also of plain loops,
and so do larger results, since the largest of more errors is larger. Hence several draws, of which
the gate is for the middle one, and NumPy's own sums of the same numbers beside.

Winograd's algorithm mixes the outputs of a tile, so its errors are relative to the largest number
of the result, and so are those of the direct kernel that they are compared with. What is compared
is the largest error over several shapes; for one shape the ratio of the two may be 6. It depends on
the numbers as well: of 24 draws of shifted inputs in float32, for the gradient of the images, it
was about 0.8 in the middle one, and 1.4 at most.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np

import smallpebble as sp
from smallpebble.kernels import catalogue

GATE = 4
GOAL = 2  # for Winograd's largest error over that of the direct kernel
DRAWS = 5  # of the numbers for the gate
KERNELS = ("conv2d", "conv2d_grad_images", "conv2d_grad_kernels", "matmul")
INPUTS = ("standard normal", "shifted by 10", "shifted by 100", "scaled channels", "non-negative")


def _spec(n: int, size: tuple[int, int], c: int, m: int, padding: str) -> tuple:
    return n, c, (*size, 3, 3, 1, 1, padding), m


# Specs of the catalogue.
_CONVOLUTIONS = (
    _spec(1, (15, 15), 32, 128, "VALID"),  # the CNN of the README
    _spec(1, (7, 7), 128, 128, "VALID"),
    _spec(1, (56, 56), 16, 16, "SAME"),  # sizes of ResNet's images
    _spec(1, (28, 28), 16, 32, "SAME"),
    _spec(1, (14, 14), 64, 32, "SAME"),
    _spec(1, (7, 7), 64, 64, "SAME"),
    _spec(1, (7, 7), 512, 16, "SAME"),  # its longest sums over channels
    _spec(1, (7, 7), 16, 512, "SAME"),
    _spec(4, (13, 13), 13, 17, "SAME"),
    _spec(3, (11, 9), 17, 33, "VALID"),
)
ZOO: dict[str, tuple] = {
    **dict.fromkeys(KERNELS[:3], _CONVOLUTIONS),
    "matmul": (((17, 63), (63, 33)), ((200, 784), (784, 10)), ((48, 1024), (1024, 48))),
}

# Results of 48 * 48 numbers, and K up to 16,384.
_CHANNELS = (1, 2, 7, 28, 114, 455, 1820)
_OUTPUTS = ((1, 1, 1), (1, 1, 2), (1, 1, 7), (1, 4, 4), (1, 7, 9), (1, 16, 16), (1, 32, 32))
GATE_SPECS: dict[str, tuple] = {
    "conv2d": tuple(_spec(1, (10, 8), c, 48, "VALID") for c in _CHANNELS),
    "conv2d_grad_images": tuple(_spec(1, (8, 6), 48, m, "SAME") for m in _CHANNELS),
    "conv2d_grad_kernels": tuple(
        _spec(n, (h + 2, w + 2), 16, 16, "VALID") for n, h, w in (*_OUTPUTS, (16, 32, 32))
    ),
    "matmul": tuple(((48, k), (k, 48)) for k in (1, 2, 7, 16, 63, 256, 1024, 16384)),
}

# Which argument is changed by the kind of input, and the axes of the other that are summed over.
_CHANGED = {
    "conv2d": (0, (0, 1, 2)),
    "conv2d_grad_images": (0, (0, 1, 3)),
    "conv2d_grad_kernels": (1, (0, 1, 2)),
    "matmul": (0, (0,)),
}


def can_judge(dtype: str) -> bool:
    """Whether there is a wider dtype to compare with; not where long double is double."""
    return bool(np.finfo(np.longdouble).eps < np.finfo(dtype).eps)


def arguments(name: str, spec: tuple, inputs: str, dtype: str, draw: int = 0) -> tuple:
    """Arguments of the kernel `name`: the same numbers at every call.

    Images (in the gradient of the images `g`, in `matmul` a) are shifted, each channel of theirs is
    scaled by 10 ** uniform(-3, 3), or they are cut off at 0. Shifted ones meet sums to zero over
    everything that is summed, so that the shift cancels.
    """
    rng = np.random.default_rng(draw)
    args = list(catalogue.KERNELS[name].make(spec, rng, np.dtype(np.float64)))
    changed, axes = _CHANGED[name]
    x, other = args[changed], args[1 - changed]
    if inputs.startswith("shifted by "):
        x = x + float(inputs.removeprefix("shifted by "))
        other = other - other.mean(axes, keepdims=True)
    elif inputs == "scaled channels":
        x = x * 10 ** rng.uniform(-3, 3, x.shape[-1])
    elif inputs == "non-negative":
        x = np.maximum(x, 0)
    elif inputs != "standard normal":
        raise ValueError(f"unknown inputs {inputs!r}: choose one of {', '.join(INPUTS)}")
    args[changed], args[1 - changed] = x.astype(dtype), other.astype(dtype)
    return tuple(args)


def _errors(functions: dict[Any, Callable], name: str, *what: Any) -> dict[Any, dict[str, float]]:
    """For each function its largest error on `arguments` of `name` and `what`.

    As a fraction of the bound, in u |a||b|, and relative to the largest number of the result.
    """
    kernel = catalogue.KERNELS[name]
    args = arguments(name, *what)
    dtype = args[0].dtype
    ((value, bound),) = catalogue.expect(kernel, args, dtype)
    changed, axes = _CHANGED[name]
    terms = prod(args[1 - changed].shape[axis] for axis in axes)
    largest = np.max(np.abs(value))
    errors = {}
    for key, function in functions.items():
        got = function(*args)
        of_bound = catalogue.compare(kernel, got, args, dtype, [(value, bound)])
        relative = float(np.max(np.abs(got - value)) / largest)
        errors[key] = {"bound": of_bound, "u": of_bound * (terms + 2), "relative": relative}
    return errors


def _by(algorithm: str, function: Callable) -> Callable:
    def call(*args: Any) -> np.ndarray:
        # The bits are those of any number of threads; one does not wait for NumPy's, which spin.
        with sp.use_conv(algorithm), sp.num_threads(1):
            return function(*args)

    return call


def over_zoo(name: str, inputs: str, dtype: str, tiers: Iterable[str]) -> list[dict]:
    """For each tier the largest errors of the kernel `name` over `ZOO`."""
    algorithms = ("direct",) if name == "matmul" else ("direct", "winograd")
    tiers = list(tiers)
    functions = {
        (tier, algorithm): _by(algorithm, getattr(sp.kernels.load(tier), name))
        for tier in tiers
        for algorithm in algorithms
    }
    found = [_errors(functions, name, spec, inputs, dtype) for spec in ZOO[name]]
    rows = []
    for tier in tiers:
        direct = [errors[tier, "direct"] for errors in found]
        row = {
            "kernel": name,
            "inputs": inputs,
            "dtype": dtype,
            "tier": tier,
            "error_of_bound": max(error["bound"] for error in direct),
            "error_in_u": max(error["u"] for error in direct),
            "direct": max(error["relative"] for error in direct),
        }
        if "winograd" in algorithms:
            winograd = [errors[tier, "winograd"]["relative"] for errors in found]
            ratios = [error / other["relative"] for error, other in zip(winograd, direct)]
            row["winograd"] = max(winograd)
            row["ratio"] = row["winograd"] / row["direct"]
            row["worst_ratio"] = max(ratios)
            worst = ZOO[name][int(np.argmax(ratios))]
            row["worst_case"] = catalogue.KERNELS[name].label(*worst)
        rows.append(row)
    return rows


def at_gate(name: str, dtype: str, tiers: Iterable[str]) -> list[dict]:
    """For each tier the largest errors of the direct kernel `name` over `GATE_SPECS`.

    The error "as a rule" is that of the middle one of `DRAWS` draws, for the K where it is largest.
    """
    tiers = list(tiers)
    functions = {tier: _by("direct", getattr(sp.kernels.load(tier), name)) for tier in tiers}
    functions["NumPy"] = catalogue.KERNELS[name].oracle
    found = [
        [_errors(functions, name, spec, INPUTS[0], dtype, draw) for draw in range(DRAWS)]
        for spec in GATE_SPECS[name]
    ]

    def figures(of: str) -> tuple[float, float]:
        in_u = [[errors[of]["u"] for errors in draws] for draws in found]
        return max(map(statistics.median, in_u)), max(map(max, in_u))

    numpy_rule, numpy_most = figures("NumPy")
    rows = []
    for tier in tiers:
        rule, most = figures(tier)
        row = {
            "kernel": name,
            "dtype": dtype,
            "tier": tier,
            "error_of_bound": max(errors[tier]["bound"] for draws in found for errors in draws),
            "error_in_u": rule,
            "most_in_u": most,
            "numpy_error_in_u": numpy_rule,
            "numpy_most_in_u": numpy_most,
        }
        rows.append(row)
    return rows
