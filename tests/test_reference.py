"""The oracles themselves: against loops of plain Python, and linear ones against their adjoints."""

import math
from itertools import product

import numpy as np
import pytest
from conftest import rng_for

from smallpebble.kernels import reference
from smallpebble.kernels.catalogue import KERNELS
from smallpebble.shapes import Window

GEOMETRIES = [
    ((4, 5), (3, 2), (1, 1), "SAME"),
    ((4, 5), (3, 2), (1, 1), "VALID"),
    ((5, 4), (2, 3), (2, 1), "SAME"),
    ((5, 4), (2, 2), (2, 2), "VALID"),
    ((5, 5), (1, 1), (3, 2), "SAME"),
    ((2, 3), (5, 4), (1, 2), "SAME"),
    ((1, 1), (3, 3), (1, 1), "SAME"),
    ((5, 6), (2, 2), (3, 4), "SAME"),
]
windows = pytest.mark.parametrize("window", [Window(*g) for g in GEOMETRIES], ids=repr)
N, C, M = 2, 3, 4


def cells(window):
    """(oy, ox, ky, kx, iy, ix) for every cell of every window that lies on the image."""
    h, w, kh, kw, sy, sx, top, left, oh, ow = window
    for oy, ox, ky, kx in product(range(oh), range(ow), range(kh), range(kw)):
        iy, ix = oy * sy - top + ky, ox * sx - left + kx
        if 0 <= iy < h and 0 <= ix < w:
            yield oy, ox, ky, kx, iy, ix


def images_for(window):
    return rng_for(window).standard_normal((N, window.h, window.w, C))


def outputs_for(window, channels):
    return rng_for(window, "g").standard_normal((N, window.oh, window.ow, channels))


def weights_for(window):
    return rng_for(window, "k").standard_normal((window.kh, window.kw, C, M))


def near(a, b):
    assert np.shape(a) == np.shape(b)
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@windows
def test_windows_are_those_of_same_and_valid(window):
    """Every pixel that a convolution could see is seen: the list of cells above, by definition."""
    padding = next(g[3] for g in GEOMETRIES if Window(*g) == window)
    if padding == "SAME":
        assert window.oh == math.ceil(window.h / window.sy)
        assert window.ow == math.ceil(window.w / window.sx)
    else:
        assert (window.top, window.left) == (0, 0)
        assert (window.oh - 1) * window.sy + window.kh <= window.h
        assert window.oh * window.sy + window.kh > window.h


@windows
def test_taps(window):
    found = []
    for (ky, kx), (_, oys, oxs), (_, iys, ixs) in reference._taps(window):
        rows = zip(range(window.oh)[oys], range(window.h)[iys], strict=True)
        for oy, iy in rows:
            for ox, ix in zip(range(window.ow)[oxs], range(window.w)[ixs], strict=True):
                found.append((oy, ox, ky, kx, iy, ix))
    assert sorted(found) == sorted(cells(window))


@windows
def test_conv2d(window):
    images, weights = images_for(window), weights_for(window)
    g = outputs_for(window, M)
    y = np.zeros_like(g)
    d_images, d_weights = np.zeros_like(images), np.zeros_like(weights)
    for oy, ox, ky, kx, iy, ix in cells(window):
        for n, c, m in product(range(N), range(C), range(M)):
            y[n, oy, ox, m] += images[n, iy, ix, c] * weights[ky, kx, c, m]
            d_images[n, iy, ix, c] += g[n, oy, ox, m] * weights[ky, kx, c, m]
            d_weights[ky, kx, c, m] += g[n, oy, ox, m] * images[n, iy, ix, c]
    near(reference.conv2d(images, weights, window), y)
    near(reference.conv2d_grad_images(g, weights, window), d_images)
    near(reference.conv2d_grad_kernels(g, images, window), d_weights)


@windows
def test_patches(window):
    images = images_for(window)
    y = np.zeros((N, window.oh, window.ow, window.kh, window.kw, C))
    summed = np.zeros_like(images)
    g = rng_for(window, "p").standard_normal(y.shape)
    for oy, ox, ky, kx, iy, ix in cells(window):
        y[:, oy, ox, ky, kx] = images[:, iy, ix]
        summed[:, iy, ix] += g[:, oy, ox, ky, kx]
    near(reference.patches(images, window), y)
    near(reference.patches_sum(g, window), summed)


