"""The autodiff core: Variable, primitive, get_gradients, no_grad."""

import collections
import copy
import functools
import gc
import pickle
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import smallpebble as sp
from smallpebble import core

NUMPY_2 = int(np.__version__.split(".")[0]) >= 2


def variables(*shapes, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [sp.Variable(rng.uniform(0.5, 1.5, shape).astype(dtype)) for shape in shapes]


def counting(calls, linear=False):
    """A product of two that counts the calls of its rules, by input."""

    @functools.partial(sp.primitive, linear=linear)
    def counted(a, b):
        def rule_a(g, y, a, b):
            calls["a"] += 1
            return g * b

        def rule_b(g, y, a, b):
            calls["b"] += 1
            return g * a

        return a * b, rule_a, rule_b

    return counted


# -------------------------------------------------------------------------------------- Variable


@pytest.mark.parametrize(
    "value, kind, shape",
    [
        (1.5, "f", ()),
        (3, "i", ()),
        (True, "b", ()),
        ([1.0, 2.0], "f", (2,)),
        ([[1, 2], [3, 4]], "i", (2, 2)),
        ((True, False), "b", (2,)),
        (np.float32(2), "f", ()),
        (np.uint8([1, 2]), "u", (2,)),
        (range(3), "i", (3,)),
        ([], "f", (0,)),
    ],
)
def test_made_of_anything_numeric(value, kind, shape):
    v = sp.Variable(value)
    assert type(v.array) is np.ndarray
    assert (v.dtype.kind, v.shape, v.ndim) == (kind, shape, len(shape))
    assert v.size == v.array.size
    assert np.array_equal(v.array, np.asarray(value))


def test_an_ndarray_is_kept_as_it_is():
    for array in (np.zeros((2, 3), np.float32), np.zeros(4, ">f8")[::-2], np.zeros(2, np.float16)):
        assert sp.Variable(array).array is array


def test_a_matrix_becomes_an_ndarray():
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0, 2.0], [3.0, 4.0]])
    v = sp.Variable(matrix)
    assert type(v.array) is np.ndarray
    assert np.array_equal((v * v).array, [[1, 4], [9, 16]])


REFUSED = {
    "object": np.array([1, 2], object),
    "None": None,
    "str": "1.0",
    "str array": np.array(["1.0"]),
    "bytes": b"1",
    "complex": 1j,
    "complex array": np.ones(2, complex),
    "date": np.array(["2020-01-01"], "M8[D]"),
    "structured": np.zeros(2, [("x", float)]),
    "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    "ragged": [[1.0], [1.0, 2.0]],
    "Variable": sp.Variable(1.0),
    "list of text": ["a", "b"],
    "list of Variables": [sp.Variable(1.0), sp.Variable(2.0)],
    "nested list with a Variable": [[1.0, 2.0], (3.0, sp.Variable(2.0))],
    "set": {1.0},
    "dict": {},
    "generator": (i for i in range(3)),
    "huge integer": 10**30,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_real_numbers_is_refused(what):
    errors = ValueError if what == "ragged" else TypeError
    with pytest.raises(errors):
        sp.Variable(REFUSED[what])
    v = sp.Variable([1.0, 2.0])
    with pytest.raises(errors):
        v.array = REFUSED[what]
    assert np.array_equal(v.array, [1, 2])


def test_identity_is_equality_and_hash():
    a, b = sp.Variable([1.0, 2.0]), sp.Variable([1.0, 2.0])
    assert a == a and not (a == b) and a != b
    assert (a == a.array) is False and (a.array == a) is False and (a != a.array) is True
    assert {a: 1, b: 2}[b] == 2 and len({a, b, a}) == 2
    assert a in [b, a] and a not in [b]
    before = hash(a)
    a.array = np.zeros(3)
    assert hash(a) == before


def test_repr_says_shape_dtype_and_short_values():
    text = repr(sp.Variable(np.float32([[1.23456789, 2], [3, 4]])))
    assert "Variable" in text and "(2, 2)" in text and "float32" in text and "1.2346" in text
    big = repr(sp.Variable(np.zeros((50, 60, 70))))
    assert "(50, 60, 70)" in big and len(big) < 200 and "\n" not in big
    assert "learnable" in repr(sp.learnable(sp.Variable(1.0)))
    assert "learnable" not in text


def test_number_protocols():
    assert len(sp.Variable(np.zeros((4, 2)))) == 4
    with pytest.raises(TypeError):
        len(sp.Variable(1.0))
    assert float(sp.Variable([[2.5]])) == 2.5 and type(float(sp.Variable(3))) is float
    with pytest.raises((TypeError, ValueError)):
        float(sp.Variable([1.0, 2.0]))
    assert sp.Variable(np.float32(0.5)).item() == 0.5
    assert type(sp.Variable(np.float32(0.5)).item()) is float
    assert type(sp.Variable(7).item()) is int
    with pytest.raises(ValueError):
        sp.Variable([1.0, 2.0]).item()
    assert bool(sp.Variable(2.0)) is True and bool(sp.Variable([0])) is False
    with pytest.raises(ValueError):
        bool(sp.Variable([1.0, 2.0]))


def test_conversion_and_formatting():
    assert int(sp.Variable(3.9)) == 3 and type(int(sp.Variable([7]))) is int
    with pytest.raises((TypeError, ValueError)):
        int(sp.Variable([1.0, 2.0]))
    assert f"{sp.Variable(np.float32(1.23456)):.2f}" == "1.23"
    v = sp.Variable([1.0, 2.0])
    assert f"{v}" == str(v) == repr(v)
    with pytest.raises((TypeError, ValueError)):
        f"{v:.2f}"


def test_iteration_and_contains():
    v = sp.Variable([[1.0, 2.0], [3.0, 4.0]])
    first, second = v
    assert isinstance(first, sp.Variable) and np.array_equal(second.array, [3, 4])
    gradients = sp.get_gradients(sp.sum(first * second))
    assert np.array_equal(gradients[v], [[3, 4], [1, 2]])
    assert 3.0 in v and 5.0 not in v and np.float32(2) in v
    with pytest.raises(TypeError):
        iter(sp.Variable(1.0))
    with pytest.raises(TypeError):
        list(sp.Variable(1.0))


def test_numpy_gets_the_numbers():
    v = sp.Variable(np.float32([1, 2]))
    assert np.asarray(v) is v.array
    fresh = np.array(v)
    fresh[0] = 9
    assert v.array[0] == 1
    assert np.asarray(v, np.float64).dtype == np.float64
    assert np.array(v, np.float32) is not v.array
    same = np.array(v, np.float32)
    same[0] = 9
    assert v.array[0] == 1
    assert np.stack([v, v]).dtype == np.float32


@pytest.mark.skipif(not NUMPY_2, reason="the copy argument of __array__ came with NumPy 2")
def test_array_protocol_honours_copy_false():
    v = sp.Variable(np.float32([1, 2]))
    assert np.asarray(v, copy=False) is v.array
    with pytest.raises(ValueError):
        np.asarray(v, np.float64, copy=False)


def test_numpy_functions_refuse_rather_than_make_object_arrays():
    with pytest.raises(TypeError):
        np.exp(sp.Variable([1.0]))


def test_leaves_are_pickled_and_copied_with_their_flag():
    v = sp.learnable(sp.Variable(np.float32([1, 2])))
    v.local_gradients  # noqa: B018 - reading it must not make a computed Variable of it
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(v, protocol))
        assert np.array_equal(again.array, v.array) and again.dtype == np.float32
        assert again.is_learnable and again is not v
    deep = copy.deepcopy(v)
    deep.array[0] = 9
    assert v.array[0] == 1 and deep.is_learnable
    assert copy.copy(v).array is v.array
    assert not pickle.loads(pickle.dumps(sp.Variable(1.0))).is_learnable


@pytest.mark.parametrize("make", [sp.exp, lambda v: v[0], lambda v: v + 1])
@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_computed_variables_refuse_to_be_pickled_or_copied(make, duplicate):
    v = sp.Variable([1.0, 2.0])
    with pytest.raises(TypeError, match="stop_gradient"):
        duplicate(make(v))
    written = sp.Variable(1.0, [(v, lambda g: g)])
    with pytest.raises(TypeError):
        duplicate(written)
    assert isinstance(duplicate(sp.stop_gradient(make(v))), (sp.Variable, bytes))


# ------------------------------------------------------------------------------------- primitive


@sp.primitive
def cubed_times(a, b, factor=1):
    """a ** 3 * b * factor."""
    return (
        a * a * a * b * factor,
        lambda g, y, a, b: g * a * a * b * (3 * factor),
        lambda g, y, a, b: g * a * a * a * factor,
    )


def test_primitive_on_arrays_is_the_plain_function():
    y = cubed_times(np.array([1.0, 2.0]), np.array([3.0, 4.0]), 2)
    assert type(y) is np.ndarray and np.array_equal(y, [6, 64])
    assert cubed_times(2, 3) == 24
    assert cubed_times.__name__ == "cubed_times" and "factor" in cubed_times.__doc__


