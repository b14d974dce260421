"""Layers, initial weights, labels, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import kernels
from .core import Variable
from .images import conv2d
from .lazy import Lazy, learnable
from .ops import _into, _linear, add
from .shapes import as_int, window

Random = Any  # a numpy.random.Generator, a seed for one, or None


def _source(rng):
    """Where random numbers come from: a Generator, a seed for one, or NumPy's global generator."""
    if rng is None:
        return np.random
    return rng if hasattr(rng, "random") else np.random.default_rng(rng)


def _sizes(operation: str, **sizes) -> list[int]:
    checked = []
    for name, size in sizes.items():
        size = as_int(size, f"{operation}: {name}")
        if size < 1:
            raise ValueError(f"{operation}: {name} must be at least 1, got {size}")
        checked.append(size)
    return checked


def _float_dtype(operation: str, dtype) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.kind != "f":
        raise TypeError(f"{operation}: dtype must be a floating one, got {dtype}")
    return dtype


def he_init(insize: int, outsize: int, rng: Random = None) -> np.ndarray:
    """Initial weights (insize, outsize), float64: uniform within +-sqrt(1 / (insize + outsize)).

    The distribution of SmallPebble 3.0.5, kept under its name; half as wide as the uniform one of
    Glorot & Bengio (2010), eq. 16, is at these sizes times sqrt(2/3). `rng` is a
    `numpy.random.Generator` or a seed; without it NumPy's global generator is used.
    """
    insize, outsize = _sizes("he_init", insize=insize, outsize=outsize)
    width = 2 * np.sqrt(1 / (insize + outsize))
    return width * _source(rng).random((insize, outsize)) - width / 2


def linearlayer(
    insize: int,
    outsize: int,
    dtype: DTypeLike = np.float32,
    bias: bool = True,
    rng: Random = None,
) -> Callable[..., Lazy]:
    """A fully connected layer, ``a @ weights + bias``.

    Parameters
    ----------
    insize, outsize : number of features that go in and come out
    dtype : floating dtype of the parameters; the input is taken into it
    bias : whether to add a bias, which starts at one
    rng : numpy.random.Generator or seed for the weights; NumPy's global generator if None

    Returns
    -------
    function
        Takes a lazy node (or Variable) of shape (..., insize) and returns a `Lazy` node of shape
        (..., outsize). Called twice, both nodes share the parameters.
    """
    insize, outsize = _sizes("linearlayer", insize=insize, outsize=outsize)
    dtype = _float_dtype("linearlayer", dtype)
    weights = learnable(Variable(he_init(insize, outsize, rng).astype(dtype)))
    if not bias:
        return lambda a: Lazy(_linear)(a, weights)
    shift = learnable(Variable(np.ones(outsize, dtype)))
    return lambda a: Lazy(_linear)(a, weights, shift)


def convlayer(
    height: int,
    width: int,
    depth: int,
    n_kernels: int,
    padding: str = "VALID",
    strides: tuple[int, int] = (1, 1),
    dtype: DTypeLike = np.float32,
    bias: bool = False,
    rng: Random = None,
) -> Callable[..., Lazy]:
    """A convolutional layer: `conv2d` with `n_kernels` kernels of height x width x depth.

    Parameters
    ----------
    height, width, depth, n_kernels : size of the kernels, and how many
    padding, strides : as in `conv2d`
    dtype : floating dtype of the parameters; the images are taken into it
    bias : whether to add a bias for each kernel, which starts at zero
    rng : numpy.random.Generator or seed for the kernels; NumPy's global generator if None

    Returns
    -------
    function
        Takes a lazy node (or Variable) of images (n, h, w, depth) and returns a `Lazy` node of
        shape (n, oh, ow, n_kernels). Called twice, both nodes share the parameters.

    Notes
    -----
    Kernels start uniform within +-sqrt(6 / (height * width * (depth + n_kernels))) / 2.
    """
    height, width, depth, n_kernels = shape = _sizes(
        "convlayer", height=height, width=width, depth=depth, n_kernels=n_kernels
    )
    # Strides and padding are refused here, not when the layer first runs.
    window("convlayer", (1, height, width, 1), (height, width), strides, padding)
    dtype = _float_dtype("convlayer", dtype)
    sigma = np.sqrt(6 / (height * width * depth + height * width * n_kernels))
    kernels_ = learnable(Variable((sigma * (_source(rng).random(shape) - 0.5)).astype(dtype)))
    shift = (learnable(Variable(np.zeros(n_kernels, dtype))),) if bias else ()

    def convolve(images, kernels, *bias):
        y = conv2d(_into(images, kernels.dtype), kernels, padding, strides)
        return add(y, *bias) if bias else y

    return lambda images: Lazy(convolve)(images, kernels_, *shift)


def _labels(operation: str, y) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"{operation}: labels must be one-dimensional, got shape {y.shape}")
    return y


def onehot(y: np.ndarray, n_classes: int, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Labels (n,), each 0 to n_classes - 1, as rows (n, n_classes) of zeros with a single one."""
    y = _labels("onehot", y)
    (n_classes,) = _sizes("onehot", n_classes=n_classes)
    if y.dtype.kind not in "iu":
        raise TypeError(f"onehot: labels must be integers, got dtype {y.dtype}")
    if y.size and (y.min() < 0 or y.max() >= n_classes):
        raise IndexError(f"onehot: labels must be 0 to {n_classes - 1}, got {y.min()} to {y.max()}")
    result = np.zeros((len(y), n_classes), dtype)
    result[np.arange(len(y)), y] = 1
    return result


def batch(X: np.ndarray, y: np.ndarray, size: int, seed: Random = None) -> Iterator:
    """Endless random batches (X[i], y[i]) of `size` rows, drawn with replacement.

    Parameters
    ----------
    X : array (n, ...)
    y : array (n,) of labels
    size : rows in a batch, at least 1
    seed : int or numpy.random.Generator, optional
        Makes the draw repeatable; it has its own generator and leaves NumPy's global one alone.

    Raises
    ------
    ValueError, TypeError
        At the call: no rows, different lengths, a wrong size.
    """
    X = np.asarray(X)
    y = _labels("batch", y)
    if X.ndim < 1 or len(X) != len(y):
        raise ValueError(f"batch: X of shape {X.shape} and y of shape {y.shape} differ in length")
    if not len(y):
        raise ValueError("batch: there is nothing to draw from")
    (size,) = _sizes("batch", size=size)
    rng = np.random.default_rng(seed)

    def draw():
        while True:
            index = rng.integers(0, len(y), size)
            yield kernels.take(X, index), y[index]

    return draw()
