"""Max pooling goes past leaky_relu and conv2d without computing them, and only time can tell."""

import copy
import gc
import pickle
import sys
import threading
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
from conftest import rng_for

import smallpebble as sp
from smallpebble import core
from smallpebble import images as images_module
from smallpebble.gradcheck import check_grad
from smallpebble.kernels import _alloc


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


# ------------------------------------------------------------ past convolutions as well
#
# conv2d is computed later, like leaky_relu; pooling goes past both to one kernel.

FUSED = ("conv2d_maxpool2d", "conv2d_maxpool2d_grad_images", "conv2d_maxpool2d_grad_kernels")


def network(n=17, size=(9, 8), c=3, m=5, dtype=np.float64, kernel=(3, 3)):
    """Images and kernels that a user made."""
    rng = rng_for("network", n, size, c, m)
    x = sp.Variable(rng.normal(size=(n, *size, c)).astype(dtype))
    return x, sp.Variable(rng.normal(size=(*kernel, c, m)).astype(dtype)), rng


def convolved(x, k, padding="SAME"):
    """conv2d of operands that operations made, so that nothing is copied and all may wait."""
    return sp.conv2d(x * 1.0, k * 1.0, padding)


def is_waiting(v):
    return type(v._held) is core.Later


def looked_at(v):
    """The same Variable, whose value is computed and known to somebody."""
    v.array  # noqa: B018
    return v


def chain(x, k, alpha=None, long_way=False, through=convolved):
    """(outputs of conv2d, of leaky_relu or the same, of maxpool2d)."""
    c = through(x, k)
    if long_way:
        looked_at(c)
    h = c if alpha is None else sp.leaky_relu(c, alpha)
    if long_way:
        looked_at(h)
    return c, h, pool(h)


@pytest.fixture
def kernel_calls(monkeypatch):
    """Names of the kernels that were called."""
    seen = []
    for name in (*FUSED, "conv2d", "conv2d_grad_images", "conv2d_grad_kernels", "maxpool2d"):
        kernel = getattr(sp.kernels, name)

        def counted(*args, name=name, kernel=kernel):
            seen.append(name)
            return kernel(*args)

        monkeypatch.setattr(sp.kernels, name, counted)
    return seen


def same(a, b):
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def agree(a, b):
    """Equal but for the order of sums, which the order of gradients' addition may change."""
    eps = 200 * np.finfo(a.dtype).eps
    return a.dtype == b.dtype and np.allclose(a, b, rtol=eps, atol=eps * np.abs(b).max())


@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [None, 0.02, 1, 3.0])
@pytest.mark.parametrize("shape", [(17, (9, 8), 3, 5), (2, (7, 7), 2, 3), (16, (10, 9), 16, 17)])
def test_past_a_convolution_all_is_as_by_the_long_way(shape, alpha, dtype, algorithm):
    x, k, rng = network(*shape, dtype=dtype)
    with sp.use_conv(algorithm):
        passed, long_way = (chain(x, k, alpha, long_way) for long_way in (False, True))
        assert is_waiting(passed[0]) and not is_waiting(long_way[0])
        assert same(passed[2].array, long_way[2].array)
        weights = rng.normal(size=passed[2].shape).astype(dtype)
        results = [sp.get_gradients(sp.sum(y * weights)) for *_, y in (passed, long_way)]
        for leaf in (x, k):
            assert same(results[0][leaf], results[1][leaf])
        for one, other in zip(passed, long_way):
            assert same(results[0][one], results[1][other])
        assert is_waiting(passed[0]), "nobody has needed it"
        wanted = sp.get_gradients(sp.sum(passed[2] * weights), [passed[0], k, passed[1]])
        for one in wanted:
            assert same(wanted[one], results[0][one])
        for one, other in zip(passed, long_way):
            assert same(one.array, other.array)


