"""Operations: arithmetic, shapes, indexing, reductions, matmul, softmax; and Variable's operators.

Each is a primitive (see core.py) or made of primitives, so each has gradients of every order. `g`
is the gradient in the output `y`. Operations keep the dtype of their Variables; numbers and plain
arrays beside a Variable are taken into its dtype.

Where a function has no derivative, one rule is used throughout: at a kink the slope given in the
docstring, and for a maximum that several elements share, the first of them.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from . import kernels
from .core import (
    Later,
    Variable,
    primitive,
    refuse_lists_of_variables,
    refuse_masked,
    shown_only,
)
from .shapes import as_int, broadcast_shape, kept_shape, normalize_axes, normalize_pad_width

Operand = Variable | np.ndarray | Sequence | float  # what an operation takes
Axis = int | Sequence[int] | None
LARGE = 16384  # from so many elements on, arrays are multiplied sooner by the kernel than by `*`


def _array(a) -> np.ndarray:
    """The numbers of a Variable or array, for masks."""
    if type(a) is ndarray:
        return a
    if isinstance(a, Variable):
        return a._array
    refuse_masked(a, "an operation")
    return np.asarray(a)


def _numbers(a) -> np.ndarray:
    """Plain real numbers as an array; a TypeError for anything else (None, dates, text)."""
    refuse_lists_of_variables(a, "an operation")
    if type(a) is not ndarray:
        refuse_masked(a, "an operation")
        a = np.asarray(a)
    if a.dtype.kind not in "fiub":
        raise TypeError(f"expected real numbers, got {a.dtype} {a!r}")
    return a


def _inexact(a) -> np.ndarray:
    """`a` as a floating array: integers become float64."""
    a = _numbers(a)
    return a if a.dtype.kind == "f" else a.astype(np.float64)


def _beside(other, dtype):
    """Plain real numbers as they take part beside an array of `dtype`.

    A floating array takes them into its dtype. Beside integers NumPy decides, which does not cut
    them to integers, and lets a Python number widen nothing.
    """
    numbers = _numbers(other)
    if dtype.kind == "f":
        return numbers.astype(dtype)
    return other if isinstance(other, (int, float)) else numbers


# ----------------------------------------------------------------------------- element by element


# The rules of the commonest operations close over nothing and are made once, not at each call:
# making a function takes as long as adding small arrays.


def _to_a(g, y, a, b):
    return sum_to(g, a.shape)


def _to_b(g, y, a, b):
    return sum_to(g, b.shape)


def _minus_to_b(g, y, a, b):
    return sum_to(-g, b.shape)


def _times_b(g, y, a, b):
    return sum_to(g * b if g.size < LARGE else mul(g, b), a.shape)


def _times_a(g, y, a, b):
    return sum_to(g * a if g.size < LARGE else mul(g, a), b.shape)


def _over_b(g, y, a, b):
    return sum_to(g / b, a.shape)


def _slope_of_divisor(g, y, a, b):
    return sum_to(-g * y / b, b.shape)


def _minus(g, y, a):
    return -g


def _times_y(g, y, a):
    return g * y


@primitive(linear=True, operands=2)
def add(a: Operand, b: Operand) -> Any:
    """a + b, element by element, broadcast."""
    return _binary(kernels.add, a, b, "add"), _to_a, _to_b


@primitive(linear=True, operands=2)
def sub(a: Operand, b: Operand) -> Any:
    """a - b, element by element, broadcast."""
    return _binary(kernels.sub, a, b, "sub"), _to_a, _minus_to_b


@primitive(multilinear=True, operands=2)
def mul(a: Operand, b: Operand) -> Any:
    """a * b, element by element, broadcast."""
    return _binary(kernels.mul, a, b, "mul"), _times_b, _times_a


@primitive(operands=2)
def div(a: Operand, b: Operand) -> Any:
    """a / b, element by element, broadcast."""
    return _binary(kernels.div, a, b, "div"), _over_b, _slope_of_divisor


@primitive(operands=2)
def power(a: Operand, b: Operand) -> Any:
    """a ** b, element by element, broadcast. At a = 0 the slope in b is 0."""

    def rule_a(g, y, a, b):
        lowered = where(_array(b) != 0, b - 1, 1)
        return sum_to(g * b * power(a, lowered), a.shape)

    def rule_b(g, y, a, b):
        return sum_to(g * y * log(where(_array(a) != 0, a, 1)), b.shape)

    return _binary(np.power, a, b, "power"), rule_a, rule_b


@primitive(operands=2)
def maximum(a: Operand, b: Operand) -> Any:
    """The larger of a and b, element by element, broadcast; where equal, each has slope 1/2."""
    return (
        _binary(np.maximum, a, b, "maximum"),
        lambda g, y, a, b: sum_to(g * _share(_array(a), _array(b), g), a.shape),
        lambda g, y, a, b: sum_to(g * _share(_array(b), _array(a), g), b.shape),
    )


@primitive(operands=2)
def minimum(a: Operand, b: Operand) -> Any:
    """The smaller of a and b, element by element, broadcast; where equal, each has slope 1/2."""
    return (
        _binary(np.minimum, a, b, "minimum"),
        lambda g, y, a, b: sum_to(g * _share(_array(b), _array(a), g), a.shape),
        lambda g, y, a, b: sum_to(g * _share(_array(a), _array(b), g), b.shape),
    )


def _share(winner, loser, g):
    """1 where winner > loser (or either is NaN, which passes through), 1/2 where equal, else 0."""
    return np.where(winner < loser, 0, np.where(winner == loser, 0.5, 1)).astype(g.dtype)


def _binary(function, a, b, name):
    try:
        return function(a, b)
    except ValueError:
        broadcast_shape(np.shape(a), np.shape(b), name)  # names the shapes, if they are the reason
        raise


@primitive(linear=True)
def neg(a: Operand) -> Any:
    """-a."""
    return np.negative(a), _minus


@primitive
def square(a: Operand) -> Any:
    """a * a."""
    return np.square(a), lambda g, y, a: g * a * 2


@primitive
def exp(a: Operand) -> Any:
    """e ** a."""
    return np.exp(a), _times_y


@primitive
def log(a: Operand) -> Any:
    """Natural logarithm."""
    return np.log(a), lambda g, y, a: g / a


@primitive
def sqrt(a: Operand) -> Any:
    """Square root; its slope at 0 is infinite."""
    return np.sqrt(a), lambda g, y, a: g / (y * 2)


@primitive
def abs(a: Operand) -> Any:
    """|a|, with slope 0 at 0."""
    return np.abs(a), lambda g, y, a: g * np.sign(_array(a))


@primitive
def tanh(a: Operand) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(a), lambda g, y, a: g * (1 - y * y)


@primitive
def sigmoid(a: Operand) -> Any:
    """1 / (1 + exp(-a)), without overflow on either side."""
    a = _inexact(a)
    e = np.exp(-np.abs(a))
    one = a.dtype.type(1)
    return np.where(a < 0, e, one) / (one + e), lambda g, y, a: g * y * (1 - y)


@primitive
def relu(a: Operand) -> Any:
    """max(a, 0), with slope 0 at 0."""
    zero = np.asarray(a).dtype.type(0)
    return np.maximum(a, zero), lambda g, y, a: where(_array(a) <= 0, 0, g)


@primitive(waits=True)
def leaky_relu(a: Operand, alpha: float = 0.02) -> Any:
    """`a` where a > 0, else alpha * a; slope `alpha` at 0."""
    if type(alpha) is not float:
        if isinstance(alpha, str) or np.ndim(alpha) or np.asarray(alpha).dtype.kind not in "fiub":
            raise TypeError(f"leaky_relu: alpha must be a number, got {alpha!r}")
        if isinstance(alpha, np.ndarray):  # lest it be written to before it is used
            alpha = alpha[()]
    if type(a) is Later or np.ndim(a) == 4:  # images: a pooling may follow, which does both at once
        dtype = a.dtype if hasattr(a, "dtype") and a.dtype.kind == "f" else np.dtype(np.float64)
        value = Later(lambda a, *_: kernels.leaky_relu(_inexact(a), alpha), np.shape(a), dtype)
    else:
        value = kernels.leaky_relu(_inexact(a), alpha)
    return value, lambda g, y, a: _leaky_relu_grad(g, a, alpha)


@primitive
def _leaky_relu_grad(g, a, alpha):
    value = kernels.leaky_relu_grad_a(np.asarray(g), _inexact(a), alpha)
    return value, lambda gg, y, g, a: _leaky_relu_grad(gg, a, alpha), None


@primitive
def clip(a: Operand, low: Any = None, high: Any = None) -> Any:
    """`a` held between the numbers (or arrays) `low` and `high`; slope 1 at the bounds.

    A floating `a` takes them into its dtype; integers beside floating bounds become floating.
    """
    if low is None and high is None:
        raise ValueError("clip: give at least one of low and high")
    a = np.asarray(a)
    low, high = (x if x is None else _beside(x, a.dtype) for x in (low, high))
    inside = np.ones(a.shape, bool)
    for bound, outside in ((low, np.less), (high, np.greater)):
        if bound is not None:
            shape = getattr(bound, "shape", ())
            if broadcast_shape(a.shape, shape, "clip") != a.shape:
                raise ValueError(f"clip: bounds of shape {shape} do not fit {a.shape}")
            inside &= ~outside(a, bound)
    return np.clip(a, low, high), lambda g, y, a: where(inside, g, 0)


@primitive(linear=True, operands=0)
def _where(condition, a, b):
    return (
        np.where(condition, a, b),
        None,
        lambda g, y, condition, a, b: sum_to(where(condition, g, 0), a.shape),
        lambda g, y, condition, a, b: sum_to(where(condition, 0, g), b.shape),
    )


def where(condition: Operand, a: Operand, b: Operand) -> Variable:
    """`a` where `condition` (a boolean array) holds, else `b`, all three broadcast."""
    condition = np.array(_numbers(_array(condition)), bool)
    for x, other in ((a, b), (b, a)):
        if isinstance(x, (Variable, np.ndarray)) and not isinstance(other, (Variable, np.ndarray)):
            number = _beside(other, x.dtype)
            a, b = (x, number) if x is a else (number, x)
            break
    a, b = _alike(a, b)
    shape = broadcast_shape(np.shape(_array(a)), np.shape(_array(b)), "where")
    broadcast_shape(shape, condition.shape, "where")
    return _where(condition, a, b)


def _alike(a, b):
    """An array beside a floating Variable, taken into the Variable's dtype."""
    for x, other in ((a, b), (b, a)):
        if isinstance(x, Variable) and not isinstance(other, Variable) and x.dtype.kind == "f":
            taken = _numbers(other).astype(x.dtype)
            return (x, taken) if x is a else (taken, x)
    return a, b


