"""The promise to users of SmallPebble 3.0.5: its names, behaviours and numbers, without its faults.

Numbers given as constants here were printed by 3.0.5.
"""

# ruff: noqa: NPY002 - layers draw from NumPy's global generator, as those of 3.0.5 do

import hashlib
import importlib
import importlib.resources
import inspect
import itertools
import math
import re

import numpy as np
import pytest

import smallpebble as sp
from smallpebble import gradcheck
from smallpebble.gradcheck import NumericalError, check_grad, numgrad, numgrads, rmse

# ----------------------------------------------------------------------------- names and signatures


def _variable(array, local_gradients=None): ...
def _get_gradients(variable): ...
def _binary(a, b): ...
def _unary(a): ...
def _add_at(a, indices, b): ...
def _conv2d(images, kernels, padding="SAME", strides=(1, 1)): ...
def _enable_broadcast(a, b, matmul=False): ...
def _with_axis(a, axis): ...
def _getitem(a, indices): ...
def _leaky_relu(a, alpha=0.02): ...
def _maxpool2d(images, kernheight, kernwidth, padding="SAME", strides=(1, 1)): ...
def _pad(a, pad_width): ...
def _reshape(a, shape): ...
def _softmax(a, axis=-1): ...
def _view(a, window_shape, strides): ...
def _sum(a, axis=None): ...
def _where(condition, a, b): ...
def _lazy(function): ...
def _placeholder(): ...
def _learnable(variable): ...
def _get_learnables(lazy_node): ...
def _adam(alpha=0.001, beta1=0.9, beta2=0.999, eps=1e-8): ...
def _sgd_step(variables, gradients, learning_rate=0.001): ...
def _batch(X, y, size, seed=None): ...
def _convlayer(height, width, depth, n_kernels, padding="VALID", strides=(1, 1)): ...
def _sizes(insize, outsize): ...
def _cross_entropy(y_pred, y_true, axis=-1): ...
def _onehot(y, n_classes): ...
def _broadcastinfo(a_shape, b_shape): ...
def _np_view(x, window_shape, strides): ...
def _pad_amounts(array_length, stride, kern_length): ...
def _padding2d(images, padding, imheight, imwidth, stride_y, stride_x, kernheight, kernwidth): ...
def _patches_index(imheight, imwidth, kernheight, kernwidth, stride_y, stride_x): ...


NAMES = {
    "Adam": _adam,
    "AssignmentError": None,
    "Lazy": _lazy,
    "Placeholder": _placeholder,
    "Variable": _variable,
    "add": _binary,
    "add_at": _add_at,
    "batch": _batch,
    "broadcastinfo": _broadcastinfo,
    "conv2d": _conv2d,
    "convlayer": _convlayer,
    "cross_entropy": _cross_entropy,
    "div": _binary,
    "enable_broadcast": _enable_broadcast,
    "exp": _unary,
    "expand_dims": _with_axis,
    "get_gradients": _get_gradients,
    "get_learnables": _get_learnables,
    "getitem": _getitem,
    "he_init": _sizes,
    "leaky_relu": _leaky_relu,
    "learnable": _learnable,
    "linearlayer": _sizes,
    "log": _unary,
    "matmul": _binary,
    "matrix_transpose": _unary,
    "maxax": _with_axis,
    "maxpool2d": _maxpool2d,
    "mul": _binary,
    "neg": _unary,
    "np_strided_sliding_view": _np_view,
    "onehot": _onehot,
    "pad": _pad,
    "pad_amounts": _pad_amounts,
    "padding2d": _padding2d,
    "patches_index": _patches_index,
    "reshape": _reshape,
    "setat": _add_at,
    "sgd_step": _sgd_step,
    "softmax": _softmax,
    "square": _unary,
    "strided_sliding_view": _view,
    "sub": _binary,
    "sum": _sum,
    "where": _where,
}


def check_signature(function, promised):
    """The parameters of 3.0.5 come first, with their names and defaults; others are optional."""
    own = list(inspect.signature(function).parameters.values())
    theirs = list(inspect.signature(promised).parameters.values())
    assert [p.name for p in own[: len(theirs)]] == [p.name for p in theirs]
    for mine, theirs_ in zip(own, theirs):
        assert mine.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert mine.default == theirs_.default
    assert all(p.default is not inspect.Parameter.empty for p in own[len(theirs) :])


@pytest.mark.parametrize("name", NAMES)
def test_every_name_with_its_signature(name):
    old_module = importlib.import_module("smallpebble.smallpebble")
    assert getattr(sp, name) is getattr(old_module, name)
    assert name in sp.__all__
    if NAMES[name] is not None:
        check_signature(getattr(sp, name), NAMES[name])