def test_the_convolution_is_not_computed(kernel_calls):
    x, k, _ = network()
    _, _, y = chain(x, k, 0.1)
    gradients = sp.get_gradients(sp.sum(y))
    gradients[x], gradients[k]
    assert sorted(kernel_calls) == sorted(FUSED)
    kernel_calls.clear()
    with sp.no_grad():
        chain(x, k)
    assert kernel_calls == ["conv2d_maxpool2d"]


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_gradients_of_every_order_past_a_convolution(alpha):
    rng = rng_for("orders")
    x, k = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(3, 3, 2, 3))

    def function(x, k):
        return sp.tanh(chain(x, k, alpha)[2] / 3)

    def first(x, k):
        return sum(
            sp.sum(sp.square(g))
            for g in sp.get_gradients(sp.sum(function(x, k)), [x, k], differentiable=True).values()
        )

    check_grad([x, k], function, None, delta=1e-5, order=2)
    check_grad([x, k], first, None, delta=1e-4, eps=1e-5, order=2)


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_differentiable_gradients_agree(alpha):
    """Of orders 1 to 3, in the leaves and in what was passed."""
    x, k, _ = network(n=3, m=4)

    def gradients(long_way):
        c, h, y = chain(x, k, alpha, long_way)
        found, total = [], sp.sum(sp.square(y))
        for _ in range(3):
            g = sp.get_gradients(total, [x, k, c, h], differentiable=True)
            found += [g[v].array for v in (x, k, c, h)]
            total = sp.sum(sp.square(g[x]) * 1e-3) + sp.sum(sp.square(g[k]) * 1e-3)
        return found

    for got, want in zip(gradients(False), gradients(True), strict=True):
        assert agree(got, want)