@primitive(linear=True)
def astype(a: Operand, dtype: Any) -> Any:
    """`a` in another real dtype; the gradient comes back in that of `a`."""
    y = np.asarray(a).astype(dtype, copy=False)
    return y, lambda g, y, a: astype(g, a.dtype) if a.dtype.kind == "f" else g


# --------------------------------------------------------------------------------------- shapes


@primitive(linear=True)
def _sum_to(a, shape):
    return kernels.sum_to(a, shape), lambda g, y, a: _broadcast_to(g, a.shape)


def sum_to(a: Operand, shape: Sequence[int]) -> Variable:
    """`a` summed down to `shape`, which broadcasts to that of `a`: undoes `broadcast_to`."""
    if (type(a) is ndarray or isinstance(a, Variable)) and a.shape == shape:
        return a
    a, shape = _whole(a), _shape(shape, "sum_to")
    return a if a.shape == shape else _sum_to(a, shape)


@primitive(linear=True)
def _broadcast_to(a, shape):
    return kernels.broadcast_to(a, shape), lambda g, y, a: _sum_to(g, a.shape)


def broadcast_to(a: Operand, shape: int | Sequence[int]) -> Variable:
    """`a` repeated to `shape`."""
    a, shape = _whole(a), _shape(shape, "broadcast_to")
    if broadcast_shape(a.shape, shape, "broadcast_to") != shape:
        raise ValueError(f"broadcast_to: shape {a.shape} does not broadcast to {shape}")
    return a if a.shape == shape else _broadcast_to(a, shape)


