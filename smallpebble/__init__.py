"""SmallPebble: automatic differentiation and neural-network training on NumPy arrays.

Start with `core.py`, which holds the whole idea.
"""

from . import kernels
from ._version import __version__
from .config import (
    get_num_threads,
    num_threads,
    release_memory,
    set_num_threads,
    show_config,
)
from .core import Variable, get_gradients, no_grad, primitive, stop_gradient
from .images import (
    avgpool2d,
    conv2d,
    maxpool2d,
    np_strided_sliding_view,
    padding2d,
    patches,
    patches_index,
    strided_sliding_view,
)
from .kernels import use_conv, use_kernels
from .lazy import AssignmentError, Lazy, Placeholder, get_learnables, learnable
from .nn import batch, convlayer, he_init, linearlayer, onehot
from .ops import (
    abs as abs,
)
from .ops import (
    add,
    add_at,
    astype,
    broadcast_to,
    clip,
    concatenate,
    cross_entropy,
    div,
    enable_broadcast,
    exp,
    expand_dims,
    getitem,
    leaky_relu,
    log,
    log_softmax,
    logsumexp,
    matmul,
    matrix_transpose,
    maxax,
    maximum,
    mean,
    minimum,
    mul,
    neg,
    pad,
    power,
    relu,
    reshape,
    setat,
    sigmoid,
    softmax,
    softmax_cross_entropy,
    sqrt,
    square,
    squeeze,
    stack,
    sub,
    sum,
    sum_to,
    tanh,
    transpose,
    where,
)
from .ops import (
    max as max,
)
from .ops import (
    min as min,
)
from .optim import Adam, MissingGradientError, sgd_step
from .shapes import Window, broadcastinfo, pad_amounts

_LAZY_MODULES = ("datasets", "gradcheck", "selftest", "smallpebble")


def __getattr__(name):
    if name == "self_test":
        from .selftest import self_test

        return self_test
    if name in _LAZY_MODULES:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'smallpebble' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LAZY_MODULES, "self_test"})


# abs, max and min are public too, but a star import must not hide Python's own (as in NumPy;
# `sum` has always been among the names).
__all__ = [
    "Adam", "AssignmentError", "Lazy", "MissingGradientError", "Placeholder", "Variable", "Window",
    "__version__", "add", "add_at", "astype", "avgpool2d", "batch", "broadcast_to",
    "broadcastinfo", "clip", "concatenate", "conv2d", "convlayer", "cross_entropy", "div",
    "enable_broadcast", "exp", "expand_dims", "get_gradients", "get_learnables", "get_num_threads",
    "getitem",
    "he_init", "kernels", "leaky_relu", "learnable", "linearlayer", "log", "log_softmax",
    "logsumexp", "matmul", "matrix_transpose", "maxax", "maximum", "maxpool2d", "mean",
    "minimum", "mul", "neg", "no_grad", "np_strided_sliding_view", "num_threads", "onehot",
    "pad", "pad_amounts", "padding2d", "patches", "patches_index", "power", "primitive",
    "release_memory", "relu", "reshape", "self_test", "set_num_threads", "setat", "sgd_step",
    "show_config", "sigmoid", "softmax", "softmax_cross_entropy", "sqrt", "square", "squeeze",
    "stack", "stop_gradient", "strided_sliding_view", "sub", "sum", "sum_to", "tanh", "transpose",
    "use_conv", "use_kernels", "where",
]  # fmt: skip