USES = {
    "skip connection": lambda c, h, y: sp.sum(y) + sp.sum(sp.square(h)) + sp.sum(c * h),
    "pooled twice": lambda c, h, y: sp.sum(y) * 2 + sp.sum(sp.square(pool(h))) + sp.sum(pool(c)),
    "bent twice": lambda c, h, y: sp.sum(pool(sp.leaky_relu(h, 0.3))) + sp.sum(y),
    "bent two ways": lambda c, h, y: sp.sum(pool(sp.leaky_relu(c, 0.7))) + sp.sum(y),
    "convolved again": lambda c, h, y: sp.sum(sp.conv2d(h, np.ones((1, 1, 5, 2)))) + sp.sum(y),
    "read before": lambda c, h, y: sp.sum(y * float(h.array.sum())) + sp.sum(sp.square(pool(h))),
    "read after": lambda c, h, y: sp.sum(y) * float(c.array.max()) + sp.sum(h[0]),
    "other pools": lambda c, h, y: sp.sum(sp.avgpool2d(h, 2, 2)) + sp.sum(sp.maxpool2d(h, 3, 3)),
    "overlapping": lambda c, h, y: sp.sum(sp.maxpool2d(h, 3, 3, strides=[2, 2])) + sp.sum(y),
    "only beside": lambda c, h, y: sp.sum(h * 2),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("alpha", [None, 0.02])
@pytest.mark.parametrize("differentiable", [False, True])
def test_others_may_use_what_was_passed(use, alpha, differentiable):
    x, k, _ = network()
    found = []
    for long_way in (False, True):
        parts = chain(x, k, alpha, long_way)
        g = sp.get_gradients(USES[use](*parts), differentiable=differentiable)
        found.append([np.asarray(g[v]) for v in (x, k, *parts[:2])])
        if parts[2] in g:
            found[-1].append(np.asarray(g[parts[2]]))
    for got, want in zip(*found, strict=True):
        assert agree(got, want)


@pytest.mark.parametrize("silent", ["conv2d", "leaky_relu", "conv2d leaky_relu"])
@pytest.mark.parametrize("alpha", [None, 0.1])
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("written", [False, True])
def test_gradients_end_at_what_was_made_under_no_grad(
    silent, alpha, differentiable, written, kernel_calls
):
    """Values are computed at once all the same, but the graph is as by the long way."""
    x, k, _ = network()
    k = sp.learnable(k)

    def chained(long_way):
        a, b, other = x * 1.0, k * 1.0, sp.Variable(np.ones(2))
        with sp.no_grad() if "conv2d" in silent else nullcontext():
            c = sp.conv2d(a, b)
        if long_way:
            looked_at(c)
        with sp.no_grad() if "leaky_relu" in silent else nullcontext():
            h = c if alpha is None else sp.leaky_relu(c, alpha)
        if written and isinstance(h.local_gradients, list):  # it may be given inputs of its own
            h.local_gradients.append((other, lambda g: np.full(2, g.sum())))
        if long_way:
            looked_at(h)
        g = sp.get_gradients(sp.square(pool(h)), differentiable=differentiable and not written)
        return [np.asarray(g[v]) if v in g else None for v in (x, a, k, b, c, h, other)]

    got = chained(False)
    assert "conv2d_maxpool2d" in kernel_calls
    for one, other in zip(got, chained(True), strict=True):
        assert one is other is None or agree(one, other)


def by_hand(x, k, alpha):
    return chain(sp.Variable(x.copy()), sp.Variable(k.copy()), alpha, True)[2].array


def test_writing_after_the_call_does_not_reach_the_value():
    """Into arrays of the user's: Variables', and plain ones; small and large; shared ones."""
    for shape in ((17, (9, 8), 1, 5), (17, (9, 8), 40, 1), (2, (4, 4), 1, 2)):
        for dtype in (np.float32, np.float64):
            x, k, _ = network(*shape, dtype=dtype)
            want_c = sp.kernels.conv2d(
                x.array, k.array, sp.Window(shape[1], (3, 3), (1, 1), "SAME")
            )
            want_y = by_hand(x.array, k.array, 0.1)
            for wrap in (sp.Variable, lambda a: sp.Variable(a) * 1, lambda a: a):
                images, kernels = x.array.copy(), k.array.copy()
                a, b = wrap(images), sp.Variable(kernels)
                for first, second in ((a, b), (wrap(images), kernels)):
                    if not isinstance(first, sp.Variable) and second is kernels:
                        continue
                    c = sp.conv2d(first, second)
                    h = sp.leaky_relu(c, 0.1)
                    images[...] = 7
                    kernels[...] = np.nan
                    y = pool(h)
                    images[...], kernels[...] = -7, np.inf
                    assert same(y.array, want_y)
                    assert same(c.array, want_c)
                    images[...], kernels[...] = x.array, k.array


def test_writing_after_looking_does_not_reach_the_value():
    x, k, _ = network()
    want_y = by_hand(x.array, k.array, 0.1)
    a, b = x * 1.0, k * 1.0
    h = sp.leaky_relu(sp.conv2d(a, b), 0.1)
    a.array[...], b.array[...] = 3, 4  # private until now: these are copies
    assert same(pool(h).array, want_y)
    a, b = x * 1.0, k * 1.0
    first, second = a.array, b.array
    h = sp.leaky_relu(sp.conv2d(a, b), 0.1)
    first[...], second[...] = 3, 4
    assert same(pool(h).array, want_y)
    a, b = x * 1.0, k * 1.0
    h = sp.leaky_relu(sp.conv2d(a, b), 0.1)
    a.array, b.array = np.zeros(3), np.zeros(4)
    assert same(pool(h).array, want_y)
    assert same(np.asarray(pool(looked_at(h))), want_y)


def test_writing_does_not_reach_gradients_that_are_computed_late():
    x, k, _ = network()
    _, _, y = chain(x, k, 0.1, True)
    want = sp.get_gradients(sp.sum(y), [x, k])
    images, kernels = sp.Variable(x.array.copy()), sp.Variable(k.array.copy())
    c = sp.conv2d(images, kernels)
    y = pool(sp.leaky_relu(c, 0.1))
    gradients = sp.get_gradients(sp.sum(y))
    images.array[...], kernels.array[...], y.array[...], c.array[...] = 1, 2, 3, 4
    assert same(gradients[images], want[x])
    assert same(gradients[kernels], want[k])


def test_what_is_rebound_between_still_has_the_gradient():
    x, k, _ = network()
    want = sp.get_gradients(sp.sum(chain(x, k, 0.1, True)[2]), [x, k])
    for differentiable in (False, True):
        images, kernels = sp.Variable(x.array.copy()), sp.Variable(k.array.copy())
        h = sp.leaky_relu(sp.conv2d(images, kernels), 0.1)
        images.array, kernels.array = images.array * 0, kernels.array + 1
        y = pool(h)
        images.array, kernels.array = images.array + 5, kernels.array + 1
        g = sp.get_gradients(sp.sum(y), [images, kernels], differentiable=differentiable)
        assert agree(np.asarray(g[images]), want[x])
        assert agree(np.asarray(g[kernels]), want[k])


def test_assigning_to_what_waits():
    """The value that was recorded is not the one assigned."""
    x, k, _ = network()
    for alpha in (None, 0.1):
        want = chain(x, k, alpha, True)
        c, h, y = chain(x, k, alpha)
        g = sp.get_gradients(sp.sum(y))
        c.array = np.zeros(3)
        h.array = np.zeros(4)
        assert same(y.array, want[2].array)
        assert same(g[k], sp.get_gradients(sp.sum(want[2]))[k])
        c = convolved(x, k)
        c.array = np.ones(c.shape)
        assert np.all(pool(c).array == 1)


@pytest.mark.parametrize("differentiable", [False, True])
def test_what_was_recorded_counts_and_not_what_was_assigned(differentiable):
    """Where the activation's input is assigned while it waits, and when it was passed."""
    x, k, _ = network()
    for pooled in (False, True):
        found = []
        for long_way in (False, True):
            c, h, y = chain(x, k, 0.1, long_way)
            if not pooled:
                h = y = sp.leaky_relu(c, 0.1)
            c.array, h.array = np.zeros(3), np.zeros(4)
            g = sp.get_gradients(sp.sum(sp.square(y)) if pooled else y, [x, k, c], differentiable)
            found.append([np.asarray(one) for one in g.values()])
        for got, want in zip(*found):
            assert agree(got, want)


def test_local_gradients_of_what_waits():
    """Functions of g alone, also while inputs wait."""
    x, k, _ = network()
    for alpha in (None, 0.1):
        found = []
        for long_way in (False, True):
            for v in chain(x, k, alpha, long_way):
                g = rng_for("g").normal(size=v.shape)
                found.append([function(g) for _, function in v.local_gradients[:2]])
        for got, want in zip(found[:2], found[3:]):
            assert all(agree(a, b) for a, b in zip(got, want, strict=True))
        assert all(np.isfinite(part).all() for part in found[2])


def test_a_slope_that_is_written_to():
    x, k, _ = network()
    want = chain(x, k, 0.5, True)
    for go in (pool, lambda h: h):
        alpha = np.array(0.5)
        h = sp.leaky_relu(convolved(x, k), alpha)
        alpha[...] = 7
        got = go(h)
        assert same(got.array, want[2 if go is pool else 1].array)
        total = sp.sum(got)
        wanted = sp.get_gradients(sp.sum(want[2 if go is pool else 1]))
        assert agree(sp.get_gradients(total)[k], wanted[k])


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_the_kernels_of_the_call_are_those_of_the_value(alpha):
    """Blocks of use_conv and use_kernels that end before the value is needed."""
    x, k, _ = network(17, (10, 9), 16, 17, np.float32)
    blocks = [sp.use_conv("direct"), sp.use_conv("winograd")]
    blocks[0].__exit__(), blocks[1].__exit__()
    sp.use_conv("auto")
    tiers = [tier for tier, reason in sp.kernels.tiers().items() if reason is None]
    values = []
    for tier in tiers:
        for algorithm in ("direct", "winograd"):
            with sp.use_kernels(tier), sp.use_conv(algorithm):
                c, h = chain(x, k, alpha)[:2]
                want = [v.array for v in chain(x, k, alpha, True)]
            before = sp.kernels.active(), sp.show_config("dict")["convolution"]
            y = pool(h)
            assert same(c.array, want[0]) and same(h.array, want[1])
            assert agree(y.array, want[2])
            assert (sp.kernels.active(), sp.show_config("dict")["convolution"]) == before
            values.append(want[0].tobytes())
    assert len(set(values)) > len(tiers) or len(tiers) == 1


def test_an_error_in_the_late_computation_leaves_the_kernels_as_they_were(monkeypatch):
    x, k, _ = network()
    with sp.use_conv("direct"):
        c = convolved(x, k)

    def fail(*args):
        raise MemoryError("planted")

    kernel = sp.kernels.conv2d
    before = sp.show_config("dict")["convolution"]
    for module in {sp.kernels, sp.kernels.load(sp.kernels.active())}:
        if module is sp.kernels.reference or module is sp.kernels:
            monkeypatch.setattr(module, "conv2d", fail)
    with pytest.raises(MemoryError):
        with sp.use_conv("direct"):
            c.array  # noqa: B018
    assert sp.show_config("dict")["convolution"] == before
    monkeypatch.undo()
    assert same(c.array, chain(x, k, None, True)[0].array) and sp.kernels.conv2d is kernel


@pytest.mark.parametrize("dtypes", [
    (np.float32, np.float64), (np.float64, np.float32), (np.float16, np.float32),
    (np.int64, np.float32), (np.int32, np.int32), (np.float16, np.float16), (bool, np.float64),
    (np.uint8, np.int8), (np.longdouble, np.float32), (">f4", "<f4"), (">f8", ">f8"),
])  # fmt: skip
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_dtypes_are_those_of_the_long_way(dtypes, alpha):
    rng = rng_for("dtypes")
    x = sp.Variable((rng.normal(size=(17, 6, 6, 3)) * 3).astype(dtypes[0]))
    k = sp.Variable((rng.normal(size=(3, 3, 3, 4)) * 3).astype(dtypes[1]))
    through = [sp.conv2d, lambda x, k: sp.conv2d(sp.reshape(x, x.shape) * 1, k * 1)]
    for conv in through:
        long_way = chain(x, k, alpha, True, conv)
        passed = chain(x, k, alpha, False, conv)
        shapes = [(v.shape, v.dtype) for v in passed]
        assert shapes == [(v.shape, v.dtype) for v in long_way]
        for one, other in zip(passed[::-1], long_way[::-1]):
            assert same(one.array, other.array)
        if all(np.dtype(d).kind == "f" for d in dtypes):
            g, want = (sp.get_gradients(sp.sum(y[2])) for y in (passed, long_way))
            assert agree(np.asarray(g[x], "f8"), np.asarray(want[x], "f8"))
            assert agree(np.asarray(g[k], "f8"), np.asarray(want[k], "f8"))
            assert (g[x].dtype, g[k].dtype) == (want[x].dtype, want[k].dtype)


@pytest.mark.parametrize("alpha", [0, -1, 1e-7, 1e7, 1e-6, 1e6, np.float32(0.1), 1, True])
def test_slopes_at_the_limits(alpha, kernel_calls):
    x, k, _ = network(dtype=np.float32)
    _, _, y = chain(x, k, alpha)
    went_past = kernel_calls == ["conv2d_maxpool2d"]
    assert went_past == (1e-6 <= alpha <= 1e6)
    assert same(y.array, chain(x, k, alpha, True)[2].array)


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [((3, 3), (2, 2), "SAME"), ((2, 2), (1, 1), "VALID"), ((2, 3), (2, 2), "SAME"),
     ((3, 3), (3, 3), "SAME"), ((2, 2), (3, 3), "VALID"), ((1, 1), (1, 1), "SAME"),
     ((12, 12), (12, 12), "SAME"), ((9, 8), (9, 8), "VALID"), ((30, 1), (30, 1), "SAME")],
)  # fmt: skip
def test_any_pool(window, strides, padding):
    x, k, _ = network()
    found = []
    for long_way in (False, True):
        c, h, _ = chain(x, k, 0.1, long_way)
        y = sp.maxpool2d(h, *window, padding, strides)
        g = sp.get_gradients(sp.sum(sp.square(y)))
        found.append([y.array, *(g[v] for v in (x, k, c, h))])
    for got, want in zip(*found):
        assert agree(got, want)


