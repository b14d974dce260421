"""Lazy graphs, layers, batches, optimisers, and the gradient checker."""

# ruff: noqa: NPY002 - layers draw from NumPy's global generator, as those of 3.0.5 do

import collections
import itertools

import numpy as np
import pytest

import smallpebble as sp
from smallpebble import gradcheck, kernels
from smallpebble.gradcheck import NumericalError, check_grad, numgrad, numgrads

# ------------------------------------------------------------------------------------ lazy graphs


def counter():
    """A function that counts its calls, and the list that it counts in."""
    calls = []

    def function(*args, **kwargs):
        calls.append((args, kwargs))
        return len(calls)

    return function, calls


def test_a_shared_node_runs_once_per_run():
    function, calls = counter()
    shared = sp.Lazy(function)(1)
    left, right = sp.Lazy(lambda a: a + 10)(shared), sp.Lazy(lambda a: a + 20)(shared)
    top = sp.Lazy(lambda *all_: all_)(left, right, shared, shared)
    assert top.run() == (11, 21, 1, 1)
    assert len(calls) == 1
    assert top.run() == (12, 22, 2, 2)
    assert len(calls) == 2
    assert shared.run() == 3


@pytest.mark.parametrize("value", [None, 0, False, (), np.zeros(3)])
def test_a_shared_node_runs_once_whatever_it_returns(value):
    calls = []
    shared = sp.Lazy(lambda: calls.append(1) or value)()
    sp.Lazy(lambda a, b: None)(shared, shared).run()
    assert len(calls) == 1


def test_fifty_thousand_nodes():
    node = sp.Lazy(lambda: 0)()
    for _ in range(50_000):
        node = sp.Lazy(lambda a: a + 1)(node)
    assert node.run() == 50_000
    assert sp.get_learnables(node) == []
    nodes = [sp.Lazy(lambda: 1)() for _ in range(50_000)]
    assert sp.Lazy(lambda *all_: sum(all_))(*nodes).run() == 50_000


def test_a_wide_and_deep_graph_runs_each_node_once():
    calls = []

    def add(a, b):
        calls.append(1)
        return a + b

    left = right = sp.Lazy(lambda: 1)()
    for _ in range(300):
        left, right = sp.Lazy(add)(left, right), sp.Lazy(add)(right, left)
    assert left.run() == 2**300
    assert len(calls) == 599  # the last node on the right is not needed


def test_keyword_arguments_and_nodes_among_them():
    a = sp.Placeholder()
    node = sp.Lazy(lambda x, y=1, *, z: (x, y, z))(2, z=a, y=sp.Lazy(lambda: 5)())
    a.assign_value(7)
    assert node.run() == (2, 5, 7)
    pooled = sp.Lazy(sp.maxpool2d)(a, 2, 2, strides=[2, 2])
    a.assign_value(sp.Variable(np.ones((1, 4, 4, 1))))
    assert pooled.run().shape == (1, 2, 2, 1)


def test_lists_and_tuples_of_nodes():
    a, b = sp.Placeholder(), sp.Variable(np.ones((2, 3)))
    node = sp.Lazy(sp.concatenate)([a, b, sp.Lazy(sp.neg)(a)], axis=1)
    a.assign_value(sp.Variable(np.zeros((2, 2))))
    assert node.run().shape == (2, 7)
    assert sp.Lazy(lambda x: x)((a, 3)).run()[1] == 3
    assert type(sp.Lazy(lambda x: x)((a, 3)).run()) is tuple
    assert type(sp.Lazy(lambda x: x)([a, 3]).run()) is list
    point = collections.namedtuple("point", "x y")(1, 2)
    assert sp.Lazy(lambda x: x)(point).run() is point
    filled = sp.Lazy(lambda x: x)(point._replace(y=a)).run()
    assert type(filled) is type(point) and filled.x == 1 and filled.y.shape == (2, 2)
    plain = [1, 2]
    assert sp.Lazy(lambda x: x)(plain).run() is plain


def test_functions_without_arguments():
    node = sp.Lazy(lambda: 42)()
    assert node.run() == 42
    with pytest.raises(sp.AssignmentError):
        node()
    with pytest.raises(sp.AssignmentError):
        sp.Lazy(lambda: 42).run()


def test_arguments_are_set_once():
    node = sp.Lazy(lambda *a, **k: a)
    assert node(1) is node
    for args, kwargs in (((2,), {}), ((), {}), ((), {"b": 2})):
        with pytest.raises(sp.AssignmentError, match="already"):
            node(*args, **kwargs)
    assert node.run() == (1,)


def test_a_cycle_is_an_error_and_not_a_hang():
    a = sp.Placeholder("a")
    y = sp.Lazy(sp.neg)(sp.Lazy(sp.exp)(a))
    a.assign_value(y)
    with pytest.raises(sp.AssignmentError, match="own argument"):
        y.run()
    assert sp.get_learnables(y) == []
    a.assign_value(a)
    with pytest.raises(sp.AssignmentError):
        a.run()
    a.assign_value(sp.Variable(0.0))
    assert y.run().item() == -1