def test_primitive_takes_keywords_and_constants():
    a, b = variables((3,), (3,))
    expected = 6 * a.array**2 * b.array
    for y in (
        cubed_times(a, b, 2),
        cubed_times(a, b, factor=2),
        cubed_times(a, b=b, factor=2),
        cubed_times(a=a, b=b, factor=2),
        cubed_times(factor=2, b=b, a=a),
    ):
        assert np.allclose(y.array, 2 * a.array**3 * b.array)
        gradients = sp.get_gradients(y)
        assert np.allclose(gradients[a], expected)
        assert np.allclose(gradients[b], 2 * a.array**3)
    alone = cubed_times(a, np.full(3, 5.0))
    assert np.allclose(sp.get_gradients(alone)[a], 15 * a.array**2)
    assert list(sp.get_gradients(alone)) == [alone, a]


def test_primitive_at_orders_two_and_three():
    a, b = variables((3,), (3,), seed=3)
    first = sp.get_gradients(cubed_times(a, b), differentiable=True)
    second = sp.get_gradients(sp.sum(first[a]), differentiable=True)
    assert np.allclose(second[a].array, 6 * a.array * b.array)
    assert np.allclose(second[b].array, 3 * a.array**2)
    third = sp.get_gradients(sp.sum(second[a]))
    assert np.allclose(third[a], 6 * b.array)
    assert np.allclose(third[b], 6 * a.array)


def test_primitive_takes_parameters_of_any_kind():
    @sp.primitive
    def chosen(a, names, table=None, flags=()):
        keep = np.array([name in table for name in names.tolist()])
        return a * keep, lambda g, y, a: g * keep

    a = sp.Variable([1.0, 2.0])
    for names in (np.array(["x", "y"]), np.array(["x", "y"], object)):
        for y in (chosen(a, names, {"x": None}), chosen(a, names, table={"x"}, flags=[None])):
            assert np.array_equal(sp.get_gradients(y)[a], [1, 0])
        assert np.array_equal(chosen(np.ones(2), names, "x"), [1, 0])


def test_primitive_rule_none_means_no_gradient():
    @sp.primitive
    def scaled(a, scale):
        return a * scale, lambda g, y, a, scale: g * scale, None

    a, scale = variables((2,), (2,))
    gradients = sp.get_gradients(scaled(a, scale))
    assert np.array_equal(gradients[a], scale.array)
    assert scale not in gradients
    assert np.array_equal(sp.get_gradients(scaled(a, scale), wrt=scale)[scale], [0, 0])


def test_primitive_rule_of_the_wrong_shape_is_an_error_that_names_it():
    @sp.primitive
    def careless(a, b):
        return a + b, lambda g, y, a, b: g, lambda g, y, a, b: g

    a, b = variables((2, 3), (3,))
    with pytest.raises(ValueError, match=r"careless.*\(2, 3\).*\(3,\)"):
        sp.get_gradients(careless(a, b))[b]
    with pytest.raises(ValueError, match="careless"):
        sp.get_gradients(careless(a, b), wrt=[b])


def test_primitive_without_a_tuple_is_refused():
    @sp.primitive
    def forgot(a):
        return a * 2

    with pytest.raises(TypeError, match="forgot"):
        forgot(sp.Variable(np.ones(3)))
    with pytest.raises(TypeError, match="forgot"):
        forgot(np.ones(3))


@pytest.mark.parametrize("result", [None, "gradient", 1j, object()])
@pytest.mark.parametrize("form", ["primitive", "local_gradients"])
def test_a_rule_that_returns_no_real_numbers_is_an_error(form, result):
    @sp.primitive
    def broken(a):
        return a * 2, lambda g, y, a: result

    for shape in ((), (3,)):
        x = sp.Variable(np.ones(shape))
        y = broken(x) if form == "primitive" else sp.Variable(x.array, [(x, lambda g: result)])
        with pytest.raises((TypeError, ValueError)):
            sp.get_gradients(y)[x]


def test_a_variable_in_a_place_without_a_rule_is_refused():
    x, number = sp.Variable([-1.0, 2.0]), sp.Variable(0.5)
    with pytest.raises(TypeError, match="cubed_times"):
        cubed_times(x, x, number)
    with pytest.raises(TypeError, match="cubed_times"):
        cubed_times(x, x, factor=number)
    with pytest.raises(TypeError, match="leaky_relu"):
        sp.leaky_relu(x, number)
    with pytest.raises(TypeError, match="clip"):
        sp.clip(x, number)
    with pytest.raises(TypeError, match="clip"):
        sp.clip(x, high=number)


def test_primitive_of_what_cannot_be_called_is_refused():
    for what in (3, None, "sum"):
        if what is not None:
            with pytest.raises(TypeError):
                sp.primitive(what)


def test_primitive_of_a_callable_object():
    class Scale:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, a):
            return a * self.factor, lambda g, y, a: g * self.factor

    double = sp.primitive(Scale(2))
    triple = sp.primitive(functools.partial(lambda f, a: (a * f, lambda g, y, a: g * f), 3))
    x = sp.Variable([1.0, 2.0])
    assert np.array_equal(sp.get_gradients(double(triple(x)))[x], [6, 6])


# --------------------------------------------------------------- local_gradients, written by hand


def by_hand(a, b):
    """a * b with broadcasting, as operations were written for SmallPebble 3.0.5."""
    a_, b_ = sp.enable_broadcast(a, b)
    return sp.Variable(
        a.array * b.array,
        [(a_, lambda path: path * b.array), (b_, lambda path: path * a.array)],
    )


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (3,)), ((), (4, 2)), ((2, 1), (1, 3))])
def test_local_gradients_with_enable_broadcast(shapes):
    a, b = variables(*shapes)
    gradients = sp.get_gradients(sp.sum(sp.square(by_hand(a, b))))
    exact = sp.get_gradients(sp.sum(sp.square(a * b)))
    for v in (a, b):
        assert gradients[v].shape == v.shape
        assert np.allclose(gradients[v], exact[v])


def test_local_gradients_beside_library_operations_and_wrt():
    a, b = variables((2, 3), (3,))
    y = sp.sum(by_hand(sp.exp(a), b) * 2)
    gradients = sp.get_gradients(y, wrt=[a, b])
    assert np.allclose(gradients[a], 2 * np.exp(a.array) * b.array)
    assert np.allclose(gradients[b], 2 * np.exp(a.array).sum(0))


def test_local_gradients_broadcasting_matmul():
    a, b = variables((5, 2, 3), (3, 4))
    a_, b_ = sp.enable_broadcast(a, b, matmul=True)
    y = sp.Variable(
        a.array @ b.array,
        [
            (a_, lambda g: g @ np.swapaxes(b.array, -2, -1)),
            (b_, lambda g: np.swapaxes(a.array, -2, -1) @ g),
        ],
    )
    exact = sp.get_gradients(sp.matmul(a, b))
    gradients = sp.get_gradients(y)
    assert np.allclose(gradients[a], exact[a]) and np.allclose(gradients[b], exact[b])
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(4,\)"):
        sp.enable_broadcast(sp.Variable(np.ones((2, 3))), sp.Variable(np.ones(4)))


def test_local_gradients_can_be_assigned_and_changed():
    x, z = variables((2,), (2,))
    assert list(x.local_gradients) == []
    y = sp.Variable(x.array * 3)
    y.local_gradients = [(x, lambda g: g * 3)]
    assert np.array_equal(sp.get_gradients(y)[x], [3, 3])
    y.local_gradients.append((z, lambda g: g * 5))
    assert np.array_equal(sp.get_gradients(y)[z], [5, 5])
    y.local_gradients = ((x, lambda g: g * 7),)
    gradients = sp.get_gradients(y)
    assert np.array_equal(gradients[x], [7, 7]) and z not in gradients

    leaf = sp.Variable([1.0, 2.0])
    leaf.local_gradients.append((x, lambda g: g * 2))
    assert np.array_equal(sp.get_gradients(leaf)[x], [2, 2])

    pairs = [(x, lambda g: g)]
    own = sp.Variable(x.array, pairs)
    pairs.append((z, lambda g: g))
    assert z in sp.get_gradients(own)


def test_local_gradients_of_a_computed_variable():
    a, b = variables((2, 3), (3,))
    y = a * b
    assert [v for v, _ in y.local_gradients] == [a, b]
    g = np.ones((2, 3))
    assert np.allclose(y.local_gradients[0][1](g), np.broadcast_to(b.array, (2, 3)))
    # What is added must either count or be refused.
    try:
        y.local_gradients.append((a, lambda g: g))
    except (AttributeError, TypeError):
        assert np.allclose(sp.get_gradients(y)[a], np.broadcast_to(b.array, (2, 3)))
    else:
        assert np.allclose(sp.get_gradients(y)[a], np.broadcast_to(b.array, (2, 3)) + 1)


@pytest.mark.parametrize(
    "pairs", [[1], [(1, 2)], [(sp.Variable(1.0), 2)], [(sp.Variable(1.0),)], ["ab"], 5]
)
def test_local_gradients_of_the_wrong_form_are_refused(pairs):
    with pytest.raises(TypeError):
        sp.Variable(1.0, pairs)
    v = sp.Variable(1.0)
    with pytest.raises(TypeError):
        v.local_gradients = pairs


def test_local_gradients_may_return_numbers_and_lists():
    x = sp.Variable(np.zeros(3))
    y = sp.Variable(0.0, [(x, lambda g: [1, 2, 3])])
    assert np.array_equal(sp.get_gradients(y)[x], [1, 2, 3])
    y = sp.Variable(0.0, [(x, lambda g: 2)])
    gradient = sp.get_gradients(y)[x]
    assert np.array_equal(gradient, [2, 2, 2]) and gradient.dtype == np.float64
    y = sp.Variable(0.0, [(x, lambda g: np.ones(4))])
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        sp.get_gradients(y)[x]