def _whole(a):
    return a if isinstance(a, Variable) else _numbers(a)


def _shape(shape, operation):
    if type(shape) is tuple:  # as a rule already what it should be
        for size in shape:
            if type(size) is not int or size < 0:
                break
        else:
            return shape
    shape = shape if isinstance(shape, (tuple, list)) else (shape,)
    shape = tuple(as_int(size, f"{operation}: shape") for size in shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"{operation}: a shape cannot be negative, got {shape}")
    return shape


@primitive(linear=True)
def reshape(a: Operand, shape: int | Sequence[int]) -> Any:
    """The same elements in another shape; one length may be -1."""
    return np.reshape(a, shape), lambda g, y, a: reshape(g, a.shape)


@primitive(linear=True)
def transpose(a: Operand, axes: Sequence[int] | None = None) -> Any:
    """The axes in another order; reversed if none is given."""
    y = np.transpose(a, axes)
    back = None if axes is None else np.argsort([axis % y.ndim for axis in axes]).tolist()
    return y, lambda g, y, a: transpose(g, back)


@primitive(linear=True)
def matrix_transpose(a: Operand) -> Any:
    """The last two axes swapped."""
    if np.ndim(a) < 2:
        raise ValueError(f"matrix_transpose: needs at least 2 dimensions, got shape {np.shape(a)}")
    return np.swapaxes(a, -2, -1), lambda g, y, a: matrix_transpose(g)


@primitive(linear=True)
def expand_dims(a: Operand, axis: int | Sequence[int]) -> Any:
    """New axes of length 1 at `axis` (an int or several)."""
    axis = tuple(axis) if isinstance(axis, (tuple, list)) else axis
    return np.expand_dims(a, axis), lambda g, y, a: reshape(g, a.shape)