def test_a_placeholder_without_a_value_says_which_one():
    images, labels = sp.Placeholder("images"), sp.Placeholder("labels")
    y = sp.Lazy(lambda a, b: (a, b))(images, labels)
    images.assign_value(1)
    with pytest.raises(sp.AssignmentError, match="labels") as error:
        y.run()
    assert "images" not in str(error.value)
    with pytest.raises(sp.AssignmentError, match="Placeholder"):
        sp.Placeholder().run()
    assert "labels" in repr(labels)


def test_a_node_without_arguments_says_which_one():
    def unusual_name(a):
        return a

    with pytest.raises(sp.AssignmentError, match="unusual_name"):
        sp.Lazy(abs)(sp.Lazy(unusual_name)).run()


def test_placeholders_take_anything_and_may_be_assigned_anew():
    a, b = sp.Placeholder(), sp.Placeholder()
    for value in (1, None, "text", np.zeros(2), sp.Variable(1.0)):
        a.assign_value(value)
        assert a.run() is value
    b.assign_value(a)
    assert b.run() is a.run()
    b.assign_value(sp.Lazy(lambda: 9)())
    assert b.run() == 9


def test_errors_inside_of_a_node_come_out_and_leave_the_graph_usable():
    a = sp.Placeholder()
    y = sp.Lazy(lambda v: 1 / v)(a)
    a.assign_value(0)
    with pytest.raises(ZeroDivisionError):
        y.run()
    a.assign_value(2)
    assert y.run() == 0.5


def test_whatever_has_run_is_a_node():
    class Constant:
        def __init__(self):
            self.runs = 0

        def run(self):
            self.runs += 1
            return 5

    class Doubled(sp.Lazy):
        def run(self):
            return 2 * super().run()

    constant = Constant()
    assert sp.Lazy(lambda a, b: a + b)(constant, constant).run() == 10 and constant.runs == 1
    assert sp.Lazy(lambda a: a + 1)(Doubled(lambda: 3)()).run() == 7
    assert Doubled(lambda: 3)().run() == 6


def test_what_is_not_a_function_is_refused():
    for wrong in (1, "abs", None, sp.Variable(1.0)):
        with pytest.raises(TypeError, match="Lazy"):
            sp.Lazy(wrong)
    for wrong in (1.0, np.ones(2), None):
        with pytest.raises(TypeError, match="learnable"):
            sp.learnable(wrong)


def test_learnables_once_each_in_order_of_first_use():
    first, second, third, plain = (sp.Variable(float(i)) for i in range(4))
    for v in (third, first, second):
        assert sp.learnable(v) is v and v.is_learnable
    inner = sp.Lazy(sp.add)(first, second)
    middle = sp.Lazy(lambda a, b, scale: a)(inner, plain, scale=third)
    top = sp.Lazy(lambda parts, a: a)([inner, (middle, first)], second)
    assert sp.get_learnables(top) == [first, second, third]
    assert sp.get_learnables(sp.Lazy(sp.add)(third, top)) == [third, first, second]
    assert not plain.is_learnable


def test_learnables_of_many_shared_nodes():
    v = sp.learnable(sp.Variable(1.0))
    node = sp.Lazy(sp.neg)(v)
    for _ in range(60):
        node = sp.Lazy(sp.add)(node, node)
    assert sp.get_learnables(node) == [v]


def test_learnables_behind_placeholders():
    weights = sp.learnable(sp.Variable(1.0))
    a = sp.Placeholder()
    node = sp.Lazy(sp.neg)(a)
    assert sp.get_learnables(node) == []
    a.assign_value(sp.Lazy(sp.exp)(weights))
    assert sp.get_learnables(node) == [weights]


# ----------------------------------------------------------------------------------------- layers


@pytest.fixture(autouse=True)
def global_generator():
    """NumPy's global generator, seeded for each test and put back after it."""
    state = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(state)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("given", [np.float32, np.float64, np.int64, np.uint8])
def test_linearlayer_computes_in_its_own_dtype(dtype, given):
    a = sp.Variable(np.arange(6).reshape(2, 3).astype(given))
    node = sp.linearlayer(3, 2, dtype=dtype)(a)
    weights, bias = sp.get_learnables(node)
    assert weights.dtype == bias.dtype == dtype
    y = node.run()
    assert y.dtype == dtype and y.shape == (2, 2)
    expected = a.array.astype(np.float64) @ weights.array.astype(np.float64) + 1
    np.testing.assert_allclose(y.array, expected, rtol=1e-2 if dtype is np.float16 else 1e-6)
    gradients = sp.get_gradients(y)
    assert gradients[weights].dtype == gradients[bias].dtype == dtype
    assert np.array_equal(gradients[bias], [2, 2])


def test_linearlayer_defaults_to_float32_and_takes_any_leading_axes():
    layer = sp.linearlayer(3, 4)
    node = layer(sp.Variable(np.ones((2, 5, 3))))
    assert node.run().shape == (2, 5, 4) and node.run().dtype == np.float32
    assert layer(sp.Variable(np.ones(3))).run().shape == (4,)
    assert layer(np.ones((2, 3))).run().dtype == np.float32
    assert [v.shape for v in sp.get_learnables(node)] == [(3, 4), (4,)]


