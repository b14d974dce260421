"""Convolution, leaky_relu and max pooling at once: the bits of the kernels one after another."""

import numpy as np
import pytest
from conftest import in_child, rng_for
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import REFUSALS, attempt_directly, layouts, pooled, put

import smallpebble as sp
from smallpebble import Window
from smallpebble.kernels import catalogue, reference
from smallpebble.kernels.catalogue import KERNELS, compare, same_bits

# n, c, (h, w, kh, kw, sy, sx, padding), m, and kh, kw, sy, sx, padding of the pool
SPECS = [
    *catalogue._POOLED,
    (16, 3, (8, 9, 3, 3, 1, 1, "SAME"), 19, 2, 2, 2, 2, "VALID"),
    (18, 35, (7, 7, 3, 3, 1, 1, "VALID"), 33, 2, 2, 2, 2, "SAME"),
    (33, 4, (4, 3, 3, 3, 1, 1, "SAME"), 16, 4, 3, 4, 3, "VALID"),
    (16, 2, (10, 13, 3, 3, 1, 1, "SAME"), 5, 10, 12, 11, 13, "SAME"),
    # rows of tiles that are taken one by one; several images in bands; pools that lie apart
    (1, 16, (29, 155, 3, 3, 1, 1, "VALID"), 16, 3, 2, 4, 5, "SAME"),
    (3, 16, (75, 5, 3, 3, 1, 1, "VALID"), 16, 5, 2, 7, 3, "VALID"),
    (5, 17, (40, 41, 3, 3, 1, 1, "SAME"), 18, 3, 3, 3, 3, "SAME"),
    (1, 2, (200, 170, 5, 3, 2, 1, "SAME"), 20, 7, 3, 9, 4, "SAME"),
    (2, 3, (50, 150, 3, 3, 1, 1, "SAME"), 33, 2, 2, 2, 2, "VALID"),
]
ALPHAS = (0.02, 1, 0, -0.5, 1e30, np.inf, np.nan)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
both_algorithms = pytest.mark.parametrize("algorithm", ["direct", "winograd"])


@pytest.fixture(autouse=True)
def _no_floating_point_warnings():
    with np.errstate(all="ignore"):
        yield


def operands(spec, dtype, what="numbers"):
    """Images, weights, a gradient, and the two windows."""
    n, c, geometry, m, *size, padding = spec
    rng = rng_for("pooled", spec, what)
    window = Window(geometry[:2], geometry[2:4], geometry[4:6], geometry[6])
    pool = Window((window.oh, window.ow), size[:2], size[2:], padding)
    images = rng.standard_normal((n, window.h, window.w, c)).astype(dtype)
    weights = rng.standard_normal((window.kh, window.kw, c, m)).astype(dtype)
    g = rng.standard_normal((n, pool.oh, pool.ow, m)).astype(dtype)
    if what == "zeros":  # of either sign, so that outputs are equal and -0.0 may show
        images = rng.choice(np.array([0.0, -0.0, 1], dtype), images.shape, p=[0.5, 0.4, 0.1])
        g = rng.choice(np.array([0.0, -0.0, 1], dtype), g.shape)
    if what == "odd":
        for array in (images, weights, g):
            odd = rng.choice([np.nan, np.inf, -np.inf], array.shape)
            np.copyto(array, odd.astype(dtype), where=rng.random(array.shape) < 3 / array.size)
    return images, weights, g, window, pool


def one_after_another(tier, images, weights, window, pool, alpha):
    largest, indices = tier.maxpool2d(tier.conv2d(images, weights, window), pool)
    return tier.leaky_relu(largest, alpha), indices + np.uint8(128) * ~(largest > 0)


def gradient_of_outputs(tier, g, codes, pool, alpha):
    slope = np.where(codes < 128, 1, alpha).astype(g.dtype)
    return tier.maxpool2d_scatter(g * slope, codes & np.uint8(127), pool)


def check(tier, images, weights, g, window, pool, alpha):
    want, codes = one_after_another(tier, images, weights, window, pool, alpha)
    got = tier.conv2d_maxpool2d(images, weights, window, pool, alpha)
    assert same_bits(got[0], want)
    assert same_bits(got[1], codes)
    outputs = gradient_of_outputs(tier, g, codes, pool, alpha)
    got = tier.conv2d_maxpool2d_grad_images(g, codes, weights, window, pool, alpha)
    assert same_bits(got, tier.conv2d_grad_images(outputs, weights, window))
    got = tier.conv2d_maxpool2d_grad_kernels(g, codes, images, window, pool, alpha)
    if window[2:6] != (1, 1, 1, 1):
        assert same_bits(got, tier.conv2d_grad_kernels(outputs, images, window))
    else:  # a matrix product alone, whose sums go in another order
        args = (outputs, images, window)
        assert compare(KERNELS["conv2d_grad_kernels"], [got], args, g.dtype) <= 1