@windows
def test_pools(window):
    images, g = np.round(images_for(window)), outputs_for(window, C)
    under = {(oy, ox): [] for oy in range(window.oh) for ox in range(window.ow)}
    for oy, ox, ky, kx, iy, ix in cells(window):
        under[oy, ox].append((ky * window.kw + kx, iy, ix))
    values, means = np.zeros_like(g), np.zeros_like(g)
    indices = np.zeros(g.shape, np.uint8)
    scattered, spread = np.zeros_like(images), np.zeros_like(images)
    gathered_from = rng_for(window, "other").standard_normal(images.shape)
    gathered = np.zeros_like(g)
    for n, oy, ox, c in np.ndindex(g.shape):
        seen = under[oy, ox]
        best = max(seen, key=lambda cell: images[n, cell[1], cell[2], c])  # the first of equals
        indices[n, oy, ox, c], iy, ix = best
        values[n, oy, ox, c] = images[n, iy, ix, c]
        gathered[n, oy, ox, c] = gathered_from[n, iy, ix, c]
        scattered[n, iy, ix, c] += g[n, oy, ox, c]
        means[n, oy, ox, c] = sum(images[n, iy, ix, c] for _, iy, ix in seen) / len(seen)
        for _, iy, ix in seen:
            spread[n, iy, ix, c] += g[n, oy, ox, c] / len(seen)
    got_values, got_indices = reference.maxpool2d(images, window)
    near(got_values, values)
    assert np.array_equal(got_indices, indices)
    near(reference.maxpool2d_gather(gathered_from, indices, window), gathered)
    near(reference.maxpool2d_scatter(g, indices, window), scattered)
    near(reference.avgpool2d(images, window), means)
    near(reference.avgpool2d_grad_images(g, window), spread)


def test_dtype_of_pooling_indices():
    for kernel, dtype in (((16, 16), np.uint8), ((16, 17), np.int64)):
        window = Window((20, 20), kernel, (4, 4), "VALID")
        images = np.zeros((1, 20, 20, 1))
        images[0, kernel[0] - 1, kernel[1] - 1] = 1
        indices = reference.maxpool2d(images, window)[1]
        assert indices.dtype == dtype
        assert indices[0, 0, 0, 0] == kernel[0] * kernel[1] - 1


@pytest.mark.parametrize(
    ("large", "small"),
    [((2, 3, 4), (3, 1)), ((2, 3, 4), (2, 1, 4)), ((5,), ()), ((2, 3), (2, 3)), ((2, 0), (2, 1))],
)
def test_sum_to_and_broadcast_to(large, small):
    a = rng_for(large).standard_normal(large)
    b = rng_for(small).standard_normal(small)
    own = (1,) * (len(large) - len(small)) + small
    total, repeated = np.zeros(own), np.zeros(large)
    for i in np.ndindex(large):
        j = tuple(x if size > 1 else 0 for x, size in zip(i, own))
        total[j] += a[i]
        repeated[i] = b.reshape(own)[j]
    near(reference.sum_to(a, small), total.reshape(small))
    near(reference.broadcast_to(b, large), repeated)


def test_matmul():
    rng = rng_for("matmul")
    a, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5))
    y = np.zeros((2, 3, 5))
    for n, i, k, j in product(range(2), range(3), range(4), range(5)):
        y[n, i, j] += a[n, i, k] * b[k, j]
    near(reference.matmul(a, b), y)


def test_leaky_relu():
    a, g = np.array([-2.0, -0.0, 0.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])
    near(reference.leaky_relu(a, 0.1), [-0.2, 0, 0, 3])
    near(reference.leaky_relu_grad_a(g, a, 0.1), [0.1, 0.2, 0.3, 4])
    near(reference.leaky_relu(a), [-0.04, 0, 0, 3])