def test_layers_without_and_with_bias():
    x = sp.Variable(np.ones((1, 3)))
    node = sp.linearlayer(3, 4, bias=False)(x)
    (weights,) = sp.get_learnables(node)
    np.testing.assert_allclose(node.run().array, [weights.array.sum(0)], rtol=1e-6)
    images = sp.Variable(np.ones((2, 4, 4, 3)))
    node = sp.convlayer(3, 3, 3, 5, bias=True)(images)
    weights, bias = sp.get_learnables(node)
    assert bias.shape == (5,) and bias.dtype == np.float32 and not bias.array.any()
    assert np.array_equal(sp.get_gradients(node.run())[bias], [8] * 5)
    bias.array = np.arange(5, dtype=np.float32)
    plain = sp.conv2d(images.array.astype(np.float32), weights.array, "VALID")
    np.testing.assert_allclose(node.run().array, plain + np.arange(5), rtol=1e-6)


def test_a_layer_called_twice_shares_its_parameters():
    for layer, x in (
        (sp.linearlayer(3, 3), sp.Variable(np.ones((1, 3)))),
        (sp.convlayer(2, 2, 1, 1, bias=True), sp.Variable(np.ones((1, 4, 4, 1)))),
    ):
        once, twice = layer(x), layer(layer(x))
        assert sp.get_learnables(once) == sp.get_learnables(twice)
        gradients = sp.get_gradients(twice.run())
        assert all(v in gradients for v in sp.get_learnables(once))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_convlayer_computes_in_its_own_dtype(dtype):
    images = sp.Variable(np.random.random((2, 5, 6, 3)))
    node = sp.convlayer(2, 3, 3, 4, "SAME", (2, 1), dtype=dtype)(images)
    (weights,) = sp.get_learnables(node)
    y = node.run()
    assert y.dtype == weights.dtype == dtype and y.shape == (2, 3, 6, 4)
    expected = sp.conv2d(images.array, weights.array.astype(np.float64), "SAME", (2, 1))
    np.testing.assert_allclose(y.array, expected, rtol=1e-5, atol=1e-6)
    assert sp.get_gradients(y)[weights].dtype == dtype


def test_initial_weights_and_their_bounds():
    for insize, outsize in ((3, 5), (100, 1), (1, 1)):
        weights = sp.he_init(insize, outsize)
        width = np.sqrt(1 / (insize + outsize))
        assert weights.shape == (insize, outsize) and weights.dtype == np.float64
        assert np.all(np.abs(weights) <= width)
    many = sp.he_init(400, 100)
    assert np.max(np.abs(many)) > 0.99 / np.sqrt(500) and abs(np.mean(many)) < 1e-3
    (kernels_,) = sp.get_learnables(sp.convlayer(5, 4, 3, 20)(None))
    bound = np.sqrt(6 / (20 * 23)) / 2
    assert 0.9 * bound < np.max(np.abs(kernels_.array)) <= bound


def test_rng_makes_layers_repeatable_and_leaves_the_global_generator():
    def numbers(rng):
        x = sp.Placeholder()
        nodes = sp.linearlayer(3, 2, rng=rng)(x), sp.convlayer(2, 2, 1, 3, rng=rng)(x)
        found = [v.array for node in nodes for v in sp.get_learnables(node)]
        return np.concatenate([a.ravel() for a in [*found, sp.he_init(2, 2, rng=rng)]])

    before = np.random.get_state()[1].copy()
    assert np.array_equal(numbers(0), numbers(0))
    assert not np.array_equal(numbers(0), numbers(1))
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    assert np.array_equal(numbers(first), numbers(second))
    assert not np.array_equal(numbers(first), numbers(5))  # the generator went on
    assert np.array_equal(np.random.get_state()[1], before)
    with_legacy = numbers(np.random.RandomState(3))
    np.random.seed(3)
    assert np.array_equal(numbers(None), with_legacy)