def test_local_gradients_refuse_to_be_differentiated_twice():
    x, w = variables((2,), (2,))
    y = sp.sum(by_hand(sp.exp(x), w))
    with pytest.raises(TypeError, match="primitive"):
        sp.get_gradients(y, differentiable=True)
    with pytest.raises(TypeError, match="primitive"):
        sp.get_gradients(y, wrt=[x], differentiable=True)
    # Off the way to what is asked, it does not matter.
    z = sp.sum(sp.square(w)) + sp.Variable(1.0, [(x, lambda g: 2 * g)])
    gradient = sp.get_gradients(z, wrt=[w], differentiable=True)[w]
    assert np.allclose(sp.get_gradients(sp.sum(gradient))[w], [2, 2])


def test_a_cycle_is_an_error():
    x = sp.Variable(1.0)
    y = sp.exp(x)
    x.local_gradients = [(y, lambda g: g)]
    with pytest.raises(ValueError, match="cycle"):
        sp.get_gradients(y)
    x.local_gradients = [(x, lambda g: g)]
    with pytest.raises(ValueError, match="cycle"):
        sp.get_gradients(x)


# ---------------------------------------------------------------------------------- get_gradients


def test_every_rule_is_called_once_per_edge():
    calls = collections.Counter()
    product = counting(calls)
    y = x = sp.Variable(1.0)
    n = 60
    for _ in range(n):
        y = product(y, y)
    gradients = sp.get_gradients(y)
    assert gradients[x] == 2.0**n
    assert calls == {"a": n, "b": n}
    list(gradients.values())
    assert calls == {"a": n, "b": n}


def test_a_thousand_diamonds():
    x = sp.Variable(1.0)
    y = x
    for _ in range(1000):
        y = y + y
    gradients = sp.get_gradients(y)
    assert gradients[x] == 2.0**1000
    assert len(gradients) == 1001
    assert sp.get_gradients(y, wrt=x)[x] == 2.0**1000
    # Second derivative of 2**1000 * x**2: both passes go through all diamonds.
    z = x * x
    for _ in range(1000):
        z = z + z
    first = sp.get_gradients(z, wrt=x, differentiable=True)[x]
    assert sp.get_gradients(first, wrt=x)[x] == 2.0**1001


def test_a_hundred_thousand_operations_in_a_chain():
    calls = collections.Counter()

    @sp.primitive
    def nudge(a):
        def rule(g, y, a):
            calls["rule"] += 1
            return g

        return a + 1, rule

    n = 100_000
    x = y = sp.Variable(0.0)
    for _ in range(n):
        y = nudge(y)
    assert y.item() == n
    gradients = sp.get_gradients(y)
    assert len(gradients) == n + 1
    assert gradients[x] == 1
    assert calls["rule"] == n
    assert sp.get_gradients(y, wrt=[x])[x] == 1
    del gradients, y  # freed without recursion


def test_a_wide_graph():
    x = sp.Variable(2.0)
    y = sp.Variable(0.0)
    for i in range(5000):
        y = y + x * i
    assert sp.get_gradients(y)[x] == sum(range(5000))


def test_nothing_recursive_in_late_reading():
    x, w = variables((), ())
    y = x
    for _ in range(20_000):
        y = -y
    y = y * w
    gradients = sp.get_gradients(y)
    assert gradients[x] == w.array


def test_the_result_need_not_be_a_scalar():
    x = sp.Variable([[1.0, 2.0], [3.0, 4.0]])
    assert np.array_equal(sp.get_gradients(x * x)[x], 2 * x.array)
    y = sp.exp(x)
    assert np.array_equal(sp.get_gradients(y)[y], np.ones((2, 2)))
    assert np.array_equal(sp.get_gradients(x)[x], np.ones((2, 2)))


def test_gradients_are_used_like_a_dict():
    a, b = variables((2,), (2,))
    y = a * b
    gradients = sp.get_gradients(y)
    assert set(gradients) == {a, b, y} and next(iter(gradients)) is y
    assert len(gradients) == 3 and gradients
    assert a in gradients and sp.Variable(1.0) not in gradients and 3 not in gradients
    assert np.array_equal(gradients[a], b.array)
    assert gradients[a] is gradients[a]
    assert dict(gradients.items())[b] is gradients[b]
    assert all(any(v is k for k in (a, b, y)) for v in gradients.keys())
    assert len(list(gradients.values())) == 3
    as_dict = dict(gradients)
    assert type(as_dict) is dict and np.array_equal(as_dict[b], a.array)
    assert gradients.get(sp.Variable(1.0)) is None
    assert gradients.get(sp.Variable(1.0), 5) == 5
    assert np.array_equal(gradients.get(a), b.array)
    with pytest.raises(KeyError, match="wrt"):
        gradients[sp.Variable(1.0)]
    with pytest.raises(KeyError):
        gradients[3]
    assert "3" in repr(gradients)
    assert type(gradients.copy()) is dict and gradients.copy()[a] is gradients[a]


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_copy_of_gradients_is_another_mapping(differentiable):
    a, b = variables((2,), (2,))
    gradients = sp.get_gradients(a * b, differentiable=differentiable)
    read = gradients[b]
    other = copy.copy(gradients)
    assert type(other) is type(gradients) and list(other) == list(gradients)
    assert all(other[v] is gradients[v] for v in gradients), "as in the copy of a dict"
    assert other[b] is read
    other[a] = 0
    del other[b]
    assert np.array_equal(np.asarray(gradients[a]), b.array) and gradients[b] is read
    gradients[a] = 1
    assert other[a] == 0 and b not in other and len(gradients) == len(other) + 1


def test_gradients_can_be_assigned_and_deleted():
    a, b, other = variables((2,), (2,), (2,))
    gradients = sp.get_gradients(a * b)
    mine = np.array([7.0, 8.0])
    gradients[a] = mine
    assert gradients[a] is mine and len(gradients) == 3
    gradients[other] = mine
    assert other in gradients and len(gradients) == 4 and gradients[other] is mine
    gradients[b] *= 2
    assert np.array_equal(gradients[b], 2 * a.array)
    del gradients[a]
    assert a not in gradients and len(gradients) == 3
    with pytest.raises(KeyError):
        gradients[a]
    with pytest.raises(KeyError):
        del gradients[a]
    assert np.array_equal(gradients.pop(b), 2 * a.array)
    assert b not in gradients
    with pytest.raises(TypeError):
        gradients["a"] = mine
    gradients.update({a: mine})
    assert gradients[a] is mine
    gradients.clear()
    assert len(gradients) == 0 and list(gradients) == []


@pytest.mark.parametrize("wrt", [False, True])
def test_gradients_keep_whatever_is_assigned(wrt):
    a, b = variables((2,), (2,))
    gradients = sp.get_gradients(a * b, wrt=[a, b] if wrt else None)
    gradients[a] = None
    assert gradients[a] is None
    assert np.array_equal(gradients[b], a.array)


def test_gradients_handed_out_are_arrays():
    x = sp.Variable(3.0)
    for y in (x * x, x + x, x * x + x, sp.exp(x) * sp.square(x), sp.sum(x), x[()] + x):
        for gradient in sp.get_gradients(y).values():
            assert type(gradient) is np.ndarray and gradient.flags.writeable
        assert type(sp.get_gradients(y, wrt=x)[x]) is np.ndarray


def test_what_is_not_a_variable_is_refused():
    x = sp.Variable(1.0)
    for wrong in (1.0, np.ones(2), None, "x", [x]):
        with pytest.raises(TypeError, match="get_gradients"):
            sp.get_gradients(wrong)
    for wrong in (1.0, [1.0], [x, None], "xy", [[x]]):
        with pytest.raises(TypeError):
            sp.get_gradients(sp.exp(x), wrt=wrong)


# ------------------------------------------------------------------------------------------- wrt


def test_wrt_one_or_several():
    a, b, unrelated = variables((2, 3), (3,), (4,))
    y = sp.sum(a * b)
    gradients = sp.get_gradients(y, wrt=a)
    assert list(gradients) == [a] and np.array_equal(gradients[a], np.ones((2, 1)) * b.array)
    gradients = sp.get_gradients(y, wrt=[unrelated, b])
    assert list(gradients) == [unrelated, b] and a not in gradients
    assert np.array_equal(gradients[unrelated], np.zeros(4))
    assert gradients[unrelated].dtype == unrelated.dtype
    with pytest.raises(KeyError):
        gradients[a]
    assert list(sp.get_gradients(y, wrt=[a, a])) == [a]
    assert list(sp.get_gradients(y, wrt=(v for v in (b, a)))) == [b, a]
    assert len(sp.get_gradients(y, wrt=[])) == 0


def test_wrt_zeros_do_not_alias_the_variable():
    unrelated = sp.Variable(np.float32([1, 2]))
    gradient = sp.get_gradients(sp.exp(sp.Variable(1.0)), wrt=unrelated)[unrelated]
    assert gradient.dtype == np.float32
    gradient[:] = 5
    assert np.array_equal(unrelated.array, [1, 2])