def test_large_inputs_that_a_user_could_write_to_are_not_copied(monkeypatch):
    """Where copies took more than a small part of the output, the value is computed at once."""
    x, k, _ = network(4, (8, 8), 1, 16)
    assert is_waiting(sp.conv2d(x, k * 1.0))  # an input of 1 in 16
    large = sp.Variable(np.ones((4, 8, 8, 16)))
    weights = sp.Variable(np.ones((3, 3, 16, 16)))
    assert not is_waiting(sp.conv2d(large, weights))
    assert not is_waiting(sp.conv2d(large, weights * 1.0))
    assert not is_waiting(sp.conv2d(large * 1.0, weights))
    assert is_waiting(sp.conv2d(large * 1.0, weights * 1.0))
    want = sp.conv2d(large, weights).array
    assert same(sp.conv2d(large * 1.0, weights * 1.0).array, want)


def test_on_plain_arrays_it_is_computed_at_once():
    x, k, _ = network()
    y = sp.conv2d(x.array, k.array)
    assert type(y) is np.ndarray and y.shape == (17, 9, 8, 5)
    assert type(pool(y)) is np.ndarray


def test_a_convolution_that_waits_behaves_like_any_other():
    x, k, _ = network()
    want = convolved(x, k).array
    for look in (
        lambda c: c.array,
        np.asarray,
        lambda c: c[:].array,
        lambda c: (c + 0).array,
        lambda c: np.array([row.array for row in c]),
        lambda c: sp.stop_gradient(c).array,
        lambda c: sp.reshape(c, -1).array.reshape(want.shape),
        lambda c: np.asarray(c, copy=True) if np.__version__ >= "2" else np.array(c),
    ):
        c = convolved(x, k)
        known = c.shape, c.dtype, c.ndim, c.size, bool(is_waiting(c))
        assert known == (want.shape, want.dtype, 4, want.size, True)
        assert same(look(c), want)
    assert len(convolved(x, k)) == 17
    assert repr(convolved(x, k)).startswith("Variable([")
    assert f"shape={want.shape}" in str(convolved(x, k))
    one = sp.conv2d(sp.Variable(np.full((1, 1, 1, 1), 3.0)) * 1, sp.Variable(np.ones((1,) * 4)) * 1)
    assert (one.item(), float(one), int(one), bool(one)) == (3, 3, 3, True)
    assert np.array_equal(convolved(x, k) > 0, want > 0)
    with pytest.raises(AttributeError):
        _ = convolved(x, k).nothing
    c = convolved(x, k)
    c.name = "mine"
    assert c.name == "mine" and is_waiting(c)
    assert len(convolved(x, k).local_gradients) == 2