@primitive(linear=True)
def squeeze(a: Operand, axis: Axis = None) -> Any:
    """Axes of length 1 taken away: all, or those in `axis`."""
    axis = tuple(axis) if isinstance(axis, (tuple, list)) else axis
    return np.squeeze(a, axis), lambda g, y, a: reshape(g, a.shape)


@primitive(linear=True)
def _concatenate(*arrays, axis):
    def rule(start, stop):
        part = (slice(None),) * axis + (slice(start, stop),)
        return lambda g, y, *inputs: getitem(g, part)

    ends = np.cumsum([a.shape[axis] for a in arrays]).tolist()
    rules = [rule(stop - a.shape[axis], stop) for a, stop in zip(arrays, ends)]
    return np.concatenate(arrays, axis), *rules


def concatenate(variables: Sequence[Operand], axis: int = 0) -> Variable:
    """Variables (or arrays) joined along `axis`."""
    variables = [_whole(v) for v in variables]
    if not variables:
        raise ValueError("concatenate: nothing to join")
    shapes = [v.shape for v in variables]
    axis = _one_axis(axis, len(shapes[0]), "concatenate")
    kept = {kept_shape(shape, (axis,)) for shape in shapes}
    if len(kept) != 1:
        raise ValueError(f"concatenate: shapes {shapes} differ in more than axis {axis}")
    return _concatenate(*_one_dtype(variables), axis=axis)


def _one_dtype(variables):
    """Plain arrays among Variables, in the dtype of the Variables."""
    dtypes = [v.dtype for v in variables if isinstance(v, Variable)]
    if dtypes and np.result_type(*dtypes).kind == "f":
        dtype = np.result_type(*dtypes)
        return [v if isinstance(v, Variable) else v.astype(dtype) for v in variables]
    return variables


def stack(variables: Sequence[Operand], axis: int = 0) -> Variable:
    """Variables (or arrays) of one shape, joined along a new axis."""
    variables = [_whole(v) for v in variables]
    if len({v.shape for v in variables}) != 1:
        raise ValueError(f"stack: shapes must be equal, got {[v.shape for v in variables]}")
    axis = _one_axis(axis, variables[0].ndim + 1, "stack")
    return concatenate([expand_dims(v, axis) for v in variables], axis)


@primitive(linear=True)
def pad(a: Operand, pad_width: Any) -> Any:
    """`a` with zeros around it; `pad_width` as in `numpy.pad`: n, (before, after), or pairs."""
    a = np.asarray(a)
    width = normalize_pad_width(pad_width, a.ndim)
    inside = tuple(slice(before, before + size) for (before, _), size in zip(width, a.shape))
    return np.pad(a, width) if a.ndim else a, lambda g, y, a: getitem(g, inside)


# -------------------------------------------------------------------------------------- indexing


def _is_basic(indices) -> bool:
    """Whether an index is made of whole numbers, slices, None and Ellipsis: a view, no repeats."""
    indices = indices if isinstance(indices, tuple) else (indices,)
    basic = (int, np.integer, slice, type(None), type(Ellipsis))
    return all(isinstance(i, basic) and not isinstance(i, bool) for i in indices)


def _own_index(indices):
    """An index that nobody else can write to: arrays, lists and Variables are copied."""
    if isinstance(indices, tuple):
        return tuple(_own_index(i) for i in indices)
    if isinstance(indices, (np.ndarray, list, Variable)):
        if _array(indices).dtype.kind == "u" and np.any(_array(indices) > np.iinfo(np.intp).max):
            raise IndexError(f"index {_array(indices).max()} is out of range")  # NumPy wraps it
        return np.array(
            _array(indices), dtype=np.intp if isinstance(indices, list) and not indices else None
        )
    return indices


@primitive(linear=True)
def _getitem(a, indices):
    return a[indices], lambda g, y, a: add_at(np.zeros(a.shape, g.dtype), indices, g)


def getitem(a: Operand, indices: Any) -> Variable:
    """a[indices], for anything that indexes an ndarray; repeated indices add up their gradients."""
    return _getitem(_whole(a), _own_index(indices))


@primitive(linear=True)
def _add_at(a, indices, b):
    if _is_basic(indices):
        y = a.copy()
        y[indices] += b
    else:
        y = kernels.add_at(a, indices, b)
    return (
        y,
        lambda g, y, a, indices, b: g,
        None,
        lambda g, y, a, indices, b: sum_to(getitem(g, indices), b.shape),
    )


def add_at(a: Operand, indices: Any, b: Operand) -> Variable:
    """A copy of `a` with `b` (broadcast) added at `indices`; repeated indices add up."""
    a, b = _alike(_whole(a), _whole(b))
    return _add_at(a, _own_index(indices), b)