@both_algorithms
@both_dtypes
@pytest.mark.parametrize("what", ["numbers", "zeros", "odd"])
def test_the_same_bits_at_once(tier, dtype, algorithm, what):
    with sp.use_conv(algorithm):
        for i, spec in enumerate(SPECS):
            for threads in (1, 3):
                with sp.num_threads(threads):
                    check(tier, *operands(spec, dtype, what), ALPHAS[i % 2])
        for alpha in ALPHAS[2:]:
            for spec in (SPECS[1], SPECS[8]):
                check(tier, *operands(spec, dtype, what), alpha)


def test_the_same_bits_at_any_size(tier):
    def sweep(at):
        @settings(max_examples=30)
        @given(
            spec=pooled(),
            dtype=st.sampled_from([np.float32, np.float64]),
            algorithm=st.sampled_from(["direct", "winograd"]),
            alpha=st.sampled_from(ALPHAS[:5]),
        )
        def one(spec, dtype, algorithm, alpha):
            at(np.dtype(dtype), algorithm, alpha, spec)
            with sp.use_conv(algorithm):
                check(tier, *operands(spec, dtype), alpha)

        one()

    in_child(sweep, seconds=100)


PICKED = [  # sums over the largest outputs alone; some take them on no tier or on one
    *catalogue._POOLED[9:12],
    (19, 16, (20, 18, 5, 3, 1, 2, "VALID"), 70, 2, 3, 2, 4, "SAME"),
    (150, 5, (9, 8, 3, 3, 1, 1, "SAME"), 31, 3, 2, 3, 3, "SAME"),
    (21, 130, (13, 10, 3, 3, 2, 1, "SAME"), 16, 2, 2, 2, 2, "VALID"),
]


@both_dtypes
@pytest.mark.parametrize("spec", PICKED, ids=str)
def test_sums_over_the_largest_outputs(tier, spec, dtype):
    """Right within the bound of a sum, its bits the same for any number of threads."""
    images, weights, g, window, pool = operands(spec, dtype)
    codes = tier.conv2d_maxpool2d(images, weights, window, pool, 0.02)[1]
    args = (g, codes, images, window, pool, 0.02)
    got = []
    for threads in (1, 2, 5):
        with sp.num_threads(threads):
            got.append(tier.conv2d_maxpool2d_grad_kernels(*args))
    assert same_bits(got[0], got[1]) and same_bits(got[0], got[2])
    assert compare(KERNELS["conv2d_maxpool2d_grad_kernels"], got[:1], args, dtype) <= 1
    elsewhere = np.empty(images.size + 1, dtype)[1:].reshape(images.shape)
    elsewhere[...] = images
    assert same_bits(got[0], tier.conv2d_maxpool2d_grad_kernels(g, codes, elsewhere, *args[3:]))


@both_dtypes
@pytest.mark.parametrize("spec", PICKED, ids=str)
def test_sums_over_the_largest_outputs_hide_nothing(tier, spec, dtype):
    """Numbers that are not finite show as they do in sums over all outputs."""
    images, weights, g, window, pool = operands(spec, dtype)
    codes = tier.conv2d_maxpool2d(images, weights, window, pool, 0.02)[1]
    for odd in (np.nan, np.inf, -np.inf):
        for which, at in ((0, 0), (0, -1), (0, 1234), (1, 0), (1, -1), (1, 567)):
            arrays = [images.copy(), g.copy()]
            arrays[which].flat[at] = odd
            args = (arrays[1], codes, arrays[0], window, pool, 0.02)
            got = tier.conv2d_maxpool2d_grad_kernels(*args)
            outputs = gradient_of_outputs(tier, arrays[1], codes, pool, 0.02)
            want = tier.conv2d_grad_kernels(outputs, arrays[0], window)
            assert np.array_equal(np.isfinite(got), np.isfinite(want)), (odd, which, at)


def test_the_slope_is_one_unless_said(tier):
    images, weights, g, window, pool = operands(SPECS[1], np.float32)
    y, codes = tier.conv2d_maxpool2d(images, weights, window, pool)
    assert same_bits(y, tier.maxpool2d(tier.conv2d(images, weights, window), pool)[0])
    assert np.array_equal(codes >= 128, y <= 0)
    for name, other in (("images", weights), ("kernels", images)):
        function = getattr(tier, f"conv2d_maxpool2d_grad_{name}")
        assert same_bits(
            function(g, codes, other, window, pool), function(g, codes, other, window, pool, 1)
        )


# ------------------------------------------------------------------------------ wrong arguments