def test_wrt_intermediate_variables_and_the_result():
    x = sp.Variable([1.0, 2.0])
    h = sp.exp(x)
    y = sp.sum(h * h)
    gradients = sp.get_gradients(y, wrt=[h, y, x])
    assert np.allclose(gradients[h], 2 * h.array)
    assert gradients[y] == 1
    assert np.allclose(gradients[x], 2 * h.array**2)


def test_wrt_limits_the_walk():
    calls = collections.Counter()
    product = counting(calls)
    a, b, c, d = variables((), (), (), ())
    left, right = product(a, b), product(c, d)
    y = product(left, right)

    assert sp.get_gradients(y, wrt=b)[b] == a.array * right.array
    assert calls == {"a": 1, "b": 1}  # y to left, left to b

    calls.clear()
    sp.get_gradients(y, wrt=left)
    assert calls == {"a": 1}

    calls.clear()
    sp.get_gradients(y, wrt=sp.Variable(1.0))
    assert calls == {}

    calls.clear()
    sp.get_gradients(y, wrt=[a, c])
    assert calls == {"a": 3, "b": 1}


# ------------------------------------------------------------------ what nobody reads costs nothing


@pytest.mark.parametrize(
    "front",
    [
        lambda x: x,
        lambda x: sp.astype(x, np.float32),
        lambda x: sp.reshape(x, (3, 2)),
        lambda x: sp.transpose(sp.reshape(x, (2, 3))),
        lambda x: sp.astype(sp.expand_dims(x, 0), np.float32)[0].reshape(3, 2),
    ],
    ids=["leaf", "astype", "reshape", "transpose", "several"],
)
def test_the_rule_of_an_unread_leaf_is_never_called(front):
    calls = collections.Counter()
    product = counting(calls)
    x, w = variables((6,), ())
    h = front(x)
    w = sp.Variable(np.full(h.shape, 2, h.dtype))
    y = sp.sum(product(h, w))
    gradients = sp.get_gradients(y)
    assert calls == {}
    gradients[w]
    assert calls == {"b": 1}
    gradients[w]
    assert calls == {"b": 1}
    assert np.array_equal(gradients[x], np.full(6, 2.0))
    assert calls == {"a": 1, "b": 1}
    gradients[h]
    dict(gradients)
    assert calls == {"a": 1, "b": 1}


def test_gradients_of_learnable_leaves_do_not_wait():
    calls = collections.Counter()
    product = counting(calls)
    x, w = variables((3,), (3,))
    sp.learnable(w)
    gradients = sp.get_gradients(sp.sum(product(x, sp.reshape(w, (3,)))))
    assert calls == {"b": 1}
    assert np.array_equal(gradients[w], x.array) and calls == {"b": 1}
    assert np.array_equal(gradients[x], w.array) and calls == {"a": 1, "b": 1}


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_training_copies_no_batch(layer):
    """The gradients of the parameters alone need the numbers of the batch."""
    if layer == "linear":
        x, layer = np.ones((1000, 1000), np.float32), sp.linearlayer(1000, 2)
    else:
        x, layer = np.ones((40, 50, 50, 10), np.float32), sp.convlayer(3, 3, 10, 1, strides=(3, 3))
    loss = sp.sum(sp.square(layer(sp.Variable(x)).run()))
    tracemalloc.start()
    try:
        gradients = sp.get_gradients(loss)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes / 4
    finally:
        tracemalloc.stop()
    assert len(gradients) > 3


def test_the_mapping_itself_reads_nothing():
    calls = collections.Counter()
    product = counting(calls)
    a, b = variables((), ())
    gradients = sp.get_gradients(product(a, b))
    assert a in gradients and len(gradients) == 3 and list(gradients) and repr(gradients)
    del gradients[b]
    assert calls == {}


# ------------------------------------------------------------------------------------ late reads


class Graph:
    """A graph and everything in it that a user could write to."""

    def __init__(self, name, seed=0):
        rng = np.random.default_rng(seed)

        def real(*shape):
            array = rng.uniform(0.5, 1.5, shape)
            self.own.append(array)
            return array

        self.own = []  # the arrays as they were handed in
        self.plain = []  # constants: arrays, indices, masks
        self.leaves, self.middle = [], []
        self.result = GRAPHS[name](self, real)

    def leaf(self, array):
        v = sp.Variable(array)
        self.leaves.append(v)
        return v

    def constant(self, array):
        array = np.array(array)
        self.plain.append(array)
        return array

    def keep(self, v):
        self.middle.append(v)
        return v


def _dense(graph, real):
    x, w, b = graph.leaf(real(4, 3)), graph.leaf(real(3, 2)), graph.leaf(real(2))
    batch = graph.constant(real(4, 3))
    h = graph.keep(sp.matmul(sp.astype(x, np.float64) + batch, w))
    h = graph.keep(sp.tanh(h + b))
    return graph.keep(sp.sum(graph.keep(h * h)))


def _layers(graph, real):
    h = graph.leaf(real(4, 3))
    for n, is_learnable in ((3, True), (4, False), (2, True)):
        layer = sp.linearlayer(h.shape[1], n, dtype=np.float64, rng=0)
        w, b = sp.get_learnables(layer(h))
        for v in (w, b):
            v.array = real(*v.shape)
            v.is_learnable = is_learnable
            graph.leaves.append(v)
        h = graph.keep(layer(h).run())
    return graph.keep(sp.sum(h * h))


def _plain_batch(graph, real):
    images = graph.constant(real(5, 3))
    w, v = graph.leaf(real(3, 4)), graph.leaf(real(4))
    h = graph.keep(sp.sigmoid(graph.keep(sp.matmul(images, w))))
    return sp.sum(sp.matmul(h, v))


def _elementwise(graph, real):
    a, b, c, d = (graph.leaf(real(2, 3)) for _ in range(4))
    bound = graph.constant(np.full((2, 3), 1.0))
    y = graph.keep(sp.div(a, b)) + sp.power(c, d) + graph.keep(sp.exp(a)) * graph.keep(sp.log(b))
    y = y + sp.maximum(a, c) * sp.minimum(b, d) + sp.clip(a, bound) * sp.square(d)
    return y + sp.sqrt(c) + sp.abs(d) * sp.leaky_relu(b) + sp.relu(c) * a


def _indices(graph, real):
    a, b = graph.leaf(real(5, 2)), graph.leaf(real(3, 2))
    where = graph.constant([True, False, True])
    rows, mask = graph.constant([0, 2, 2]), graph.constant([True, False, True, True, False])
    y = graph.keep(a[rows]) * b
    y = y + graph.keep(sp.setat(a, rows, b))[rows] * sp.add_at(a, rows, b)[rows]
    y = y + a[mask] * sp.where(where[:, None], b, a[rows])
    y = y + sp.add_at(a, graph.constant([4, 4, 1]), b)[2:] * a[1:4]
    return y + a[graph.constant([1]), graph.constant([0, 1])]


def _images(graph, real):
    x, k1, k2 = (
        graph.leaf(real(2, 6, 6, 2)),
        graph.leaf(real(3, 3, 2, 3)),
        graph.leaf(real(2, 2, 3, 2)),
    )
    h = graph.keep(sp.leaky_relu(graph.keep(sp.conv2d(x, k1))))
    h = graph.keep(sp.maxpool2d(h, 2, 2, strides=(2, 2)))
    h = graph.keep(sp.conv2d(h, k2, "VALID"))
    return sp.sum(sp.square(graph.keep(sp.avgpool2d(h, 2, 2))))


def _classifier(graph, real):
    x, w = graph.leaf(real(4, 3)), graph.leaf(real(3, 5))
    labels = graph.constant([1, 0, 4, 2])
    p = graph.keep(sp.softmax(graph.keep(sp.matmul(x, w))))
    return sp.cross_entropy(p, labels) + sp.sum(sp.square(p))


def _logits(graph, real):
    x, w = graph.leaf(real(4, 3)), graph.leaf(real(3, 5))
    labels = graph.constant([1, 0, 4, 2])
    h = graph.keep(sp.matmul(x, w))
    loss = sp.softmax_cross_entropy(h, labels) + sp.sum(sp.logsumexp(h, axis=0))
    return loss + sp.sum(sp.log_softmax(h) * sp.log_softmax(x @ w))


def _shaped(graph, real):
    a, b = graph.leaf(real(4, 6)), graph.leaf(real(4, 1))
    h = sp.concatenate([graph.keep(a.T.reshape(4, 6)), sp.broadcast_to(b, (4, 6))], axis=1)
    h = graph.keep(sp.pad(h, 1))[1:-1, 2:]
    h = h * graph.keep(sp.stack([b, b], 0)).sum()
    h = h * sp.mean(a, 1, True) * sp.max(a, 0).reshape(6)[0] - sp.min(a)
    return h * sp.sum(sp.strided_sliding_view(a, (2, 2), (1, 2)))


def _views(graph, real):
    """Results that share their memory with what they were made from, and with each other."""
    a, b, c = graph.leaf(real(2, 3)), graph.leaf(real(2, 3)), graph.leaf(real(6))
    h = sp.exp(a)
    flat, same = graph.keep(sp.reshape(h, (6,))), graph.keep(sp.astype(h, np.float64))
    turned, row = graph.keep(sp.transpose(same)), graph.keep(h[0])
    y = sp.sum(h * b) + sp.sum(flat * c) + sp.sum(turned * b.T) + sp.sum(row * b[1])
    own = graph.keep(sp.astype(b, np.float64))
    return y + sp.sum(sp.square(own) * a) + sp.sum(sp.matmul(turned, own))