def test_methods_and_attributes():
    check_signature(sp.Adam.training_step, lambda self, variables, gradients: ...)
    check_signature(sp.Placeholder.assign_value, lambda self, variable: ...)
    check_signature(sp.Lazy.run, lambda self: ...)
    assert issubclass(sp.AssignmentError, Exception)
    assert issubclass(sp.Placeholder, sp.Lazy)
    v = sp.Variable(np.zeros((2, 3), np.float32))
    assert (v.dtype, v.ndim, v.shape) == (np.float32, 2, (2, 3))
    assert v.local_gradients == []
    adam = sp.Adam()
    assert (adam.alpha, adam.beta1, adam.beta2, adam.eps) == (0.001, 0.9, 0.999, 1e-8)
    node = sp.Lazy(abs)
    assert node.function is abs and not node.arguments
    assert node(1).arguments[0] == 1


def test_gradcheck_and_datasets_modules():
    assert gradcheck.EPS == 1e-6
    assert issubclass(NumericalError, Exception)
    check_signature(rmse, lambda a, b: ...)
    check_signature(numgrad, lambda func, a, delta=1e-6: ...)
    check_signature(numgrads, lambda func, args, n=1, delta=1e-6: ...)
    parameters = inspect.signature(check_grad).parameters
    assert list(parameters)[:5] == ["args", "sp_func", "np_func", "delta", "eps"]
    assert parameters["delta"].default == 1 and parameters["eps"].default == 1e-6
    datasets = importlib.import_module("smallpebble.datasets")
    check_signature(datasets.load_data, lambda name, savedir=None: ...)


def test_what_a_star_import_brings():
    for module in ("smallpebble", "smallpebble.smallpebble"):
        names = {}
        exec(f"from {module} import *", names)
        names.pop("__builtins__")
        assert set(names) == set(sp.__all__)
    assert len(set(sp.__all__)) == len(sp.__all__)
    assert all(getattr(sp, name) is not None for name in sp.__all__)
    for leaked in ("np", "math", "defaultdict", "Callable", "annotations"):
        assert leaked not in sp.__all__


def test_version_and_typing_marker():
    assert re.fullmatch(r"\d+\.\d+.*", sp.__version__)
    assert importlib.resources.files("smallpebble").joinpath("py.typed").is_file()


def test_public_signatures_are_typed():
    for name in sp.__all__:
        public = getattr(sp, name)
        if name == "AssignmentError" or name == "MissingGradientError" or not callable(public):
            continue
        function = public.__init__ if inspect.isclass(public) else public
        if inspect.isclass(public) and issubclass(public, tuple):
            continue
        parameters = inspect.signature(function).parameters.values()
        bare = [p.name for p in parameters if p.annotation is p.empty and p.name != "self"]
        assert not bare, f"{name}: parameters without a type: {bare}"


# ------------------------------------------------------------------------------------- behaviours


def v64(*values):
    return sp.Variable(np.array(values, np.float64))


def test_gradients_of_every_variable_in_a_dict():
    a, b = v64([1, 2]), v64(3, 4)
    product = a * b
    y = product + b
    gradients = sp.get_gradients(y)
    assert {a, b, product, y} == set(gradients)
    assert np.array_equal(gradients[y], [[1, 1]])
    assert np.array_equal(gradients[a], [[3, 4]])
    assert np.array_equal(gradients[b], [2, 3])
    assert gradients[b].shape == (2,)
    with pytest.raises(KeyError):
        gradients[v64(1)]
    i = sp.Variable(np.array([1, 2]))
    assert np.array_equal(sp.get_gradients(i * i)[i], [2, 4])