def problems():
    """Where the three are computed at once, by either algorithm, and where they are not."""
    for n, c, m in ((2, 3, 5), (17, 3, 5), (17, 16, 33)):
        yield operands((n, c, (7, 8, 3, 3, 1, 1, "SAME"), m, 3, 3, 4, 3, "SAME"), np.float32)


def gradients(tier, images, weights, g, window, pool):
    """(name, function of the codes) for both."""
    for name, other in (("images", weights), ("kernels", images)):
        function = getattr(tier, f"conv2d_maxpool2d_grad_{name}")
        yield name, lambda codes, f=function, o=other: f(g, codes, o, window, pool, 0.5)


@both_algorithms
def test_codes_that_name_no_pixel(tier, algorithm):
    """Padding, beyond the window, the highest numbers: at every corner of the codes."""

    def sweep(at):
        for images, weights, g, window, pool in problems():
            good = tier.conv2d_maxpool2d(images, weights, window, pool, 0.5)[1]
            on_padding = np.ones(good.shape, np.uint8) * 255
            for cell in range(9):  # the first that lies beyond the image, if there is one
                seen = np.zeros(good.shape, bool)
                for (ky, kx), outputs, _ in reference._taps(pool):
                    seen[outputs] |= ky * 3 + kx == cell
                on_padding[~seen] = cell
            assert (on_padding != 255).any()
            for name, gradient in gradients(tier, images, weights, g, window, pool):
                assert gradient(good).dtype == np.float32
                for place in np.ndindex(2, 2, 2, 2):
                    place = tuple(-i for i in place)
                    for bad in (9, 10, 127, 128 + 9, 128 + 127, on_padding[place]):
                        at(name, good.shape, algorithm, place, bad)
                        codes = good.copy()
                        codes[place] = bad
                        with pytest.raises(IndexError, match="names no cell"):
                            gradient(codes)

    with sp.use_conv(algorithm):
        in_child(sweep)


def test_every_code_is_taken_as_the_oracle_takes_it(tier):
    def sweep(at):
        images, weights, g, window, pool = operands(
            (16, 2, (4, 5, 3, 3, 1, 1, "SAME"), 2, 3, 2, 3, 3, "SAME"), np.float64
        )
        shape = (16, pool.oh, pool.ow, 2)
        good = reference.conv2d_maxpool2d(images, weights, window, pool)[1]
        pairs = list(
            zip(*(gradients(t, images, weights, g, window, pool) for t in (tier, reference)))
        )
        for code in range(256):
            for place in ((0, 0, 0, 0), (15, shape[1] - 1, shape[2] - 1, 1), (7, 0, 1, 1)):
                codes = good.copy()
                codes[place] = code
                for (name, gradient), (_, oracle) in pairs:
                    at(name, code, place)
                    got = attempt_directly(gradient, (codes,))
                    want = attempt_directly(oracle, (codes,))
                    if isinstance(want, Exception):
                        assert isinstance(got, IndexError), (name, code, place)
                    else:
                        np.testing.assert_allclose(got[0], want[0], rtol=1e-9, atol=1e-9)

    in_child(sweep)


@pytest.mark.parametrize("n", [2, 17])
def test_codes_of_other_dtypes(tier, n):
    images, weights, g, window, pool = operands((n, *SPECS[1][1:]), np.float32)
    good = tier.conv2d_maxpool2d(images, weights, window, pool, 0.5)[1]
    for _, gradient in gradients(tier, images, weights, g, window, pool):
        want = gradient(good)
        for dtype in (np.int64, np.int32, np.uint64, ">i2"):
            np.testing.assert_allclose(gradient(good.astype(dtype)), want, rtol=1e-4, atol=1e-4)
        for bad in (-1, -128, 4, 127, 256, 257, 384, 2**31, 2**32, 2**63 - 1, -(2**63)):
            codes = good.astype(np.int64)
            codes[-1, 0, 0, 0] = bad
            with pytest.raises(IndexError, match="names no cell"):
                gradient(codes)
        for dtype in (float, complex, "U3"):
            with pytest.raises(REFUSALS):
                gradient(good.astype(dtype))


@both_algorithms
@pytest.mark.parametrize("n", [2, 17])
def test_codes_and_gradients_in_any_layout(tier, n, algorithm):
    images, weights, g, window, pool = operands(
        (n, 16, (7, 6, 3, 3, 1, 1, "SAME"), 18, 2, 2, 2, 2, "SAME"), np.float32
    )
    with sp.use_conv(algorithm):
        codes = tier.conv2d_maxpool2d(images, weights, window, pool, 0.5)[1]
        for other, name in ((weights, "images"), (images, "kernels")):
            function = getattr(tier, f"conv2d_maxpool2d_grad_{name}")
            args = (g, codes, other, window, pool, 0.5)
            want = function(*args)
            for i in range(3):
                for how, array in layouts(args[i]):
                    if "repeated" in how or "zero" in how:
                        continue
                    got = function(*put(args, (i,), array))
                    if tier is reference:
                        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
                    else:
                        assert same_bits(got, want), (name, i, how)


