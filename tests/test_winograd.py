"""Winograd's algorithm beside the direct kernels: as accurate, within bounds, the same bits."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import in_child, rng_for
from test_memory import guarded, guarded_results, needs_guards, poisoned_empty, results_from

import smallpebble as sp
from smallpebble import Window
from smallpebble.cli import accuracy
from smallpebble.kernels import reference

KERNELS = ("conv2d", "conv2d_grad_images", "conv2d_grad_kernels")
SHAPES = [  # n, h, w, c, m, padding
    (1, 3, 3, 1, 1, "VALID"),
    (1, 1, 1, 3, 2, "SAME"),
    (2, 5, 5, 16, 16, "VALID"),
    (3, 6, 5, 17, 33, "SAME"),
    (5, 7, 7, 31, 65, "VALID"),
    (4, 9, 4, 64, 16, "SAME"),
    (2, 17, 19, 15, 63, "VALID"),
    (1, 40, 30, 16, 20, "SAME"),
    (17, 8, 8, 32, 48, "SAME"),
    (2, 13, 13, 130, 34, "VALID"),
    (2, 8, 7, 65, 129, "SAME"),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def problem(shape, dtype):
    """The window, and the arguments of each of the three kernels."""
    n, h, w, c, m, padding = shape
    rng = rng_for("winograd", shape)
    window = Window((h, w), (3, 3), (1, 1), padding)
    images = rng.normal(size=(n, h, w, c)).astype(dtype)
    weights = rng.normal(size=(3, 3, c, m)).astype(dtype)
    g = rng.normal(size=(n, window.oh, window.ow, m)).astype(dtype)
    return {
        "conv2d": (images, weights, window),
        "conv2d_grad_images": (g, weights, window),
        "conv2d_grad_kernels": (g, images, window),
    }


def by(algorithm, tier, name, args):
    with sp.use_conv(algorithm):
        return getattr(tier, name)(*args)


def exact(name, args):
    """In at least twice the digits, or float64 where only sums of float32 are to be judged."""
    wide = np.float64 if args[0].dtype == np.float32 else np.longdouble
    return getattr(reference, name)(*(a.astype(wide) for a in args[:2]), args[2])


@every_shape
@both_dtypes
@pytest.mark.parametrize("name", KERNELS)
def test_within_the_bound_of_the_direct_sum(compiled, name, shape, dtype):
    """|error| <= (K + 2) u |A||B|, the bound that holds for a sum of K products in any order.

    Winograd's form has a larger constant in theory; at these points it keeps the same bound.
    """
    args = problem(shape, dtype)[name]
    got, want = by("winograd", compiled, name, args), exact(name, args)
    size = exact(name, (*(np.abs(a) for a in args[:2]), args[2]))
    terms = {"conv2d": 9 * shape[3], "conv2d_grad_images": 9 * shape[4]}
    # A tile is transformed as a whole, so that even a single product is rounded like a sum of nine.
    K = max(9, terms.get(name, args[0].size // shape[4]))
    assert got.dtype == dtype and got.flags.c_contiguous and got.flags.owndata
    # A tile mixes neighbouring outputs, so each is judged against the largest around it.
    bound = (K + 2) * np.finfo(dtype).eps / 2 * max(size.max(), np.finfo(dtype).tiny)
    assert np.all(np.abs(got - want) <= bound)


@functools.cache
def accurate(function, *what):
    """What `bench` prints of the accuracy, by tier: right results are formed once for all tiers."""
    if not accuracy.can_judge(what[-1]):
        pytest.skip("long double is no wider than double")
    tiers = [tier for tier, why_not in sp.kernels.tiers().items() if not why_not]
    tiers.remove("reference")
    return {row["tier"]: row for row in function(*what, tiers)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inputs", accuracy.INPUTS)
@pytest.mark.parametrize("name", accuracy.KERNELS)
def test_errors_over_the_zoo(compiled, name, inputs, dtype):
    """The direct kernel within its bound, Winograd's largest error at most twice the direct one's.

    The ratio is that of the largest errors over all shapes, for one draw of the numbers. For one
    shape it may be larger, and for shifted inputs in other draws (`smallpebble/cli/accuracy.py`).
    """
    row = accurate(accuracy.over_zoo, name, inputs, dtype)[compiled.__name__.rpartition("_")[2]]
    assert row["error_of_bound"] <= 1, row
    assert row.get("ratio", 0) <= accuracy.GOAL, row


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", accuracy.KERNELS)
def test_direct_kernels_keep_to_the_gate(compiled, name, dtype):
    """4 u |a||b| for the middle one of several draws, whatever K; a single draw may be above."""
    row = accurate(accuracy.at_gate, name, dtype)[compiled.__name__.rpartition("_")[2]]
    assert row["error_of_bound"] <= 1, row
    assert row["error_in_u"] <= accuracy.GATE, row


@both_dtypes
@pytest.mark.parametrize("name", KERNELS)
def test_the_same_bits_for_any_threads(compiled, name, dtype):
    for shape in (
        (9, 8, 8, 32, 48, "SAME"),
        (4, 40, 30, 16, 70, "VALID"),
        (1, 61, 30, 17, 20, "SAME"),
        (2, 49, 20, 33, 16, "VALID"),
    ):
        args = problem(shape, dtype)[name]
        with sp.num_threads(1):
            want = by("winograd", compiled, name, args).tobytes()
        for threads in (2, 3, 4, 7, 8):
            with sp.num_threads(threads):
                for _ in range(3):
                    assert by("winograd", compiled, name, args).tobytes() == want, threads


@needs_guards
@both_dtypes
@pytest.mark.parametrize("name", KERNELS)
def test_guard_pages_and_poisoned_results(compiled, name, dtype):
    def sweep(at):
        for shape in SHAPES:
            args = problem(shape, dtype)[name]
            want = by("winograd", compiled, name, args)
            with results_from(poisoned_empty):
                assert by("winograd", compiled, name, args).tobytes() == want.tobytes()
            for at_end in (True, False):
                at(name, dtype, shape, at_end)
                with guarded_results(at_end):
                    got = by("winograd", compiled, name, guarded(args, at_end))
                assert got.tobytes() == want.tobytes()

    in_child(sweep)


@pytest.mark.parametrize("name", KERNELS)
def test_inputs_are_left_alone(compiled, name):
    args = problem(SHAPES[4], np.float32)[name]
    before = [a.tobytes() for a in args[:2]]
    by("winograd", compiled, name, args)
    assert [a.tobytes() for a in args[:2]] == before


def test_other_windows_are_direct(compiled):
    """Where the algorithm does not apply, asking for it changes nothing."""
    rng = rng_for("other windows")
    for kernel, strides in (((5, 5), (1, 1)), ((3, 3), (2, 1)), ((1, 1), (1, 1)), ((3, 2), (1, 1))):
        window = Window((9, 9), kernel, strides, "SAME")
        args = rng.normal(size=(2, 9, 9, 16)), rng.normal(size=(*kernel, 16, 16)), window
        want = by("direct", compiled, "conv2d", args)
        assert by("winograd", compiled, "conv2d", args).tobytes() == want.tobytes()


def test_nan_spreads_no_further_than_its_tiles(compiled):
    n, h, w, c, m = 1, 15, 15, 16, 16
    images, weights, window = problem((n, h, w, c, m, "VALID"), np.float32)["conv2d"]
    images[0, 7, 7, 3] = np.nan
    direct = np.isnan(by("direct", compiled, "conv2d", (images, weights, window)))
    spread = np.isnan(by("winograd", compiled, "conv2d", (images, weights, window)))
    assert np.all(spread[direct]) and spread.any(axis=(0, 3)).sum() <= 36


def test_whole_numbers_are_exact_only_when_direct(compiled):
    rng = rng_for("whole")
    window = Window((14, 14), (3, 3), (1, 1), "SAME")
    images = rng.integers(-4, 5, (8, 14, 14, 16)).astype(np.float32)
    weights = rng.integers(-4, 5, (3, 3, 16, 16)).astype(np.float32)
    want = reference.conv2d(images.astype(np.float64), weights.astype(np.float64), window)
    assert np.array_equal(by("direct", compiled, "conv2d", (images, weights, window)), want)
    got = by("auto", compiled, "conv2d", (images, weights, window))
    assert not np.array_equal(got, want)  # so "auto" does take Winograd's algorithm here
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_the_algorithm_is_chosen_by_hand():
    before = sp.show_config("dict")["convolution"]
    with sp.use_conv("direct"):
        assert sp.show_config("dict")["convolution"] == "direct"
    assert sp.show_config("dict")["convolution"] == before
    for wrong in ("fft", "", None, 3):
        with pytest.raises(ValueError, match="choose one of auto, direct, winograd"):
            sp.use_conv(wrong)
    code = "import smallpebble as sp; print(sp.show_config('dict')['convolution'])"
    path = os.path.dirname(os.path.dirname(sp.__file__))
    for value, answer in (("direct", "direct"), ("", "auto"), ("fft", "ImportError")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "SMALLPEBBLE_CONV": value},
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
        )
        assert answer in done.stdout + done.stderr
