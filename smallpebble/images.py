"""Convolution, pooling and patches, on images of shape (n, height, width, channels).

The adjoint of a linear operation is another one, so they come in pairs, and each is the other's
rule. The three convolutions form a triangle: whichever two of images, kernels and output gradient
are given, the rules are the other two.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np

from . import kernels
from .core import Later, Variable, not_computed, primitive, short_cut, shown_only
from .kernels import _choice
from .ops import Operand, _inexact, _leaky_relu_grad, _whole, leaky_relu, pad
from .shapes import as_int, pad_amounts, window


@primitive(multilinear=True, operands=2)
def _conv2d(images, kernel, window, how):
    shape = (len(images), window.oh, window.ow, kernel.shape[3])
    dtype = np.result_type(images, kernel)
    worth = math.prod(shape) * dtype.itemsize // 4  # a small part of what a short cut saves
    return (
        Later(_convolved, shape, dtype, worth),
        lambda g, y, images, kernel: conv2d_grad_images(g, kernel, window),
        lambda g, y, images, kernel: conv2d_grad_kernels(g, images, window),
    )


_one_at_a_time = threading.Lock()  # or blocks of use_conv in several threads would overlap


def _how():
    """By which kernels and which algorithm a convolution is computed now."""
    return kernels.active(), _choice.current()


def _convolved(images, kernel, window, how):
    if how == _how():
        return kernels.conv2d(images, kernel, window)
    with _one_at_a_time, kernels.use_conv(how[1]):
        return kernels.load(how[0]).conv2d(images, kernel, window)


@primitive(multilinear=True)
def conv2d_grad_images(g, kernel, window):
    """Adjoint of `conv2d` in its images: (n, oh, ow, m), (kh, kw, c, m) -> (n, h, w, c)."""
    return (
        kernels.conv2d_grad_images(g, kernel, window),
        lambda images, y, g, kernel: _conv2d(images, kernel, window, _how()),
        lambda images, y, g, kernel: conv2d_grad_kernels(g, images, window),
    )


@primitive(multilinear=True)
def conv2d_grad_kernels(g, images, window):
    """Adjoint of `conv2d` in its kernels: (n, oh, ow, m), (n, h, w, c) -> (kh, kw, c, m)."""
    return (
        kernels.conv2d_grad_kernels(g, images, window),
        lambda kernel, y, g, images: _conv2d(images, kernel, window, _how()),
        lambda kernel, y, g, images: conv2d_grad_images(g, kernel, window),
    )


def conv2d(
    images: Operand, kernels: Operand, padding: str = "SAME", strides: Sequence[int] = (1, 1)
) -> Variable:
    """2-D convolution (cross-correlation), as tf.nn.conv2d.

    Parameters
    ----------
    images : Variable (n, height, width, channels_in)
    kernels : Variable (kernel height, kernel width, channels_in, channels_out)
    padding : "SAME" (zeros around; ceil(size / stride) outputs) or "VALID" (none)
    strides : (vertical, horizontal), each at least 1

    Returns
    -------
    Variable (n, output height, output width, channels_out)

    Raises
    ------
    ValueError
        Wrong number of dimensions, channels that do not agree, an empty batch, a "VALID" kernel
        larger than the images, a stride below 1, any other padding.
    """
    images, kernels = _whole(images), _whole(kernels)
    if kernels.ndim != 4:
        raise ValueError(
            "conv2d: kernels must have the 4 dimensions (height, width, channels_in, "
            f"channels_out), got shape {kernels.shape}"
        )
    geometry = window("conv2d", images.shape, kernels.shape[:2], strides, padding)
    if images.shape[3] != kernels.shape[2]:
        raise ValueError(
            f"conv2d: images of shape {images.shape} have {images.shape[3]} channels, kernels of "
            f"shape {kernels.shape} take {kernels.shape[2]}"
        )
    if not kernels.shape[3]:
        raise ValueError(f"conv2d: there must be at least one kernel, got shape {kernels.shape}")
    return _conv2d(images, kernels, geometry, _how())


def maxpool2d(
    images: Operand,
    kernheight: int,
    kernwidth: int,
    padding: str = "SAME",
    strides: Sequence[int] = (1, 1),
) -> Variable:
    """Largest pixel under each window; the first of several has the gradient.

    Parameters
    ----------
    images : Variable (n, height, width, channels)
    kernheight, kernwidth : window size
    padding, strides : as in `conv2d`; padding is never the maximum

    Returns
    -------
    Variable (n, output height, output width, channels)
    """
    images = _whole(images)
    geometry = window("maxpool2d", images.shape, (kernheight, kernwidth), strides, padding)
    y = _pooled_past(images, geometry)
    return _maxpool2d(images, geometry) if y is None else y


def _pooled_past(images, pool):
    """Max pooling past a leaky_relu, and past the convolution before it, that nobody has needed."""
    alpha, passed = 1, (images,)
    activation, convolution = not_computed(images, leaky_relu), not_computed(images, _conv2d)
    if activation:
        alpha = (*activation.arguments, 0.02)[1]
        # Beyond, products may round to equal numbers; and an array may have been written to.
        if not 1e-6 <= alpha <= 1e6 or isinstance(alpha, np.ndarray):
            return None
        passed = (activation.arguments[0], images)
        convolution = not_computed(passed[0], _conv2d)
    if convolution and convolution.arguments[3] == _how() and _can_join(convolution.dtype, pool):
        operation = _conv2d_leaky_relu_maxpool2d if activation else _conv2d_maxpool2d
        return short_cut(operation, convolution, passed, convolution.arguments[2], pool, alpha)
    if activation:
        return short_cut(_leaky_relu_maxpool2d, activation, (images,), alpha, pool)
    return None


def _can_join(dtype, pool) -> bool:
    """Whether there is a kernel that convolves and pools at once."""
    apart = pool.sy >= pool.kh and pool.sx >= pool.kw
    return apart and pool.kh * pool.kw <= 128 and dtype in (np.float32, np.float64)


@primitive(linear=True)
def _maxpool2d(images, window):
    values, indices = kernels.maxpool2d(images, window)
    return values, lambda g, y, images: _scatter(g, indices, window)


@primitive
def _leaky_relu_maxpool2d(a, activated, alpha, pool):
    """maxpool2d(leaky_relu(a)) as leaky_relu(maxpool2d(a)), since leaky_relu always rises.

    `activated`, the large array between the two, is neither written nor read.
    """
    largest, indices = kernels.maxpool2d(a, pool)
    return (
        kernels.leaky_relu(_inexact(largest), alpha),
        lambda g, y, *_: _scatter(_leaky_relu_grad(g, y, alpha), indices, pool),
        shown_only(lambda g, *_: _scatter(g, indices, pool)),
    )


@primitive
def _conv2d_leaky_relu_maxpool2d(images, kernel, outputs, activated, window, pool, alpha):
    """maxpool2d(leaky_relu(conv2d(images, kernel))); the two arrays between are never made."""
    y, codes = kernels.conv2d_maxpool2d(images, kernel, window, pool, alpha)
    how = (codes, window, pool, alpha)
    return (
        y,
        lambda g, y, images, kernel, *_: _pooled_grad_images(g, kernel, *how),
        lambda g, y, images, kernel, *_: _pooled_grad_kernels(g, images, *how),
        shown_only(
            lambda g, *_: _scatter(g * _slope(codes, alpha, g.dtype), _indices(codes), pool)
        ),
        shown_only(lambda g, *_: _scatter(g, _indices(codes), pool)),
    )


@primitive
def _conv2d_maxpool2d(images, kernel, outputs, window, pool, alpha):
    """maxpool2d(conv2d(images, kernel)); the array between the two is never made."""
    y, *rules = _conv2d_leaky_relu_maxpool2d.traits.function(
        images, kernel, outputs, None, window, pool, alpha
    )
    return y, *rules[:3]


@primitive(multilinear=True)
def _pooled_grad_images(g, kernel, codes, window, pool, alpha):
    """conv2d_grad_images of a gradient that comes back through leaky_relu and maxpool2d."""
    return (
        kernels.conv2d_maxpool2d_grad_images(g, codes, kernel, window, pool, alpha),
        lambda gg, y, g, kernel: _pooled(gg, kernel, codes, window, pool, alpha),
        lambda gg, y, g, kernel: _pooled_grad_kernels(g, gg, codes, window, pool, alpha),
    )


@primitive(multilinear=True)
def _pooled_grad_kernels(g, images, codes, window, pool, alpha):
    """conv2d_grad_kernels of a gradient that comes back through leaky_relu and maxpool2d."""
    return (
        kernels.conv2d_maxpool2d_grad_kernels(g, codes, images, window, pool, alpha),
        lambda gg, y, g, images: _pooled(images, gg, codes, window, pool, alpha),
        lambda gg, y, g, images: _pooled_grad_images(g, gg, codes, window, pool, alpha),
    )


def _pooled(images, kernel, codes, window, pool, alpha):
    """conv2d, then what pooling and leaky_relu let through at `codes`: adjoint of both above."""
    outputs = _conv2d(images, kernel, window, _how())
    gathered = _gather(outputs, _indices(codes), pool)
    return gathered * _slope(codes, alpha, gathered.dtype)


def _indices(codes):
    return codes & np.uint8(127)


def _slope(codes, alpha, dtype):
    """Of leaky_relu, by the mark in the codes of `conv2d_maxpool2d`."""
    return np.where(codes < 128, 1.0, alpha).astype(dtype)


@primitive(linear=True)
def _gather(images, indices, window):
    value = kernels.maxpool2d_gather(images, indices, window)
    return value, lambda g, y, images: _scatter(g, indices, window)


@primitive(linear=True)
def _scatter(g, indices, window):
    value = kernels.maxpool2d_scatter(g, indices, window)
    return value, lambda gg, y, g: _gather(gg, indices, window)


def avgpool2d(
    images: Operand,
    kernheight: int,
    kernwidth: int,
    padding: str = "SAME",
    strides: Sequence[int] = (1, 1),
) -> Variable:
    """Mean of the pixels under each window; padding does not count.

    Parameters and shapes as in `maxpool2d`.
    """
    images = _whole(images)
    geometry = window("avgpool2d", images.shape, (kernheight, kernwidth), strides, padding)
    return _avgpool2d(images, geometry)


@primitive(linear=True)
def _avgpool2d(images, window):
    return kernels.avgpool2d(images, window), lambda g, y, images: _avgpool2d_grad(g, window)


@primitive(linear=True)
def _avgpool2d_grad(g, window):
    return kernels.avgpool2d_grad_images(g, window), lambda gg, y, g: _avgpool2d(gg, window)


def patches(
    images: Operand,
    kernheight: int,
    kernwidth: int,
    padding: str = "SAME",
    strides: Sequence[int] = (1, 1),
) -> Variable:
    """The pixels under each window (im2col), zero where padded.

    (n, height, width, channels) -> (n, output height, output width, kernheight, kernwidth,
    channels); `padding` and `strides` as in `conv2d`.
    """
    images = _whole(images)
    geometry = window("patches", images.shape, (kernheight, kernwidth), strides, padding)
    return _patches(images, geometry)


@primitive(linear=True)
def _patches(images, window):
    return kernels.patches(images, window), lambda g, y, images: _patches_sum(g, window)


@primitive(linear=True)
def _patches_sum(patches, window):
    return kernels.patches_sum(patches, window), lambda g, y, patches: _patches(g, window)


# ---------------------------------------------------------------------- windows in any dimensions


def _check_view(shape, window_shape, strides):
    window_shape = tuple(as_int(size, "window_shape") for size in window_shape)
    strides = tuple(as_int(stride, "strides") for stride in strides)
    if len(window_shape) != len(shape) or len(strides) != len(shape):
        raise ValueError(
            f"strided_sliding_view: an array of {len(shape)} dimensions needs a window size and a "
            f"stride for each, got {window_shape} and {strides}"
        )
    if any(size < 0 for size in window_shape) or any(stride < 1 for stride in strides):
        raise ValueError(
            "strided_sliding_view: window sizes must not be negative and strides at least 1, got "
            f"{window_shape} and {strides}"
        )
    if any(own < size for own, size in zip(shape, window_shape)):
        raise ValueError(
            f"strided_sliding_view: a window of {window_shape} is larger than the array, {shape}"
        )
    return window_shape, strides


def np_strided_sliding_view(
    x: np.ndarray, window_shape: Sequence[int], strides: Sequence[int]
) -> np.ndarray:
    """Every window of `window_shape` that starts at a multiple of `strides`, as a read-only view.

    Both have one number for each dimension of `x`; strides count elements, not bytes. The result
    has the shape (number of windows along each axis, *window_shape).
    """
    window_shape, strides = _check_view(x.shape, window_shape, strides)
    windows = np.lib.stride_tricks.sliding_window_view(x, window_shape)
    return windows[tuple(slice(None, None, stride) for stride in strides)]


def strided_sliding_view(
    a: Operand, window_shape: Sequence[int], strides: Sequence[int]
) -> Variable:
    """Windows over an array of any dimensions: see `np_strided_sliding_view`."""
    a = _whole(a)
    return _sliding_view(a, *_check_view(a.shape, window_shape, strides))


@primitive(linear=True)
def _sliding_view(a, window_shape, strides):
    value = np_strided_sliding_view(a, window_shape, strides)
    return value, lambda g, y, a: _sliding_sum(g, a.shape, window_shape, strides)


@primitive(linear=True)
def _sliding_sum(g, shape, window_shape, strides):
    """Adjoint of `strided_sliding_view`: each element of a window added where it came from."""
    result = np.zeros(shape, g.dtype)
    outputs = g.shape[: len(shape)]
    if g.size:
        for cell in np.ndindex(*window_shape):
            place = tuple(
                slice(k, k + (n - 1) * stride + 1, stride)
                for k, n, stride in zip(cell, outputs, strides)
            )
            result[place] += g[(..., *cell)]
    return result, lambda gg, y, g: _sliding_view(gg, window_shape, strides)


def padding2d(
    images: Operand,
    padding: str,
    imheight: int,
    imwidth: int,
    stride_y: int,
    stride_x: int,
    kernheight: int,
    kernwidth: int,
) -> tuple[Variable, int, int]:
    """`images` (n, h, w, c) with the zeros that "SAME" (or "VALID": none) asks for, and their size.

    Returns (padded images, height, width).
    """
    if padding == "VALID":
        return images, imheight, imwidth
    if padding != "SAME":
        raise ValueError(f"padding2d: padding must be 'SAME' or 'VALID', got {padding!r}")
    rows = pad_amounts(imheight, stride_y, kernheight)
    columns = pad_amounts(imwidth, stride_x, kernwidth)
    images = pad(images, ((0, 0), rows, columns, (0, 0)))
    return images, images.shape[1], images.shape[2]


def patches_index(
    imheight: int, imwidth: int, kernheight: int, kernwidth: int, stride_y: int, stride_x: int
) -> tuple[tuple[np.ndarray, np.ndarray], int, int, int]:
    """Index arrays that pick every window out of an image of imheight x imwidth.

    Returns ((rows, columns), output height, output width, number of windows); rows and columns have
    the shape (number of windows, kernheight * kernwidth).
    """
    sizes = (imheight, imwidth, kernheight, kernwidth, stride_y, stride_x)
    imheight, imwidth, kernheight, kernwidth, stride_y, stride_x = sizes = [
        as_int(n, "patches_index: sizes") for n in sizes
    ]
    if kernheight > imheight or kernwidth > imwidth or min(sizes) < 1 or max(sizes[:2]) >= 2**31:
        raise ValueError(
            f"patches_index: a window of {(kernheight, kernwidth)} with strides "
            f"{(stride_y, stride_x)} does not fit an image of {(imheight, imwidth)}"
        )
    top = np.arange(0, imheight - kernheight + 1, stride_y)
    left = np.arange(0, imwidth - kernwidth + 1, stride_x)
    rows = top[:, None, None, None] + np.arange(kernheight)[:, None]
    columns = left[:, None, None] + np.arange(kernwidth)
    shape = (len(top), len(left), kernheight, kernwidth)
    n_windows = math.prod(shape[:2])
    flat = (n_windows, kernheight * kernwidth)
    index = tuple(np.broadcast_to(i, shape).reshape(flat) for i in (rows, columns))
    return index, len(top), len(left), n_windows


__all__ = [
    "avgpool2d", "conv2d", "maxpool2d", "np_strided_sliding_view", "padding2d", "patches",
    "patches_index", "strided_sliding_view",
]  # fmt: skip