def test_operations_by_example():
    a = v64([1, 2, 3], [4, 5, 6])
    row = v64(1, 10, 100)
    assert np.array_equal(sp.add(a, row).array, [[2, 12, 103], [5, 15, 106]])
    assert np.array_equal(sp.sub(a, row).array, [[0, -8, -97], [3, -5, -94]])
    assert np.array_equal(sp.mul(row, a).array, [[1, 20, 300], [4, 50, 600]])
    assert np.allclose(sp.div(a, row).array, [[1, 0.2, 0.03], [4, 0.5, 0.06]])
    assert np.array_equal((a + a - a * a / a).array, a.array)
    assert np.array_equal((-a).array, -a.array) and np.array_equal(a[1, ::2].array, [4, 6])
    assert np.array_equal(sp.square(a).array, a.array**2)
    assert np.allclose(sp.log(sp.exp(a)).array, a.array)
    assert np.array_equal(sp.neg(a).array, -a.array)
    assert sp.expand_dims(a, 1).shape == (2, 1, 3) and sp.expand_dims(a, [0, 3]).shape == (
        1,
        2,
        3,
        1,
    )
    assert np.array_equal(sp.matrix_transpose(a).array, a.array.T)
    assert np.array_equal(sp.matmul(a, sp.matrix_transpose(a)).array, [[14, 32], [32, 77]])
    assert np.array_equal(sp.reshape(a, [3, 2]).array, [[1, 2], [3, 4], [5, 6]])
    assert np.array_equal(sp.getitem(a, (0, [0, 0])).array, [1, 1])
    assert np.array_equal(sp.maxax(v64([1, 5], [7, 2]), 1).array, [[5], [7]])
    assert np.array_equal(sp.pad(row, ((2, 1),)).array, [0, 0, 1, 10, 100, 0])
    assert sp.sum(a).array == 21 and sp.sum(a).shape == ()
    assert np.array_equal(sp.sum(a, 0).array, [5, 7, 9])
    assert np.array_equal(sp.sum(a, axis=(1,)).array, [6, 15])
    chosen = sp.where(np.array([True, False, True]), a, row)
    assert np.array_equal(chosen.array, [[1, 10, 3], [4, 10, 6]])
    assert np.allclose(sp.leaky_relu(v64(-1, 0, 2)).array, [-0.02, 0, 2])


def test_setat_and_add_at_leave_their_input_alone():
    a, b = v64(1, 2, 3), v64(10, 20)
    assert np.array_equal(sp.setat(a, [0, 2], b).array, [10, 2, 20])
    assert np.array_equal(sp.add_at(a, [1, 1], b).array, [1, 32, 3])
    assert np.array_equal(a.array, [1, 2, 3])


def test_softmax_values():
    rows = sp.softmax(v64([1, 2, 3], [0, 0, 0])).array
    assert np.allclose(rows, [[0.09003057, 0.24472847, 0.66524096], [1 / 3] * 3])
    columns = sp.softmax(v64([1, 2], [0, 0]), 0).array
    assert np.allclose(columns, [[0.73105858, 0.88079708], [0.26894142, 0.11920292]])


def test_cross_entropy_takes_probabilities_and_sums():
    loss = sp.cross_entropy(v64([0.2, 0.8], [0.5, 0.5]), np.array([1, 0]))
    assert loss.shape == () and loss.item() == pytest.approx(0.916290731874155)


IMAGES = np.arange(24.0).reshape(1, 4, 3, 2) / 10
KERNELS = np.arange(16.0).reshape(2, 2, 2, 2) / 10


@pytest.mark.parametrize(
    "padding, strides, shape, first, total, squares",
    [
        ("SAME", (1, 1), (1, 4, 3, 2), [3.68, 4.04, 4.8, 5.32], 130.79, (105352.8812, 407614.0693)),
        ("VALID", (1, 1), (1, 3, 2, 2), [3.68, 4.04, 4.8, 5.32], 96.72, (85332.119, 283501.3478)),
        ("SAME", (2, 2), (1, 2, 2, 2), [3.68, 4.04, 2.0, 2.3], 43.72, (14486.8788, 44764.0006)),
        ("SAME", [3, 2], (1, 2, 2, 2), [3.68, 4.04, 2.0, 2.3], 19.05, (1712.357, 2324.0416)),
    ],
)
def test_conv2d_values_and_gradients(padding, strides, shape, first, total, squares):
    x, k = sp.Variable(IMAGES), sp.Variable(KERNELS)
    y = sp.conv2d(x, k, padding, strides)
    assert y.shape == shape
    assert np.allclose(y.array.ravel()[:4], first) and y.array.sum() == pytest.approx(total)
    gradients = sp.get_gradients(sp.sum(sp.square(y)))
    assert (gradients[x] ** 2).sum() == pytest.approx(squares[0])
    assert (gradients[k] ** 2).sum() == pytest.approx(squares[1])


def test_maxpool2d_values():
    x = sp.Variable(IMAGES)
    assert sp.maxpool2d(x, 2, 2).shape == (1, 4, 3, 2)
    assert sp.maxpool2d(x, 2, 2).array.sum() == pytest.approx(41.6)
    pooled = sp.maxpool2d(x, 2, 2, "VALID", [1, 1]).array
    assert pooled.shape == (1, 3, 2, 2) and pooled.sum() == pytest.approx(18.6)
    pooled = sp.maxpool2d(x, 2, 2, strides=[2, 2]).array
    assert np.allclose(pooled.ravel()[:6], [0.8, 0.9, 1.0, 1.1, 2.0, 2.1])
    assert sp.maxpool2d(x, 3, 1, padding="VALID", strides=[2, 1]).shape == (1, 1, 3, 2)