def test_windows_that_do_not_go_together(tier):
    """Overlapping, of too many cells, or over an image of another size than the outputs."""
    wrong = {
        "overlap": [
            ((13, 12), (3, 2), (2, 2)),
            ((13, 12), (2, 3), (2, 2)),
            ((13, 12), (2, 2), (1, 1)),
        ],
        "does not go over": [
            ((14, 12), (2, 2), (2, 2)),
            ((13, 11), (2, 2), (2, 2)),
            ((12, 13), (2, 2), (2, 2)),
        ],
        "128 cells": [((13, 12), (13, 10), (13, 10)), ((13, 12), (11, 12), (13, 12))],
    }
    for n in (2, 17):
        images, weights, g, window, _ = operands((n, *catalogue._POOLED[12][1:]), np.float32)
        codes = np.zeros(g.shape, np.uint8)
        for message, others in wrong.items():
            for sizes in others:
                other = Window(*sizes, "SAME")
                for name, arrays in {
                    "conv2d_maxpool2d": (images, weights),
                    "conv2d_maxpool2d_grad_images": (g, codes, weights),
                    "conv2d_maxpool2d_grad_kernels": (g, codes, images),
                }.items():
                    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
                        getattr(tier, name)(*arrays, window, other)


def test_gradients_and_codes_of_other_shapes(tier):
    for images, weights, g, window, pool in problems():
        codes = tier.conv2d_maxpool2d(images, weights, window, pool)[1]
        for a, b in (
            (g, codes[:-1]),
            (g[:-1], codes),
            (g, codes[..., :-1]),
            (g[..., None], codes),
            (g, codes[0]),
            (g[:, :-1], codes[:, :-1]),
            (g[..., :-1], codes[..., :-1]),
            (g, codes[:0]),
        ):
            for name, other in (("images", weights), ("kernels", images)):
                if name == "kernels" and a is not g and a.shape == (*g.shape[:3], g.shape[3] - 1):
                    continue  # there, the number of channels is the gradient's alone
                function = getattr(tier, f"conv2d_maxpool2d_grad_{name}")
                with pytest.raises(ValueError, match="do not fit"):
                    function(a, b, other, window, pool)
        with pytest.raises(ValueError, match="do not fit"):
            tier.conv2d_maxpool2d_grad_kernels(g, codes, images[:-1], window, pool)


def test_nan_goes_where_it_goes_one_after_another(tier):
    """A NaN beside zeros and beside numbers, in each operand, by the direct algorithm."""
    images, weights, _, window, pool = operands(SPECS[1], np.float32)
    for zeros in (False, True):
        for odd in (np.nan, np.inf, -np.inf):
            for at in (0, -1, 137):
                x = np.zeros_like(images) if zeros else images.copy()
                x.flat[at] = odd
                with sp.use_conv("direct"):
                    y, codes = tier.conv2d_maxpool2d(x, weights, window, pool, 0.5)
                    want = reference.conv2d_maxpool2d(
                        x.astype(np.longdouble), weights, window, pool, 0.5
                    )
                assert np.array_equal(np.isnan(y), np.isnan(want[0]))
                assert np.array_equal(np.isinf(y), np.isinf(want[0]))
                assert np.all(codes[np.isnan(y)] >= 128)


def test_nothing_is_changed_when_codes_are_wrong(compiled):
    images, weights, g, window, pool = next(problems())
    codes = np.full(g.shape, 255, np.uint8)
    before = [a.tobytes() for a in (images, weights, g, codes)]
    for _, gradient in gradients(compiled, images, weights, g, window, pool):
        with pytest.raises(IndexError):
            gradient(codes)
    assert [a.tobytes() for a in (images, weights, g, codes)] == before


def test_slopes_that_are_no_numbers(compiled):
    images, weights, g, window, pool = operands(SPECS[1], np.float32)
    codes = np.zeros(g.shape, np.uint8)
    for name, arrays in {
        "conv2d_maxpool2d": (images, weights),
        "conv2d_maxpool2d_grad_images": (g, codes, weights),
        "conv2d_maxpool2d_grad_kernels": (g, codes, images),
    }.items():
        for alpha in (None, "1", 1j, [], np.ones(3), 10**400):
            with pytest.raises(REFUSALS):
                getattr(compiled, name)(*arrays, window, pool, alpha)


def test_the_list_of_kernels_has_them_all():
    assert sum("conv2d_maxpool2d" in name for name in KERNELS) == 3
