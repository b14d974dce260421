"""Optimisers: Adam and plain gradient descent.

Both give each Variable a new array and never write into the old one: arrays handed in by the user,
and what a recorded graph refers to, stay as they were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from . import kernels
from .core import Variable


class MissingGradientError(KeyError, ValueError):
    """A Variable that is to be updated has no gradient."""

    def __str__(self) -> str:
        return str(self.args[0])


def _checked(operation: str, variables: Iterable[Variable], gradients: Mapping) -> tuple:
    """The Variables, their arrays and gradients, all checked before anything is changed."""
    variables = [variables] if isinstance(variables, Variable) else list(variables)
    seen = set()
    for i, variable in enumerate(variables):
        if not isinstance(variable, Variable):
            kind = type(variable).__name__
            raise TypeError(f"{operation}: variables[{i}] is not a Variable but a {kind}")
        if variable in seen:
            raise ValueError(f"{operation}: variables[{i}] is listed twice: {variable!r}")
        seen.add(variable)
    arrays, grads = [], []
    for i, variable in enumerate(variables):
        if variable not in gradients:
            raise MissingGradientError(
                f"{operation}: there is no gradient for variables[{i}], {variable!r}: "
                "the loss does not depend on it"
            )
        gradient = gradients[variable]
        gradient = gradient._array if isinstance(gradient, Variable) else np.asarray(gradient)
        array = variable._array
        if array.dtype.kind != "f":
            array = array.astype(np.float64)
        if gradient.dtype.kind not in "fiub":
            raise TypeError(f"{operation}: the gradient of variables[{i}] is not made of numbers")
        if gradient.shape != array.shape:
            raise ValueError(
                f"{operation}: variables[{i}] has shape {array.shape} and its gradient "
                f"{gradient.shape}"
            )
        arrays.append(array)
        grads.append(gradient.astype(array.dtype, copy=False))
    return variables, arrays, grads


class Adam:
    """Adam (Kingma & Ba, 2015, arXiv:1412.6980, Algorithm 1).

    The betas are not rounded to the dtype of an array: as a float32, 0.999 would in time make the
    running mean of squares too large by 1.3e-5.

    Parameters
    ----------
    alpha : float
        Step size.
    beta1, beta2 : float, 0 <= beta < 1
        Decay of the running means of the gradient and of its square.
    eps : float
        Added to the denominator.

    Attributes
    ----------
    t, m, v : dict
        For each Variable: number of steps, and the two running means. 0 before the first step.
    """

    def __init__(
        self,
        alpha: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("alpha", alpha), ("beta1", beta1), ("beta2", beta2), ("eps", eps)):
            if isinstance(value, (str, bytes)) or np.ndim(value) or value is None:
                raise TypeError(f"Adam: {name} must be a number, got {value!r}")
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"Adam: {name} must be at least 0 and below 1, got {beta!r}")
        if not np.isfinite(alpha) or not eps >= 0:
            raise ValueError(f"Adam: alpha must be finite and eps >= 0, got {alpha!r}, {eps!r}")
        self.alpha = alpha
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.t, self.m, self.v = defaultdict(int), defaultdict(int), defaultdict(int)

    def training_step(self, variables: Iterable[Variable], gradients: Mapping) -> None:
        """Update every Variable once.

        Raises
        ------
        MissingGradientError (a KeyError and a ValueError), ValueError, TypeError
            A gradient is missing or of the wrong shape, or a Variable is listed twice. Nothing has
            been changed then.
        """
        variables, arrays, grads = _checked("Adam.training_step", variables, gradients)
        for variable, array in zip(variables, arrays):
            m = self.m.get(variable)
            is_new = not isinstance(m, np.ndarray)  # the 0 that somebody has asked for included
            if is_new or m.shape != array.shape or m.dtype != array.dtype:
                if not is_new and m.shape != array.shape:
                    raise ValueError(
                        f"Adam.training_step: a Variable of shape {m.shape} now has shape "
                        f"{array.shape}: use a new Adam for it"
                    )
                for means in (self.m, self.v):
                    means[variable] = np.full(array.shape, means.get(variable, 0), array.dtype)
        steps = [self.t.get(variable, 0) + 1 for variable in variables]
        new = kernels.adam_step(
            arrays,
            grads,
            [self.m[variable] for variable in variables],
            [self.v[variable] for variable in variables],
            steps,
            self.alpha,
            self.beta1,
            self.beta2,
            self.eps,
        )
        for variable, array, step in zip(variables, new, steps):
            variable._take(array)
            self.t[variable] = step


def sgd_step(
    variables: Iterable[Variable], gradients: Mapping, learning_rate: float = 0.001
) -> None:
    """One step of gradient descent: each array less `learning_rate` times its gradient.

    Raises as `Adam.training_step` does, before anything has been changed.
    """
    variables, arrays, grads = _checked("sgd_step", variables, gradients)
    if not np.isfinite(learning_rate):
        raise ValueError(f"sgd_step: learning_rate must be finite, got {learning_rate!r}")
    new = [
        array - array.dtype.type(learning_rate) * gradient for array, gradient in zip(arrays, grads)
    ]
    for variable, array in zip(variables, new):
        variable._take(array)