@pytest.mark.parametrize("size", [0, -1])
def test_layers_refuse_empty_sizes(size):
    for make in (
        lambda: sp.linearlayer(size, 2),
        lambda: sp.linearlayer(2, size),
        lambda: sp.he_init(size, 2),
        lambda: sp.he_init(2, size),
        *(lambda i=i: sp.convlayer(*[size if i == k else 2 for k in range(4)]) for i in range(4)),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            make()


def test_layers_refuse_other_types():
    for wrong in (2.5, "3", None, (2,), 2.0):
        for make in (
            lambda size: sp.linearlayer(size, 2),
            lambda size: sp.he_init(2, size),
            lambda size: sp.convlayer(2, 2, size, 2),
        ):
            with pytest.raises(TypeError, match="integer"):
                make(wrong)
    for dtype in (int, np.uint8, bool, complex, "U5", object):
        with pytest.raises(TypeError, match="dtype"):
            sp.linearlayer(2, 2, dtype=dtype)
        with pytest.raises(TypeError, match="dtype"):
            sp.convlayer(2, 2, 2, 2, dtype=dtype)


# ---------------------------------------------------------------------------------- labels, batches


def test_onehot():
    rows = sp.onehot([2, 0, 2], 4)
    assert rows.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]] and rows.dtype == np.float64
    assert sp.onehot(np.uint8([1]), 2, dtype=np.float32).dtype == np.float32
    assert sp.onehot(np.zeros(0, int), 3).shape == (0, 3)
    for labels in ([3], [-1], [0, 10**6], np.uint64([2**63])):
        with pytest.raises(IndexError, match=r"onehot.*0 to 2"):
            sp.onehot(labels, 3)
    for labels in ([0.0], [True], ["a"], [None]):
        with pytest.raises(TypeError, match="onehot"):
            sp.onehot(labels, 3)
    for labels in (0, [[0]], np.zeros((2, 2), int)):
        with pytest.raises(ValueError, match="onehot"):
            sp.onehot(labels, 3)
    for n_classes, error in (
        (0, ValueError),
        (-1, ValueError),
        (2.0, TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error, match="n_classes"):
            sp.onehot([0], n_classes)


def drawn(n, *args, **kwargs):
    return list(itertools.islice(sp.batch(*args, **kwargs), n))


X, Y = np.arange(60.0).reshape(20, 3), np.arange(20)


def test_batches_have_the_rows_that_belong_to_the_labels():
    for xb, yb in drawn(30, X, Y, 7):
        assert xb.shape == (7, 3) and yb.shape == (7,)
        assert np.array_equal(xb, X[yb])
    labels = np.concatenate([yb for _, yb in drawn(200, X, Y, 10, seed=0)])
    counts = np.bincount(labels, minlength=20)
    assert counts.min() > 50 and counts.max() < 160  # 100 each on average
    (xb, yb), *_ = drawn(1, X, Y, 100)  # with replacement, so more than there are
    assert len(xb) == 100


def test_batches_are_copies_with_the_dtype_of_the_data():
    images = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2)
    ((xb, yb),) = drawn(1, images, Y.astype(np.int16), 5)
    assert xb.dtype == np.uint8 and xb.shape == (5, 2, 2) and yb.dtype == np.int16
    xb[:], yb[:] = 0, 0
    assert images.sum() == np.arange(80).sum()
    ((xb, _),) = drawn(1, X.tolist(), Y.tolist(), 5)
    assert xb.shape == (5, 3)
    strided = np.repeat(X, 2, axis=1)[::-1, ::2]
    for xb, yb in drawn(3, strided, Y, 5):
        assert np.array_equal(xb, strided[yb])
    ((xb, yb),) = drawn(1, Y, Y, 5)
    assert np.array_equal(xb, yb)


def test_every_seed_is_a_seed_and_none_is_not():
    for seed in (0, 1, 12345, np.int64(3)):
        first, second = drawn(4, X, Y, 5, seed=seed), drawn(4, X, Y, 5, seed)
        assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, second))
    assert not np.array_equal(drawn(1, X, Y, 15, seed=0)[0][1], drawn(1, X, Y, 15, seed=1)[0][1])
    assert not np.array_equal(drawn(1, X, Y, 20)[0][1], drawn(1, X, Y, 20)[0][1])
    rng = np.random.default_rng(0)
    again = drawn(2, X, Y, 5, seed=rng), drawn(2, X, Y, 5, seed=0)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(*again))


def test_batches_leave_the_global_generator_alone():
    before = np.random.get_state()
    drawn(5, X, Y, 5, seed=1), drawn(5, X, Y, 5)
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1]) and before[2:] == after[2:]


def test_one_gather_per_batch(monkeypatch):
    gathered, take = [], kernels.take
    monkeypatch.setattr(kernels, "take", lambda a, i: gathered.append(len(i)) or take(a, i))
    drawn(6, X, Y, 9)
    assert gathered == [9] * 6


def test_batch_refuses_at_the_call():
    for args, error in (
        ((X, Y, 0), ValueError),
        ((X, Y, -5), ValueError),
        ((X, Y, 2.0), TypeError),
        ((X, Y, None), TypeError),
        ((X, Y, "3"), TypeError),
        ((X[:-1], Y, 3), ValueError),
        ((X, Y.reshape(20, 1), 3), ValueError),
        ((X, 5, 3), ValueError),
        ((X[:0], Y[:0], 3), ValueError),
        ((np.float64(3), Y, 3), ValueError),
    ):
        with pytest.raises(error, match="batch"):
            sp.batch(*args)
    with pytest.raises((TypeError, ValueError)):
        sp.batch(X, Y, 3, seed="x")
    with pytest.raises(ValueError):
        sp.batch(X, Y, 3, seed=-1)


# ------------------------------------------------------------------------------------- optimisers


