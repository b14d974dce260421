"""No kernel without an oracle, cases, a bound and a benchmark; and the judge itself is tried."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import rng_for

from smallpebble import kernels
from smallpebble.kernels import catalogue, reference
from smallpebble.kernels.catalogue import KERNELS, NAMES, compare, expect
from smallpebble.selftest import self_test

every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=NAMES)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def _functions(module):
    return {
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and inspect.isfunction(value)
    }


def _parameters(function):
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def test_every_oracle_is_listed():
    assert _functions(reference) == set(NAMES)


@every_kernel
def test_signature(tier, kernel):
    function = getattr(tier, kernel.name, None)
    assert function is not None, f"{tier.__name__} has no {kernel.name}"
    assert _parameters(function) == _parameters(kernel.oracle)


@every_kernel
def test_bound_by_name(kernel):
    assert getattr(kernels, kernel.name) is getattr(kernels.load(kernels.active()), kernel.name)
    assert kernel.name in kernels.__all__


@every_kernel
@both_dtypes
def test_cases(kernel, dtype):
    cases = kernel.cases
    labels = [label for label, _ in cases]
    assert len(labels) >= 10, f"{kernel.name} has too few cases"
    assert len(set(labels)) == len(labels), sorted(x for x in labels if labels.count(x) > 1)
    for label, make in cases:
        args = make(rng_for(label), dtype)
        reals = [a for a in args if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
        assert all(a.dtype == dtype for a in reals), label
        again = make(rng_for(label), dtype)
        one, two = (kernel.run(kernel.oracle, x) for x in (args, again))
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, two)), label


@every_kernel
def test_bench_rows(kernel):
    assert kernel.bench, f"{kernel.name} has no benchmark row"
    for label, make, work in kernel.bench:
        amount, unit = work(make(rng_for(label), np.float32))
        assert label
        assert isinstance(amount, int)
        assert amount > 1000
        assert unit in ("flop", "byte")


@every_kernel
@both_dtypes
def test_judge_sees_errors(kernel, dtype):
    label, make = kernel.cases[0]
    args = make(rng_for(label), dtype)
    expected = expect(kernel, args, dtype)
    right = [
        np.asarray(value, dtype) if value.dtype.kind == "f" else value for value, _ in expected
    ]
    assert compare(kernel, right, args, dtype) <= 1
    assert compare(kernel, right, args, dtype, expected) <= 1
    assert compare(kernel, [*right, right[0]], args, dtype) == np.inf
    for i, value in enumerate(right):

        def judge(wrong, i=i):
            return compare(kernel, [*right[:i], wrong, *right[i + 1 :]], args, dtype)

        other = {4: np.float64, 8: np.float32}.get(value.dtype.itemsize, np.int16)
        assert judge(value[None]) == np.inf
        assert judge(value.astype(other)) == np.inf
        allowed = expected[i][1]
        for at in (0, value.size // 2, value.size - 1):
            wrong = value.copy()
            if allowed is None or value.dtype.kind != "f":
                wrong.flat[at] += 1
                assert judge(wrong) == np.inf or allowed.flat[at]
                continue
            wrong.flat[at] += 3 * allowed.flat[at]
            assert 1 < judge(wrong) < 5
            for odd in (np.nan, np.inf):
                wrong.flat[at] = odd
                assert judge(wrong) == np.inf
    if kernel.bound is None and right[0].dtype.kind == "f":
        assert compare(kernel, [-x if x.dtype.kind == "f" else x for x in right], args, dtype)


def test_judge_tells_zeros_apart():
    zero = np.zeros(3, np.float32)
    assert not catalogue.same_bits(zero, -zero)
    assert catalogue.same_bits(zero * np.float32("nan"), -zero * np.float32("nan"))


def test_judge_takes_nan_and_infinity_where_they_belong():
    kernel = KERNELS["matmul"]
    a = np.array([[np.nan, 1.0], [np.inf, 1.0], [1.0, 1.0]])
    right = np.array([[np.nan], [np.inf], [2.0]])
    assert compare(kernel, right, (a, np.ones((2, 1))), np.float64) == 0
    assert compare(kernel, -right, (a, np.ones((2, 1))), np.float64) == np.inf


def test_whole_numbers_are_whole():
    rng = catalogue.WholeNumbers(rng_for("whole"))
    for kernel in KERNELS.values():
        if kernel.whole:
            args = kernel.cases[0][1](rng, np.float32)
            assert all(np.array_equal(a, np.round(a)) for a in args if isinstance(a, np.ndarray))
            assert all(not np.any(allowed) for _, allowed in expect(kernel, args, np.float32, True))


def test_self_test_passes(capsys):
    assert self_test() is True
    printed = capsys.readouterr().out
    usable = [name for name, reason in kernels.tiers().items() if reason is None]
    assert all(name in printed for name in (*usable[:-1], *(NAMES if usable[1:] else ())))


def test_self_test_reports(monkeypatch, capsys):
    """Wrong by a little, of the wrong dtype, or raising: told, not raised, and not confused."""

    def raises(*args):
        raise RuntimeError("planted")

    broken = {name: getattr(reference, name) for name in NAMES}
    broken["softmax"] = lambda a, axis=-1: reference.softmax(a, axis) * a.dtype.type(1.0001)
    broken["take"] = lambda a, indices: reference.take(a, indices).astype(np.float64)
    broken["matmul"] = raises
    monkeypatch.setattr(kernels, "load", lambda tier: SimpleNamespace(**broken))
    assert self_test("reference") is False
    lines = capsys.readouterr().out.splitlines()
    flagged = {line.split()[0] for line in lines if line.endswith("!")}
    assert flagged == {"softmax", "take", "matmul"}
    assert any("RuntimeError: planted" in line for line in lines)
    assert lines[-1].endswith("failures")
    assert self_test("reference", verbose=False) is False
    assert not capsys.readouterr().out


def test_self_test_of_unknown_tier():
    with pytest.raises(ValueError, match="unknown kernel tier"):
        self_test("avx1024")