def _written(graph, real):
    w, u = graph.leaf(real(3)), graph.leaf(real(3))
    for front in (lambda x: x, sp.neg, lambda x: sp.expand_dims(x, 0)[0].reshape(3)):
        u = by_hand(graph.keep(front(graph.leaf(real(3)))), w) + u
    return sp.sum(u)


def _only_linear(graph, real):
    a, b = graph.leaf(real(3)), graph.leaf(real(3))
    return a + b


GRAPHS = {
    "dense": _dense,
    "layers": _layers,
    "plain batch": _plain_batch,
    "elementwise": _elementwise,
    "indices": _indices,
    "images": _images,
    "classifier": _classifier,
    "logits": _logits,
    "shaped": _shaped,
    "views": _views,
    "written": _written,
    "only linear": _only_linear,
}


def _overwrite(array):
    if array.flags.writeable:
        array[...] = 0


def _adam(graph, gradients, target):
    sp.Adam(0.1).training_step([v for v in graph.leaves if v is not target], gradients)


def _sgd_on_all(graph, gradients, target):
    sp.sgd_step(graph.leaves, {v: np.ones(v.shape) for v in graph.leaves}, 0.5)


def _rebind(graph, gradients, target):
    for v in graph.leaves + graph.middle + [graph.result]:
        v.array = np.full(v.shape, 7.0)


def _rebind_to_another_shape(graph, gradients, target):
    for v in graph.leaves + graph.middle + [graph.result]:
        v.array = np.full((2, 7), 7.0)


def _rebind_to_another_dtype(graph, gradients, target):
    for v in graph.leaves + graph.middle + [graph.result]:
        v.array = v.array.astype(np.float32)


def _write_leaves(graph, gradients, target):
    for v in graph.leaves:
        _overwrite(v.array)


def _write_what_was_handed_in(graph, gradients, target):
    for array in graph.own:
        _overwrite(array)


def _write_constants(graph, gradients, target):
    for array in graph.plain:
        _overwrite(array)


def _write_intermediates(graph, gradients, target):
    for v in graph.middle:
        _overwrite(v.array)


def _write_intermediates_through_numpy(graph, gradients, target):
    for v in graph.middle:
        _overwrite(np.asarray(v))


def _write_result(graph, gradients, target):
    _overwrite(graph.result.array)


def _write_gradients(graph, gradients, target):
    for v in list(gradients):
        if v is not target:
            gradients[v][...] = 99


def _assign_gradients(graph, gradients, target):
    for v in list(gradients):
        if v is not target:
            gradients[v] = np.full(v.shape, 99.0)


def _delete_gradients(graph, gradients, target):
    for v in list(gradients):
        if v is not target:
            del gradients[v]


def _forget_the_graph(graph, gradients, target):
    graph.middle.clear()
    graph.leaves[:] = [target]
    graph.result = None


DISTURBANCES = [
    _adam,
    _sgd_on_all,
    _rebind,
    _rebind_to_another_shape,
    _rebind_to_another_dtype,
    _write_leaves,
    _write_what_was_handed_in,
    _write_constants,
    _write_intermediates,
    _write_intermediates_through_numpy,
    _write_result,
    _write_gradients,
    _assign_gradients,
    _delete_gradients,
    _forget_the_graph,
]


@functools.cache
def _expected(name):
    graph = Graph(name)
    gradients = sp.get_gradients(graph.result, wrt=graph.leaves)
    return [gradients[v].copy() for v in graph.leaves]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("seen_before", [False, True], ids=["", "seen before"])
def test_a_gradient_read_late_is_the_right_one(name, disturb, seen_before):
    for i, expected in enumerate(_expected(name)):
        graph = Graph(name)
        if seen_before:
            for v in graph.middle:
                v.array  # noqa: B018 - a user who looks at a value may write to it
        target = graph.leaves[i]
        gradients = sp.get_gradients(graph.result)
        disturb(graph, gradients, target)
        got = gradients[target]
        assert got.shape == expected.shape and got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(
    "rebind", [_rebind_to_another_shape, _rebind_to_another_dtype, _rebind, _sgd_on_all]
)
@pytest.mark.parametrize("wrt", [False, True], ids=["all", "wrt"])
def test_rebinding_before_get_gradients_changes_nothing(name, rebind, wrt):
    if name == "written":
        pytest.skip("functions written by hand read the arrays when they are called")
    graph = Graph(name)
    rebind(graph, None, None)
    gradients = sp.get_gradients(graph.result, wrt=graph.leaves if wrt else None)
    _write_what_was_handed_in(graph, None, None)
    for v, expected in zip(graph.leaves, _expected(name)):
        np.testing.assert_allclose(gradients[v], expected, rtol=1e-12)


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_alias_nothing(name):
    graph = Graph(name)
    before = [a.copy() for a in graph.own + graph.plain]
    gradients = sp.get_gradients(graph.result)
    out = list(gradients.values())
    others = graph.own + graph.plain + [v.array for v in graph.leaves + graph.middle]
    others.append(graph.result.array)
    for i, one in enumerate(out):
        assert one.flags.writeable
        assert not any(np.shares_memory(one, other) for other in out[:i] + others)
    for one in out:
        one[...] = 99
    assert all(np.array_equal(a, b) for a, b in zip(graph.own + graph.plain, before))
    again = sp.get_gradients(graph.result)
    for v, expected in zip(graph.leaves, _expected(name)):
        np.testing.assert_allclose(again[v], expected, rtol=1e-12)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_gradient_is_right_after_the_others_were_read_and_overwritten(name):
    graph = Graph(name)
    everything = sp.get_gradients(graph.result)
    exact = [gradient.copy() for gradient in everything.values()]
    for i, expected in enumerate(exact):
        graph = Graph(name)
        gradients = sp.get_gradients(graph.result)
        target = list(gradients)[i]
        for v in reversed(list(gradients)):
            if v is not target:
                gradients[v][...] = 99
        np.testing.assert_allclose(gradients[target], expected, rtol=1e-12)


def test_an_array_assigned_to_a_computed_variable_is_the_users():
    a, w = variables((3,), (3,))
    mine = np.array([1.0, 2.0, 3.0])
    h = sp.exp(a)
    h.array = mine
    assert h.array is mine
    gradients = sp.get_gradients(sp.sum(h * w))
    mine[:] = 0
    assert np.array_equal(gradients[w], [1, 2, 3])

    h = sp.exp(a)
    gradients = sp.get_gradients(sp.sum(h * w))
    h.array = mine
    assert h.array is mine
    assert np.allclose(gradients[w], np.exp(a.array))


def test_views_made_after_get_gradients_share_nothing_with_what_is_still_needed():
    for view in (
        lambda h: sp.reshape(h, (3, 1)),
        lambda h: sp.transpose(h),
        lambda h: h[1:],
        lambda h: sp.astype(h, np.float64),
        lambda h: sp.strided_sliding_view(h, (2,), (1,)),
        lambda h: sp.stop_gradient(h),
        lambda h: sp.Variable(np.asarray(h)),
    ):
        a, w = variables((3,), (3,))
        h = sp.exp(a)
        gradients = sp.get_gradients(sp.sum(h * w))
        view(h).array.flags.writeable and view(h).array.fill(0)
        other = view(h).array
        if other.flags.writeable:
            other[...] = 0
        assert np.allclose(gradients[w], np.exp(a.array))


def test_rules_that_return_what_they_were_given_do_not_make_gradients_alias():
    @sp.primitive
    def form(a, b):
        return np.sum(a * b) + np.sum(b * b) / 2, lambda g, y, a, b: b, lambda g, y, a, b: a + b

    a, b = variables((3,), (3,))
    gradients = sp.get_gradients(form(a, b))
    gradients[a][:] = 0
    assert np.array_equal(gradients[b], a.array + b.array)
    assert np.all(b.array != 0)

    ones = np.ones(3)

    @sp.primitive
    def plain_sum(a, b):
        return np.sum(a + b), lambda g, y, a, b: ones, lambda g, y, a, b: ones

    gradients = sp.get_gradients(plain_sum(a, b))
    gradients[a][:] = 0
    assert np.array_equal(gradients[b], [1, 1, 1])


def test_a_rule_of_the_users_may_use_its_arrays_again():
    buffer, kept = np.empty(2), np.ones(2)

    def by_hand(a):
        return sp.Variable(a.array * 2, [(a, lambda g: np.multiply(g, 2, out=buffer))])

    @sp.primitive
    def doubled(a):
        return a * 2, lambda g, y, a: np.multiply(g, 2, out=buffer)

    for double in (by_hand, doubled):
        x = sp.Variable(np.ones(2))
        h = double(x)
        y = double(h)
        gradients = sp.get_gradients(y)
        assert [gradients[v].tolist() for v in (y, h, x)] == [[1, 1], [2, 2], [4, 4]]
        gradients = sp.get_gradients(double(x) + double(x))  # a sum of what lies in one buffer
        buffer[:] = 7
        assert gradients[x].tolist() == [4, 4]
        mine = gradients[x]
        double(x).local_gradients[0][1](np.ones(2))
        assert mine.tolist() == [4, 4]

    @sp.primitive
    def same(a):
        return a * 1, lambda g, y, a: kept

    x, w = sp.Variable(np.array([3.0, 4.0])), sp.Variable(np.array([5.0, 6.0]))
    for y in (same(x * w), sp.Variable(x.array, [(x * w, lambda g: kept)])):
        gradients = sp.get_gradients(y)
        kept[:] = 100
        assert gradients[x].tolist() == [5, 6]
        kept[:] = 1

    for y in (same(x), sp.Variable(x.array, [(x, lambda g: kept)])):
        gradients = sp.get_gradients(y)
        gradients[x][:] = 9
        assert kept.tolist() == [1, 1]


