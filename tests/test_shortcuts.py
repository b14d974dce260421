"""Max pooling goes past leaky_relu without computing it, and nobody can tell but by the time."""

import numpy as np
import pytest
from conftest import rng_for

import smallpebble as sp
from smallpebble.gradcheck import check_grad


def inputs(shape=(3, 7, 6, 5), dtype=np.float64):
    rng = rng_for("short cuts", shape)
    return sp.Variable(rng.normal(size=shape).astype(dtype)), rng


def activated(x, alpha=0.02):
    """leaky_relu of something that an operation made, so that its value may wait."""
    return sp.leaky_relu(x * 1.0, alpha)


def pool(h):
    return sp.maxpool2d(h, 2, 2, strides=[2, 2])


def by_the_long_way(x, alpha=0.02):
    """The same with a leaky_relu whose value has been looked at, so that pooling reads it."""
    h = activated(x, alpha)
    h.array  # noqa: B018
    return h, pool(h)


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the arrays that the leaky_relu kernel was called with."""
    seen = []
    kernel = sp.kernels.leaky_relu

    def counted(a, alpha=0.02):
        seen.append(a.size)
        return kernel(a, alpha)

    monkeypatch.setattr(sp.kernels, "leaky_relu", counted)
    return seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [0.02, 0.5, 1])
def test_values_and_gradients_are_those_of_the_long_way(dtype, alpha):
    x, rng = inputs(dtype=dtype)
    long_h, long_y = by_the_long_way(x, alpha)
    h = activated(x, alpha)
    y = pool(h)
    assert np.array_equal(y.array, long_y.array) and y.dtype == dtype
    weights = rng.normal(size=y.shape).astype(dtype)
    g, long_g = sp.get_gradients(sp.sum(y * weights)), sp.get_gradients(sp.sum(long_y * weights))
    assert np.array_equal(g[x], long_g[x]) and g[x].dtype == dtype
    assert np.array_equal(g[h], long_g[long_h]) and g[h].dtype == dtype
    wanted = sp.get_gradients(sp.sum(y * weights), [h, x])
    assert np.array_equal(wanted[h], long_g[long_h]) and np.array_equal(wanted[x], long_g[x])


def test_the_large_array_is_not_computed(calls):
    x, _ = inputs()
    h = activated(x)
    y = pool(h)
    sp.get_gradients(sp.sum(y))[x]
    assert calls == [y.size]
    assert h.array.shape == x.shape and calls == [y.size, x.size]  # now somebody asked


def test_without_recording_as_well(calls):
    x, _ = inputs()
    with sp.no_grad():
        y = pool(activated(x))
    assert calls == [y.size]
    assert np.array_equal(y.array, by_the_long_way(x)[1].array)


@pytest.mark.parametrize("alpha", [0, -0.5])
def test_where_it_does_not_rise_it_takes_the_long_way(calls, alpha):
    x, _ = inputs()
    y = pool(activated(x, alpha))
    assert calls == [x.size]
    reference = np.where(x.array > 0, x.array, alpha * x.array)
    assert np.array_equal(y.array, pool(sp.Variable(reference)).array)


def test_others_may_use_the_value_too():
    def shared(x):
        h = activated(x)
        return sp.sum(pool(h)) * 2 + sp.sum(sp.square(h)) + sp.sum(pool(h) * pool(h))

    def plain(x):
        h = np.where(x > 0, x, 0.02 * x)
        y = np.stack(
            [h[:, i : i + 2, j : j + 2].max((1, 2)) for i in (0, 2, 4, 6) for j in (0, 2, 4)]
        )
        return y.sum() * 2 + np.square(h).sum() + np.square(y).sum()

    x, _ = inputs((1, 7, 6, 2))
    check_grad([x.array], shared, plain, delta=1e-6)
    check_grad([x.array], shared, None, delta=1e-5, eps=1e-5, order=2)


def test_of_order_two_and_three():
    x, rng = inputs((1, 4, 4, 2))
    weights = rng.normal(size=(3, 3, 2, 2))

    def chain(x):
        return sp.softmax(sp.reshape(pool(sp.leaky_relu(sp.conv2d(x, weights), 0.1)), (2, 4)))

    def gradient(x):
        return sp.get_gradients(sp.sum(sp.square(chain(x))), x, differentiable=True)[x]

    check_grad([x.array], chain, None, delta=1e-5, order=2)
    check_grad([x.array], gradient, None, delta=1e-5, eps=1e-5, order=2)


def test_writing_and_rebinding_do_not_reach_the_record():
    x, _ = inputs()
    want_y = by_the_long_way(x)[1].array
    want = sp.get_gradients(sp.sum(by_the_long_way(x)[1]), x)[x]

    between = x * 1.0
    h = sp.leaky_relu(between)
    between.array[...] = -1  # a copy, since h is still to be computed from the original
    assert np.array_equal(pool(h).array, want_y)
    between.array = np.zeros(3)
    y = pool(h)
    assert np.array_equal(y.array, want_y)
    assert np.array_equal(h.array, np.where(x.array > 0, x.array, 0.02 * x.array))

    h = activated(x)
    y = pool(h)
    gradients = sp.get_gradients(sp.sum(y))
    h.array[...] = 0
    y.array[...] = 0
    x.array[...] = 0
    assert np.array_equal(gradients[x], want)


def test_a_result_that_waits_behaves_like_any_other():
    x, _ = inputs((2, 3))
    h = activated(x)
    assert h.shape == (2, 3) and h.dtype == np.float64 and h.ndim == 2 and len(h) == 2
    h = activated(x)
    assert np.array_equal(sp.get_gradients(h)[x], np.where(x.array > 0, 1, 0.02))
    h = activated(x)
    gradients = sp.get_gradients(h, differentiable=True)
    assert np.array_equal(gradients[x].array, np.where(x.array > 0, 1, 0.02))
    assert "shape=(2, 3)" in repr(activated(x))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = activated(x).nothing


def test_nan_is_seen():
    x, _ = inputs()
    x.array[1, 2, 3, 4] = np.nan
    y, long_y = pool(activated(x)), by_the_long_way(x)[1]
    assert np.isnan(y.array).sum() == 1
    assert np.array_equal(y.array, long_y.array, equal_nan=True)