def test_copies_of_what_waits():
    x, k, _ = network()
    for duplicate in (copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))):
        with pytest.raises(TypeError, match="stop_gradient"):
            duplicate(convolved(x, k))
        with sp.no_grad():
            c = convolved(x, k)
            h = sp.leaky_relu(c, 0.1)
        want = chain(x, k, 0.1, True)
        other = duplicate(c)
        assert same(other.array, want[0].array)
        other.array[...] = 0
        assert same(h.array, want[1].array)
        assert same(c.array, want[0].array) or duplicate is copy.copy


def test_copies_of_what_an_optimiser_made():
    x, k, _ = network()
    gradients = {k: np.ones(k.shape)}
    for step in (sp.Adam().training_step, lambda v, g: sp.sgd_step(v, g)):
        for duplicate in (copy.copy, copy.deepcopy, sp.stop_gradient):
            step([k], gradients)
            now = k._array.copy()
            c = sp.conv2d(x * 1.0, k)
            assert is_waiting(c)
            duplicate(k).array[...] = 0
            k.array[...] = 0
            want = sp.conv2d(x, sp.Variable(now)).array
            assert same(c.array, want)
            k.array = now


def test_long_chains_of_convolutions():
    """No recursion through values that wait for values that wait."""
    k = sp.Variable(np.eye(2).reshape(1, 1, 2, 2))
    x = sp.Variable(np.ones((1, 2, 2, 2)))
    for through in (
        lambda h: sp.leaky_relu(sp.conv2d(h, k * 1.0), 1.0),
        lambda h: sp.conv2d(h, k * 1.0),
        lambda h: sp.leaky_relu(h, 1.0),
        lambda h: sp.maxpool2d(sp.leaky_relu(sp.conv2d(h, k * 1.0), 1.0), 1, 1),
    ):
        h = x * 1.0
        for _ in range(2000):
            h = through(h)
        assert np.all(h.array == 1)
        assert np.all(sp.get_gradients(h)[x] == 1)
        del h