def test_softmax_family():
    a = rng_for("softmax").standard_normal((3, 4)) * 3
    labels, g = np.array([2, 0, 3]), np.array([1.0, -2.0, 0.5])
    p = np.array([[math.exp(x) / sum(math.exp(z) for z in row) for x in row] for row in a])
    near(reference.softmax(a), p)
    near(reference.softmax(a.T, 0), p.T)
    near(reference.log_softmax(a), [[math.log(x) for x in row] for row in p])
    near(reference.softmax_cross_entropy(a, labels), [-math.log(p[i, labels[i]]) for i in range(3)])
    want = [[g[i] * (p[i, j] - (j == labels[i])) for j in range(4)] for i in range(3)]
    near(reference.softmax_cross_entropy_grad_logits(g, a, labels), want)


def test_tables():
    a, b = np.arange(12.0).reshape(4, 3), np.arange(9.0).reshape(3, 3) + 0.5
    indices = [1, -1, 1]
    total = [list(row) for row in a]
    for i, row in zip(indices, b):
        total[i] = [x + y for x, y in zip(total[i], row)]
    near(reference.add_at(a, np.array(indices), b), total)
    near(reference.take(a, np.array(indices)), [a[i] for i in indices])


def test_adam_step():
    """Algorithm 1 of the paper, number by number, over three steps."""
    alpha, beta1, beta2, eps = 0.01, 0.9, 0.99, 1e-8
    x, m, v = 0.7, 0.0, 0.0
    parameters, means, variances = [np.array([x])], [np.zeros(1)], [np.zeros(1)]
    for t, g in enumerate((0.3, -1.2, 0.05), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        x -= alpha * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        parameters = reference.adam_step(
            parameters, [np.array([g])], means, variances, [t], alpha, beta1, beta2, eps
        )
        near(parameters[0], [x])
        near(means[0], [m])
        near(variances[0], [v])


# ------------------------------------------------------------------------------ adjoints


def inner(a, b):
    return float(np.sum(np.multiply(a, b)))


def check_adjoint(forward, adjoint, x, g):
    """<g, forward(x)> == <adjoint(g), x>."""
    y, back = forward(x), adjoint(g)
    assert y.shape == g.shape
    assert back.shape == x.shape
    left, right = inner(g, y), inner(back, x)
    assert abs(left - right) <= 1e-10 * (1 + np.abs(g).sum() + np.abs(x).sum())


@windows
def test_adjoints_over_windows(window):
    images, weights = images_for(window), weights_for(window)
    g = outputs_for(window, M)
    check_adjoint(
        lambda x: reference.conv2d(x, weights, window),
        lambda g: reference.conv2d_grad_images(g, weights, window),
        images,
        g,
    )
    check_adjoint(
        lambda x: reference.conv2d(images, x, window),
        lambda g: reference.conv2d_grad_kernels(g, images, window),
        weights,
        g,
    )
    p = rng_for(window, "p").standard_normal((N, window.oh, window.ow, window.kh, window.kw, C))
    check_adjoint(
        lambda x: reference.patches(x, window),
        lambda g: reference.patches_sum(g, window),
        images,
        p,
    )
    indices = reference.maxpool2d(images[::-1], window)[1]
    g = outputs_for(window, C)
    check_adjoint(
        lambda x: reference.maxpool2d_gather(x, indices, window),
        lambda g: reference.maxpool2d_scatter(g, indices, window),
        images,
        g,
    )
    check_adjoint(
        lambda x: reference.avgpool2d(x, window),
        lambda g: reference.avgpool2d_grad_images(g, window),
        images,
        g,
    )


def test_adjoints_of_sums_and_rows():
    rng = rng_for("adjoints")
    check_adjoint(
        lambda x: reference.broadcast_to(x, (2, 3, 4)),
        lambda g: reference.sum_to(g, (3, 1)),
        rng.standard_normal((3, 1)),
        rng.standard_normal((2, 3, 4)),
    )
    indices = np.array([2, 0, 2, -1])
    check_adjoint(
        lambda x: reference.take(x, indices),
        lambda g: reference.add_at(np.zeros((4, 3)), indices, g),
        rng.standard_normal((4, 3)),
        rng.standard_normal((4, 3)),
    )
    a = rng.standard_normal((5, 4))
    check_adjoint(
        lambda x: np.where(a > 0, x, 0.02 * x),
        lambda g: reference.leaky_relu_grad_a(g, a),
        rng.standard_normal((5, 4)),
        rng.standard_normal((5, 4)),
    )


def test_slope_of_the_loss():
    """softmax_cross_entropy_grad_logits is the derivative of softmax_cross_entropy."""
    rng = rng_for("slope")
    logits, labels, g = rng.standard_normal((3, 5)), np.array([4, 0, 2]), rng.standard_normal(3)
    direction, h = rng.standard_normal((3, 5)), 1e-6
    ahead = reference.softmax_cross_entropy(logits + h * direction, labels)
    behind = reference.softmax_cross_entropy(logits - h * direction, labels)
    slope = reference.softmax_cross_entropy_grad_logits(g, logits, labels)
    assert inner(g, (ahead - behind) / (2 * h)) == pytest.approx(inner(slope, direction), rel=1e-7)


# ------------------------------------------------------------------------------ what they refuse


@pytest.mark.parametrize("name", [n for n in KERNELS if n != "broadcast_to"])
def test_dtype_is_kept(name):
    """float16 and long double in, the same out: nothing is computed in some other precision."""
    kernel = KERNELS[name]
    for dtype in (np.float16, np.float32, np.float64, np.longdouble):
        label, make = kernel.cases[0]
        results = kernel.run(kernel.oracle, make(rng_for(label), dtype))
        assert all(r.dtype == dtype for r in results if r.dtype.kind == "f"), dtype


def test_window_and_arrays_must_fit():
    window = Window((4, 4), (3, 3), (1, 1), "VALID")
    images, weights = np.ones((1, 4, 4, 2)), np.ones((3, 3, 2, 5))
    g = np.ones((1, 2, 2, 5))
    for function, args in (
        (reference.conv2d, (images[:, :3], weights)),
        (reference.conv2d, (images[0], weights)),
        (reference.conv2d, (images, weights[:2])),
        (reference.conv2d, (images, weights[:, :, :1])),
        (reference.conv2d_grad_images, (g[:, :1], weights)),
        (reference.conv2d_grad_images, (g[..., :4], weights)),
        (reference.conv2d_grad_kernels, (g, images[:, :3])),
        (reference.conv2d_grad_kernels, (np.ones((2, 2, 2, 5)), images)),
        (reference.patches, (images[:, :3],)),
        (reference.patches_sum, (np.ones((1, 2, 2, 3, 2, 2)),)),
        (reference.maxpool2d, (images[:, :3],)),
        (reference.maxpool2d_gather, (images, np.zeros((1, 2, 2, 3), np.uint8))),
        (reference.maxpool2d_scatter, (g, np.zeros((1, 2, 2, 3), np.uint8))),
        (reference.avgpool2d, (images[:, :3],)),
        (reference.avgpool2d_grad_images, (g[:, :1],)),
    ):
        with pytest.raises(ValueError, match=function.__name__):
            function(*args, window)


@pytest.mark.parametrize(
    "dtype, pixel",
    [(bool, 1), ("u1", 255), ("i2", 10**4), ("i8", 10**4), ("f2", 30), ("f4", 30), (">f4", 30)],
)
def test_average_pooling_adds_in_a_dtype_that_can_hold_the_sum(dtype, pixel):
    """As by np.mean: integers have their mean in float64, and float16 is added in float32."""
    window = Window((64, 64), (64, 64), (1, 1), "VALID")
    images = np.full((1, 64, 64, 1), pixel, dtype)
    y = reference.avgpool2d(images, window)
    expected = np.mean(images, (1, 2), keepdims=True)
    assert np.array_equal(y, expected) and y.dtype == expected.dtype.newbyteorder("=")
    spread = reference.avgpool2d_grad_images(images[:, :1, :1], window)
    assert np.array_equal(spread, np.full(images.shape, expected / 64**2, spread.dtype))
    assert spread.dtype == y.dtype