def test_window_helpers():
    lengths = [(5, 1, 3), (5, 2, 3), (4, 2, 2), (6, 3, 2), (4, 1, 4), (3, 2, 5)]
    expected = [(1, 1), (1, 1), (0, 0), (0, 0), (1, 2), (2, 2)]
    assert [sp.pad_amounts(*one) for one in lengths] == expected
    shapes = [
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((), (2, 2)),
        ((3,), (3,)),
        ((1,), (1,)),
        ((1, 1), (3,)),
    ]
    expected = [((), (0,)), ((1,), (0,)), ((0, 1), ()), ((), ()), ((), ()), ((1,), (0,))]
    assert [sp.broadcastinfo(*one) for one in shapes] == expected
    with pytest.raises(ValueError):
        sp.broadcastinfo((2,), (3,))
    index, height, width, n = sp.patches_index(3, 4, 2, 2, 1, 2)
    assert (height, width, n) == (2, 2, 4)
    assert index[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [1, 1, 2, 2]]
    assert index[1].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]
    x = sp.Variable(IMAGES)
    padded, height, width = sp.padding2d(x, "SAME", 4, 3, 2, 2, 3, 3)
    assert padded.shape == (1, 5, 5, 2) and (height, width) == (5, 5)
    same, height, width = sp.padding2d(x, "VALID", 4, 3, 2, 2, 3, 3)
    assert same is x and (height, width) == (4, 3)
    for call in (
        lambda: sp.padding2d(x, "FULL", 4, 3, 1, 1, 2, 2),
        lambda: sp.conv2d(x, x, "FULL"),
    ):
        with pytest.raises(ValueError):
            call()


def test_sliding_views():
    a = np.arange(20).reshape(4, 5)
    expected = [[a[i : i + 2, j : j + 3].tolist() for j in (0, 2)] for i in range(3)]
    assert sp.np_strided_sliding_view(a, (2, 3), (1, 2)).tolist() == expected
    assert np.shares_memory(sp.np_strided_sliding_view(a, (2, 3), (1, 2)), a)
    assert sp.strided_sliding_view(sp.Variable(a), (2, 3), (1, 2)).array.tolist() == expected
    for window, strides in (((5, 5), (1, 1)), ((2,), (1, 1)), ((2, 2), (1,)), ((-1, 2), (1, 1))):
        with pytest.raises(ValueError):
            sp.np_strided_sliding_view(a, window, strides)


def test_adam_numbers():
    v = v64(1, -2)
    for adam, expected in (
        (sp.Adam(), [0.9970768167911536, -2.0029231832430745]),
        (sp.Adam(0.1, 0.5, 0.9, 1e-3), [0.6845457877289911, -2.31580975612926]),
    ):
        for i in (1, 2, 3):
            adam.training_step([v], {v: np.array([0.5, 3.0]) * i})
        np.testing.assert_allclose(v.array, expected, rtol=1e-13)


def test_adam_rebinds_and_leaves_the_old_array():
    v = v64(1, -2)
    before = v.array
    sp.Adam().training_step([v], {v: np.ones(2)})
    assert v.array is not before and np.array_equal(before, [1, -2])


def test_sgd_step():
    v = v64(1, -2)
    sp.sgd_step([v], {v: np.array([1.0, 2.0])}, 0.1)
    assert np.allclose(v.array, [0.9, -2.2])
    sp.sgd_step([v], {v: np.array([1.0, 2.0])})
    assert np.allclose(v.array, [0.899, -2.202])


def test_lazy_graphs_as_in_the_guide():
    assert sp.Lazy(lambda a, b: a + b)(1, 2).run() == 3
    a = sp.Lazy(lambda a: a)(2)
    y = sp.Lazy(lambda a, b, c: a * b + c)(a, 3, 4)
    assert y.run() == 10
    a, b = sp.Placeholder(), v64([1, 2], [3, 4])
    y = sp.Lazy(sp.matmul)(a, b)
    a.assign_value(sp.Variable(np.array([[1, 2], [3, 4]])))
    assert np.array_equal(y.run().array, [[7, 10], [15, 22]])
    a.assign_value(sp.Variable(np.array([[10, 20], [30, 40]])))
    result = y.run()
    assert np.array_equal(result.array, [[70, 100], [150, 220]])
    assert np.array_equal(sp.get_gradients(result)[b], [[40, 40], [60, 60]])
    for node in (sp.Lazy(abs), sp.Placeholder()):
        with pytest.raises(sp.AssignmentError):
            node.run()
    with pytest.raises(sp.AssignmentError):
        sp.Lazy(abs)(1)(2)