def test_a_function_of_the_users_may_keep_the_gradient_that_it_is_given():
    seen = []

    def watched(a):
        return sp.Variable(a.array, [(a, lambda g: seen.append(g) or g)])

    x = sp.Variable(np.ones(2))
    y = watched(x * 2)
    z = watched(watched(x))
    for result in (y, z):
        gradients = sp.get_gradients(result)
        for v in gradients:
            gradients[v][:] = 9
        assert all(g.tolist() == [1, 1] for g in seen)


def test_a_rule_that_returns_a_variable_is_named():
    a, b, w = variables((2,), (2,), (2,))

    def by_hand(a, b):
        def slope_in_a(g):
            return g * b

        return sp.Variable(a.array * b.array, [(a, slope_in_a)])

    @sp.primitive
    def closing_over(a):
        return a * w.array, lambda g, y, a: g * w

    for operation, name in (
        (lambda: by_hand(a, b), "slope_in_a"),
        (lambda: closing_over(a * 2), "closing_over"),
        (lambda: closing_over(sp.learnable(b)), "closing_over"),
    ):
        y = sp.sum(operation())
        with pytest.raises(TypeError, match=rf"{name}.* returned a Variable.*variable\.array"):
            sp.get_gradients(y)
    late = sp.get_gradients(closing_over(a))  # which waits
    with pytest.raises(TypeError, match="closing_over.* returned a Variable"):
        late[a]
    with pytest.raises(TypeError, match="closing_over.* returned a Variable"):
        sp.get_gradients(closing_over(a), a)
    gradient = sp.get_gradients(closing_over(a), a, differentiable=True)[a]
    assert np.array_equal(gradient.array, w.array)


def test_an_operation_of_the_users_may_use_its_arrays_again():
    buffer, seen = np.zeros(3), []

    @sp.primitive
    def into_buffer(a):
        np.exp(a, out=buffer)
        return buffer, lambda g, y, a: g * y

    x, w = variables((3,), (3,))
    expected = np.exp(x.array)
    gradients = sp.get_gradients(sp.sum(into_buffer(x)))
    buffer[:] = 0
    assert np.allclose(gradients[x], expected)

    @sp.primitive
    def watched(a):
        seen.append(a)
        return a * 2, lambda g, y, a: g * 2

    h = sp.exp(x)
    gradients = sp.get_gradients(sp.sum(h * w) + sp.sum(watched(h)))
    seen[0][:] = 0
    assert np.allclose(gradients[w], expected)

    h = sp.exp(x)
    gradients = sp.get_gradients(sp.sum(h * w))
    watched(h)
    seen[1][:] = 0
    assert np.allclose(gradients[w], expected)


def test_lists_given_as_parameters_may_change_afterwards():
    x = sp.Variable(np.arange(12.0).reshape(3, 4))

    def gradient(operation, *lists, late=False):
        y = sp.sum(sp.square(operation(x, *lists)))
        if late:
            for one in lists:
                one[:] = [1] * len(one)
        return sp.get_gradients(y)[x]

    for operation, *lists in (
        (sp.strided_sliding_view, [2, 2], [1, 2]),
        (sp.reshape, [2, 6]),
        (sp.transpose, [1, 0]),
        (sp.expand_dims, [0, 3]),
        (sp.sum, [0]),
        (sp.pad, [2, 3]),
        (sp.broadcast_to, [2, 3, 4]),
        (sp.getitem, [0, 0, 2]),
        (sp.sum_to, [3, 1]),
        (sp.softmax, [0, 1]),
    ):
        expected = gradient(operation, *[list(one) for one in lists])
        got = gradient(operation, *[list(one) for one in lists], late=True)
        assert np.array_equal(got, expected), operation


# --------------------------------------------------------------------------------- differentiable


def _polynomial(x):
    return x * x * x * x + x * x * 2


@pytest.mark.parametrize("silent", [False, True], ids=["", "inside no_grad"])
@pytest.mark.parametrize("rebound", [False, True], ids=["", "rebound"])
@pytest.mark.parametrize("wrt", [False, True], ids=["all", "wrt"])
def test_orders_two_and_three(silent, rebound, wrt):
    values = np.array([1.0, -2.0, 0.5])
    x = sp.Variable(values)
    expected = [4 * values**3 + 4 * values, 12 * values**2 + 4, 24 * values, [24] * 3, [0] * 3]
    y = _polynomial(x)
    for order, right in enumerate(expected if wrt else expected[:-1]):
        if rebound and order == 1:
            x.array = np.full(3, 100.0)
        only = [x] if wrt else None
        if silent:
            with sp.no_grad():
                gradient = sp.get_gradients(y, wrt=only, differentiable=True)[x]
        else:
            gradient = sp.get_gradients(y, wrt=only, differentiable=True)[x]
        assert isinstance(gradient, sp.Variable) and gradient.shape == (3,)
        assert np.allclose(gradient.array, right)
        y = sp.sum(gradient)


def test_mixed_second_derivatives():
    a, b = variables((3,), (3,))
    first = sp.get_gradients(sp.sum(sp.exp(a * b)), [a, b], differentiable=True)
    product = a.array * b.array
    mixed = sp.get_gradients(first[a], [b])[b]
    assert np.allclose(mixed, np.exp(product) * (1 + product))


def test_differentiable_zeros_for_what_is_unrelated():
    a, b = variables((2,), (3,))
    gradients = sp.get_gradients(sp.exp(a), [a, b], differentiable=True)
    assert isinstance(gradients[b], sp.Variable) and np.array_equal(gradients[b].array, [0, 0, 0])


def test_differentiable_gradients_are_variables_of_their_own():
    a, b = variables((2,), (2,))
    gradients = sp.get_gradients(a + b, differentiable=True)
    c, (ga, gb) = next(iter(gradients)), (gradients[a], gradients[b])
    assert ga is not gb and ga is not gradients[c]
    mixed = sp.get_gradients(ga * 2 + gb * 3)
    assert np.array_equal(mixed[ga], [2, 2]) and np.array_equal(mixed[gb], [3, 3])
    ga.array[:] = 50
    assert np.array_equal(gb.array, [1, 1]) and np.array_equal(gradients[c].array, [1, 1])


def test_a_gradient_that_was_only_shown_can_be_differentiated():
    x = sp.Variable([[1.0, 2.0]])
    expected = None
    for when in ("recorded", "made without", "read without", "wrt without"):
        p = sp.softmax(x)
        loss = sp.cross_entropy(p, np.array([0]))
        if when == "recorded":
            gradient = sp.get_gradients(loss, differentiable=True)[p]
        elif when == "made without":
            with sp.no_grad():
                gradients = sp.get_gradients(loss, differentiable=True)
            gradient = gradients[p]
        elif when == "read without":
            gradients = sp.get_gradients(loss, differentiable=True)
            with sp.no_grad():
                gradient = gradients[p]
        else:
            with sp.no_grad():
                gradient = sp.get_gradients(loss, wrt=[p], differentiable=True)[p]
        assert np.allclose(gradient.array, [[-1 / p.array[0, 0], 0]])
        second = sp.get_gradients(sp.sum(gradient), wrt=x)[x]
        if expected is None:
            q = p.array[0, 0]
            expected = np.array([[1 / q**2 * q * (1 - q), -1 / q**2 * q * (1 - q)]])
        np.testing.assert_allclose(second, expected, rtol=1e-12, err_msg=when)


@pytest.mark.parametrize("seen_before", [False, True], ids=["", "seen before"])
@pytest.mark.parametrize("disturb", ["write", "assign", "step"])
def test_a_gradient_that_is_only_shown_is_that_of_the_numbers_then(disturb, seen_before):
    """Which is so of arrays (see DISTURBANCES), and of Variables."""
    x = sp.Variable(np.zeros((1, 2)))
    p = sp.softmax(x)
    if seen_before:
        p.array  # noqa: B018
    gradients = sp.get_gradients(sp.cross_entropy(p, np.array([0])), differentiable=True)
    if disturb == "write":
        p.array[:] = 0.1
    elif disturb == "assign":
        p.array = np.full((1, 2), 0.1)
    else:
        sp.sgd_step([p], {p: np.ones((1, 2))}, 0.1)
    assert gradients[p].array.tolist() == [[-2, 0]]
    if disturb != "write":  # which may be into what softmax recorded
        second = sp.get_gradients(sp.sum(gradients[p]), wrt=x)[x]
        np.testing.assert_allclose(second, [[1, -1]], rtol=1e-12)


def test_differentiable_gradients_are_variables_where_a_rule_returns_an_array():
    @sp.primitive
    def total(a):
        return np.sum(a), lambda g, y, a: np.ones(a.shape)

    x = sp.Variable(np.zeros(2))
    for wrt in (None, x):
        gradient = sp.get_gradients(total(x), wrt, differentiable=True)[x]
        assert isinstance(gradient, sp.Variable) and gradient.array.tolist() == [1, 1]


