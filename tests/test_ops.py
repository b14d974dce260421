"""Every public operation: value, gradient, gradient of gradient, dtypes, layouts, edge cases.

One table, `CASES`, drives most tests. An operation without a case fails
`test_every_public_operation_has_a_case`.
"""

import itertools
import zlib
from typing import NamedTuple

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smallpebble as sp
from smallpebble import gradcheck, images, ops
from smallpebble.core import Variable
from smallpebble.kernels import reference

H = np.finfo(np.float64).eps ** (1 / 3)
NAN, INF = np.nan, np.inf


# ----------------------------------------------------------------- what the images should become


def spans(size, kernel, stride, padding):
    """For each output: the slice of the image under the window, and of the window on the image."""
    if padding == "VALID":
        front, outputs = 0, (size - kernel) // stride + 1
    else:
        outputs = -(-size // stride)
        front = max((outputs - 1) * stride + kernel - size, 0) // 2
    for i in range(outputs):
        start = i * stride - front
        low, high = max(start, 0), min(start + kernel, size)
        yield slice(low, high), slice(low - start, high - start)


def each_window(x, kh, kw, padding, strides):
    rows = list(spans(x.shape[1], kh, strides[0], padding))
    columns = list(spans(x.shape[2], kw, strides[1], padding))
    shape = (len(x), len(rows), len(columns))
    places = itertools.product(enumerate(rows), enumerate(columns))
    return shape, [((i, j), x[:, ys, xs], (ky, kx)) for (i, (ys, ky)), (j, (xs, kx)) in places]


def np_conv2d(x, k, padding="SAME", strides=(1, 1)):
    shape, windows = each_window(x, *k.shape[:2], padding, strides)
    y = np.zeros((*shape, k.shape[3]))
    for (i, j), seen, cells in windows:
        y[:, i, j] = np.einsum("nyxc,yxcm->nm", seen, k[cells])
    return y


def np_pool(reduce):
    def pool(x, kernheight, kernwidth, padding="SAME", strides=(1, 1)):
        shape, windows = each_window(x, kernheight, kernwidth, padding, strides)
        y = np.zeros((*shape, x.shape[3]))
        for (i, j), seen, _ in windows:
            y[:, i, j] = reduce(seen, axis=(1, 2))
        return y

    return pool


np_maxpool2d, np_avgpool2d = np_pool(np.max), np_pool(np.mean)


def np_patches(x, kernheight, kernwidth, padding="SAME", strides=(1, 1)):
    shape, windows = each_window(x, kernheight, kernwidth, padding, strides)
    y = np.zeros((*shape, kernheight, kernwidth, x.shape[3]))
    for (i, j), seen, cells in windows:
        y[:, i, j][(slice(None), *cells)] = seen
    return y


def np_softmax(a, axis=-1):
    e = np.exp(a - np.max(a, axis, keepdims=True))
    return e / np.sum(e, axis, keepdims=True)


def np_cross_entropy(p, labels, axis=-1):
    return -np.sum(np.log(np.take_along_axis(p, np.expand_dims(labels, axis), axis)))


def np_logits_loss(a, labels, axis=-1, reduction="sum"):
    log_p = np.log(np_softmax(a, axis))
    losses = -np.take_along_axis(log_p, np.expand_dims(labels, axis), axis).squeeze(axis)
    return {"sum": np.sum, "mean": np.mean, "none": lambda x: x}[reduction](losses)


def changed(a, write):
    a = a.copy()
    write(a)
    return a


def np_add_at(a, indices, b):
    return changed(a, lambda y: np.add.at(y, indices, b))


def np_setat(a, indices, b):
    return changed(a, lambda y: y.__setitem__(indices, b))


def np_sum_to(a, shape):
    lead = a.ndim - len(shape)
    axes = [i for i in range(a.ndim) if i < lead or (shape[i - lead] == 1 and a.shape[i] != 1)]
    return a.sum(tuple(axes), keepdims=True).reshape(shape)


def np_clip(a, low=None, high=None):
    return np.clip(a, low, high)


# --------------------------------------------------------------------------------- table of cases


class Case(NamedTuple):
    """`function` of Variables against `reference` of arrays.

    Arguments of `shapes` are drawn distinct from each other and from zero, so that no kink is near:
    all positive, or of both signs (`signed`).
    """

    operation: str
    label: str
    function: object
    reference: object
    shapes: tuple
    signed: bool

    def args(self, dtype=np.float64):
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        values = rng.permutation(np.linspace(0.3, 1.9, sum(sizes) + 1)[1:])
        if self.signed:
            values *= rng.choice([-1, 1], len(values))
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return [part.reshape(shape).astype(dtype) for part, shape in zip(parts, self.shapes)]

    @property
    def name(self):
        return f"{self.operation} {self.label}"


CASES = []


def case(operation, label, function, reference, *shapes, signed=False):
    CASES.append(Case(operation, label, function, reference, shapes, signed))


def same(operation, label, reference, *shapes, signed=False, **parameters):
    """A case where both take the same parameters by keyword."""
    function = getattr(sp, operation)
    case(
        operation,
        label,
        lambda *args: function(*args, **parameters),
        lambda *args: reference(*args, **parameters),
        *shapes,
        signed=signed,
    )


for _name, _reference, _signed in (
    ("abs", np.abs, True),
    ("exp", np.exp, True),
    ("log", np.log, False),
    ("neg", np.negative, True),
    ("relu", lambda a: np.maximum(a, 0), True),
    ("sigmoid", lambda a: 1 / (1 + np.exp(-a)), True),
    ("sqrt", np.sqrt, False),
    ("square", np.square, True),
    ("tanh", np.tanh, True),
):
    for _shape in ((), (3, 4), (2, 1, 3)):
        same(_name, f"of {_shape}", _reference, _shape, signed=_signed)

for _alpha in (0.02, 0.3, 0, 1, -0.5):
    same(
        "leaky_relu",
        f"alpha {_alpha}",
        lambda a, alpha: np.where(a > 0, a, alpha * a),
        (3, 4),
        signed=True,
        alpha=_alpha,
    )
case("leaky_relu", "", sp.leaky_relu, lambda a: np.where(a > 0, a, 0.02 * a), (2, 3), signed=True)

for _name, _reference in (
    ("add", np.add),
    ("sub", np.subtract),
    ("mul", np.multiply),
    ("div", np.divide),
    ("power", np.power),
    ("maximum", np.maximum),
    ("minimum", np.minimum),
):
    _function = getattr(sp, _name)
    for _a, _b in (
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((3,), (2, 3)),
        ((2, 1), (1, 3)),
        ((), (2, 2)),
        ((2, 2), ()),
        ((), ()),
        ((1,), (3,)),
        ((2, 1, 3), (4, 1)),
    ):
        case(_name, f"{_a} {_b}", _function, _reference, _a, _b, signed=_name != "power")
    case(
        _name,
        "number right",
        lambda a, f=_function: f(a, 1.2),
        lambda a, f=_reference: f(a, 1.2),
        (3,),
    )
    case(
        _name,
        "number left",
        lambda a, f=_function: f(1.2, a),
        lambda a, f=_reference: f(1.2, a),
        (3,),
    )
    _plain = np.array([[0.71, 1.31, 1.09], [0.83, 1.47, 0.59]])
    case(
        _name,
        "array left",
        lambda a, f=_function, c=_plain: f(c, a),
        lambda a, f=_reference, c=_plain: f(c, a),
        (3,),
    )
    case(
        _name,
        "array right",
        lambda a, f=_function, c=_plain: f(a, c),
        lambda a, f=_reference, c=_plain: f(a, c),
        (3,),
    )
    case(
        _name,
        "with itself",
        lambda a, f=_function: f(a * 2, a),
        lambda a, f=_reference: f(a * 2, a),
        (3,),
    )

for _n in (3, 2, 1, 0, -1, -2):
    case("power", f"{_n}", lambda a, n=_n: a**n, lambda a, n=_n: a ** float(n), (2, 3), signed=True)
case("power", "base", lambda a: 2**a, lambda a: 2**a, (2, 3), signed=True)

for _low, _high in (
    (-0.777, None),
    (None, 0.888),
    (-0.777, 0.888),
    (np.array([[-0.777], [0.444]]), 1),
):
    same("clip", f"{_low} {_high}", np_clip, (2, 4), signed=True, low=_low, high=_high)

_mask = np.array([[True, False, True], [False, False, True]])
for _a, _b in (((2, 3), (2, 3)), ((2, 3), (3,)), ((), (3,)), ((), ()), ((4, 1, 1), (2, 1))):
    case(
        "where",
        f"{_a} {_b}",
        lambda a, b: sp.where(_mask, a, b),
        lambda a, b: np.where(_mask, a, b),
        _a,
        _b,
    )
case("where", "broadest", lambda a: sp.where(_mask, a, 0), lambda a: np.where(_mask, a, 0), (3,))
case(
    "where",
    "number",
    lambda a: sp.where(_mask[0], 2, a),
    lambda a: np.where(_mask[0], 2, a),
    (2, 3),
)
case(
    "where",
    "condition is a Variable",
    lambda a: sp.where(sp.Variable(_mask), a, a * a),
    lambda a: np.where(_mask, a, a * a),
    (3,),
)

for _dtype in (np.float64, np.longdouble):
    case(
        "astype",
        np.dtype(_dtype).name,
        lambda a, t=_dtype: sp.square(sp.astype(a, t)),
        lambda a, t=_dtype: np.square(a.astype(t)),
        (2, 3),
    )

for _a, _shape in (
    ((3,), (2, 3)),
    ((2, 1), (2, 3)),
    ((), (2, 2)),
    ((2, 1, 2), (3, 2, 4, 2)),
    ((2,), (2,)),
):
    same("broadcast_to", f"{_a} {_shape}", np.broadcast_to, _a, shape=_shape)
    same("sum_to", f"{_shape} {_a}", np_sum_to, _shape, shape=_a)
case("broadcast_to", "int", lambda a: sp.broadcast_to(a, 3), lambda a: np.broadcast_to(a, 3), (1,))
case(
    "enable_broadcast",
    "",
    lambda a, b: sp.mul(*sp.enable_broadcast(a, b)),
    np.multiply,
    (2, 3),
    (3,),
)

for _shape in ((6,), (3, -1), (2, 1, 3), -1, [6, 1]):
    case(
        "reshape",
        str(_shape),
        lambda a, s=_shape: sp.reshape(a, s),
        lambda a, s=_shape: np.reshape(a, s),
        (2, 3),
    )
case("reshape", "to scalar", lambda a: sp.reshape(a, ()), lambda a: a.reshape(()), (1, 1))
for _axes in (None, (1, 0, 2), (2, 0, 1), (-1, 0, -2), [0, 2, 1]):
    same("transpose", str(_axes), np.transpose, (2, 3, 4), axes=_axes)
case("transpose", "scalar", sp.transpose, np.transpose, ())
for _shape in ((2, 3), (2, 1, 3)):
    same("matrix_transpose", str(_shape), lambda a: np.swapaxes(a, -1, -2), _shape)
for _axis in (0, -1, 2, (0, 2), (-1, 0)):
    same("expand_dims", str(_axis), np.expand_dims, (2, 3), axis=_axis)
case(
    "expand_dims",
    "list",
    lambda a: sp.expand_dims(a, [0, 3]),
    lambda a: np.expand_dims(a, (0, 3)),
    (2, 3),
)
for _axis in (None, 0, -1, (0, 2), ()):
    same("squeeze", str(_axis), np.squeeze, (1, 3, 1), axis=_axis)

for _shapes, _axis in (
    (((2, 3), (1, 3)), 0),
    (((2, 3), (2, 1), (2, 2)), -1),
    (((2, 3), (2, 3)), 1),
    (((3,),), 0),
    (((2, 2, 1), (2, 2, 3)), 2),
    (((0, 2), (3, 2)), 0),
):
    case(
        "concatenate",
        f"{_shapes} {_axis}",
        lambda *args, axis=_axis: sp.concatenate(args, axis),
        lambda *args, axis=_axis: np.concatenate(args, axis),
        *_shapes,
    )
case(
    "concatenate",
    "with an array",
    lambda a: sp.concatenate([a, np.ones((2, 1)), a], axis=1),
    lambda a: np.concatenate([a, np.ones((2, 1)), a], axis=1),
    (2, 2),
)
case(
    "concatenate",
    "axis of numpy",
    lambda a, b: sp.concatenate([a, b], axis=np.int64(1)),
    lambda a, b: np.concatenate([a, b], axis=1),
    (2, 2),
    (2, 1),
)
for _axis in (0, 1, -1, -3, np.int64(1)):
    case(
        "stack",
        f"{_axis} {type(_axis).__name__}",
        lambda *args, axis=_axis: sp.stack(args, axis),
        lambda *args, axis=_axis: np.stack(args, axis),
        *[(2, 3)] * 2,
    )
case("stack", "scalars", lambda *a: sp.stack(a), lambda *a: np.stack(a), (), (), ())

for _shape, _width in (
    ((2, 3), 1),
    ((2, 3), (1, 2)),
    ((2, 3), ((1, 2), (0, 3))),
    ((2, 3), ((1, 2),)),
    ((2, 3), ((1,), (2,))),
    ((2, 3), [[0, 0], [0, 1]]),
    ((2, 3), np.array([[1, 0], [2, 1]])),
    ((2, 3), 0),
    ((3,), (1, 2)),
    ((3,), ((1, 2),)),
    ((2, 1, 2), (2,)),
):
    same("pad", f"{_shape} {_width}", np.pad, _shape, pad_width=_width)

INDICES = [
    (slice(None), 0),
    0,
    -1,
    slice(1, None, 2),
    slice(None, None, -1),
    (1, 2),
    (Ellipsis, 1),
    (None, slice(0, 2)),
    (),
    Ellipsis,
    np.array([0, 2, 2]),
    [3, 0, 3],
    [],
    (np.array([0, 1, 1]), np.array([2, 0, 0])),
    (slice(1, 3), np.array([2, 2])),
    (np.array([[0], [3]]), np.array([1, 2])),
    (0, np.array([1, 1])),
    np.arange(12).reshape(4, 3) % 3 == 0,
    np.array([True, False, True, False]),
    (np.array([True, False, True, False]), 1),
    np.array(2),
    np.uint8([1, 1]),
    np.int32(3),
    (slice(5, 9), 0),
    np.zeros((4, 3), bool),
]
for _i in INDICES:
    _taken = np.zeros((4, 3))[_i].shape
    _text = repr(_i)
    case("getitem", _text, lambda a, i=_i: sp.getitem(a, i), lambda a, i=_i: a[i], (4, 3))
    for _name, _reference in (("add_at", np_add_at), ("setat", np_setat)):
        _function = getattr(sp, _name)
        for _b in dict.fromkeys((_taken, (), (1,) * len(_taken))):
            case(
                _name,
                f"{_text} {_b}",
                lambda a, b, i=_i, f=_function: f(a, i, b),
                lambda a, b, i=_i, f=_reference: f(a, i, b),
                (4, 3),
                _b,
            )
case(
    "setat",
    "leading ones",
    lambda a, b: sp.setat(a, slice(0, 3), b),
    lambda a, b: np_setat(a, slice(0, 3), b),
    (4,),
    (1, 1, 3),
)
case(
    "add_at",
    "array",
    lambda b: sp.add_at(np.ones((4, 3)), [1, 1], b),
    lambda b: np_add_at(np.ones((4, 3)), [1, 1], b),
    (2, 3),
)
case(
    "getitem",
    "Variable",
    lambda a: a[sp.Variable([1, 1])],
    lambda a: a[[1, 1]],
    (4, 3),
)

for _name, _reference in (
    ("sum", np.sum),
    ("mean", np.mean),
    ("max", np.max),
    ("min", np.min),
    ("logsumexp", lambda a, **k: np.log(np.sum(np.exp(a), **k))),
):
    for _axis, _keep in itertools.product((None, 0, -1, 1, (0, 2), (2, 1, 0), ()), (False, True)):
        same(
            _name,
            f"axis {_axis} keepdims {_keep}",
            _reference,
            (2, 3, 2),
            signed=True,
            axis=_axis,
            keepdims=_keep,
        )
    _function = getattr(sp, _name)
    case(_name, "scalar", _function, _reference, ())
    case(
        _name,
        "list",
        lambda a, f=_function: f(a, [0, 1]),
        lambda a, f=_reference: f(a, axis=(0, 1)),
        (2, 3),
    )
for _axis in (0, 1, -1):
    same("maxax", str(_axis), lambda a, axis: np.max(a, axis, keepdims=True), (2, 3), axis=_axis)

for _a, _b in (
    ((2, 3), (3, 4)),
    ((1, 3), (3, 1)),
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((3,), (2, 3, 2)),
    ((2, 2, 3), (3,)),
    ((2, 2, 3), (3, 2)),
    ((2, 3), (4, 3, 2)),
    ((2, 1, 2, 3), (3, 3, 2)),
    ((2, 2, 3), (2, 3, 2)),
    ((1, 2, 3), (2, 3, 2)),
    ((1,), (1,)),
):
    case("matmul", f"{_a} {_b}", sp.matmul, np.matmul, _a, _b, signed=True)
case("matmul", "array left", lambda a: np.eye(2, 3) @ a, lambda a: np.eye(2, 3) @ a, (3, 2))
case("matmul", "array right", lambda a: a @ np.eye(2, 3), lambda a: a @ np.eye(2, 3), (3, 2))
case("matmul", "with itself", lambda a: a @ a.T, lambda a: a @ a.T, (2, 3))

for _shape, _axis in (
    ((3, 4), -1),
    ((3, 4), 0),
    ((4,), 0),
    ((2, 3, 2), 1),
    ((2, 3, 2), (0, 2)),
    ((2, 3), None),
):
    same("softmax", f"{_shape} {_axis}", np_softmax, _shape, signed=True, axis=_axis)
    same(
        "log_softmax",
        f"{_shape} {_axis}",
        lambda a, axis: np.log(np_softmax(a, axis)),
        _shape,
        signed=True,
        axis=_axis,
    )
for _shape, _axis in (((3, 4), -1), ((4, 3), 0), ((2, 4, 3), 1), ((2, 3, 4), -1), ((4,), 0)):
    _others = [n for i, n in enumerate(_shape) if i != _axis % len(_shape)]
    _labels = np.arange(int(np.prod(_others))).reshape(_others) * 3 % 4
    case(
        "cross_entropy",
        f"{_shape} {_axis}",
        lambda p, y=_labels, i=_axis: sp.cross_entropy(p, y, i),
        lambda p, y=_labels, i=_axis: np_cross_entropy(p, y, i),
        _shape,
    )
    case(
        "cross_entropy",
        f"of softmax {_shape} {_axis}",
        lambda a, y=_labels, i=_axis: sp.cross_entropy(sp.softmax(a, i), y, i),
        lambda a, y=_labels, i=_axis: np_cross_entropy(np_softmax(a, i), y, i),
        _shape,
        signed=True,
    )
    case(
        "cross_entropy",
        f"of softmax used twice {_shape} {_axis}",
        lambda a, y=_labels, i=_axis: (lambda p: sp.cross_entropy(p, y, i) * sp.sum(sp.square(p)))(
            sp.softmax(a, i)
        ),
        lambda a, y=_labels, i=_axis: (lambda p: np_cross_entropy(p, y, i) * np.sum(p * p))(
            np_softmax(a, i)
        ),
        _shape,
        signed=True,
    )
    for _reduction in ("sum", "mean", "none"):
        case(
            "softmax_cross_entropy",
            f"{_shape} {_axis} {_reduction}",
            lambda a, y=_labels, i=_axis, r=_reduction: sp.softmax_cross_entropy(a, y, i, r),
            lambda a, y=_labels, i=_axis, r=_reduction: np_logits_loss(a, y, i, r),
            _shape,
            signed=True,
        )
case(
    "cross_entropy",
    "of softmax along another axis",
    lambda a: sp.cross_entropy(sp.softmax(a, 0), [1, 0], 1),
    lambda a: np_cross_entropy(np_softmax(a, 0), np.array([1, 0]), 1),
    (2, 3),
)

GEOMETRIES = [
    ((4, 5), (2, 3), "SAME", (1, 1)),
    ((4, 5), (3, 2), "VALID", (1, 1)),
    ((5, 4), (2, 2), "SAME", (2, 2)),
    ((5, 6), (3, 3), "VALID", (2, 3)),
    ((3, 3), (1, 1), "VALID", (2, 1)),
    ((2, 3), (4, 5), "SAME", (1, 1)),
    ((3, 3), (2, 2), "SAME", (4, 5)),
    ((3, 2), (3, 2), "VALID", (1, 1)),
    ((1, 1), (3, 3), "SAME", (1, 1)),
]
for _image, _kernel, _padding, _strides in GEOMETRIES:
    _label = f"{_image} {_kernel} {_padding} {_strides}"
    same(
        "conv2d",
        _label,
        np_conv2d,
        (2, *_image, 2),
        (*_kernel, 2, 2),
        signed=True,
        padding=_padding,
        strides=_strides,
    )
    for _name, _reference in (
        ("maxpool2d", np_maxpool2d),
        ("avgpool2d", np_avgpool2d),
        ("patches", np_patches),
    ):
        same(
            _name,
            _label,
            _reference,
            (2, *_image, 2),
            signed=True,
            kernheight=_kernel[0],
            kernwidth=_kernel[1],
            padding=_padding,
            strides=_strides,
        )
case("conv2d", "defaults", sp.conv2d, np_conv2d, (1, 4, 3, 1), (2, 2, 1, 3), signed=True)
case(
    "conv2d",
    "lists",
    lambda x, k: sp.conv2d(x, k, "SAME", [2, 1]),
    lambda x, k: np_conv2d(x, k, "SAME", (2, 1)),
    (1, 3, 3, 2),
    (2, 2, 2, 1),
)
for _name, _reference in (
    ("maxpool2d", np_maxpool2d),
    ("avgpool2d", np_avgpool2d),
    ("patches", np_patches),
):
    same(_name, "defaults", _reference, (1, 3, 4, 2), signed=True, kernheight=2, kernwidth=2)

for _shape, _window, _strides in (
    ((7,), (3,), (2,)),
    ((4, 5), (2, 2), (1, 2)),
    ((4, 5), (4, 1), (3, 1)),
    ((2, 4, 3), (1, 2, 3), (1, 1, 1)),
    ((2, 4, 4, 2), (1, 2, 2, 2), (1, 2, 1, 1)),
):

    def _view(a, window=_window, strides=_strides):
        views = np.lib.stride_tricks.sliding_window_view(a, window)
        return views[tuple(slice(None, None, s) for s in strides)]

    case(
        "strided_sliding_view",
        f"{_shape} {_window} {_strides}",
        lambda a, w=_window, s=_strides: sp.strided_sliding_view(a, w, s),
        _view,
        _shape,
    )
    case(
        "np_strided_sliding_view",
        f"{_shape} {_window} {_strides}",
        lambda a, w=_window, s=_strides: sp.Variable(sp.np_strided_sliding_view(a.array, w, s)),
        _view,
        _shape,
    )
case(
    "padding2d",
    "SAME",
    lambda x: sp.padding2d(x, "SAME", 4, 3, 1, 2, 3, 2)[0],
    lambda x: np.pad(x, ((0, 0), (1, 1), (0, 1), (0, 0))),
    (2, 4, 3, 2),
)
case(
    "padding2d",
    "VALID",
    lambda x: sp.padding2d(x, "VALID", 4, 3, 1, 2, 3, 2)[0] * 1,
    lambda x: x,
    (2, 4, 3, 2),
)
case(
    "patches_index",
    "",
    lambda x: x[(slice(None), *sp.patches_index(4, 3, 2, 2, 2, 1)[0])],
    lambda x: np_patches(x[..., None], 2, 2, "VALID", (2, 1)).reshape(2, 4, 4),
    (2, 4, 3),
)

# Operations that only look at the numbers have no gradients to check.
WITHOUT_GRADIENT = {"np_strided_sliding_view"}

METHODS = [
    ("-v", lambda v: -v, np.negative),
    ("+v", lambda v: +v, np.positive),
    ("abs(v)", abs, np.abs),
    ("v + v", lambda v: v + v, lambda a: a + a),
    ("2 - v", lambda v: 2 - v, lambda a: 2 - a),
    ("2 / v", lambda v: 2 / v, lambda a: 2 / a),
    ("v ** 2", lambda v: v**2, lambda a: a**2),
    ("v @ v.T", lambda v: v @ v.T, lambda a: a @ a.T),
    ("v[1:, 0]", lambda v: v[1:, 0], lambda a: a[1:, 0]),
    ("v.T", lambda v: v.T, lambda a: a.T),
    ("v.reshape(3, 2)", lambda v: v.reshape(3, 2), lambda a: a.reshape(3, 2)),
    ("v.reshape((3, 2))", lambda v: v.reshape((3, 2)), lambda a: a.reshape(3, 2)),
    ("v.reshape([-1])", lambda v: v.reshape([-1]), lambda a: a.reshape(-1)),
    ("v.reshape(-1)", lambda v: v.reshape(-1), lambda a: a.reshape(-1)),
    ("v.transpose()", lambda v: v.transpose(), lambda a: a.T),
    ("v.transpose(1, 0)", lambda v: v.transpose(1, 0), lambda a: a.T),
    ("v.transpose((1, 0))", lambda v: v.transpose((1, 0)), lambda a: a.T),
    ("v.sum()", lambda v: v.sum(), np.sum),
    ("v.sum(0)", lambda v: v.sum(0), lambda a: a.sum(0)),
    (
        "v.sum(axis, keepdims)",
        lambda v: v.sum(axis=1, keepdims=True),
        lambda a: a.sum(1, keepdims=True),
    ),
    ("v.mean(-1)", lambda v: v.mean(-1), lambda a: a.mean(-1)),
    ("v.max(0)", lambda v: v.max(0), lambda a: a.max(0)),
    ("v.min()", lambda v: v.min(), np.min),
    ("v.astype", lambda v: v.astype(np.float64), lambda a: a),
]
for _label, _function, _reference in METHODS:
    case("method", _label, _function, _reference, (2, 3), signed=True)

each_case = pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
each_gradient = pytest.mark.parametrize(
    "one", [c for c in CASES if c.operation not in WITHOUT_GRADIENT], ids=lambda one: one.name
)


def test_every_public_operation_has_a_case():
    public = set(ops.__all__) | set(images.__all__)
    missing = public - {one.operation for one in CASES}
    assert not missing, f"operations without a case in the table above: {sorted(missing)}"
    assert len({one.name for one in CASES}) == len(CASES)


# ------------------------------------------------------------------------------------- the checker


def weights(array, seed=0):
    """What an output is multiplied by before it is summed: every element counts differently."""
    array = np.asarray(array)
    rng = np.random.default_rng(array.size + seed)
    return rng.uniform(0.5, 1.5, array.shape).astype(array.dtype)


def gradients(function, args, differentiable=False):
    """Inputs as Variables, and the gradients of the weighted sum of function(*args) in them."""
    inputs = [Variable(a) for a in args]
    y = function(*inputs)
    found = sp.get_gradients(sp.sum(y * weights(y)), inputs, differentiable)
    return inputs, [found[v] for v in inputs]


def of_gradients(function, args):
    """A number that every element of every gradient enters with a weight of its own."""
    _, found = gradients(function, args)
    return sum(np.sum(g * weights(g, 1)) for g in found)


def second_gradients(function, args):
    """The gradients of `of_gradients`, by differentiating twice."""
    inputs, found = gradients(function, args, differentiable=True)
    total = sum(sp.sum(g * weights(g, 1)) for g in found)
    again = sp.get_gradients(total, inputs)
    return [again[v] for v in inputs]


def central(function, args):
    """Central differences of a number in every element of `args`."""
    result = []
    for k, a in enumerate(args):
        gradient = np.zeros(a.shape)
        for i in np.ndindex(a.shape):
            ends = []
            for h in (H, -H):
                moved = a.copy()
                moved[i] += h
                ends.append((function(*args[:k], moved, *args[k + 1 :]), moved[i]))
            gradient[i] = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])
        result.append(gradient)
    return result