def test_learnables_as_in_the_guide():
    a = sp.Placeholder()
    b = sp.learnable(sp.Variable(np.ones((2, 1))))
    y = sp.Lazy(sp.matmul)(a, b)
    five = sp.learnable(sp.Variable(np.array([5])))
    y = sp.Lazy(sp.add)(y, five)
    assert sp.get_learnables(y) == [b, five]
    assert b.is_learnable is True
    assert sp.get_learnables(a) == []


def test_layers_and_their_defaults():
    x = sp.Placeholder()
    node = sp.linearlayer(3, 2)(x)
    weights, bias = sp.get_learnables(node)
    assert weights.shape == (3, 2) and np.array_equal(bias.array, [1, 1])
    assert np.max(np.abs(weights.array)) <= math.sqrt(1 / 5)
    x.assign_value(v64([1, 2, 3]))
    np.testing.assert_allclose(node.run().array, [[1, 2, 3]] @ weights.array + 1, atol=1e-6)
    (kernels,) = sp.get_learnables(sp.convlayer(3, 2, 4, 5)(x))
    assert kernels.shape == (3, 2, 4, 5)
    assert np.max(np.abs(kernels.array)) <= math.sqrt(6 / (6 * 9)) / 2
    x.assign_value(sp.Variable(np.ones((1, 5, 5, 4))))
    assert sp.convlayer(3, 2, 4, 5)(x).run().shape == (1, 3, 4, 5)
    assert sp.convlayer(3, 2, 4, 5, "SAME", (2, 2))(x).run().shape == (1, 3, 3, 5)


def test_onehot_and_batches():
    rows = sp.onehot(np.array([2, 0]), 3)
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0]] and rows.dtype == np.float64
    X, y = np.arange(20).reshape(10, 2), np.arange(10)
    batches = sp.batch(X, y, 4)
    for xb, yb in itertools.islice(batches, 50):
        assert xb.shape == (4, 2) and np.array_equal(xb[:, 0], 2 * yb)
    drawn = [tuple(yb) for _, yb in itertools.islice(sp.batch(X, y, 8, seed=1), 20)]
    assert any(len(set(one)) < 8 for one in drawn)  # with replacement