def test_a_gradient_of_a_gradient_of_a_gradient_is_found_through_operations():
    x = sp.Variable(0.3)
    y = sp.sigmoid(sp.tanh(x) * sp.exp(x))
    values = []
    for _ in range(3):
        y = sp.get_gradients(y, wrt=x, differentiable=True)[x]
        values.append(y.item())

    def numeric(order, at, h=1e-2):
        def f(t):
            return 1 / (1 + np.exp(-np.tanh(t) * np.exp(t)))

        steps = np.arange(-4, 5)
        return np.polyfit(steps * h, f(at + steps * h), 8)[-1 - order] * [1, 1, 2, 6][order]

    for order, value in enumerate(values, 1):
        assert abs(value - numeric(order, 0.3)) < 1e-6


# ------------------------------------------------------------------------ no_grad, stop_gradient


def test_no_grad_as_a_block():
    x = sp.Variable([1.0, 2.0])
    with sp.no_grad():
        y = sp.exp(x)
        assert not sp.Variable(1.0, [(x, lambda g: g)]).local_gradients
        with sp.no_grad():
            z = y * x
        w = z + x
    for v in (y, z, w):
        assert list(sp.get_gradients(v)) == [v]
    after = sp.exp(x)
    assert x in sp.get_gradients(after)
    assert np.array_equal(y.array, after.array)


def test_no_grad_ends_with_an_exception():
    x = sp.Variable(1.0)
    with pytest.raises(ZeroDivisionError), sp.no_grad():
        raise ZeroDivisionError
    assert x in sp.get_gradients(sp.exp(x))
    block = sp.no_grad()
    with block, block:
        pass
    assert x in sp.get_gradients(sp.exp(x))


def test_no_grad_as_a_decorator():
    x = sp.Variable(1.0)

    @sp.no_grad()
    def silent(v, *, times=2, depth=3):
        """Doc."""
        return silent(v, depth=depth - 1) if depth else v * times

    assert silent.__name__ == "silent" and silent.__doc__ == "Doc."
    y = silent(x)
    assert y.item() == 2 and x not in sp.get_gradients(y)
    assert x in sp.get_gradients(sp.exp(x))

    @sp.no_grad()
    def fails():
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert x in sp.get_gradients(sp.exp(x))


def test_one_no_grad_in_many_threads():
    x, block, barrier, found = sp.Variable(1.0), sp.no_grad(), threading.Barrier(4), []

    def run():
        for _ in range(50):
            barrier.wait()
            with block:
                inside = x in sp.get_gradients(sp.exp(x))
            found.append((inside, x in sp.get_gradients(sp.exp(x))))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(False, True)] * 200


def test_a_block_that_another_thread_leaves_silences_nobody():
    def generator():
        with sp.no_grad():
            yield

    x, suspended, found = sp.Variable(1.0), generator(), []

    def recorded():
        return x in sp.get_gradients(sp.exp(x))

    def leave():
        suspended.close()
        found.append(recorded())
        with sp.no_grad():
            found.append(recorded())
        found.append(recorded())

    for target in (lambda: next(suspended), leave):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert found == [True, False, True]


def test_no_grad_refuses_what_runs_later():
    def generator():
        yield 1

    async def coroutine():
        pass

    async def both():
        yield 1

    for function in (generator, coroutine, both):
        with pytest.raises(TypeError):
            sp.no_grad()(function)


def test_get_gradients_works_inside_no_grad():
    x = sp.Variable([1.0, 2.0])
    y = sp.exp(x)
    with sp.no_grad():
        assert np.allclose(sp.get_gradients(y)[x], y.array)


def test_stop_gradient():
    x = sp.Variable([1.0, 2.0])
    y = x * sp.stop_gradient(x * x)
    assert np.allclose(sp.get_gradients(y)[x], x.array**2)
    stopped = sp.stop_gradient(x)
    assert stopped is not x and np.array_equal(stopped.array, x.array)
    array = np.ones(2)
    assert sp.stop_gradient(array) is array


# --------------------------------------------------------------------------------------- threads


def _work(seed):
    rng = np.random.default_rng(seed)
    x = sp.Variable(rng.standard_normal((2, 6, 6, 2)))
    k = sp.Variable(rng.standard_normal((3, 3, 2, 3)))
    w = sp.Variable(rng.standard_normal((27, 4)))
    results = []
    for _ in range(5):
        h = sp.maxpool2d(sp.leaky_relu(sp.conv2d(x, k)), 2, 2, strides=(2, 2))
        p = sp.softmax(sp.reshape(h, (2, 27)) @ w)
        loss = sp.cross_entropy(p, np.array([1, 3]))
        with sp.no_grad():
            assert not sp.exp(x).local_gradients
        gradients = sp.get_gradients(loss)
        first = sp.get_gradients(loss, wrt=w, differentiable=True)[w]
        second = sp.get_gradients(sp.sum(first * first), wrt=k)[k]
        results += [loss.array, gradients[x], gradients[k], gradients[w], second]
        sp.sgd_step([k, w], gradients, 0.1)
    return [r.tobytes() for r in results]


def test_independent_graphs_in_eight_threads():
    serial = [_work(seed) for seed in range(8)]
    found, barrier = {}, threading.Barrier(8)

    def run(seed):
        barrier.wait()
        found[seed] = _work(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get(seed) for seed in range(8)] == serial


def test_no_grad_is_seen_by_its_own_thread_only():
    x, inside, recorded = sp.Variable(1.0), threading.Event(), threading.Event()
    found = {}

    def other():
        inside.wait(10)
        found["other"] = x in sp.get_gradients(sp.exp(x))
        recorded.set()

    thread = threading.Thread(target=other)
    thread.start()
    with sp.no_grad():
        inside.set()
        recorded.wait(10)
        found["own"] = x in sp.get_gradients(sp.exp(x))
    thread.join()
    assert found == {"other": True, "own": False}


# ---------------------------------------------------------------------------------------- dtypes