def close(got, expected, rtol, what=""):
    """Shape, and every element within rtol of the largest (or of one)."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, what
    if got.size:
        worst = np.max(np.abs(got - expected))
        assert worst <= rtol * max(1, np.max(np.abs(expected))), f"{what}: off by {worst:.2g}"


@each_case
def test_value(one):
    args = one.args()
    y = one.function(*[Variable(a) for a in args])
    assert isinstance(y, Variable)
    close(y.array, one.reference(*args), 1e-12)


@each_gradient
def test_gradient_and_gradient_of_gradient(one):
    args = one.args()

    def number(*arrays):
        y = one.reference(*arrays)
        return float(np.sum(y * weights(y)))

    for got, expected in zip(gradients(one.function, args)[1], central(number, args)):
        assert got.dtype == np.float64
        close(got, expected, 1e-6, "gradient")
    numerical = central(lambda *arrays: of_gradients(one.function, arrays), args)
    for got, expected in zip(second_gradients(one.function, args), numerical):
        close(got, expected, 1e-6, "gradient of gradient")


@each_gradient
def test_the_public_checker_agrees(one):
    gradcheck.check_grad(one.args(), one.function, one.reference, delta=1e-5, eps=1e-6, order=2)


@each_gradient
def test_float32_stays_float32(one):
    narrow = one.args(np.float32)
    wide = [a.astype(np.float64) for a in narrow]
    inputs = [Variable(a) for a in narrow]
    y = one.function(*inputs)
    if "astype" in one.name:
        assert y.dtype != np.float32
        return
    assert y.dtype == np.float32
    close(y.array, one.reference(*wide), 1e-5, "value")
    for got, expected in zip(gradients(one.function, narrow)[1], gradients(one.function, wide)[1]):
        assert got.dtype == np.float32
        close(got, expected, 1e-5, "gradient")
    exact = second_gradients(one.function, wide)
    for got, expected in zip(second_gradients(one.function, narrow), exact):
        assert got.dtype == np.float32
        close(got, expected, 3e-5, "gradient of gradient")


@each_gradient
def test_arrays_give_arrays(one):
    if one.label == "condition is a Variable":
        return
    args = one.args()
    y = one.function(*args)
    assert not isinstance(y, Variable)
    close(y, one.reference(*args), 1e-12)


# --------------------------------------------------------------------------------- memory layouts


def _transposed(a):
    return a.T.copy().T


def _every_other(a):
    big = np.full([2 * n + 1 for n in a.shape], NAN, a.dtype)
    view = big[(..., *(slice(1, None, 2) for _ in a.shape))]
    view[...] = a
    return view


def _backwards(a):
    flip = (..., *(slice(None, None, -1) for _ in a.shape))
    return a[flip].copy()[flip]


def _unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _byte_swapped(a):
    return a.astype(a.dtype.newbyteorder())


LAYOUTS = [_transposed, _every_other, _backwards, _unaligned, _read_only, _byte_swapped]


@each_gradient
def test_every_layout_gives_the_same(one):
    args = one.args()
    value = one.function(*[Variable(a) for a in args]).array
    first = gradients(one.function, args)[1]
    second = second_gradients(one.function, args)
    for layout in LAYOUTS:
        what = layout.__name__
        laid = [layout(a) for a in args]
        before = [a.tobytes() for a in laid]
        y = one.function(*[Variable(a) for a in laid])
        close(y.array, value, 1e-12, what)
        assert y.dtype.newbyteorder("=") == value.dtype, what
        for got, expected in zip(gradients(one.function, laid)[1], first):
            close(got, expected, 1e-12, what)
        if layout in (_transposed, _byte_swapped):
            for got, expected in zip(second_gradients(one.function, laid), second):
                close(got, expected, 1e-11, what)
        assert [a.tobytes() for a in laid] == before, what


def test_a_repeated_row_without_memory_of_its_own():
    row = np.array([1.0, -2.0, 3.0])
    a = np.broadcast_to(row, (4, 3))
    for function in (sp.exp, sp.softmax, sp.sum, lambda v: v @ v.T, lambda v: sp.sum_to(v, (3,))):
        v, w = Variable(a), Variable(a.copy())
        assert np.array_equal(function(v).array, function(w).array)
        got, expected = sp.get_gradients(function(v))[v], sp.get_gradients(function(w))[w]
        close(got, expected, 1e-12)


def graph_of(v):
    seen, stack = [], [v]
    while stack:
        v = stack.pop()
        if not any(v is other for other in seen):
            seen.append(v)
            stack += [x for x, _ in v.local_gradients]
    return seen


@each_gradient
def test_nothing_is_written_to(one):
    """Neither inputs nor outputs nor the incoming gradient, by any rule on the way."""
    args = [_read_only(a) for a in one.args()]
    nodes = graph_of(one.function(*[Variable(a) for a in args]))
    arrays = [v.array for v in nodes]
    before = [a.tobytes() for a in arrays]
    for v in nodes:
        for x, function in v.local_gradients:
            for layout in (_read_only, _transposed):
                g = layout(weights(v, 5))
                g.flags.writeable = False
                bits = g.tobytes()
                assert np.shape(function(g)) == x.shape
                assert g.tobytes() == bits
    assert [a.tobytes() for a in arrays] == before


# -------------------------------------------------------------------------------------- hypothesis


small = st.integers(0, 3)
two_shapes = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3)


def unbroadcast(g, shape):
    return np_sum_to(g, shape) if g.shape != shape else g


@settings(max_examples=60)
@given(
    two_shapes,
    st.sampled_from(["add", "sub", "mul", "div", "power", "maximum", "minimum", "where"]),
)
def test_any_shapes_that_broadcast(shapes, name):
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0.5, 1.5, shape) for shape in shapes.input_shapes)
    rules = {
        "add": (np.add, lambda a, b: 1, lambda a, b: 1),
        "sub": (np.subtract, lambda a, b: 1, lambda a, b: -1),
        "mul": (np.multiply, lambda a, b: b, lambda a, b: a),
        "div": (np.divide, lambda a, b: 1 / b, lambda a, b: -a / b**2),
        "power": (np.power, lambda a, b: b * a ** (b - 1), lambda a, b: a**b * np.log(a)),
        "maximum": (np.maximum, lambda a, b: a > b, lambda a, b: b > a),
        "minimum": (np.minimum, lambda a, b: a < b, lambda a, b: b < a),
        "where": (np.add, lambda a, b: mask, lambda a, b: ~mask),
    }
    function, rule_a, rule_b = rules[name]
    mask = rng.random(shapes.result_shape) < 0.5
    u, v = Variable(a), Variable(b)
    if name == "where":
        y, expected = sp.where(mask, u, v), np.where(mask, a, b)
    else:
        y, expected = getattr(sp, name)(u, v), function(a, b)
    assert y.shape == shapes.result_shape
    close(y.array, expected, 1e-12)
    found = sp.get_gradients(y)
    for x, rule in ((u, rule_a), (v, rule_b)):
        close(found[x], unbroadcast(np.ones(y.shape) * rule(a, b), x.shape), 1e-12)


@settings(max_examples=40)
@given(two_shapes)
def test_shapes_are_broadcast_and_summed_back(shapes):
    shape = shapes.result_shape
    for own in shapes.input_shapes:
        v = Variable(np.arange(float(np.prod(own))).reshape(own))
        y = sp.broadcast_to(v, shape)
        assert np.array_equal(y.array, np.broadcast_to(v.array, shape))
        w = weights(np.zeros(shape))
        close(sp.get_gradients(sp.sum(y * w))[v], np_sum_to(w, own), 1e-12)
        close(sp.sum_to(Variable(w), own).array, np_sum_to(w, own), 1e-12)


@st.composite
def shape_and_index(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    kind = draw(st.sampled_from(["basic", "integers", "mask", "mixed"]))
    if kind == "basic":
        return shape, draw(hnp.basic_indices(shape, allow_ellipsis=True, allow_newaxis=True))
    if kind == "mask":
        ndim = draw(st.integers(1, len(shape)))
        return shape, draw(hnp.arrays(bool, shape[:ndim]))
    result = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)
    if kind == "integers":
        return shape, draw(hnp.integer_array_indices(shape, result_shape=result))
    one = draw(hnp.integer_array_indices(shape[:1], result_shape=result))[0]
    rest = draw(hnp.basic_indices(shape[1:], allow_ellipsis=False)) if shape[1:] else ()
    return shape, (one, *(rest if isinstance(rest, tuple) else (rest,)))


@settings(max_examples=150)
@given(shape_and_index())
def test_anything_that_indexes_an_array(both):
    shape, index = both
    v = Variable(np.arange(1.0, 1 + np.prod(shape)).reshape(shape))
    y = v[index]
    expected = v.array[index]
    assert y.shape == expected.shape and np.array_equal(y.array, expected)
    w = weights(expected)
    exact = np.zeros(shape)
    np.add.at(exact, index, w)
    close(sp.get_gradients(sp.sum(y * w))[v], exact, 1e-12)

    b = Variable(weights(expected, 1))
    added = sp.add_at(v, index, b)
    assert np.allclose(added.array, np_add_at(v.array, index, b.array))
    outer = weights(v.array, 2)
    found = sp.get_gradients(sp.sum(added * outer), [v, b])
    assert np.array_equal(found[v], outer) and np.array_equal(found[b], outer[index])

    written = sp.setat(v, index, b)
    assert np.array_equal(written.array, np_setat(v.array, index, b.array))
    found = sp.get_gradients(sp.sum(written * outer), [v, b])
    assert np.array_equal(found[v], np_setat(outer, index, 0))
    # Each place is written by one element of b in the end: numbering them finds out which.
    numbers = np_setat(np.zeros(shape), index, np.arange(1.0, 1 + b.size).reshape(b.shape))
    exact = np.zeros(b.size)
    exact[numbers[numbers > 0].astype(int) - 1] = outer[numbers > 0]
    assert np.array_equal(found[b], exact.reshape(b.shape))


@settings(max_examples=60)
@given(
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    st.data(),
    st.sampled_from(["sum", "mean", "max", "min", "logsumexp"]),
    st.booleans(),
)
def test_any_reduction(shape, data, name, keepdims):
    axes = (
        st.lists(st.integers(-len(shape), len(shape) - 1), max_size=len(shape))
        if shape
        else st.just([])
    )
    axes = data.draw(st.none() | axes.map(tuple))
    normal = range(len(shape)) if axes is None else [i % len(shape) for i in axes]
    a = np.random.default_rng(1).uniform(0.5, 1.5, shape)
    function = getattr(sp, name)
    v = Variable(a)
    count = np.prod([shape[i] for i in normal], dtype=int)
    if len(set(normal)) < len(normal) or (name != "sum" and not count):
        with pytest.raises(ValueError, match=name):
            function(v, axes, keepdims)
        return
    y = function(v, axes, keepdims)
    numpy = {"logsumexp": lambda a, **k: np.log(np.sum(np.exp(a), **k))}.get(name) or getattr(
        np, name
    )
    expected = numpy(a, axis=axes, keepdims=keepdims)
    assert y.shape == expected.shape
    close(y.array, expected, 1e-12)
    gradient = sp.get_gradients(y)[v]
    kept = numpy(a, axis=axes, keepdims=True)
    exact = {
        "sum": np.ones(shape),
        "mean": np.ones(shape) / (count or 1),
        "max": a == kept,
        "min": a == kept,
        "logsumexp": np.exp(a - kept),
    }[name]
    close(gradient, exact * np.ones(shape), 1e-12)


@settings(max_examples=40)
@given(
    small, small, small, st.sampled_from([(), (2,), (1,), (0,)]), st.sampled_from([(), (2,), (1,)])
)
def test_any_matrix_product(i, j, k, batch_a, batch_b):
    rng = np.random.default_rng(2)
    a, b = Variable(rng.random((*batch_a, i, k))), Variable(rng.random((*batch_b, k, j)))
    try:
        expected = a.array @ b.array
    except ValueError:
        with pytest.raises(ValueError, match="matmul"):
            a @ b
        return
    y = a @ b
    close(y.array, expected, 1e-12)
    w = weights(expected)
    found = sp.get_gradients(sp.sum(y * w))
    close(found[a], unbroadcast(w @ np.swapaxes(b.array, -1, -2), a.shape), 1e-12)
    close(found[b], unbroadcast(np.swapaxes(a.array, -1, -2) @ w, b.shape), 1e-12)


# ----------------------------------------------------------------------------- ties, kinks, empties


def slope(function, *values):
    inputs = [Variable(np.array(v, np.float64)) for v in values]
    found = sp.get_gradients(function(*inputs), wrt=inputs)
    slopes = [found[v].tolist() for v in inputs]
    return slopes[0] if len(slopes) == 1 else slopes


def test_slopes_at_kinks():
    assert slope(sp.relu, [0.0, -0.0]) == [0, 0]
    assert slope(sp.leaky_relu, [0.0, -0.0]) == [0.02, 0.02]
    assert slope(lambda v: sp.leaky_relu(v, 0.5), 0.0) == 0.5
    assert slope(sp.abs, [0.0, -0.0]) == [0, 0]
    assert slope(lambda v: sp.clip(v, -1, 1), [-1.0, 1.0, -1.5, 1.5, 0.0]) == [1, 1, 0, 0, 1]
    assert slope(lambda v: sp.clip(v, 2, 1), [0.0, 3.0]) == [0, 0]
    with np.errstate(divide="ignore"):
        assert slope(sp.sqrt, 0.0) == INF


def test_power_at_zero():
    assert slope(lambda v: v**2, 0.0) == 0
    assert slope(lambda v: v**1, 0.0) == 1
    assert slope(lambda v: v**0, [0.0, 2.0]) == [0, 0]
    assert slope(sp.power, 0.0, 2.0) == [0, 0]
    assert slope(sp.power, 0.0, 0.0) == [0, 0]
    for n, second in ((0, 0), (1, 0), (2, 2), (3, 0)):
        x = Variable(0.0)
        first = sp.get_gradients(x**n, wrt=x, differentiable=True)[x]
        assert sp.get_gradients(first, wrt=x)[x] == second
    assert np.array_equal(sp.power(Variable([-2.0, -3.0]), 3.0).array, [-8, -27])
    assert slope(lambda v: v**3, [-2.0]) == [12]


def test_equal_operands_share():
    assert slope(sp.maximum, [1.0, 2.0, 0.0], [1.0, 1.0, 5.0]) == [[0.5, 1, 0], [0.5, 0, 1]]
    assert slope(sp.minimum, [1.0, 2.0, 0.0], [1.0, 1.0, 5.0]) == [[0.5, 0, 1], [0.5, 1, 0]]
    assert slope(lambda v: sp.maximum(v, v), 3.0) == 1


def test_the_first_of_equal_elements_has_the_gradient():
    rows = [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]
    assert slope(lambda v: sp.max(v, 1), rows) == [[0, 1, 0], [1, 0, 0]]
    assert slope(lambda v: sp.min(v, 1), rows) == [[1, 0, 0], [1, 0, 0]]
    assert slope(lambda v: sp.maxax(v, 1), rows) == [[0, 1, 0], [1, 0, 0]]
    assert slope(sp.max, rows) == [[0, 1, 0], [0, 0, 0]]
    assert slope(lambda v: sp.max(v, (0, 1)), np.ones((2, 2))) == [[1, 0], [0, 0]]
    pooled = slope(lambda v: sp.maxpool2d(v, 2, 2, strides=(2, 2)), np.ones((1, 2, 2, 1)))
    assert np.ravel(pooled).tolist() == [1, 0, 0, 0]


def test_the_last_of_several_values_stays_and_has_the_gradient():
    a, b = Variable(np.zeros(3)), Variable([1.0, 2.0, 3.0])
    y = sp.setat(a, np.array([1, 1, 0]), b)
    assert y.array.tolist() == [3, 2, 0]
    found = sp.get_gradients(y)
    assert found[b].tolist() == [0, 1, 1] and found[a].tolist() == [0, 0, 1]


def test_repeated_indices_add_up():
    v = Variable([1.0, 2.0, 3.0])
    assert sp.get_gradients(v[[0, 0, 2]])[v].tolist() == [2, 0, 1]
    b = Variable([1.0, 2.0])
    y = sp.add_at(v, np.array([1, 1]), b)
    assert y.array.tolist() == [1, 5, 3]


def test_padding_is_never_the_maximum_and_does_not_count():
    x = Variable(-np.ones((1, 3, 3, 1)))
    assert np.all(sp.maxpool2d(x, 2, 2, strides=(2, 2)).array == -1)
    assert np.all(sp.avgpool2d(x, 3, 3).array == -1)
    assert np.all(sp.maxpool2d(Variable(np.full((1, 2, 2, 1), -INF)), 3, 3).array == -INF)


EMPTY = np.zeros((0, 3))


@pytest.mark.parametrize(
    "function",
    [sp.exp, sp.relu, sp.leaky_relu, sp.abs, sp.neg, sp.square, sp.tanh, sp.sigmoid, sp.sqrt,
     sp.log, sp.softmax, sp.log_softmax, sp.transpose, lambda v: sp.clip(v, 0, 1), lambda v: v + 1,
     lambda v: v * v, lambda v: v**2, lambda v: sp.where(True, v, 0), lambda v: sp.softmax(v, (1,)),
     lambda v: v @ np.ones((3, 2)), lambda v: sp.pad(v, 1), lambda v: v[[]], lambda v: v[:, 1],
     lambda v: sp.concatenate([v, v]), lambda v: sp.stack([v, v]), lambda v: sp.reshape(v, (3, 0)),
     lambda v: sp.max(v, 1), lambda v: sp.mean(v, 1), lambda v: sp.logsumexp(v, 1),
     lambda v: sp.maximum(v, 0), lambda v: sp.sum_to(v, (3,)), lambda v: sp.sum(v, 0),
     lambda v: sp.broadcast_to(v, (2, 0, 3)), lambda v: sp.add_at(v, [], 1.0), sp.squeeze],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_empty_arrays_have_empty_gradients(function, dtype):
    v = Variable(EMPTY.astype(dtype))
    y = function(v)
    assert y.dtype == dtype
    gradient = sp.get_gradients(y)[v]
    assert gradient.shape == (0, 3) and gradient.dtype == dtype
    second = sp.get_gradients(sp.sum(y * y), [v], differentiable=True)
    assert sp.get_gradients(second[v])[v].shape == (0, 3)


def test_sums_of_nothing():
    v = Variable(EMPTY)
    assert sp.sum(v).item() == 0 and sp.sum(v, 0).array.tolist() == [0, 0, 0]
    assert (Variable(np.ones((2, 0))) @ Variable(np.ones((0, 3)))).array.tolist() == [[0] * 3] * 2
    assert (Variable(np.ones(0)) @ Variable(np.ones(0))).item() == 0
    assert sp.sum(Variable(np.zeros(0, np.float32))).dtype == np.float32


@pytest.mark.parametrize("name", ["mean", "max", "min", "logsumexp", "maxax"])
def test_reductions_without_a_value_for_nothing_say_so(name):
    function = getattr(sp, name)
    for axes in ((0,), (None,)) if name != "maxax" else ((0,),):
        with pytest.raises(ValueError, match=r"(max|mean|min|logsumexp).*\(0, 3\)"):
            function(Variable(EMPTY), *axes)


def test_softmax_along_nothing_says_so():
    for function in (sp.softmax, sp.log_softmax):
        with pytest.raises(ValueError, match="softmax"):
            function(Variable(EMPTY), 0)
        with pytest.raises(ValueError, match="softmax"):
            function(Variable(1.0))


# ------------------------------------------------------------------------------------- NaN and Inf


SPECIAL = np.array([NAN, INF, -INF, 0.0, -0.0, 1.5, -1.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name, numpy",
    [
        ("exp", np.exp),
        ("log", np.log),
        ("sqrt", np.sqrt),
        ("abs", np.abs),
        ("neg", np.negative),
        ("square", np.square),
        ("tanh", np.tanh),
        ("relu", lambda a: np.maximum(a, 0)),
        ("sigmoid", lambda a: 1 / (1 + np.exp(-a))),
        ("leaky_relu", lambda a: np.where(a > 0, a, a * a.dtype.type(0.02))),
    ],
)
def test_special_values_go_through(name, numpy, dtype):
    a = np.tile(SPECIAL.astype(dtype), 5)
    with np.errstate(all="ignore"):
        y = getattr(sp, name)(Variable(a)).array
        np.testing.assert_allclose(y, numpy(a), rtol=1e-6)
        assert np.array_equal(np.signbit(y), np.signbit(numpy(a))) or name in ("relu", "sigmoid")


def test_a_nan_is_not_lost():
    a = np.array([[1.0, NAN, 3.0], [4.0, 5.0, 6.0]])
    v = Variable(a)
    assert np.isnan(sp.sum(v).item()) and np.isnan(sp.mean(v).item())
    for function, row in ((sp.max, 6), (sp.min, 4)):
        y = function(v, 1).array
        assert np.isnan(y[0]) and y[1] == row
    assert np.isnan(sp.maximum(v, 0).array[0, 1]) and np.isnan(sp.minimum(0, v).array[0, 1])
    assert np.isnan(sp.clip(v, 0, 1).array[0, 1])
    assert np.isnan(sp.softmax(v).array[0]).all() and np.isfinite(sp.softmax(v).array[1]).all()
    assert np.isnan(sp.log_softmax(v).array[0]).all()
    losses = sp.softmax_cross_entropy(v, [0, 0], reduction="none").array
    assert np.isnan(losses[0]) and np.isfinite(losses[1])
    assert np.isnan(sp.logsumexp(v, 1).array[0])
    pooled = sp.maxpool2d(Variable(a.reshape(1, 2, 3, 1)), 2, 2, "VALID").array.ravel()
    assert np.isnan(pooled).all()
    assert slope(lambda v: sp.max(v, 1), a) == [[0, 1, 0], [0, 0, 1]]


def test_no_product_is_skipped_because_a_factor_is_zero():
    bad = np.array([[NAN, 1.0], [INF, 1.0]])
    with np.errstate(invalid="ignore"):
        assert np.isnan((Variable(np.zeros((2, 2))) @ Variable(bad)).array[:, 0]).all()
        x = np.zeros((1, 3, 3, 1))
        k = np.full((2, 2, 1, 1), INF)
        assert np.isnan(sp.conv2d(Variable(x), Variable(k), "VALID").array).all()
        x[0, 1, 1, 0] = NAN
        y = sp.conv2d(Variable(x), Variable(np.zeros((2, 2, 1, 1))), "VALID")
        assert np.isnan(y.array).all()
        images, kernel = Variable(np.ones((1, 2, 2, 1))), Variable(np.zeros((2, 2, 1, 1)))
        y = sp.conv2d(images, kernel, "VALID") * NAN
        found = sp.get_gradients(y)
        assert np.isnan(found[images]).all() and np.isnan(found[kernel]).all()


def test_minus_infinity_is_a_logit_that_never_wins():
    v = Variable([[0.0, -INF, 0.0]])
    assert sp.softmax(v).array.tolist() == [[0.5, 0, 0.5]]
    assert sp.logsumexp(v).item() == pytest.approx(np.log(2))
    loss = sp.softmax_cross_entropy(v, [0])
    assert loss.item() == pytest.approx(np.log(2))
    assert np.allclose(sp.get_gradients(loss)[v], [[-0.5, 0, 0.5]])
    assert sp.logsumexp(Variable([-INF, -INF])).item() == -INF


# -------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_shifts_every_row_by_its_own_maximum(dtype):
    v = Variable(np.array([[0, 0], [1000, 1000], [-1000, 1000], [1e30, -1e30]], dtype))
    p = sp.softmax(v)
    assert p.array.tolist() == [[0.5, 0.5], [0.5, 0.5], [0, 1], [1, 0]]
    q = sp.log_softmax(v).array
    assert np.isfinite(q).all() and q[2].tolist() == [-2000, 0]
    assert np.isfinite(sp.get_gradients(sp.sum(sp.square(p)))[v]).all()
    columns = sp.softmax(Variable(v.array.T.copy()), axis=0).array
    assert np.array_equal(columns, p.array.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("logits, label, loss", [
    ([0, 1000], 0, 1000), ([0, 1000], 1, 0), ([-1e4, 1e4], 0, 2e4), ([0, 0], 0, np.log(2)),
    ([1e30, -1e30], 1, 2e30), ([0, 104], 0, 104), ([0, 750], 0, 750),
])  # fmt: skip
def test_confident_mistakes_have_finite_losses_and_gradients(logits, label, loss, dtype):
    def losses(v):
        yield sp.cross_entropy(sp.softmax(v), np.array([label]))
        yield sp.cross_entropy(sp.softmax(v, axis=1), [label], axis=1)
        yield sp.softmax_cross_entropy(v, np.array([label]))
        yield -sp.sum(sp.log_softmax(v)[0, label])

    exact = np_softmax(np.array([logits], np.float64))
    exact[0, label] -= 1
    v = Variable(np.array([logits], dtype))
    for y in losses(v):
        assert y.item() == pytest.approx(loss, rel=1e-6) and y.dtype == dtype
        np.testing.assert_allclose(sp.get_gradients(y)[v], exact, atol=1e-6)
        np.testing.assert_allclose(sp.get_gradients(y, wrt=v)[v], exact, atol=1e-6)
    for y in losses(v):
        first = sp.get_gradients(y, wrt=v, differentiable=True)[v]
        assert np.isfinite(sp.get_gradients(sp.sum(first * first), wrt=v)[v]).all()


def test_gradients_of_a_confident_mistake_reach_the_weights():
    x, w = Variable(np.float32([[1.0]])), Variable(np.float32([[0.0, 1000.0]]))
    loss = sp.cross_entropy(sp.softmax(x @ w), [0])
    found = sp.get_gradients(loss)
    assert found[w].tolist() == [[-1, 1]] and found[x].tolist() == [[1000]]
    assert all(np.all(np.isfinite(found[v])) for v in (w, x, loss))


def test_reading_every_gradient_of_a_confident_mistake_is_quiet():
    p = sp.softmax(Variable([[0.0, 1000.0]]))
    found = dict(sp.get_gradients(sp.cross_entropy(p, [0])))
    assert found[p].tolist() == [[-INF, 0]]  # the slope of -log(p) at 0


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_probabilities_have_their_own_gradient(axis):
    a = np.random.default_rng(0).standard_normal((3, 3))
    labels = np.array([2, 0, 1])
    v = Variable(a)
    p = sp.softmax(v, axis)
    loss = sp.cross_entropy(p, labels, axis)
    chosen = np.zeros((3, 3))
    np.put_along_axis(chosen, np.expand_dims(labels, axis), 1, axis)
    exact = -chosen / p.array
    found = sp.get_gradients(loss)
    close(found[p], exact, 1e-12)
    close(found[v], p.array - chosen, 1e-12)
    close(sp.get_gradients(loss, wrt=[p])[p], exact, 1e-12)
    both = sp.get_gradients(loss, wrt=[p, v])
    close(both[p], exact, 1e-12)
    close(both[v], p.array - chosen, 1e-12)

    both = sp.get_gradients(loss * 3 + sp.sum(p * p), wrt=[v, p])
    close(both[p], 3 * exact + 2 * p.array, 1e-12)
    inner = 2 * p.array
    through = p.array * (inner - np.sum(inner * p.array, axis, keepdims=True))
    close(both[v], 3 * (p.array - chosen) + through, 1e-12)


def test_cross_entropy_is_of_the_probabilities_as_they_are():
    """The short cut to the logits is taken only where it gives the loss of these probabilities."""
    labels = np.array([0])

    def fresh():
        v = Variable(np.array([[1.0, 2.0]]))
        return v, sp.softmax(v)

    expected = -np.log(np_softmax(np.array([1.0, 2.0]))[0])
    v, p = fresh()
    v.array[:] = 0
    assert sp.cross_entropy(p, labels).item() == pytest.approx(expected)
    v, p = fresh()
    v.array = np.array([[5.0, 5.0]])
    assert sp.cross_entropy(p, labels).item() == pytest.approx(expected)
    for other in ([0.0, 0.0, 0.0], 0.0, [[1.0], [2.0]], [[]]):
        v, p = fresh()
        v.array = other
        assert sp.cross_entropy(p, labels, axis=1).item() == pytest.approx(expected)
    v, p = fresh()
    p.array = np.array([[0.25, 0.75]])
    assert sp.cross_entropy(p, labels).item() == pytest.approx(-np.log(0.25))
    v, p = fresh()
    p.array[:] = [[0.25, 0.75]]
    assert sp.cross_entropy(p, labels).item() == pytest.approx(-np.log(0.25))
    v, p = fresh()
    h = v * 1
    p = sp.softmax(h)
    h.array[:] = 0
    assert sp.cross_entropy(p, labels).item() == pytest.approx(expected)


def test_cross_entropy_after_a_step_is_of_the_probabilities_as_they_are():
    """The arrays that an optimiser assigns are private too, but not those that were recorded."""
    w = Variable(np.zeros((1, 2)))
    p = sp.softmax(w)
    sp.sgd_step([w], {w: np.array([[5.0, -5.0]])}, 1.0)
    loss = sp.cross_entropy(p, np.array([0]))
    assert loss.item() == pytest.approx(np.log(2))
    close(sp.get_gradients(loss)[w], [[-0.5, 0.5]], 1e-12)

    v = Variable(np.zeros((1, 2)))
    h = v * 1
    p = sp.softmax(h)
    sp.sgd_step([p], {p: np.array([[0.25, -0.25]])}, 1.0)
    assert sp.cross_entropy(p, np.array([0])).item() == pytest.approx(-np.log(0.25))


def test_cross_entropy_is_a_sum_and_takes_any_integers():
    p = np.array([[0.2, 0.8], [0.5, 0.5]])
    expected = -np.log(0.8) - np.log(0.5)
    for labels in ([1, 0], np.int8([1, 0]), np.uint64([1, 0]), np.array([1, 0]), Variable([1, 0])):
        assert sp.cross_entropy(Variable(p), labels).item() == pytest.approx(expected)
    assert isinstance(sp.cross_entropy(p, [1, 0]), (float, np.floating, np.ndarray))
    wrong_axis = sp.cross_entropy(Variable(p), [1, 0], axis=0).item()
    assert wrong_axis == pytest.approx(-np.log(0.5) - np.log(0.8))
    assert sp.cross_entropy(Variable(p), [1, 1], axis=0).item() == pytest.approx(-2 * np.log(0.5))


def test_logsumexp_does_not_overflow():
    assert sp.logsumexp(Variable([1000.0, 1000.0])).item() == pytest.approx(1000 + np.log(2))
    assert sp.logsumexp(Variable([-1000.0, -1000.0])).item() == pytest.approx(-1000 + np.log(2))
    v = Variable(np.float32([[0, 1000], [-500, -500]]))
    y = sp.logsumexp(v, axis=1)
    assert y.dtype == np.float32 and np.allclose(y.array, [1000, -500 + np.log(2)])
    assert np.allclose(sp.get_gradients(y)[v], [[0, 1], [0.5, 0.5]])
    assert sp.logsumexp(Variable([INF, 1000.0])).item() == INF


@pytest.mark.parametrize("dtype, large", [(np.float32, 200), (np.float64, 1000)])
def test_sigmoid_and_tanh_at_extremes(dtype, large):
    v = Variable(np.array([-large, large, -1e30, 1e30, -INF, INF, 0, -40, 40], dtype))
    y = sp.sigmoid(v)
    assert y.array[:7].tolist() == [0, 1, 0, 1, 0, 1, 0.5] and y.dtype == dtype
    assert y.array[7] == pytest.approx(np.exp(-40), rel=1e-5) and y.array[8] == 1
    assert np.isfinite(sp.get_gradients(y)[v]).all()
    t = sp.tanh(v)
    assert t.array[:7].tolist() == [-1, 1, -1, 1, -1, 1, 0]
    assert np.isfinite(sp.get_gradients(t)[v]).all()


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_reductions_of_the_loss_agree(reduction):
    a = np.random.default_rng(3).standard_normal((5, 4))
    labels = np.array([0, 3, 1, 1, 2])
    v = Variable(a)
    y = sp.softmax_cross_entropy(v, labels, reduction=reduction)
    close(y.array, np_logits_loss(a, labels, -1, reduction), 1e-12)
    p = np_softmax(a)
    p[np.arange(5), labels] -= 1
    close(sp.get_gradients(y)[v], p / (5 if reduction == "mean" else 1), 1e-12)


def test_integer_inputs():
    i = Variable([[1, -2], [3, 4]])
    for function in (
        sp.exp,
        sp.sigmoid,
        sp.tanh,
        sp.softmax,
        sp.log_softmax,
        sp.logsumexp,
        sp.mean,
    ):
        assert function(i).dtype == np.float64
    assert sp.leaky_relu(i).array.tolist() == [[1, -0.04], [3, 4]]
    assert sp.get_gradients(sp.leaky_relu(i))[i].tolist() == [[1, 0.02], [1, 1]]
    assert sp.relu(i).array.tolist() == [[1, 0], [3, 4]]
    assert sp.max(i).item() == 4 and sp.abs(i).dtype == i.dtype
    assert (i @ i).array.tolist() == (i.array @ i.array).tolist()
    x = Variable(np.arange(16).reshape(1, 4, 4, 1))
    k = Variable(np.ones((2, 2, 1, 1), int))
    assert np.array_equal(sp.conv2d(x, k).array, np_conv2d(x.array, k.array))
    assert np.array_equal(sp.maxpool2d(x, 2, 2).array, np_maxpool2d(x.array, 2, 2))
    assert np.array_equal(sp.avgpool2d(x, 2, 2).array, np_avgpool2d(x.array, 2, 2))


BESIDE_INTEGERS = [0, 3, True, 0.5, 2**53 + 1, np.float32(1.5), np.uint8(7), [1, 2], [0.5, 1], -1]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dtype", [int, np.uint8, np.int16, bool])
@pytest.mark.parametrize("other", BESIDE_INTEGERS, ids=str)
def test_what_stands_beside_integers_is_taken_as_numpy_takes_it(other, dtype, wrapped):
    """Neither cut to an integer nor, where it is a plain number, a reason for a wider dtype."""
    a = np.array([1, 200]).astype(dtype)
    x = Variable(a) if wrapped else a
    condition = np.array([True, False])
    for ours, numpys in (
        (lambda: sp.where(condition, x, other), lambda: np.where(condition, a, other)),
        (lambda: sp.where(condition, other, x), lambda: np.where(condition, other, a)),
        (lambda: sp.clip(x, other), lambda: np.clip(a, other, None)),
        (lambda: sp.clip(x, None, other), lambda: np.clip(a, None, other)),
        (lambda: sp.clip(x, other, 300), lambda: np.clip(a, other, 300)),
    ):
        try:
            expected = numpys()
        except OverflowError:  # a number that the dtype cannot hold, from NumPy 2 on
            with pytest.raises(OverflowError):
                ours()
        else:
            y = ours()
            assert np.array_equal(np.asarray(y), expected) and y.dtype == expected.dtype


def test_large_integers_keep_their_digits_in_where():
    large = np.array([2**53 + 1, 5])
    for x in (large, Variable(large)):
        assert np.asarray(sp.where(np.array([True, False]), x, 0)).tolist() == [2**53 + 1, 0]


def test_plain_arrays_beside_float32_variables():
    x64, i64 = np.ones((2, 2)), np.ones((2, 2), int)
    for other in (x64, i64):
        v = Variable(np.ones((2, 2), np.float32))
        for y in (
            sp.matmul(other, v),
            sp.concatenate([other, v]),
            sp.stack([v, other]),
            sp.where(np.eye(2, dtype=bool), other, v),
            sp.where(np.eye(2, dtype=bool), v, 2.5),
            sp.setat(v, 0, other[0]),
            sp.setat(other, 0, v[0]),
            sp.add_at(v, [0, 0], other),
            sp.add_at(other, [0, 0], v),
            sp.clip(v, other * 0.5),
            sp.maximum(other, v),
            sp.power(v, other),
        ):
            assert y.dtype == np.float32
            assert sp.get_gradients(y)[v].dtype == np.float32
    images64, kernel = np.ones((1, 3, 3, 2)), Variable(np.ones((2, 2, 2, 1), np.float32))
    assert sp.conv2d(images64, kernel).dtype == np.float32
    images32 = Variable(images64.astype(np.float32))
    assert sp.conv2d(images32, kernel.array.astype(np.float64)).dtype == np.float32


def test_float16_stays_float16():
    v = Variable(np.float16([[0.5, 1.5], [2, 3]]))
    for y in (
        sp.exp(v),
        v @ v,
        sp.softmax(v),
        sp.sum(v),
        sp.mean(v),
        sp.logsumexp(v),
        sp.leaky_relu(v),
    ):
        assert y.dtype == np.float16
        assert sp.get_gradients(y)[v].dtype == np.float16


# ------------------------------------------------------------------------------- short cuts
#
# maxpool2d goes past the value of leaky_relu where nobody has looked at it, and cross_entropy past
# that of softmax. What somebody does to the value in between must count.


def pooled(h):
    return sp.maxpool2d(h, 2, 2, strides=(2, 2))


def test_a_value_assigned_to_leaky_relu_is_the_one_that_is_pooled():
    x = Variable(np.arange(-8.0, 8.0).reshape(1, 4, 4, 1))
    h = sp.leaky_relu(x * 1.0)
    h.array = np.full((1, 4, 4, 1), 7.0)
    assert np.array_equal(pooled(h).array, np.full((1, 2, 2, 1), 7.0))
    h = sp.leaky_relu(x * 1.0)
    h.array = np.full((1, 2, 2, 1), 7.0)
    assert pooled(h).shape == (1, 1, 1, 1)
    assert sp.get_gradients(h)[x].shape == x.shape


def test_functions_assigned_to_leaky_relu_and_softmax_are_the_ones_that_are_called():
    x = Variable(np.arange(-8.0, 8.0).reshape(1, 4, 4, 1))
    h = sp.leaky_relu(x * 1.0)
    h.local_gradients = [(x, lambda g: g * 100)]
    assert sp.get_gradients(pooled(h))[x].sum() == 400
    v = Variable([[1.0, 2.0]])
    p = sp.softmax(v)
    p.local_gradients = [(v, lambda g: g * 0 + 100)]
    assert sp.get_gradients(sp.cross_entropy(p, [0]))[v].tolist() == [[100, 100]]


@pytest.mark.parametrize("alpha", [0.02, 0.3, 1, 0, -0.5, 1e-320, INF, NAN])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_pooled_leaky_relu_is_what_pooling_its_value_gives(alpha, dtype):
    a = np.array([-3, -2, 0, 1, -1, -4, 0, 0, 5, 2, -1, -1, 2, 5, -2, -1]).reshape(1, 4, 4, 1)
    results = []
    for look in (False, True):
        x = Variable(a.astype(dtype))
        with np.errstate(all="ignore"):
            h = sp.leaky_relu(x * 1 if dtype is np.int64 else x * 1.0, alpha)
            if look:
                h.array  # noqa: B018
            y = pooled(h)
            found = sp.get_gradients(y)
            results.append((y.array, found[x], found[h]))
    for short, long in zip(*results):
        assert short.dtype == long.dtype
        np.testing.assert_array_equal(short, long)


@pytest.mark.parametrize("alpha", ["0.1", None, [0.1, 0.2], 1j, object()])
def test_a_wrong_slope_is_refused_at_the_call(alpha):
    for v in (Variable([1.0, -1.0]), Variable([1.0, -1.0]) * 1.0, np.array([1.0, -1.0])):
        with pytest.raises((TypeError, ValueError)):
            sp.leaky_relu(v, alpha)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(("shape", "axis"), [((3, 4), 1), ((4, 2), 0), ((2, 3, 2), 1), ((2, 9), 1)])
def test_adjoints_of_softmax_in_all_they_depend_on(name, shape, axis):
    """Anywhere, not only where a softmax gave y: nothing cancels."""
    rng = np.random.default_rng(len(shape))
    adjoint, plain = getattr(ops, f"_{name}_grad"), getattr(reference, f"{name}_grad_a")
    gradcheck.check_grad(
        [rng.standard_normal(shape), rng.standard_normal(shape)],
        lambda g, y: adjoint(g, y, axis),
        lambda g, y: plain(g, y, axis),
        delta=1e-5,
        eps=1e-6,
        order=2,
    )


# ---------------------------------------------------------------------------------------- order 3


def _network(x, k):
    h = sp.maxpool2d(sp.leaky_relu(sp.conv2d(x, k)), 2, 2, strides=(2, 2))
    return sp.softmax(sp.reshape(h, (1, -1)))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (_network, ((1, 4, 4, 1), (2, 2, 1, 2))),
        (lambda a: sp.softmax(a), ((2, 4),)),
        (lambda a: sp.softmax(a, 0), ((3, 2),)),
        (lambda a: sp.log_softmax(a), ((2, 4),)),
        (lambda a: sp.log_softmax(a, 1), ((2, 3, 2),)),
        (lambda a: sp.softmax_cross_entropy(a, [3, 0], reduction="none"), ((2, 4),)),
        (lambda a: sp.cross_entropy(sp.softmax(a), [3, 0]), ((2, 4),)),
    ],
    ids=["network", "softmax", "softmax 0", "log_softmax", "log_softmax 1", "loss", "loss of p"],
)
def test_order_three(function, shapes):
    args = Case("order three", "", None, None, shapes, True).args()

    def of_order(order, *arrays):
        """A weighted sum of all derivatives of that order."""
        inputs = [Variable(a) for a in arrays]
        total = function(*inputs)
        total = sp.sum(total * weights(total))
        for n in range(order):
            found = sp.get_gradients(total, inputs, differentiable=True)
            total = sum(sp.sum(found[v] * weights(found[v], n + 1)) for v in inputs)
        return inputs, total

    for order in (1, 2, 3):
        inputs, total = of_order(order - 1, *args)
        found = sp.get_gradients(total, inputs)
        numerical = central(lambda *arrays, n=order - 1: of_order(n, *arrays)[1].item(), args)
        for v, expected in zip(inputs, numerical):
            assert np.max(np.abs(expected)) > 1e-3
            close(found[v], expected, 1e-6, f"order {order}")
