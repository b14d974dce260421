"""Integers only: broadcasting, axes, padding amounts, and the geometry of windows over images.

Every size, stride, padding and axis that a user gives is checked here, with Python's unbounded
integers and before any memory is touched. What comes out is safe to hand to a kernel.
"""

from __future__ import annotations

import operator
from collections import namedtuple
from functools import lru_cache

import numpy as np

_LARGEST = 2**31 - 1


def as_int(value, what: str) -> int:
    """`value` as a Python int; a TypeError naming `what` if it is not a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {value!r}") from None


def as_pair(values, what: str) -> tuple[int, int]:
    """Two whole numbers, given as a pair (y, x)."""
    try:
        first, second = values
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be a pair (vertical, horizontal), got {values!r}") from None
    return as_int(first, what), as_int(second, what)


def normalize_axes(axis, ndim: int, operation: str) -> tuple[int, ...]:
    """Sorted non-negative axes for an `axis` argument that is None (all axes), an int, or several.

    Raises
    ------
    ValueError
        An axis is out of range or named twice. (NumPy's AxisError is a ValueError as well.)
    """
    if axis is None:
        return tuple(range(ndim))
    if not isinstance(axis, (tuple, list)):
        axis = (axis,)
    axes = []
    for one in axis:
        one = as_int(one, f"{operation}: axis")
        if not -ndim <= one < ndim:
            raise ValueError(f"{operation}: axis {one} is out of range for {ndim} dimension(s)")
        axes.append(one % ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{operation}: axis {tuple(axis)} names one axis twice")
    return tuple(sorted(axes))


def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with length 1 along `axes`: the shape of a reduction with keepdims."""
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


def broadcast_shape(a: tuple[int, ...], b: tuple[int, ...], operation: str) -> tuple[int, ...]:
    """The shape of `a` and `b` broadcast together; a ValueError naming both if they do not fit."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    lead = len(longer) - len(shorter)
    shape = list(longer)
    for i, size in enumerate(shorter):
        other = longer[lead + i]
        if size != other and size != 1 and other != 1:
            raise ValueError(f"{operation}: shapes {a} and {b} do not broadcast together")
        if other == 1:
            shape[lead + i] = size
    return tuple(shape)


def broadcastinfo(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes along which `a` and `b` are repeated, or added in front, when broadcast together."""
    shape = broadcast_shape(tuple(a_shape), tuple(b_shape), "broadcastinfo")

    def repeated(own):
        added = len(shape) - len(own)
        return tuple(
            i for i, size in enumerate(shape) if i < added or (own[i - added] == 1 and size > 1)
        )

    return repeated(tuple(a_shape)), repeated(tuple(b_shape))


def pad_amounts(array_length: int, stride: int, kern_length: int) -> tuple[int, int]:
    """Padding (front, end) of one axis for "SAME": ceil(length / stride) windows, as TensorFlow."""
    sizes = (array_length, stride, kern_length)
    array_length, stride, kern_length = (as_int(n, "pad_amounts: sizes") for n in sizes)
    if min(array_length, stride, kern_length) < 1:
        raise ValueError(
            "pad_amounts: length, stride and kernel length must be at least 1, got "
            f"{array_length}, {stride} and {kern_length}"
        )
    n_windows = -(-array_length // stride)
    total = max((n_windows - 1) * stride + kern_length - array_length, 0)
    return total // 2, total - total // 2


def normalize_pad_width(pad_width, ndim: int) -> tuple[tuple[int, int], ...]:
    """(before, after) for every axis, from what `numpy.pad` accepts: n, (n,), (b, a), pairs."""
    try:
        rows = np.broadcast_to(np.asarray(pad_width), (ndim, 2)).tolist()
    except ValueError:
        rows = None
    if rows is None:
        raise ValueError(f"pad: pad_width {pad_width!r} does not fit an array of {ndim} dimensions")
    pairs = [tuple(as_int(n, "pad: pad_width") for n in row) for row in rows]
    if any(n < 0 for pair in pairs for n in pair):
        raise ValueError(f"pad: pad_width must not be negative, got {pad_width!r}")
    return tuple(pairs)


_Fields = namedtuple("_Fields", "h w kh kw sy sx top left oh ow")


class Window(_Fields):
    """How a kh x kw window walks over h x w images: the geometry of convolution and pooling.

    Output pixel (oy, ox) sees the image rows ``oy * sy - top + ky`` for ky in 0..kh-1, likewise the
    columns; what lies outside of the image is padding.

    Parameters
    ----------
    image, kernel : (height, width)
    strides : (vertical, horizontal), each at least 1
    padding : "SAME" or "VALID"
        As in TensorFlow: "SAME" gives ceil(size / stride) outputs and puts the odd pixel of padding
        at the end; "VALID" takes only windows that lie inside of the image.

    Attributes
    ----------
    h, w, kh, kw, sy, sx : the sizes given (a stride that is never taken is cut to the image size)
    top, left : padding before the first row and column
    oh, ow : output size
    """

    __slots__ = ()

    def __new__(cls, image, kernel, strides=(1, 1), padding="SAME", operation="Window"):
        h, w = as_pair(image, f"{operation}: image size")
        kh, kw = as_pair(kernel, f"{operation}: kernel size")
        sy, sx = as_pair(strides, f"{operation}: strides")
        if not isinstance(padding, str) or padding not in ("SAME", "VALID"):
            raise ValueError(f"{operation}: padding must be 'SAME' or 'VALID', got {padding!r}")
        if min(h, w) < 1 or max(h, w) > _LARGEST:
            raise ValueError(f"{operation}: image size must be 1 to 2**31-1, got {(h, w)}")
        if min(kh, kw) < 1 or max(kh, kw) > _LARGEST:
            raise ValueError(f"{operation}: kernel size must be 1 to 2**31-1, got {(kh, kw)}")
        if min(sy, sx) < 1 or max(sy, sx) > _LARGEST:
            raise ValueError(
                f"{operation}: strides must be at least 1 (and below 2**31), got {(sy, sx)}"
            )
        if padding == "VALID":
            if kh > h or kw > w:
                raise ValueError(
                    f"{operation}: a kernel of {kh}x{kw} is larger than the images of {h}x{w}; "
                    "make it smaller or use padding='SAME'"
                )
            top = left = 0
            oh, ow = (h - kh) // sy + 1, (w - kw) // sx + 1
        else:
            top, left = pad_amounts(h, sy, kh)[0], pad_amounts(w, sx, kw)[0]
            oh, ow = -(-h // sy), -(-w // sx)
        return super().__new__(cls, h, w, kh, kw, min(sy, h), min(sx, w), top, left, oh, ow)

    def __reduce__(self):
        return Window._make, (tuple(self),)

    def __repr__(self):
        return f"<Window {self.kh}x{self.kw} step {self.sy}x{self.sx} on {self.h}x{self.w}>"


@lru_cache(maxsize=1024)
def _cached_window(image, kernel, strides, padding, operation):
    return Window(image, kernel, strides, padding, operation)


def window(operation: str, shape, kernel, strides, padding) -> Window:
    """The `Window` of `operation` over images of `shape` (n, h, w, c); made once per geometry."""
    if len(shape) != 4:
        raise ValueError(
            f"{operation}: images must have the 4 dimensions (n, height, width, channels), "
            f"got shape {tuple(shape)}"
        )
    kernel = as_pair(kernel, f"{operation}: kernel size")
    strides = as_pair(strides, f"{operation}: strides")
    if not isinstance(padding, str):
        raise ValueError(f"{operation}: padding must be 'SAME' or 'VALID', got {padding!r}")
    if shape[0] == 0 or shape[3] == 0:
        raise ValueError(
            f"{operation}: there must be at least one image and one channel, got {tuple(shape)}"
        )
    return _cached_window(tuple(shape[1:3]), kernel, strides, padding, operation)