NUMBERS = [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(3), np.float16(2), 0, -1]
ARRAYS = [
    np.float64([1.5, 2.5]),
    np.float32([1.5, 2.5]),
    np.array([1, 2]),
    np.array([True, False]),
    np.float64(2.5),
    np.array(2.5),
    np.ones((3, 2)),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("other", NUMBERS + ARRAYS, ids=repr)
def test_numbers_and_arrays_are_taken_into_the_variables_dtype(dtype, other):
    v = sp.Variable(np.array([1.5, 0.5], dtype))
    as_numpy = np.asarray(other, np.float64)
    with np.errstate(divide="ignore"):
        pairs = [
            (v + other, v.array + as_numpy),
            (other + v, v.array + as_numpy),
            (v - other, v.array - as_numpy),
            (other - v, as_numpy - v.array),
            (v * other, v.array * as_numpy),
            (other * v, v.array * as_numpy),
            (v / other, v.array / as_numpy),
            (other / v, as_numpy / v.array),
            (v**other, v.array**as_numpy),
            (sp.maximum(v, other), np.maximum(v.array, as_numpy)),
            (sp.minimum(other, v), np.minimum(v.array, as_numpy)),
        ]
        if np.all(as_numpy > 0):
            pairs.append((other**v, as_numpy**v.array))
        for y, expected in pairs:
            assert isinstance(y, sp.Variable) and y.dtype == dtype
            assert np.allclose(y.array, expected, rtol=1e-2 if dtype is np.float16 else 1e-6)
            gradient = sp.get_gradients(y)[v]
            assert gradient.dtype == dtype and gradient.shape == v.shape


def test_matmul_with_plain_arrays_keeps_float32():
    v = sp.Variable(np.ones((2, 2), np.float32))
    for other in (np.ones((2, 2)), np.ones((2, 2), int), np.ones((5, 2, 2))):
        for y in (v @ other, other @ v):
            assert isinstance(y, sp.Variable) and y.dtype == np.float32
            assert sp.get_gradients(y)[v].dtype == np.float32


def test_comparisons_give_boolean_arrays():
    v, w = sp.Variable([1.0, 2.0, 3.0]), sp.Variable([3.0, 2.0, 1.0])
    for other in (w, w.array, 2):
        array = np.asarray(other)
        for result, expected in (
            (v < other, v.array < array),
            (v <= other, v.array <= array),
            (v > other, v.array > array),
            (v >= other, v.array >= array),
        ):
            assert type(result) is np.ndarray and result.dtype == bool
            assert np.array_equal(result, expected)
    assert np.array_equal(w.array < v, [False, False, True])
    assert np.array_equal(2 >= v, [True, True, False])


@pytest.mark.parametrize("operator", ["+", "-", "*", "/", "**", "@"])
def test_operators_refuse_what_is_not_real_numbers(operator):
    v = sp.Variable(np.ones((2, 2)))
    for other in ("a", None, 1j, np.array(["a"]), np.ones((2, 2), complex), object()):
        for expression in (f"v {operator} other", f"other {operator} v"):
            with pytest.raises((TypeError, ValueError) if operator == "@" else TypeError):
                eval(expression, {"v": v, "other": other})


def test_gradients_keep_float32():
    a, b = variables((2, 3), (3, 4), dtype=np.float32)
    y = sp.sum(sp.exp(sp.matmul(a, b)) * 2.0 / np.float64(3))
    gradients = sp.get_gradients(y)
    assert y.dtype == np.float32
    assert {g.dtype for g in gradients.values()} == {np.dtype(np.float32)}
    first = sp.get_gradients(y, a, differentiable=True)[a]
    assert first.dtype == np.float32
    assert sp.get_gradients(first)[b].dtype == np.float32


@pytest.mark.parametrize("operation", [sp.add, sp.mul, sp.div, sp.power, sp.maximum, sp.matmul])
def test_in_a_mixed_graph_each_gradient_has_the_dtype_of_its_variable(operation):
    a, b = sp.Variable(np.full((2, 2), 1.5, np.float32)), sp.Variable(np.full((2, 2), 2.5))
    y = operation(a, b)
    assert y.dtype == np.float64
    gradients = sp.get_gradients(y)
    assert (gradients[a].dtype, gradients[b].dtype) == (np.float32, np.float64)
    both = sp.get_gradients(sp.sum(y * y), [a, b], differentiable=True)
    assert (both[a].dtype, both[b].dtype) == (np.float32, np.float64)
    second = sp.get_gradients(sp.sum(both[a]) + sp.sum(both[b]), [a, b])
    assert (second[a].dtype, second[b].dtype) == (np.float32, np.float64)


def test_integer_variables():
    i = sp.Variable([1, 2, 3])
    x = sp.Variable([0.5, 1.5, 2.5])
    y = sp.sum(i * x)
    assert y.dtype == np.float64
    gradients = sp.get_gradients(y)
    assert np.array_equal(gradients[x], [1, 2, 3])
    assert np.array_equal(gradients[i], x.array)  # not cut to whole numbers
    assert (i * 0.5).dtype == np.float64 and (i + 1).dtype == i.dtype
    assert np.allclose(sp.exp(i).array, np.exp([1, 2, 3]))
    assert np.allclose(sp.get_gradients(sp.exp(i))[i], np.exp([1, 2, 3]))
    assert (i / 2).dtype == np.float64
    assert sp.sum(sp.Variable([True, True])).item() == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_gradients_of_integers_are_not_cut_to_integers(dtype):
    pixels = sp.Variable(np.array([1, 0, 1], dtype))
    for front in (
        lambda v: v * 1.0,
        lambda v: sp.astype(v, np.float64),
        lambda v: sp.astype(sp.reshape(v, (1, 3)), np.float64)[0],
        lambda v: sp.astype(v[[0, 1, 2]], np.float64),
        lambda v: sp.sum(sp.reshape(v, (1, 3)), 0) * 1.0,
    ):
        y = sp.sum(sp.square(front(pixels) - 0.25) * 0.5)
        gradient = sp.get_gradients(y)[pixels]
        assert np.allclose(gradient, [0.75, -0.25, 0.75])


def test_byte_swapped_variables():
    v = sp.Variable(np.array([1.0, 2.0], ">f4"))
    y = sp.exp(v) * v
    gradient = sp.get_gradients(y)[v]
    assert np.allclose(gradient.astype(float), np.exp([1, 2]) * np.array([2, 3]))
    assert gradient.dtype.newbyteorder("=") == np.float32


# ------------------------------------------------------------------------------------------ memory


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_freed_without_the_cycle_collector(name, no_collector):
    graph = Graph(name)
    references = [weakref.ref(v) for v in graph.leaves + graph.middle + [graph.result]]
    gradients = sp.get_gradients(graph.result)
    list(gradients.values())
    wrt = sp.get_gradients(graph.result, wrt=graph.leaves[0])
    del gradients, wrt, graph
    assert not any(reference() for reference in references)


def test_a_differentiated_graph_is_freed_without_the_cycle_collector(no_collector):
    x = sp.Variable([[1.0, 2.0]])
    p = sp.softmax(sp.exp(x))
    loss = sp.cross_entropy(p, [0])
    first = sp.get_gradients(loss, differentiable=True)
    second = sp.get_gradients(sp.sum(first[x] * first[p]))
    references = [weakref.ref(v) for v in (x, p, loss, first[x], first[p], *second)]
    del x, p, loss, first, second
    assert not any(reference() for reference in references)


def test_gradients_by_wrt_do_not_keep_the_graph_alive(no_collector):
    x = sp.Variable([1.0, 2.0])
    h = sp.exp(x)
    reference = weakref.ref(h)
    gradients = sp.get_gradients(sp.sum(h), wrt=x)
    del h
    assert reference() is None
    assert np.allclose(gradients[x], np.exp([1, 2]))


@pytest.mark.parametrize(
    "options", [lambda x: {}, lambda x: {"wrt": x}, lambda x: {"differentiable": True}]
)
def test_a_graph_is_freed_after_an_error_in_a_rule(options, no_collector):
    def fail(g, y, a):
        raise ValueError("no gradient")

    @sp.primitive
    def broken(a):
        return np.tanh(a), fail

    x = sp.Variable([1.0, 2.0])
    y = sp.tanh(broken(sp.tanh(sp.tanh(x))))
    reference = weakref.ref(x)
    try:
        sp.get_gradients(y, **options(x))[x]
        pytest.fail("no error")
    except ValueError as error:
        assert "no gradient" in str(error)
    del x, y
    assert reference() is None


def test_a_long_chain_is_freed_without_recursion(no_collector):
    x = y = sp.Variable(1.0)
    for _ in range(100_000):
        y = -y
    reference = weakref.ref(y.local_gradients[0][0])
    gradients = sp.get_gradients(y)
    del y
    assert reference() is not None
    del gradients
    assert reference() is None
    assert x.item() == 1


def test_the_core_has_no_global_trace(no_collector):
    """Building and forgetting graphs leaves nothing behind in the module."""
    sp.get_gradients(sp.exp(sp.Variable(1.0)))
    before = {name: len(v) for name, v in vars(core).items() if isinstance(v, (dict, list, set))}
    for _ in range(10):
        sp.get_gradients(sp.exp(sp.Variable(1.0)))
    after = {name: len(v) for name, v in vars(core).items() if isinstance(v, (dict, list, set))}
    assert before == after


@pytest.mark.parametrize(
    "operate",
    [
        lambda v, a: sp.add(v, [a, a]),
        lambda v, a: sp.mul(v, (a, 2.0)),
        lambda v, a: sp.where([True, False], [a, a], v),
        lambda v, a: sp.setat(v, [0], [a]),
        lambda v, a: sp.sum([[a], [a]]),
        lambda v, a: sp.exp([a]),
        lambda v, a: sp.Variable([a, a]),
        lambda v, a: sp.matmul(v, [a, a]),
    ],
)
def test_lists_of_variables_are_refused(operate):
    """NumPy would make plain numbers of them, and their gradients would be lost without a word."""
    v, a = sp.Variable([1.0, 2.0]), sp.Variable(3.0)
    with pytest.raises(TypeError, match="join them with stack or concatenate"):
        operate(v, a)


def test_one_no_grad_serves_many_threads():
    quiet = sp.no_grad()
    v = sp.Variable(np.ones(2))

    def both(_):
        with quiet:
            silent = v * 2
            with quiet:
                inner = v * 2
        loud = v * 2
        return (
            v in sp.get_gradients(silent),
            v in sp.get_gradients(inner),
            v in sp.get_gradients(loud),
        )

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(both, range(64))) == {(False, False, True)}


def test_one_element_is_a_number():
    v = sp.Variable(np.array([2.5], np.float32))
    assert int(v) == 2 and f"{v:.2f}" == "2.50" and f"{v}" == repr(v)
    with pytest.raises((TypeError, ValueError)):
        f"{sp.Variable(np.ones(2)):.2f}"


# ----------------------------------------------------------------------------------- odd Variables


def test_what_stands_in_for_a_variable_is_no_constant():
    x = sp.Variable(np.ones((2, 3)))
    with pytest.raises(TypeError):
        sp.get_gradients(x * weakref.proxy(x))


@pytest.mark.parametrize("first", ["array", "local_gradients"])
def test_a_subclass_may_assign_what_a_variable_holds(first):
    """As in 3.0.5, where these two were all that a Variable had."""

    class Own(sp.Variable):
        def __init__(self, array, pairs):
            for name in sorted(("array", "local_gradients"), reverse=first != "array"):
                setattr(self, name, array if name == "array" else pairs)

    x = sp.Variable(np.ones(2))
    v = Own(np.array([2.0, 3.0]), [(x, lambda g: g * 5)])
    gradients = sp.get_gradients(v * v)
    assert gradients[v].tolist() == [4, 6] and gradients[x].tolist() == [20, 30]

    class ArrayOnly(sp.Variable):
        def __init__(self, array):
            self.array = array

    v = ArrayOnly([2.0, 3.0])
    assert v.local_gradients == [] and sp.get_gradients(v * v)[v].tolist() == [4, 6]
    assert sp.get_gradients(v)[v].tolist() == [1, 1]
    sp.sgd_step([v], {v: np.ones(2)}, 1.0)
    assert v.array.tolist() == [1, 2]


def test_a_variable_without_an_array_is_refused():
    class Forgetful(sp.Variable):
        def __init__(self):
            pass

    for use in (lambda v: v.array, lambda v: v + 1, repr):
        with pytest.raises(AttributeError):
            use(Forgetful())