@primitive(linear=True)
def _setat(a, indices, b):
    y = a.copy()
    y[indices] = b

    # Assignment ignores leading axes of length 1 that are too many.
    extra = np.ndim(b) - y[indices].ndim
    shape = np.shape(b)[extra:] if extra > 0 else np.shape(b)

    def rule_b(g, y, a, indices, b):
        taken = getitem(g, indices)
        if not _is_basic(indices):
            # Of several values written to one place the last one stays, and has the gradient.
            order = np.arange(taken.size).reshape(taken.shape)
            last = np.zeros(a.shape, np.intp)
            last[indices] = order
            taken = where(last[indices] == order, taken, 0)
        return reshape(sum_to(taken, shape), b.shape)

    return y, lambda g, y, a, indices, b: setat(g, indices, 0), None, rule_b


def setat(a: Operand, indices: Any, b: Operand) -> Variable:
    """A copy of `a` with `b` (broadcast) written at `indices`; `a` itself is not changed."""
    a, b = _alike(_whole(a), _whole(b))
    return _setat(a, _own_index(indices), b)


# ------------------------------------------------------------------------------------ reductions


def sum(a: Operand, axis: Axis = None, keepdims: bool = False) -> Variable:
    """Sum over `axis`: all axes (None), one, or several; 0 where there is nothing to add."""
    a = _whole(a)
    axes = normalize_axes(axis, a.ndim, "sum")
    if a.dtype.kind != "f":
        a = astype(a, np.sum(np.zeros(0, a.dtype)).dtype)
    total = _sum_to(a, kept_shape(a.shape, axes))
    return total if keepdims else reshape(total, _dropped(a.shape, axes))


def _dropped(shape, axes):
    return tuple(size for i, size in enumerate(shape) if i not in axes)


def _nonempty(a, axes, operation):
    count = math.prod(a.shape[i] for i in axes)
    if count == 0:
        raise ValueError(f"{operation}: nothing to reduce in shape {a.shape} along axes {axes}")
    return count


def mean(a: Operand, axis: Axis = None, keepdims: bool = False) -> Variable:
    """Mean over `axis`: all axes (None), one, or several. ValueError where there is nothing."""
    a = _whole(a)
    count = _nonempty(a, normalize_axes(axis, a.ndim, "mean"), "mean")
    return sum(a, axis, keepdims) / count


