"""Numerical gradients, and a check of exact gradients against them.

Everything is computed in float64, whatever dtype comes in: a finite difference of float32 numbers
has three good digits at best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .core import Variable, get_gradients
from .ops import sum as _sum

EPS = 1e-6


class NumericalError(Exception):
    """A value or gradient is not what the numerical one says it should be."""


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of a - b."""
    return np.sqrt(np.mean(np.square(np.asarray(a) - np.asarray(b))))


def _as_float64(a) -> np.ndarray:
    return np.array(a.array if isinstance(a, Variable) else a, np.float64)


def numgrad(func: Callable, a: np.ndarray, delta: float = 1e-6) -> np.ndarray:
    """Gradient of sum(func(a)) at `a`, by central differences of width `delta`; float64."""
    a = _as_float64(a)
    gradient = np.zeros(a.shape)
    for index in np.ndindex(a.shape):
        ends = []
        for step in (delta / 2, -delta / 2):
            moved = a.copy()
            moved[index] += step
            ends.append((_as_float64(func(moved)), moved[index]))
        (above, right), (below, left) = ends
        gradient[index] = np.sum((above - below) / (right - left))
    return gradient


def numgrads(
    func: Callable, args: Sequence[np.ndarray], n: int = 1, delta: float = 1e-6
) -> list[np.ndarray]:
    """The n-th derivative of sum(func(*args)) in each of `args`, by repeated differences."""

    def derivative(function, order):
        if order == 0:
            return function
        return lambda a: numgrad(derivative(function, order - 1), a, delta)

    args = [_as_float64(a) for a in args]
    gradients = []
    for i, arg in enumerate(args):

        def of_one(a, i=i):
            return func(*args[:i], a, *args[i + 1 :])

        gradients.append(derivative(of_one, n)(arg))
    return gradients


def _compare(what: str, exact, numerical, eps: float) -> None:
    """Raise unless root mean square and largest error are small beside the numbers themselves."""
    exact, numerical = np.asarray(exact), np.asarray(numerical)
    if exact.shape != numerical.shape:
        raise NumericalError(f"{what}: shape {exact.shape}, but {numerical.shape} expected")
    if not exact.size:
        return
    scale = max(1.0, float(np.max(np.abs(numerical))))
    error, largest = rmse(exact, numerical), np.max(np.abs(exact - numerical))
    if not (error <= eps * scale and largest <= 100 * eps * scale):  # a NaN fails as well
        raise NumericalError(
            f"{what}: rmse {error:.3g}, largest error {largest:.3g}, eps {eps:.3g}"
        )


def check_grad(
    args: Sequence[np.ndarray],
    sp_func: Callable,
    np_func: Callable | None = None,
    delta: float = 1,
    eps: float = EPS,
    order: int = 1,
) -> None:
    """Check the value and the gradients of an operation; raise NumericalError if one is wrong.

    Parameters
    ----------
    args : list of arrays
        Where to check; taken as float64.
    sp_func : function of Variables
        The operation under test.
    np_func : function of arrays, optional
        The same in NumPy, for the value and the numerical gradient. Without it the operation's own
        values are differentiated numerically, and only the gradients are checked.
    delta : float
        Width of the central differences: 1 is exact for linear functions, others need a small one.
    eps : float
        Allowed root mean square error, relative to the largest numerical gradient if that is above
        one. No element may be off by more than 100 times as much.
    order : 1 or 2
        With 2, the gradient of the gradient is checked as well (of a weighted sum of the gradients,
        so that every second derivative takes part).
    """
    if order not in (1, 2):
        raise ValueError(f"check_grad: order must be 1 or 2, got {order!r}")
    args = [_as_float64(a) for a in args]

    def value(*arrays):
        return sp_func(*[Variable(a) for a in arrays]).array

    def gradients(*arrays, differentiable=False):
        variables = [Variable(a) for a in arrays]
        found = get_gradients(sp_func(*variables), variables, differentiable)
        return variables, [found[v] for v in variables]

    exact = value(*args)
    if np_func is not None:
        _compare("value", exact, np_func(*args), eps)
    numerical = numgrads(np_func or value, args, 1, delta)
    for i, (found, expected) in enumerate(zip(gradients(*args)[1], numerical)):
        _compare(f"gradient in args[{i}]", found, expected, eps)
    if order == 1:
        return

    rng = np.random.default_rng(0)
    weights = [rng.uniform(0.5, 1.5, a.shape) for a in args]

    def weighted(*arrays):
        return np.sum([np.sum(w * g) for w, g in zip(weights, gradients(*arrays)[1])])

    variables, first = gradients(*args, differentiable=True)
    total = Variable(np.float64(0))
    for w, g in zip(weights, first):
        total = total + _sum(g * w)
    second = get_gradients(total, variables)
    for i, expected in enumerate(numgrads(weighted, args, 1, delta)):
        _compare(f"second gradient in args[{i}]", second[variables[i]], expected, eps)