def adam_by_hand(arrays, gradients, alpha=0.001, beta1=0.9, beta2=0.999, eps=1e-8):
    """Algorithm 1 of arXiv:1412.6980, in float64; `gradients` is a list for each step."""
    arrays = [a.astype(np.float64) for a in arrays]
    m, v = [np.zeros(a.shape) for a in arrays], [np.zeros(a.shape) for a in arrays]
    for t, step in enumerate(gradients, 1):
        for i, g in enumerate(step):
            g = g.astype(np.float64)
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g * g
            m_hat, v_hat = m[i] / (1 - beta1**t), v[i] / (1 - beta2**t)
            arrays[i] = arrays[i] - alpha * m_hat / (np.sqrt(v_hat) + eps)
    return arrays, m, v


SHAPES = [(3, 4), (5,), (), (2, 3, 2), (0,), (17,), (1, 1)]


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-4}])
def test_fifty_steps_of_adam(dtype, rtol, options):
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    variables = [sp.Variable(a) for a in start]
    before = [a.copy() for a in start]
    gradients = [[rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(50)]
    adam = sp.Adam(**options)
    for step in gradients:
        copies = [g.copy() for g in step]
        adam.training_step(variables, dict(zip(variables, step)))
        assert all(np.array_equal(g, copy) for g, copy in zip(step, copies))
    arrays, m, v = adam_by_hand(before, gradients, **options)
    for i, variable in enumerate(variables):
        assert variable.dtype == dtype and variable.shape == SHAPES[i]
        np.testing.assert_allclose(variable.array, arrays[i], rtol=rtol, atol=rtol)
        np.testing.assert_allclose(adam.m[variable], m[i], rtol=rtol, atol=rtol)
        np.testing.assert_allclose(adam.v[variable], v[i], rtol=rtol, atol=rtol)
        assert adam.m[variable].dtype == adam.v[variable].dtype == dtype
        assert adam.t[variable] == 50
    assert all(np.array_equal(a, copy) for a, copy in zip(start, before))


def test_adam_counts_steps_for_each_variable():
    old, new = sp.Variable(np.ones(2)), sp.Variable(np.ones(2))
    adam, g = sp.Adam(0.1), np.array([1.0, -2.0])
    for _ in range(3):
        adam.training_step([old], {old: g})
    adam.training_step([old, new], {old: g, new: g})
    assert adam.t == {old: 4, new: 1}
    alone = sp.Variable(np.ones(2))
    sp.Adam(0.1).training_step([alone], {alone: g})
    assert np.array_equal(new.array, alone.array)


def test_adam_and_sgd_take_any_gradients_into_the_dtype_of_the_parameter():
    for dtype in (np.float16, np.float32, np.float64, ">f4"):
        for given in (np.float32, np.float64, np.int64, bool):
            v = sp.Variable(np.ones(3, dtype))
            g = np.ones(3, given)
            sp.Adam(0.5).training_step([v], {v: g})
            assert v.dtype.newbyteorder("=") == np.dtype(dtype).newbyteorder("=")
            np.testing.assert_allclose(v.array.astype(float), 0.5, rtol=1e-3)
            sp.sgd_step([v], {v: g}, 0.25)
            np.testing.assert_allclose(v.array.astype(float), 0.25, rtol=1e-3)
            assert v.dtype.newbyteorder("=") == np.dtype(dtype).newbyteorder("=")
    v = sp.Variable(np.ones(2))
    sp.sgd_step([v], {v: sp.Variable([1.0, 2.0])}, 0.5)
    assert np.array_equal(v.array, [0.5, 0])
    sp.sgd_step([v], {v: [1.0, 1.0]}, 0.5)
    assert np.array_equal(v.array, [0, -0.5])
    count = sp.Variable([5, 6])
    sp.sgd_step([count], {count: np.ones(2)}, 0.5)
    assert np.array_equal(count.array, [4.5, 5.5])


def test_optimisers_take_every_layout_and_leave_it_alone():
    base = np.arange(24.0).reshape(4, 6)
    read_only = base[:, :3].copy()
    read_only.flags.writeable = False
    for array in (base[::2, ::2], base.T[:3], base[::-1], read_only, np.broadcast_to(1.0, (2, 2))):
        for step in (sp.Adam(0.1).training_step, sp.sgd_step):
            v, copy = sp.Variable(array), array.copy()
            same = sp.Variable(copy.copy())
            g = np.ones(array.T.shape).T * 2
            step([v], {v: g})
            step([same], {same: g.copy()})
            assert np.array_equal(v.array, same.array) and np.array_equal(array, copy)
            assert v.array is not array and not np.shares_memory(v.array, array)
            assert not np.array_equal(v.array, copy)


def test_optimisers_read_only_the_gradients_of_their_variables():
    calls = collections.Counter()

    @sp.primitive
    def product(a, b):
        def rule(name, other):
            def of(g, y, a, b):
                calls[name] += 1
                return g * (b if other == "b" else a)

            return of

        return a * b, rule("a", "b"), rule("b", "a")

    batch, weights = sp.Variable(np.ones(3)), sp.learnable(sp.Variable(np.ones(3)))
    sp.Adam().training_step([weights], sp.get_gradients(product(batch, weights)))
    sp.sgd_step([weights], sp.get_gradients(product(batch, weights)))
    assert calls == {"b": 2}


def test_optimisers_take_iterators_and_single_variables():
    a, b = sp.Variable(1.0), sp.Variable(2.0)
    gradients = {a: np.ones(()), b: np.ones(())}
    sp.sgd_step((v for v in (a, b)), gradients, 1.0)
    assert (a.item(), b.item()) == (0, 1)
    sp.sgd_step(a, gradients, 1.0)
    assert a.item() == -1
    sp.Adam().training_step(iter([a, b]), gradients)
    sp.Adam().training_step([], {})
    sp.sgd_step([], {})


STEPS = {
    "Adam": lambda adam, *args: adam.training_step(*args),
    "sgd_step": lambda adam, *args: sp.sgd_step(*args),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("known", [False, True], ids=["first step", "later step"])
def test_optimisers_change_nothing_on_an_error(name, known):
    a, b, c = (sp.Variable(np.full(3, float(i))) for i in range(3))
    good = {v: np.ones(3) for v in (a, b, c)}
    adam = sp.Adam()
    step = STEPS[name]
    if known:
        step(adam, [a, b], good)
    arrays = [v.array for v in (a, b, c)]
    values = [array.copy() for array in arrays]
    state = {v: (adam.t[v], adam.m[v].copy(), adam.v[v].copy()) for v in adam.t}

    for variables, gradients, errors, text in (
        ([a, b, c], {a: np.ones(3), b: np.ones(3)}, (KeyError, ValueError), r"variables\[2\]"),
        ([a, b, a], good, (ValueError,), "twice"),
        ([a, b], {**good, b: np.ones(4)}, (ValueError,), r"\(3,\).*\(4,\)"),
        ([a, b], {**good, b: np.ones((3, 1))}, (ValueError,), r"variables\[1\]"),
        ([a, b], {**good, b: 1.0}, (ValueError,), r"\(3,\)"),
        ([a, b], {**good, b: np.array(["x"] * 3)}, (TypeError,), r"variables\[1\]"),
        ([a, b], {**good, b: np.ones(3, complex)}, (TypeError,), r"variables\[1\]"),
        ([a, b], {**good, b: None}, (TypeError, ValueError), r"variables\[1\]"),
        ([a, 5], good, (TypeError,), r"variables\[1\]"),
        ([a, b.array], good, (TypeError,), r"variables\[1\]"),
    ):
        for error in errors if errors != (TypeError, ValueError) else [errors]:
            with pytest.raises(error, match=text) as raised:
                step(adam, variables, gradients)
            assert name in str(raised.value)
    for v, array, value in zip((a, b, c), arrays, values):
        assert v.array is array and np.array_equal(array, value)
    assert set(adam.t) == set(state)
    for v, (t, m, w) in state.items():
        assert adam.t[v] == t
        assert np.array_equal(adam.m[v], m) and np.array_equal(adam.v[v], w)
    step(adam, [a, b, c], good)


def test_a_missing_gradient_is_a_key_error_with_a_readable_text():
    used, unused = sp.Variable(np.ones(2)), sp.Variable(np.zeros(3))
    gradients = sp.get_gradients(sp.exp(used))
    with pytest.raises(sp.MissingGradientError) as raised:
        sp.Adam().training_step([used, unused], gradients)
    assert isinstance(raised.value, KeyError) and isinstance(raised.value, ValueError)
    assert "variables[1]" in str(raised.value) and "(3,)" in str(raised.value)
    assert "\\n" not in str(raised.value) and not str(raised.value).startswith(("'", '"'))


def test_adam_notices_a_variable_of_another_shape():
    v = sp.Variable(np.ones(3))
    adam = sp.Adam()
    adam.training_step([v], {v: np.ones(3)})
    v.array = np.ones(4)
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        adam.training_step([v], {v: np.ones(4)})
    assert np.array_equal(v.array, np.ones(4)) and adam.t[v] == 1


def test_adam_knows_zeros_before_the_first_step():
    """As in 3.0.5, where they were defaultdicts; and asking changes nothing."""
    asked, other = sp.Variable(np.ones(3)), sp.Variable(np.ones(3))
    for names in (("t",), ("m",), ("v",), ("t", "m", "v")):
        adam, fresh = sp.Adam(), sp.Adam()
        assert all(getattr(adam, name)[asked] == 0 for name in names)
        for _ in range(2):
            adam.training_step([asked], {asked: np.arange(3.0)})
            fresh.training_step([other], {other: np.arange(3.0)})
        assert np.array_equal(asked.array, other.array)
        assert adam.t[asked] == 2 and adam.m[asked].shape == adam.v[asked].shape == (3,)


def test_adam_goes_on_after_a_change_of_dtype():
    v = sp.Variable(np.ones(3))
    adam = sp.Adam(0.1)
    adam.training_step([v], {v: np.ones(3)})
    v.array = v.array.astype(np.float32)
    adam.training_step([v], {v: np.ones(3)})
    assert v.dtype == adam.m[v].dtype == np.float32
    np.testing.assert_allclose(v.array, 0.8, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": np.nan},
        {"alpha": np.inf},
        {"beta1": 1},
        {"beta1": -0.1},
        {"beta2": 1.5},
        {"beta2": np.nan},
        {"eps": -1e-8},
        {"eps": np.nan},
        {"alpha": "0.1"},
        {"beta1": None},
        {"eps": "x"},
    ],
)
def test_adam_refuses_impossible_options(options):
    with pytest.raises((ValueError, TypeError)):
        sp.Adam(**options)


def test_adam_with_options_at_their_limits():
    v = sp.Variable(np.ones(3))
    adam = sp.Adam(alpha=0.5, beta1=0, beta2=0, eps=0)
    for gradient in ([1.0, -2.0, 1e-3], [-1.0, 1.0, 2.0]):
        before = v.array
        adam.training_step([v], {v: np.array(gradient)})
        np.testing.assert_allclose(v.array, before - 0.5 * np.sign(gradient), rtol=1e-12)
    still = sp.Variable(np.ones(2))
    sp.Adam(alpha=0).training_step([still], {still: np.ones(2)})
    sp.Adam(alpha=-1).training_step([still], {still: np.ones(2)})  # ascent
    np.testing.assert_allclose(still.array, 2, rtol=1e-6)


def test_sgd_refuses_impossible_rates():
    v = sp.Variable(np.ones(2))
    for rate in (np.nan, np.inf, "0.1", None):
        with pytest.raises((ValueError, TypeError)):
            sp.sgd_step([v], {v: np.ones(2)}, rate)
    assert np.array_equal(v.array, [1, 1])


def test_gradients_with_nan_reach_the_parameter():
    for step in (sp.Adam().training_step, sp.sgd_step):
        v = sp.Variable(np.ones(2))
        step([v], {v: np.array([np.nan, 1])})
        assert np.isnan(v.array[0]) and v.array[1] < 1


def test_zero_gradients_move_nothing():
    v = sp.Variable(np.float32([1, 2]))
    sp.Adam(eps=1e-8).training_step([v], {v: np.zeros(2)})
    assert np.array_equal(v.array, [1, 2])


# -------------------------------------------------------------------------------------- gradcheck


def square_with(rule, value=lambda a: a * a):
    return sp.primitive(lambda a: (value(a), rule))


def _one_wrong_element(g, y, a):
    wrong = g * a * 2
    wrong = np.array(wrong)
    wrong.ravel()[-1] += 0.01
    return wrong


WRONG = {
    "scaled by 12345": lambda g, y, a: g * a * 24690,
    "scaled by 1.0001": lambda g, y, a: g * a * 2.0002,
    "sign": lambda g, y, a: g * a * -2,
    "zero": lambda g, y, a: g * 0,
    "forgot the factor": lambda g, y, a: g * a,
    "forgot g": lambda g, y, a: a * 2 + g * 0,
    "one wrong element": _one_wrong_element,
    "NaN": lambda g, y, a: g * np.nan,
    "one NaN": lambda g, y, a: np.where(np.arange(a.size).reshape(a.shape) == 1, np.nan, g * a * 2),
    "infinite": lambda g, y, a: g * np.inf,
    "transposed": lambda g, y, a: (g * a * 2).T,
    "summed": lambda g, y, a: np.sum(g * a * 2),
    "one axis too many": lambda g, y, a: (g * a * 2)[None],
    "too short": lambda g, y, a: (g * a * 2)[:-1],
    "offset": lambda g, y, a: g * a * 2 + 1e-3,
    "reversed": lambda g, y, a: (g * a * 2)[::-1],
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("reference", [np.square, None], ids=["against numpy", "against itself"])
def test_the_checker_fails_on_a_wrong_gradient(what, reference):
    a = np.random.default_rng(0).uniform(0.5, 1.5, (20, 5))

    def scaled(operation):  # so that forgetting g shows
        return lambda v: operation(v) * 3

    np_func = None if reference is None else lambda x: 3 * reference(x)
    check_grad([a], scaled(square_with(lambda g, y, a: g * a * 2)), np_func, delta=1e-4)
    with pytest.raises((NumericalError, ValueError)):
        check_grad([a], scaled(square_with(WRONG[what])), np_func, delta=1e-4)


@pytest.mark.parametrize("what", ["scaled by 12345", "sign", "one wrong element", "NaN", "offset"])
def test_the_checker_fails_on_wrong_local_gradients(what):
    def operation(v):
        return sp.Variable(v.array**2, [(v, lambda g: WRONG[what](g, None, v.array))])

    with pytest.raises(NumericalError):
        check_grad([np.array([[1.0, 2.0], [3.0, 4.0]])], operation, np.square, delta=1e-4)


def test_the_checker_looks_at_every_argument():
    @sp.primitive
    def product(a, b):
        return a * b, lambda g, y, a, b: g * b, lambda g, y, a, b: g * a * 1.01

    with pytest.raises(NumericalError, match=r"args\[1\]"):
        check_grad([np.ones(3), np.ones(3) * 2], product, np.multiply)


def test_the_checker_fails_on_a_wrong_value():
    for value in (
        lambda a: a * a + 1e-4,
        lambda a: a * a * np.nan,
        lambda a: (a * a)[:1],
        lambda a: (a * a)[None],
    ):
        with pytest.raises((NumericalError, ValueError)):
            check_grad(
                [np.ones(3)], square_with(lambda g, y, a: g * a * 2, value), np.square, delta=1e-4
            )


def test_the_checker_fails_on_a_wrong_second_derivative():
    def constant(g, y, a):
        return g * (np.asarray(getattr(a, "array", a)) * 2)  # the numbers of a, not a itself

    def stopped(g, y, a):
        return g * sp.stop_gradient(a) * 2

    def wrong_inside(g, y, a):
        return g * doubled(a)

    doubled = sp.primitive(lambda a: (a * 2, lambda g, y, a: g * 3))
    a = [np.array([1.0, 2.0])]
    for rule in (constant, stopped, wrong_inside):
        operation = square_with(rule)
        check_grad(a, operation, np.square, delta=1e-4)
        with pytest.raises(NumericalError, match="second"):
            check_grad(a, operation, np.square, delta=1e-4, order=2)
    check_grad(a, square_with(lambda g, y, a: g * a * 2), np.square, delta=1e-4, order=2)


def test_the_checker_sees_a_mixed_second_derivative():
    @sp.primitive
    def product(a, b):
        def rule_a(g, y, a, b):
            return g * sp.stop_gradient(b)

        return a * b, rule_a, lambda g, y, a, b: g * a

    args = [np.array([1.0, 2.0]), np.array([3.0, 5.0])]
    check_grad(args, product, np.multiply, delta=1e-4)
    with pytest.raises(NumericalError, match="second"):
        check_grad(args, product, np.multiply, delta=1e-4, order=2)


def test_the_checker_works_in_float64_and_leaves_its_arguments():
    for a in (np.float32([1, 2]), np.array([1, 2]), [1, 2], sp.Variable(np.float32([1, 2]))):
        check_grad([a], sp.square, np.square, delta=1e-4, order=2)
    a = np.array([1.0, 2.0])
    a.flags.writeable = False
    check_grad([a], sp.exp, np.exp, delta=1e-4, order=2)
    check_grad([np.zeros((0, 3))], sp.exp, np.exp)
    check_grad([np.array(2.0)], sp.exp, np.exp, delta=1e-4)
    for order in (0, 3, None):
        with pytest.raises(ValueError, match="order"):
            check_grad([a], sp.exp, np.exp, order=order)


def test_eps_is_what_is_allowed():
    operation = square_with(lambda g, y, a: g * a * 2 + 1e-4)
    a = [np.array([1.0, 2.0])]
    check_grad(a, operation, np.square, delta=1e-4, eps=1e-3)
    with pytest.raises(NumericalError):
        check_grad(a, operation, np.square, delta=1e-4, eps=1e-5)


def test_what_is_allowed_grows_with_the_numbers_but_not_below_one(monkeypatch):
    def check(size, error):
        a = np.full(10, size)
        monkeypatch.setattr(gradcheck, "numgrads", lambda *args: [2 * a + error])
        check_grad([a], square_with(lambda g, y, a: g * a * 2), None, eps=1e-6)

    for size, allowed in ((0.01, 1e-6), (0.5, 1e-6), (50.0, 1e-4), (5e5, 1.0)):
        check(size, 0.9 * allowed)
        with pytest.raises(NumericalError):
            check(size, 1.1 * allowed)


def test_one_wrong_element_among_many_is_not_averaged_away(monkeypatch):
    a = np.random.default_rng(0).uniform(0.5, 1.5, 100_000)

    def rule(g, y, a):
        wrong = np.array(g * a * 2)
        wrong[1234] += 4e-4
        return wrong

    monkeypatch.setattr(gradcheck, "numgrads", lambda *args: [2 * a])
    check_grad([a], square_with(lambda g, y, a: g * a * 2), np.square)
    with pytest.raises(NumericalError, match="largest"):
        check_grad([a], square_with(rule), np.square)


def test_numerical_gradients_in_float64():
    for a in (np.float32([3]), np.array([3]), [3.0], np.float16([3])):
        found = numgrad(lambda x: x**2, a)
        assert found.dtype == np.float64 and found == pytest.approx([6], rel=1e-8)
    np.testing.assert_allclose(numgrad(np.sum, np.ones((2, 3))), np.ones((2, 3)), rtol=1e-8)
    assert numgrad(lambda v: sp.exp(sp.Variable(v)), [0.0]) == pytest.approx([1], rel=1e-8)
    third = numgrads(lambda a: a**3, [np.array([1.0, 2.0])], n=3, delta=1e-2)
    assert np.allclose(third, [[6, 6]])
    a = np.array([1.0, 2.0])
    numgrads(lambda x, y: x * y, [a, a])
    assert np.array_equal(a, [1, 2])