def test_waiting_values_do_not_keep_what_is_gone():
    """Inputs live as long as somebody may need them, and a value that was computed lets go."""
    x, k, _ = network()
    with sp.no_grad():
        a = x * 1.0
        c = sp.conv2d(a, k)
    held = weakref.ref(a._array)
    del a
    gc.collect()
    assert held() is not None
    want = convolved(x, k).array
    assert same(c.array, want)
    gc.collect()
    assert held() is None

    a, b = x * 1.0, k * 1.0
    c = sp.conv2d(a, b)
    del a, b
    gc.collect()
    y = pool(c)
    del c
    gc.collect()
    assert same(y.array, chain(x, k, None, True)[2].array)
    assert np.isfinite(sp.get_gradients(sp.sum(y))[k]).all()


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_many_threads_need_the_same_value(alpha):
    x, k, _ = network(16, (8, 8), 2, 8)
    want = chain(x, k, alpha, True)
    want_g = sp.get_gradients(sp.sum(want[2]))[k]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    wrong = []
    try:
        for _ in range(25):
            c, h = chain(x, k, alpha)[:2]
            gate = threading.Barrier(6)

            def work(i, c=c, h=h, gate=gate):
                try:
                    gate.wait(20)
                    if i % 3 == 0:
                        assert same(c.array, want[0].array)
                    elif i % 3 == 1:
                        assert same(h.array, want[1].array)
                    else:
                        y = pool(h)
                        assert same(y.array, want[2].array)
                        g = sp.get_gradients(sp.sum(y))
                        assert same(g[k], want_g)
                        assert g[c].shape == c.shape and g[h].shape == h.shape
                except BaseException as error:
                    wrong.append(repr(error))

            threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_two_threads_need_values_of_other_kernels(monkeypatch):
    """What is in use stays in use: the second begins before the first ends, and ends after it."""
    x, k, _ = network(2, (5, 5), 2, 3)
    oracle = sp.kernels.reference.conv2d
    inside, done, order = threading.Event(), threading.Event(), iter("first second".split())

    def conv2d(images, kernels, window):
        if next(order) == "first":
            inside.wait(0.3)
        else:
            inside.set()
            done.wait(0.3)
        return oracle(images, kernels, window)

    def read(c):
        c.array  # noqa: B018
        done.set()

    def in_use():
        return sp.kernels.active(), sp.show_config("dict")["convolution"], sp.kernels.conv2d

    with sp.use_conv("auto"):
        before = in_use()
        with sp.use_kernels("reference"), sp.use_conv("direct"):
            first = convolved(x, k)
        with sp.use_kernels("reference"), sp.use_conv("winograd"):
            second = convolved(x, k)
        want = oracle(x.array, k.array, sp.Window((5, 5), (3, 3), (1, 1), "SAME"))
        monkeypatch.setattr(sp.kernels.reference, "conv2d", conv2d)
        threads = [threading.Thread(target=read, args=(c,)) for c in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert in_use() == before
        assert same(first.array, want) and same(second.array, want)


@pytest.mark.parametrize("alpha", [None, 0.1])
@pytest.mark.parametrize("after", range(4))
def test_a_value_that_is_computed_while_it_is_passed(alpha, after, monkeypatch):
    """By another thread, at each place where the one that passes it looks at what waits."""
    x, k, _ = network()
    want = chain(x, k, alpha, True)
    c, h = chain(x, k, alpha)[:2]
    later = (h if alpha else c)._held
    looks = []

    def spy(v, operation, original=core.not_computed):
        found = original(v, operation)
        looks.append(found)
        if found is not None and len([one for one in looks if one is not None]) == after:
            h.array, c.array  # noqa: B018
        return found

    monkeypatch.setattr(images_module, "not_computed", spy)
    y = pool(h)
    assert later is not None and looks
    assert same(y.array, want[2].array)
    g, want_g = sp.get_gradients(sp.sum(y)), sp.get_gradients(sp.sum(want[2]))
    assert agree(g[k], want_g[k]) and agree(g[x], want_g[x])
    assert agree(g[c], want_g[want[0]]) and agree(g[h], want_g[want[1]])


def test_an_error_where_the_value_is_read_and_a_second_read(monkeypatch):
    if sp.kernels.active() == "reference":
        pytest.skip("plain NumPy does not ask for memory there")
    x, k, _ = network()
    want = chain(x, k, 0.1, True)
    usual = _alloc.empty

    def fail(*args):
        raise MemoryError("planted")

    c, h, y = chain(x, k, 0.1, through=lambda x, k: sp.conv2d(x * 1.0, k))
    g = sp.get_gradients(sp.sum(y))
    for read, right in (
        (lambda: c.array, want[0].array),
        (lambda: h.array, want[1].array),
        (lambda: pool(sp.leaky_relu(sp.conv2d(x * 1.0, k * 1.0), 0.1)).array, want[2].array),
        (lambda: g[k], sp.get_gradients(sp.sum(want[2]))[k]),
        (lambda: g[c], sp.get_gradients(sp.sum(want[2]))[want[0]]),
    ):
        monkeypatch.setattr(_alloc, "empty", fail)
        for _ in range(2):
            with pytest.raises(MemoryError, match="planted"):
                read()
        assert c.shape == want[0].shape
        monkeypatch.setattr(_alloc, "empty", usual)
        assert same(read(), right)


# ------------------------------------------------------------ arrays that optimisers make


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_arrays_of_an_optimiser_are_nobody_elses(optimiser):
    x, k, _ = network(2, (5, 5), 2, 16)
    adam = sp.Adam()

    def step(v):
        g = {v: np.ones(v.shape)}
        adam.training_step([v], g) if optimiser == "adam" else sp.sgd_step([v], g)

    step(k)
    array = k._array
    assert k._private and k.array is array, "it may be had, and written to"
    assert not k._private
    array[...] = 0.5
    assert np.all(k.array == 0.5)
    step(k)
    assert k._array is not array and np.all(array == 0.5)

    now = k._array.copy()
    gradients = sp.get_gradients(sp.sum(sp.square(sp.conv2d(x, k))))
    k.array[...] = 0  # a copy: the gradients count on the other
    want = sp.get_gradients(sp.sum(sp.square(sp.conv2d(x, sp.Variable(now)))), [x])[x]
    assert agree(gradients[x], want)
    assert np.all(k.array == 0)

    step(k)
    gradients = sp.get_gradients(sp.sum(sp.square(sp.conv2d(x, k))))
    now = k._array.copy()
    step(k)
    step(k)
    want = sp.get_gradients(sp.sum(sp.square(sp.conv2d(x, sp.Variable(now)))), [x])[x]
    assert agree(gradients[x], want)

    step(k)
    view = np.asarray(k)
    c = sp.conv2d(x * 1.0, k)
    want = sp.conv2d(x, sp.Variable(k._array.copy())).array
    view[...] = 9
    assert same(c.array, want)


def test_a_step_with_gradients_that_wait(kernel_calls):
    """Two steps of training, the first's gradients read after the second."""
    x, k, _ = network()
    y = pool(sp.leaky_relu(sp.conv2d(x, k), 0.1))
    want = sp.get_gradients(sp.sum(y), [x])[x]
    gradients, adam = sp.get_gradients(sp.sum(y)), sp.Adam()
    for _ in range(2):
        adam.training_step([k], gradients)
        k.array[...] += 1
    assert same(gradients[x], want)