def _extreme(a, axis, keepdims, argument, operation):
    a = _whole(a)
    axes = normalize_axes(axis, a.ndim, operation)
    count = _nonempty(a, axes, operation)
    others = [i for i in range(a.ndim) if i not in axes]
    rows = reshape(transpose(a, (*others, *axes)), (a.size // count, count))
    best = argument(_array(rows), axis=1)
    picked = getitem(rows, (np.arange(len(best)), best))
    return reshape(picked, kept_shape(a.shape, axes) if keepdims else _dropped(a.shape, axes))


def max(a: Operand, axis: Axis = None, keepdims: bool = False) -> Variable:
    """Largest element over `axis`; the first of several has the gradient. ValueError if empty."""
    return _extreme(a, axis, keepdims, np.argmax, "max")


def min(a: Operand, axis: Axis = None, keepdims: bool = False) -> Variable:
    """Smallest element over `axis`; the first of several has the gradient. ValueError if empty."""
    return _extreme(a, axis, keepdims, np.argmin, "min")


def maxax(a: Operand, axis: int) -> Variable:
    """Largest element along one `axis`, which stays with length 1."""
    return max(a, axis, keepdims=True)


# --------------------------------------------------------------------------------------- products


def _product_to_a(g, y, a, b, *bias):
    return sum_to(_matmul(g, _swapped(b)), a.shape)


def _product_to_b(g, y, a, b, *bias):
    return sum_to(_matmul(_swapped(a), g), b.shape)


def _product_to_bias(g, y, a, b, bias):
    return sum_to(g, bias.shape)


def _swapped(a):
    return a.swapaxes(-2, -1) if type(a) is ndarray else matrix_transpose(a)


@primitive(multilinear=True, operands=2)
def _matmul(a, b):
    return kernels.matmul(a, b), _product_to_a, _product_to_b


@primitive(multilinear=True, operands=3)
def _matmul_add(a, b, bias):
    """a @ b + bias in one, for a bias of one dimension, as long as the rows of b."""
    return kernels.matmul(a, b, bias), _product_to_a, _product_to_b, _product_to_bias


def matmul(a: Operand, b: Operand) -> Variable:
    """Matrix product as `numpy.matmul`: (..., i, k) @ (..., k, j), batches broadcast, or 1-D."""
    if not (isinstance(a, Variable) and isinstance(b, Variable)):
        a, b = _whole(a), _whole(b)
    rows, columns = a.shape, b.shape
    if len(rows) == 2 and len(columns) == 2 and rows[1] == columns[0]:
        return _matmul(a, b)
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[builtins.max(-2, -b.ndim)]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit: (..., k) @ (k, ...)")
    if a.ndim > 2 and b.ndim > 2:
        broadcast_shape(a.shape[:-2], b.shape[:-2], "matmul (batches)")
    if a.ndim > 1 and b.ndim > 1:
        return _matmul(a, b)
    y = _matmul(a if a.ndim > 1 else reshape(a, (1, -1)), b if b.ndim > 1 else reshape(b, (-1, 1)))
    shape = (
        y.shape[:-2]
        + (() if a.ndim == 1 else y.shape[-2:-1])
        + (() if b.ndim == 1 else y.shape[-1:])
    )
    return reshape(y, shape)


def _linear(a, weights, bias=None):
    """a @ weights + bias, `a` taken into the dtype of the weights: a layer."""
    a = _into(a, weights.dtype)
    if bias is None:
        return matmul(a, weights)
    fits = a.shape[1:] == weights.shape[:1] and bias.shape == weights.shape[1:]
    if fits and bias.dtype == weights.dtype:
        return _matmul_add(a, weights, bias)
    return add(matmul(a, weights), bias)


def _into(a, dtype):
    """`a` in the dtype of a layer, itself if that is its own."""
    return a if isinstance(a, Variable) and a.dtype == dtype else astype(a, dtype)


# ------------------------------------------------------------------------------ softmax and losses


@primitive
def _softmax(a, axis):
    value = kernels.softmax(_inexact(a), axis)
    return value, lambda g, y, a: _softmax_grad(g, y, axis)


@primitive
def _softmax_grad(g, y, axis):
    def rule_y(gg, z, g, y):
        along = sum(g * y, axis, keepdims=True)
        return gg * (g - along) - g * sum(gg * y, axis, keepdims=True)

    value = kernels.softmax_grad_a(np.asarray(g), np.asarray(y), axis)
    return value, lambda gg, z, g, y: _softmax_grad(gg, y, axis), rule_y


@primitive
def _log_softmax(a, axis):
    value = kernels.log_softmax(_inexact(a), axis)
    return value, lambda g, y, a: _log_softmax_grad(g, y, axis)


@primitive
def _log_softmax_grad(g, y, axis):
    value = kernels.log_softmax_grad_a(np.asarray(g), np.asarray(y), axis)
    return (
        value,
        lambda gg, z, g, y: gg - sum(gg * exp(y), axis, keepdims=True),
        lambda gg, z, g, y: -gg * exp(y) * sum(g, axis, keepdims=True),
    )


def _along(function, a, axis, operation):
    """`function` along one axis, or along several as if they were one."""
    a = _whole(a)
    if type(axis) is int:
        axis = _one_axis(axis, a.ndim, operation)
        if a.shape[axis]:
            return function(a, axis)
    axes = normalize_axes(axis, a.ndim, operation)
    if not axes:
        raise ValueError(f"{operation}: a scalar has no axis")
    _nonempty(a, axes, operation)
    if len(axes) == 1:
        return function(a, axes[0])
    others = [i for i in range(a.ndim) if i not in axes]
    order = (*others, *axes)
    moved = transpose(a, order)
    flat = reshape(moved, (*moved.shape[: len(others)], -1) if a.size else moved.shape)
    return transpose(
        reshape(function(flat, flat.ndim - 1), moved.shape), np.argsort(order).tolist()
    )


def softmax(a: Operand, axis: Axis = -1) -> Variable:
    """exp(a) / sum(exp(a)) along `axis`; each row is shifted by its own maximum first."""
    return _along(_softmax, a, axis, "softmax")


def log_softmax(a: Operand, axis: Axis = -1) -> Variable:
    """log(softmax(a)) along `axis`, finite for all finite `a`."""
    return _along(_log_softmax, a, axis, "log_softmax")


@primitive
def _logsumexp(a, axis):
    a = _inexact(a)
    top = np.max(a, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore", over="ignore"):
        value = np.log(np.sum(np.exp(a - top), axis=axis, keepdims=True)) + top
    return value.astype(a.dtype), lambda g, y, a: g * exp(a - y)


def logsumexp(a: Operand, axis: Axis = None, keepdims: bool = False) -> Variable:
    """log(sum(exp(a))) over `axis`, without overflow. ValueError where there is nothing to add."""
    a = _whole(a)
    axes = normalize_axes(axis, a.ndim, "logsumexp")
    _nonempty(a, axes, "logsumexp")
    y = _logsumexp(a, axes)
    return y if keepdims else reshape(y, _dropped(a.shape, axes))


@primitive
def _losses(logits, labels):
    value = kernels.softmax_cross_entropy(_inexact(logits), labels)
    return value, lambda g, y, logits: _losses_grad(g, logits, labels)


@primitive
def _losses_grad(g, logits, labels):
    def rule_g(gg, y, g, logits):
        rows = np.arange(len(labels))
        return sum(gg * _softmax(logits, 1), 1) - getitem(gg, (rows, labels))

    def rule_logits(gg, y, g, logits):
        p = _softmax(logits, 1)
        return _softmax_grad(gg, p, 1) * reshape(g, (-1, 1))

    value = kernels.softmax_cross_entropy_grad_logits(np.asarray(g), _inexact(logits), labels)
    return value, rule_g, rule_logits


def _check_labels(scores, labels, axis, operation):
    """The axis of classes, and labels as an own integer array of the shape without that axis."""
    shape = scores.shape
    axis = _one_axis(axis, len(shape), operation)
    if 0 in shape:
        _nonempty(scores, tuple(range(len(shape))), operation)
    labels = np.asarray(_array(labels))
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{operation}: labels must be integers, got dtype {labels.dtype}")
    expected = shape[:axis] + shape[axis + 1 :]
    if labels.shape != expected:
        raise ValueError(
            f"{operation}: scores of shape {scores.shape} with classes on axis {axis} need labels "
            f"of shape {expected}, got {labels.shape}"
        )
    return axis, labels.astype(np.intp)


def _one_axis(axis, ndim, operation):
    if type(axis) is int and -ndim <= axis < ndim:
        return axis % ndim
    return normalize_axes(as_int(axis, f"{operation}: axis"), ndim, operation)[0]


def _as_rows(a, axis):
    """(..., classes, ...) with the classes moved last and the rest made one axis."""
    if axis != a.ndim - 1:
        a = transpose(a, [i for i in range(a.ndim) if i != axis] + [axis])
    return a if a.ndim == 2 else reshape(a, (-1, a.shape[-1]))


def softmax_cross_entropy(
    logits: Operand, labels: Operand, axis: int = -1, reduction: str = "sum"
) -> Variable:
    """Cross-entropy of softmax(logits) with integer labels, computed from the logits.

    Parameters
    ----------
    logits : Variable (..., classes, ...), classes along `axis`
    labels : integer array of the shape of `logits` without `axis`, each 0 to classes - 1
    reduction : "sum", "mean" or "none" (one loss per label)

    Raises
    ------
    IndexError, TypeError, ValueError
        A label is out of range, not an integer, or the shapes do not fit; the batch is empty.
    """
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(
            f"softmax_cross_entropy: reduction must be 'sum', 'mean' or 'none', got {reduction!r}"
        )
    logits = _whole(logits)
    axis, labels = _check_labels(logits, labels, axis, "softmax_cross_entropy")
    losses = _losses(_as_rows(logits, axis), labels.reshape(-1))
    if reduction == "none":
        return reshape(losses, labels.shape)
    total = _sum_to(losses, ())
    return total if reduction == "sum" else total / labels.size


def _from_rows(rows, shape, axis):
    """Undoes `_as_rows`, for an array that had `shape`."""
    if rows.shape == shape and axis == len(shape) - 1:
        return rows
    others = [i for i in range(len(shape)) if i != axis]
    moved = reshape(rows, tuple(shape[i] for i in (*others, axis)))
    return (
        moved if axis == len(shape) - 1 else transpose(moved, np.argsort([*others, axis]).tolist())
    )


@primitive
def _cross_entropy_of_softmax(probabilities, logits, labels, axis):
    """From the logits behind the probabilities, where a probability of 0 has lost them."""
    shape, flat = probabilities.shape, labels.reshape(-1)

    def rule_probabilities(g, y, probabilities, logits):
        classes = np.arange(shape[axis]).reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
        at_label = np.expand_dims(labels, axis) == classes
        with np.errstate(divide="ignore"):  # -inf is right where a probability is 0
            return where(at_label, -g / where(at_label, probabilities, 1), 0)

    def rule_logits(g, y, probabilities, logits):
        rows = _losses_grad(broadcast_to(g, flat.shape), _as_rows(logits, axis), flat)
        return _from_rows(rows, shape, axis)

    losses = kernels.softmax_cross_entropy(_inexact(_as_rows(logits, axis)), flat)
    return kernels.sum_to(losses, ()), shown_only(rule_probabilities), rule_logits


def cross_entropy(y_pred: Operand, y_true: Operand, axis: int = -1) -> Variable:
    """Cross-entropy of probabilities with integer labels: -sum(log(y_pred at the labels)).

    Parameters
    ----------
    y_pred : Variable (..., classes, ...) of probabilities, classes along `axis`
    y_true : integer array of the shape of `y_pred` without `axis`, each 0 to classes - 1

    Raises
    ------
    IndexError, TypeError, ValueError
        A label is out of range, not an integer, or the shapes do not fit; the batch is empty.

    Notes
    -----
    What `softmax` made along the same axis is taken back to its logits, so that loss and gradients
    stay finite for any logits.
    """
    y_pred = _whole(y_pred)
    axis, labels = _check_labels(y_pred, y_true, axis, "cross_entropy")
    n_classes = y_pred.shape[axis]
    if np.maximum.reduce(labels.view(np.uintp), None) >= n_classes:  # negative ones become large
        raise IndexError(
            f"cross_entropy: labels must be 0 to {n_classes - 1}, got {labels.min()} to "
            f"{labels.max()}"
        )
    logits = _logits_of(y_pred, axis)
    if logits is not None:
        return _cross_entropy_of_softmax(y_pred, logits, labels, axis)
    at_labels = (np.arange(labels.size), labels.reshape(-1))
    return -sum(log(getitem(_as_rows(y_pred, axis), at_labels)))


def _logits_of(y_pred, axis):
    """What `softmax` along `axis` was given to make `y_pred`, if that is what it still holds."""
    node = getattr(y_pred, "_node", None)
    if getattr(node, "traits", None) is not _softmax.traits or node.inputs[1] != axis:
        return None
    logits = node.inputs[0]
    if not isinstance(logits, Variable) or logits.shape != y_pred.shape:
        return None
    recorded = logits._held is node.values[0] and y_pred._held is node.y
    if not (recorded and logits._private and y_pred._private):  # assigned or written to since
        again = kernels.softmax(_inexact(logits._array), axis)
        same = np.array_equal(again, y_pred._array)
        if not same and not np.array_equal(again, y_pred._array, equal_nan=True):
            return None
    return logits


# ---------------------------------------------------------------------------- Variable's operators


def enable_broadcast(a: Variable, b: Variable, matmul: bool = False) -> tuple:
    """The two Variables, after a check that they broadcast (kept for operations written for 3.0.5).

    Gradients that come back larger than their Variable are summed down to it by `get_gradients`.
    """
    last = -2 if matmul else None
    broadcast_shape(a.shape[:last], b.shape[:last], "enable_broadcast")
    return a, b


def _reflected(operation):
    return lambda self, other: operation(other, self)


def _comparison(ufunc):
    return lambda self, other: ufunc(self._array, _array(other))


def _iterate(self):
    if not self.ndim:
        raise TypeError("a Variable without dimensions cannot be iterated over")
    return (getitem(self, i) for i in range(len(self)))


for _name, _operation in (
    ("add", add),
    ("sub", sub),
    ("mul", mul),
    ("truediv", div),
    ("pow", power),
    ("matmul", matmul),
):
    setattr(Variable, f"__{_name}__", _operation)
    setattr(Variable, f"__r{_name}__", _reflected(_operation))
for _name, _ufunc in (
    ("lt", np.less),
    ("le", np.less_equal),
    ("gt", np.greater),
    ("ge", np.greater_equal),
):
    setattr(Variable, f"__{_name}__", _comparison(_ufunc))

Variable.__neg__ = neg
Variable.__pos__ = lambda self: self
Variable.__abs__ = abs
Variable.__getitem__ = getitem
Variable.__iter__ = _iterate
Variable.__contains__ = lambda self, value: bool((self._array == _array(value)).any())
Variable.T = property(transpose, doc="The axes in reversed order.")
Variable.sum = sum
Variable.mean = mean
Variable.max = max
Variable.min = min


def _reshape_method(self, *shape):
    """The same elements in another shape, given as numbers or as one tuple."""
    return reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)


def _transpose_method(self, *axes):
    """The axes in another order, given as numbers or as one tuple; reversed if none is given."""
    axes = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
    return transpose(self, axes or None)


Variable.reshape = _reshape_method
Variable.transpose = _transpose_method
Variable.astype = astype

__all__ = [
    "abs", "add", "add_at", "astype", "broadcast_to", "clip", "concatenate", "cross_entropy", "div",
    "enable_broadcast", "exp", "expand_dims", "getitem", "leaky_relu", "log", "log_softmax",
    "logsumexp", "matmul", "matrix_transpose", "max", "maxax", "maximum", "mean", "min", "minimum",
    "mul", "neg", "pad", "power", "relu", "reshape", "setat", "sigmoid", "softmax",
    "softmax_cross_entropy", "sqrt", "square", "squeeze", "stack", "sub", "sum",
    "sum_to", "tanh", "transpose", "where",
]  # fmt: skip