def test_numerical_gradients():
    assert rmse(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == pytest.approx(math.sqrt(2))
    assert numgrad(lambda a: a**2, np.array([3.0])) == pytest.approx([6], rel=1e-6)
    second = numgrads(lambda a, b: a * a * b, [np.array([3.0]), np.array([2.0])], n=2, delta=1e-3)
    assert np.allclose(second, [[4], [0]], atol=1e-6)
    check_grad([np.ones((2, 3)), np.ones((3, 2))], sp.matmul, np.matmul)
    check_grad([np.random.default_rng(0).random((2, 3))], sp.exp, np.exp, delta=1e-4)


# -------------------------------------------------------------- the same initial numbers as 3.0.5


@pytest.fixture
def seed():
    """Sets NumPy's global seed, and puts the generator back afterwards."""
    state = np.random.get_state()
    yield np.random.seed
    np.random.set_state(state)


def learnables(*layers):
    return [v for layer in layers for v in sp.get_learnables(layer(sp.Placeholder()))]


def test_initial_numbers(seed):
    seed(0)
    weights, bias = learnables(sp.linearlayer(3, 2))
    expected = [
        [0.043660125200580435, 0.1924712204975349],
        [0.09191435779742835, 0.04014473929104967],
        [-0.06828522337362836, 0.1304916617336333],
    ]
    assert np.array_equal(weights.array, np.float32(expected))
    assert np.array_equal(bias.array, [1, 1])
    seed(1)
    (kernels,) = learnables(sp.convlayer(2, 1, 2, 2))
    expected = [
        [-0.0718610518826766, 0.19080660839684685],
        [-0.4329136503948454, -0.17118501360154215],
        [-0.305918372289584, -0.35304513307268354],
        [-0.27170662712489696, -0.13374833372271971],
    ]
    assert np.array_equal(kernels.array.reshape(4, 2), np.float32(expected))
    seed(2)
    expected = [
        [-0.05724789988680229, -0.4240244687929245, 0.04441947058714929],
        [-0.057849410691030057, -0.07122520309203656, -0.1517531494600028],
    ]
    assert np.array_equal(sp.he_init(2, 3), expected)


def sha(variables):
    return hashlib.sha256(b"".join(v.array.tobytes() for v in variables)).hexdigest()[:16]


def test_initial_numbers_of_the_readme_models(seed):
    seed(3)
    found = learnables(sp.linearlayer(784, 100), sp.linearlayer(100, 100), sp.linearlayer(100, 10))
    assert {v.dtype for v in found} == {np.dtype(np.float32)}
    assert sha(found) == "3abd7edba92bb142"
    assert np.random.random() == 0.6111245624393477  # as many were drawn
    seed(4)
    found = learnables(
        sp.convlayer(height=3, width=3, depth=3, n_kernels=32),
        sp.convlayer(3, 3, 32, 128, padding="VALID"),
        sp.convlayer(3, 3, 128, 128, padding="VALID"),
        sp.linearlayer(3 * 3 * 128, 10),
    )
    assert sha(found) == "d487f796b3249648"
    assert np.random.random() == 0.38419414290440856


# ------------------------------------------------------------------- the README models, unchanged


def prototypes(shape, n, seed=0):
    """Float64 "pixels" in 0..1: noisy copies of ten patterns, and which pattern."""
    rng = np.random.default_rng(seed)
    patterns = rng.random((10, *shape))
    if len(shape) == 3:  # patches of colour, since a small net does not see single pixels
        patterns = patterns[:, ::8, ::8].repeat(8, 1).repeat(8, 2)
    y = rng.integers(0, 10, n)
    return np.clip(patterns[y] + rng.normal(0, 0.2, (n, *shape)), 0, 1), y


def mnist_model(X_in, y_true):
    h = sp.linearlayer(28 * 28, 100)(X_in)
    h = sp.Lazy(sp.leaky_relu)(h)
    h = sp.linearlayer(100, 100)(h)
    h = sp.Lazy(sp.leaky_relu)(h)
    h = sp.linearlayer(100, 10)(h)
    y_pred = sp.Lazy(sp.softmax)(h)
    return y_pred, sp.Lazy(sp.cross_entropy)(y_pred, y_true)


def cifar_model(X_in, y_true):
    h = sp.convlayer(height=3, width=3, depth=3, n_kernels=32)(X_in)
    h = sp.Lazy(sp.leaky_relu)(h)
    h = sp.Lazy(lambda a: sp.maxpool2d(a, 2, 2, strides=[2, 2]))(h)
    h = sp.convlayer(3, 3, 32, 128, padding="VALID")(h)
    h = sp.Lazy(sp.leaky_relu)(h)
    h = sp.Lazy(lambda a: sp.maxpool2d(a, 2, 2, strides=[2, 2]))(h)
    h = sp.convlayer(3, 3, 128, 128, padding="VALID")(h)
    h = sp.Lazy(sp.leaky_relu)(h)
    h = sp.Lazy(lambda a: sp.maxpool2d(a, 2, 2, strides=[2, 2]))(h)
    h = sp.Lazy(lambda x: sp.reshape(x, [-1, 3 * 3 * 128]))(h)
    h = sp.linearlayer(3 * 3 * 128, 10)(h)
    y_pred = sp.Lazy(sp.softmax)(h)
    return y_pred, sp.Lazy(sp.cross_entropy)(y_pred, y_true)


def train(model, batches, steps, adam):
    X_in, y_true = sp.Placeholder(), sp.Placeholder()
    y_pred, loss = model(X_in, y_true)
    parameters = sp.get_learnables(y_pred)
    losses = []
    for xbatch, ybatch in itertools.islice(batches, steps):
        X_in.assign_value(sp.Variable(xbatch))
        y_true.assign_value(ybatch)
        value = loss.run()
        losses.append(value.array)
        assert value.dtype == np.float32 and value.shape == ()
        gradients = sp.get_gradients(value)
        adam.training_step(parameters, gradients)
    assert y_pred.run().dtype == np.float32
    for v in parameters:
        assert v.dtype == gradients[v].dtype == adam.m[v].dtype == adam.v[v].dtype == np.float32
    return y_pred, X_in, losses


@pytest.mark.parametrize(
    "model, shape, n, size, steps",
    [(mnist_model, (784,), 400, 50, 40), (cifar_model, (32, 32, 3), 100, 16, 25)],
)
def test_the_readme_models_train_in_float32(model, shape, n, size, steps, seed):
    seed(0)
    X, y = prototypes(shape, n)
    assert X.dtype == np.float64
    y_pred, X_in, losses = train(model, sp.batch(X, y, size, seed=0), steps, sp.Adam(0.002))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    if model is mnist_model:
        X_in.assign_value(sp.Variable(X[:100]))
        assert np.mean(np.argmax(y_pred.run().array, axis=1) == y[:100]) > 0.9


def test_loss_curve_against_plain_numpy_in_float64(seed):
    """The whole of training, written out by hand in float64, from the same numbers and batches."""
    X, y = prototypes((784,), 300)
    steps = 30
    seed(5)
    _, _, losses = train(mnist_model, sp.batch(X, y, 32, seed=7), steps, sp.Adam())

    seed(5)
    sizes = [(784, 100), (100, 100), (100, 10)]
    weights = [sp.he_init(*size).astype(np.float32).astype(np.float64) for size in sizes]
    parameters = [p for w in weights for p in (w, np.ones(w.shape[1]))]
    m = [np.zeros(p.shape) for p in parameters]
    v = [np.zeros(p.shape) for p in parameters]
    expected = []
    for t, (xb, yb) in enumerate(itertools.islice(sp.batch(X, y, 32, seed=7), steps), 1):
        inputs, before = [xb], []
        for layer in range(3):
            before.append(inputs[-1] @ parameters[2 * layer] + parameters[2 * layer + 1])
            h = before[-1]
            inputs.append(np.where(h > 0, h, 0.02 * h) if layer < 2 else h)
        shifted = h - h.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        rows = np.arange(len(yb))
        expected.append(-log_p[rows, yb].sum())
        g = np.exp(log_p)
        g[rows, yb] -= 1
        gradients = [None] * 6
        for layer in (2, 1, 0):
            gradients[2 * layer] = inputs[layer].T @ g
            gradients[2 * layer + 1] = g.sum(0)
            if layer:
                g = g @ parameters[2 * layer].T
                g *= np.where(before[layer - 1] > 0, 1, 0.02)
        for i, g in enumerate(gradients):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            step = 0.001 * (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
            parameters[i] = parameters[i] - step
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    assert expected[-1] < 0.5 * expected[0]


# ------------------------------------------------------------------------------ faults left behind


def test_b0_check_grad_compares_the_gradients():
    @sp.primitive
    def wrong(a):
        return a * a, lambda g, y, a: g * a * 2 * 12345

    def written(a):
        return sp.Variable(a.array**2, [(a, lambda g: g * a.array * 2 * 12345)])

    for operation in (wrong, written):
        with pytest.raises(NumericalError, match="gradient"):
            check_grad([np.array([1.0, 2.0])], operation, np.square, delta=1e-4)


def test_b1_time_grows_with_nodes_and_not_with_paths():
    runs = []

    def doubled(a):
        runs.append(1)
        return a + a

    x = v64(1)
    y, node = x, sp.Lazy(lambda: x)()
    for _ in range(60):
        y = y + y
        node = sp.Lazy(lambda a, b: doubled(a))(node, node)
    assert sp.get_gradients(y)[x] == 2.0**60
    assert sp.get_gradients(node.run())[x] == 2.0**60
    assert len(runs) == 60


def test_b2_no_recursion_limit():
    x = v64(1)
    y, node = x, sp.Lazy(lambda: x)()
    for _ in range(20_000):
        y = -y
        node = sp.Lazy(sp.neg)(node)
    assert sp.get_gradients(y)[x] == 1
    assert sp.get_gradients(node.run())[x] == 1
    assert sp.get_learnables(node) == []


def test_b3_setat_has_the_right_gradients_and_writes_nowhere():
    a, b = v64(1, 2, 3), v64(10)
    s = sp.sum(sp.square(sp.setat(a, [1], b)))
    gradients = sp.get_gradients(s)
    assert gradients[b] == 20
    assert np.array_equal(gradients[a], [2, 0, 6])
    assert gradients[s] == 1
    scalar = sp.Variable(10.0)
    gradients = sp.get_gradients(sp.sum(sp.square(sp.setat(a, [0, 1], scalar))))
    assert gradients[scalar].shape == () and gradients[scalar] == 40


def test_b4_padding_is_never_the_maximum():
    x = sp.Variable(-np.ones((1, 3, 3, 1)))
    pooled = sp.maxpool2d(x, 2, 2, strides=[2, 2])
    assert np.array_equal(pooled.array.reshape(2, 2), [[-1, -1], [-1, -1]])
    gradient = sp.get_gradients(pooled)[x].reshape(3, 3)
    assert np.array_equal(gradient, [[1, 0, 1], [0, 0, 0], [1, 0, 1]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_b5_softmax_row_by_row_and_finite_losses(dtype):
    for big in (104, 1000):
        v = sp.Variable(np.array([[0, 0], [big, big]], dtype))
        assert np.array_equal(sp.softmax(v).array, np.full((2, 2), 0.5))
    v = sp.Variable(np.array([[0, 1000]], dtype))
    loss = sp.cross_entropy(sp.softmax(v), np.array([0]))
    assert loss.item() == 1000
    assert np.array_equal(sp.get_gradients(loss)[v], [[-1, 1]])
    both = sp.softmax(sp.Variable(np.zeros((2, 2, 2))), axis=(0, 2))
    assert np.allclose(both.array, 0.25)
    assert sp.softmax(sp.Variable(np.zeros((0, 3)))).shape == (0, 3)


def test_b5_cross_entropy_honours_axis():
    p = v64([0.2, 0.7], [0.8, 0.3])
    loss = sp.cross_entropy(p, np.array([1, 1]), axis=0)
    assert loss.item() == pytest.approx(-np.log(0.8) - np.log(0.3))
    for label in (-1, 2):
        with pytest.raises(IndexError):
            sp.cross_entropy(p, np.array([0, label]))
        with pytest.raises(IndexError):
            sp.onehot(np.array([0, label]), 2)


def test_b6_dtypes_are_kept():
    x = sp.Variable(np.float32([[1, 2], [3, 0]]))
    assert sp.get_gradients(sp.maxax(x, 1))[x].dtype == np.float32
    layer = sp.linearlayer(2, 3)
    node = layer(x)
    assert node.run().dtype == np.float32
    weights = sp.get_learnables(node)
    gradients = {v: np.ones(v.shape, np.float64) for v in weights}
    sp.Adam().training_step(weights, gradients)
    assert {v.dtype for v in weights} == {np.dtype(np.float32)}
    sp.sgd_step(weights, gradients)
    assert {v.dtype for v in weights} == {np.dtype(np.float32)}
    (kernels,) = sp.get_learnables(sp.convlayer(2, 2, 1, 1)(x))
    assert kernels.dtype == np.float32
    assert sp.onehot([0, 1], 2, dtype=np.float32).dtype == np.float32


def test_b7_each_learnable_once():
    x = sp.Placeholder()
    layer = sp.linearlayer(2, 2)
    shared = layer(layer(x))
    diamond = sp.Lazy(sp.add)(shared, shared)
    assert len(sp.get_learnables(diamond)) == 2
    v = v64(1)
    with pytest.raises(ValueError):
        sp.Adam().training_step([v, v], {v: np.ones(1)})
    with pytest.raises(ValueError):
        sp.sgd_step([v, v], {v: np.ones(1)})


def test_b8_what_works_forward_works_backward():
    a, b = v64(1, 2, 3), v64(4, 5, 6)
    dot = sp.matmul(a, b)
    assert dot.item() == 32 and np.array_equal(sp.get_gradients(dot)[a], [4, 5, 6])
    matrix = v64([1, 2, 3], [4, 5, 6])
    gradients = sp.get_gradients(sp.matmul(matrix, a))
    assert np.array_equal(gradients[a], [5, 7, 9]) and np.array_equal(
        gradients[matrix], [[1, 2, 3]] * 2
    )
    assert np.array_equal(sp.get_gradients(sp.pad(a, 1))[a], [1, 1, 1])
    condition = np.array([[True, False, True], [False, False, False]])
    gradients = sp.get_gradients(sp.where(condition, a, b))
    assert np.array_equal(gradients[a], [1, 0, 1]) and np.array_equal(gradients[b], [1, 2, 1])


def test_b9_add_at_reduces_the_gradient_of_what_was_broadcast():
    a, b = v64(1, 2, 3), sp.Variable(10.0)
    gradients = sp.get_gradients(sp.add_at(a, [0, 2], b))
    assert gradients[b].shape == () and gradients[b] == 2
    assert np.array_equal(gradients[a], [1, 1, 1])


def test_b10_batch_has_a_generator_of_its_own(seed):
    X, y = np.arange(100), np.arange(100)

    def drawn(number):
        return [yb.tolist() for _, yb in itertools.islice(sp.batch(X, y, 5, seed=number), 3)]

    assert drawn(0) == drawn(0) and drawn(1) == drawn(1) != drawn(0)
    seed(11)
    expected = np.random.random(3)
    seed(11)
    drawn(0), drawn(1), drawn(None)
    assert np.array_equal(np.random.random(3), expected)
