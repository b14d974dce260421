"""Variable, primitive, get_gradients: the whole idea of the library. Read this file first.

A **Variable** is an array that remembers how it was made: by which operation, from which inputs.
A **primitive** is an operation that knows its own gradient. It is written as one function on plain
arrays that returns its value and, for each input, a *rule*::

    @primitive
    def mul(a, b):
        return a * b, lambda g, y, a, b: g * b, lambda g, y, a, b: g * a

The rule for an input turns ``g``, the gradient of the final result in the output ``y``, into the
gradient in that input (the chain rule, one link of it). Called on plain arrays, ``mul`` returns
the plain product. Called with a Variable it returns a Variable and records what it did.

**get_gradients(y)** starts with ``g = 1`` at ``y`` and walks the record backwards. The rules are
written in operators and other primitives, so they work on arrays and on Variables alike, and the
start decides which: from an array, plain arrays flow back and nothing is recorded; from a Variable
(``differentiable=True``) the same rules record their own work, and the gradient can itself be
differentiated, to any order.

One law makes this right: a rule closes over integers, shapes and masks only. Real numbers come in
through ``g``, ``y`` and the inputs, since anything else would be a constant to the next derivative.
And no rule writes into what it is given.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

_silenced: ContextVar[int] = ContextVar("smallpebble_silenced", default=0)  # no_grad blocks inside
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def _is_recording() -> bool:
    return not _silenced.get()


# ------------------------------------------------------------------------------------- Variables


def refuse_lists_of_variables(value, operation: str) -> None:
    """A TypeError for a list that holds Variables, which NumPy would take for plain numbers."""
    if isinstance(value, (list, tuple)):
        for one in value:
            if isinstance(one, Variable):
                raise TypeError(
                    f"{operation}: a list of Variables is no operand, since their gradients would "
                    "be lost: join them with stack or concatenate"
                )
            refuse_lists_of_variables(one, operation)


def refuse_masked(value, operation: str) -> None:
    """A TypeError for a masked array, whose mask NumPy would drop without a word."""
    if isinstance(value, np.ndarray) and hasattr(value, "mask"):
        raise TypeError(f"{operation} takes no masked array: its mask would be lost")


def _as_array(value) -> np.ndarray:
    if type(value) is not ndarray:
        if isinstance(value, Variable):
            raise TypeError("a Variable holds an array, not another Variable: use variable.array")
        refuse_masked(value, "a Variable")
        refuse_lists_of_variables(value, "Variable")
        value = np.asarray(value)
    dtype = value.dtype
    if not (dtype is _FLOAT32 or dtype is _FLOAT64 or dtype.kind in "fiub"):
        raise TypeError(f"a Variable holds real numbers, got an array of dtype {dtype}")
    return value


class _Fields:
    """What a Variable holds: `Variable` itself, but for the part that is a C structure if compiled.

    The two marks serve gradients that are computed late (see `_freeze`).
    """

    __slots__ = ("_held", "_lent", "_node", "_private")
    # _held: the array, or a Later that will compute it
    # _node: how it was made, a _Node or _Written; None if it was not computed
    # _private: an operation made the array (that in _held, which need not be the one in a node) and
    #     nobody has looked at it, so nobody can write to it
    # _lent: a late gradient counts on the array, so who looks at it from now on gets a copy

    @property
    def _array(self):
        return self._held if type(self._held) is ndarray else _computed(self)

    @property
    def array(self) -> np.ndarray:
        """The numbers, as an ndarray."""
        array = self._array
        if self._lent:
            array = self._held = array.copy()
        self._private = self._lent = False
        return array

    @array.setter
    def array(self, value) -> None:
        _settle(self)
        self._held = _as_array(value)
        self._private = self._lent = False

    @property
    def dtype(self) -> np.dtype:
        """Its array's dtype."""
        return self._held.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its array's shape, known before the numbers are."""
        return self._held.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self._held.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self._held.shape)


class Variable(_Fields):
    """An array that remembers how it was computed, so that gradients can flow back through it.

    Parameters
    ----------
    array : array_like of real numbers, any shape
        An ndarray is kept as it is, without a copy.
    local_gradients : list of (Variable, function), optional
        For operations of your own: each input, and the function that turns the gradient in this
        Variable into the gradient in that input. (`primitive` is the form that can also be
        differentiated twice.)

    Raises
    ------
    TypeError
        `array` is not made of real numbers, or `local_gradients` is not made of such pairs.

    Notes
    -----
    Two Variables are equal only if they are the same object, which makes them usable as keys.
    Assigning a new array to ``variable.array`` does not disturb what was recorded before.
    """

    __slots__ = ("__dict__", "__weakref__")
    __array_ufunc__ = None  # ndarray + Variable is left to Variable.__radd__
    is_learnable = False

    if TYPE_CHECKING:  # the operators, and some operations as methods: all set in ops.py

        def __add__(self, other: Any, /) -> Variable: ...
        def __radd__(self, other: Any, /) -> Variable: ...
        def __sub__(self, other: Any, /) -> Variable: ...
        def __rsub__(self, other: Any, /) -> Variable: ...
        def __mul__(self, other: Any, /) -> Variable: ...
        def __rmul__(self, other: Any, /) -> Variable: ...
        def __truediv__(self, other: Any, /) -> Variable: ...
        def __rtruediv__(self, other: Any, /) -> Variable: ...
        def __pow__(self, other: Any, /) -> Variable: ...
        def __rpow__(self, other: Any, /) -> Variable: ...
        def __matmul__(self, other: Any, /) -> Variable: ...
        def __rmatmul__(self, other: Any, /) -> Variable: ...
        def __getitem__(self, other: Any, /) -> Variable: ...
        def __lt__(self, other: Any, /) -> np.ndarray: ...
        def __le__(self, other: Any, /) -> np.ndarray: ...
        def __gt__(self, other: Any, /) -> np.ndarray: ...
        def __ge__(self, other: Any, /) -> np.ndarray: ...
        def __neg__(self) -> Variable: ...
        def __iter__(self) -> Iterator[Variable]: ...

        sum: Callable[..., Variable]
        mean: Callable[..., Variable]
        max: Callable[..., Variable]
        min: Callable[..., Variable]
        reshape: Callable[..., Variable]
        transpose: Callable[..., Variable]
        astype: Callable[..., Variable]
        T: Variable

    def __init__(self, array: Any, local_gradients: list | None = None) -> None:
        _fill(self, _as_array(array), False, None)
        if local_gradients and _is_recording():
            self.local_gradients = local_gradients

    def _take(self, array: np.ndarray) -> None:
        """Assign an array that nobody else has."""
        self.array = array
        self._private = True

    @property
    def local_gradients(self) -> list | tuple:
        """[(input, function), ...]: how the gradient in this Variable reaches its inputs.

        A tuple where an operation made the Variable; a list, which may be added to, elsewhere.
        """
        if self._node is None:
            self._node = _Written([])
        return self._node.pairs

    @local_gradients.setter
    def local_gradients(self, pairs) -> None:
        if not isinstance(pairs, list):
            pairs = list(pairs)
        for pair in pairs:
            fits = isinstance(pair, (tuple, list)) and len(pair) == 2
            if not (fits and isinstance(pair[0], Variable) and callable(pair[1])):
                raise TypeError(f"local_gradients: expected (Variable, function), got {pair!r}")
        _settle(self)
        self._node = _Written(pairs)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = self.array if dtype is None else self.array.astype(dtype, copy=False)
        if copy is False and array is not self._array:
            raise ValueError(
                f"a Variable of {self.dtype} needs a copy to become an array of {dtype}"
            )
        return array.copy() if copy and array is self._array else array

    def __len__(self) -> int:
        return len(self._array)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __bool__(self) -> bool:
        return bool(self._array)

    def item(self) -> Any:
        """The value of a one-element Variable, as a Python number."""
        return self._array.item()

    def __repr__(self) -> str:
        shown = self._array if self.size <= 8 else self._array.ravel()
        values = np.array2string(shown, precision=4, threshold=8, edgeitems=2)
        values = " ".join(values.split())
        learnable = ", learnable" if self.is_learnable else ""
        return f"Variable({values}, shape={self.shape}, dtype={self.dtype}{learnable})"

    def __reduce__(self):
        if self._node is not None and self._node.pairs:
            raise TypeError(
                "a Variable that was computed is not pickled or copied, since its graph cannot be: "
                "use stop_gradient(variable) or variable.array"
            )
        return Variable, (self.array,), self.__dict__ or None


def _computed(v):
    """The array of a Variable, computed now if it waits to be."""
    held = v._held
    if type(held) is Later:
        array = held.value()
        if type(v._node) is _Node:
            v._node.y = array
        v._held = held = array
    elif held is None:
        raise AttributeError("this Variable has no array: its __init__ has not been called")
    return held


def _settle(v):
    """Before an array or a node is assigned: compute what waits for them."""
    try:
        is_filled = v._held is not None
    except AttributeError:  # a slot, where core.py is not compiled
        is_filled = False
    if is_filled:
        _computed(v)
    else:  # by the __init__ of a subclass, which need not call that of Variable
        _fill(v, None, False, getattr(v, "_node", None))


def _made(held, private, node):
    """A Variable that an operation made."""
    cls = Variable
    v = cls.__new__(cls)
    _fill(v, held, private, node)
    return v


def _fill(v, held, private, node):
    v._held, v._private, v._lent, v._node = held, private, False, node


class _Node:
    """How a Variable was made: the operation, its arguments, their arrays then, and the rules.

    `held` says that nobody can write into those arrays any more (see Later).
    """

    __slots__ = ("held", "inputs", "rules", "traits", "values", "y")

    @property
    def pairs(self):
        edges = zip(self.inputs, self.rules)
        return tuple(
            [(v, _Bound(rule, self)) for v, rule in edges if isinstance(v, Variable) and rule]
        )


def _recorded(traits, inputs, values, rules, y, held):
    node = _Node.__new__(_Node)
    node.traits, node.inputs, node.values, node.rules = traits, inputs, values, rules
    node.y, node.held = y, held
    return node


class _Bound:
    """The rule of a node as a function of g alone."""

    __slots__ = ("node", "rule")

    def __init__(self, rule, node):
        self.rule = rule
        self.node = node

    def __call__(self, g):
        node, values = self.node, self.node.values
        if node.traits.waits:
            values = [_value(one) for one in values]
        return self.rule(g, node.y, *values)


class _Written:
    """The same for a Variable whose (input, function) pairs the user wrote."""

    __slots__ = ("pairs",)
    y = None

    def __init__(self, pairs):
        self.pairs = pairs

    inputs = property(lambda self: [variable for variable, _ in self.pairs])
    values = property(lambda self: [variable._array for variable, _ in self.pairs])
    rules = property(lambda self: [_Function(function) for _, function in self.pairs])


class _Function:
    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, g, y):
        if isinstance(g, Variable):
            raise TypeError(
                "differentiable=True cannot go through a Variable made with local_gradients, "
                "whose functions are constants to a second derivative: write it as a primitive"
            )
        return self.function(g)


# ------------------------------------------------------------------------------------ primitives


def primitive(
    function: Callable[..., tuple] | None = None,
    *,
    linear: bool = False,
    multilinear: bool = False,
    operands: int = 0,
    waits: bool = False,
) -> Callable[..., Any]:
    """Make a differentiable operation of a function on arrays that returns (value, rule, ...).

    Parameters
    ----------
    function : callable
        Takes arrays (and parameters, after them), returns its value and a rule for each of its
        first arguments: ``rule(g, y, *inputs) -> gradient``, of the shape of that input, or None
        for an argument that has no gradient. The rules get as many inputs as there are rules.
    linear : bool
        The rules read no numbers from ``y`` and the inputs, only shapes.
    multilinear : bool
        The function is linear in each of its inputs, up to a constant, as products are: no rule
        reads numbers from ``y`` or from the input that it leads to, only shapes.
    operands : int
        So many first arguments, where they are plain numbers or arrays beside a floating Variable,
        are taken into the Variable's dtype.
    waits : bool
        Inputs that are not computed yet may stay so: the function takes a `Later` for them.

    Returns
    -------
    The operation. On plain arrays it returns the plain value; with a Variable among its arguments,
    a Variable.
    """
    if function is None:
        return functools.partial(
            primitive, linear=linear, multilinear=multilinear, operands=operands, waits=waits
        )
    if not callable(function):
        raise TypeError(f"primitive: expected a function, got {type(function).__name__}")
    code = getattr(function, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code else ()

    module = getattr(function, "__module__", None) or ""
    # The library's own functions neither keep nor write what they are shown; others might.
    is_own = module.partition(".")[0] == __name__.partition(".")[0]

    traits = _Traits(function, names, operands, linear, multilinear, waits, is_own)

    @functools.wraps(function)
    def operation(*args, **kwargs):
        return _operate(traits, args, kwargs)

    operation.traits = traits
    return operation


class _Traits:
    """What `primitive` was told about an operation."""

    __slots__ = ("function", "is_own", "linear", "multilinear", "names", "operands", "waits")

    def __init__(self, function, names, operands, linear, multilinear, waits, is_own):
        self.function = function
        self.names = names
        self.operands = operands
        self.linear = linear
        self.multilinear = multilinear
        self.waits = waits
        self.is_own = is_own


def _operate(traits, args, kwargs):
    """Call an operation, and record it if there are Variables among its arguments."""
    function = traits.function
    if kwargs:  # inputs given by name go to their places, where the rules expect them
        for name in traits.names[len(args) :]:
            if name not in kwargs:
                break
            args += (kwargs.pop(name),)
    n_variables, values = 0, []
    for a in args:
        if isinstance(a, _Fields):
            n_variables += 1
            values.append(_shown(a, traits))
            continue
        if a is None or type(a) is int:
            pass
        elif isinstance(a, Variable):
            raise TypeError(f"{function.__name__}: expected a Variable, got what stands in for one")
        elif not traits.is_own:
            pass
        elif isinstance(a, ndarray):
            if type(a) is not ndarray:
                refuse_masked(a, function.__name__.lstrip("_"))
            if a.dtype.kind not in "fiub":
                name = function.__name__.lstrip("_")
                raise TypeError(f"{name}: expected real numbers, got dtype {a.dtype}")
        elif isinstance(a, (list, tuple)):
            refuse_lists_of_variables(a, function.__name__.lstrip("_"))
        values.append(a)
    if 0 < n_variables < traits.operands:
        _take_dtype(args, values, traits.operands)
    returned = function(*values, **kwargs) if kwargs else function(*values)
    if type(returned) is not tuple or not returned:
        raise TypeError(f"{function.__name__} must return a tuple: its value, then its rules")
    y = returned[0]
    if not n_variables:
        return y.value(values) if type(y) is Later else y
    n = len(returned) - 1  # rules
    if len(args) > n or kwargs:
        for variable in (*args[n:], *kwargs.values()):
            if isinstance(variable, Variable):
                raise TypeError(
                    f"{function.__name__}: a Variable stands where there is no gradient to "
                    "compute: pass its array"
                )
    if type(y) is Later:
        if y.hold(traits, args, values, n):
            return _made(y, True, _recorded_later(y, returned[1:]))
        y = y.value(values)
    y = _as_array(y)
    alone = y.base is None
    for value in values:  # by identity; `in` would compare numbers
        if value is y:
            alone = False
    if not alone:
        y = _shared(y, args)
    node = None
    if not _silenced.get():
        values = values if len(values) == n else values[:n]
        node = _recorded(traits, args, values, returned[1:], y, False)
    return _made(y, alone and traits.is_own, node)


def _shown(v, traits):
    """What an operation is shown of a Variable: its array, or the Later that will compute it."""
    if traits.waits:
        return _waiting(v)
    if traits.is_own:
        return v._held if type(v._held) is ndarray else _computed(v)
    return v.array  # somebody else's function may keep what it is shown, and what it returns


def _shared(y, args):
    """An array that is also that of an argument, or a view of it: to be looked at from now on."""
    variables = [a for a in args if isinstance(a, Variable)]
    if any(v._lent for v in variables):
        y = y.copy()
    for v in variables:
        v._private = False
    return y


def _take_dtype(args, values, operands):
    dtypes = [a.dtype for a in args if isinstance(a, Variable)]
    dtype = functools.reduce(np.promote_types, dtypes)
    if dtype.kind == "f":
        for i, arg in enumerate(args[:operands]):
            if not isinstance(arg, Variable):
                if type(arg) is float or type(arg) is int:
                    array = np.asarray(float(arg))
                elif type(arg) is ndarray:
                    array = arg
                else:
                    refuse_masked(arg, "an operation")
                    array = np.asarray(arg)
                if array.dtype.kind not in "fiub":
                    raise TypeError(f"cannot compute a Variable with {arg!r}: not real numbers")
                values[i] = array.astype(dtype, copy=False)


class no_grad:
    """Record nothing: for a ``with`` block, or, as a decorator, for each call of a function."""

    def __init__(self) -> None:
        """It is ``@no_grad()``, with parentheses."""

    def __enter__(self) -> None:
        _silenced.set(_silenced.get() + 1)

    def __exit__(self, *exc) -> None:
        _silenced.set(max(_silenced.get() - 1, 0))  # 0: entered in another thread, left in this one

    def __call__(self, function: Callable) -> Callable:
        kinds = (
            inspect.isgeneratorfunction,
            inspect.iscoroutinefunction,
            inspect.isasyncgenfunction,
        )
        if any(is_kind(function) for is_kind in kinds):
            raise TypeError("no_grad does not decorate generators or coroutines: use it inside")

        @functools.wraps(function)
        def silent(*args, **kwargs):
            with no_grad():
                return function(*args, **kwargs)

        return silent


class _Recording:
    """Record, whatever `no_grad` says."""

    def __enter__(self) -> None:
        self._token = _silenced.set(0)

    def __exit__(self, *exc) -> None:
        _silenced.reset(self._token)


def stop_gradient(a: Any) -> Any:
    """The same numbers as a Variable of its own, through which no gradient flows back."""
    return Variable(a.array) if isinstance(a, Variable) else a


@primitive(linear=True)
def _copy(a):
    return a.copy(), lambda g, y, a: g


# ------------------------------------------------------------------------------------- gradients


def get_gradients(
    variable: Variable,
    wrt: Variable | Iterable[Variable] | None = None,
    differentiable: bool = False,
) -> Gradients:
    """Gradient of the sum of `variable` in every Variable it was computed from.

    Parameters
    ----------
    variable : Variable of any shape
    wrt : Variable or list of Variables, optional
        Compute the gradients in these only, all of them now. One that `variable` does not depend on
        gets zeros.
    differentiable : bool
        Return Variables, which can be differentiated again, instead of arrays.

    Returns
    -------
    Gradients
        A mapping from Variable to gradient, used like a dict. Each gradient has the shape of its
        Variable and, where that is a floating one, its dtype.

    Raises
    ------
    TypeError
        `variable` or a member of `wrt` is not a Variable.
    ValueError
        A rule returned a gradient of the wrong shape, or the graph has a cycle.

    Notes
    -----
    Without `wrt` (and not `differentiable`) the gradient of a leaf, a Variable that was not
    computed, is worked out when it is first read, unless the leaf is learnable; one that nobody
    reads costs nothing. It is the gradient at the numbers that the arrays held when `get_gradients`
    was called: what happens to them afterwards, by assignment or in place, does not change it.
    """
    if not isinstance(variable, Variable):
        raise TypeError(f"get_gradients: expected a Variable, got {type(variable).__name__}")
    if wrt is not None:
        wrt = [wrt] if isinstance(wrt, Variable) else list(wrt)
        for one in wrt:
            if not isinstance(one, Variable):
                raise TypeError(f"get_gradients: wrt holds a {type(one).__name__}, not a Variable")
    return Gradients(variable, wrt, differentiable)


class Gradients(MutableMapping):
    """What `get_gradients` returns: Variable -> gradient, like a dict.

    Iteration starts at the result and ends at the leaves. An array that was read belongs to the
    reader: writing into it, or assigning another in its place, changes nothing else.
    """

    def __init__(self, result: Variable, wrt, differentiable: bool) -> None:
        self._differentiable = differentiable
        self._given = {}  # what readers have, or have assigned
        order = _topological_order(_walk(result))
        first = order[0]
        recorded = type(first.node) is _Node and type(first.node.y) is ndarray
        value = first.node.y if recorded else result._array
        seed = np.empty(value.shape, value.dtype)
        seed.fill(1)
        first.g, first.is_done = Variable(seed) if differentiable else seed, True
        self._steps = {step.variable: step for step in order}  # None for other Variables
        if wrt is not None:
            _mark_on_the_way(set(wrt), order)
        elif not differentiable:
            _mark_late(order)
        _compute(order, differentiable)
        if wrt is not None:
            steps, self._steps = self._steps, {}
            for v in wrt:
                self._steps[v] = steps.get(v)
                self[v]
            self._steps = dict.fromkeys(wrt)  # all has been handed out: free the rest
        else:
            _freeze(order)

    def __getitem__(self, v: Variable):
        if v in self._given:
            return self._given[v]
        if v not in self._steps:
            raise KeyError(f"the result does not depend on {v!r}: name it in wrt= to get zeros")
        step = self._steps[v]
        g = None if step is None else _gradient(step, self._differentiable)
        if g is None:
            like = step.consumers[0][2] if step is not None and step.consumers else v
            g = np.zeros(like.shape, like.dtype)
            g = Variable(g) if self._differentiable else g
        elif self._differentiable:
            with _Recording():
                g = _copy(g if isinstance(g, Variable) else Variable(g))  # from a constant rule
        elif not _is_free(g, step) or any(g is other for other in self._given.values()):
            g = g.copy()
        self._given[v] = g
        return g

    def __setitem__(self, v: Variable, gradient) -> None:
        if not isinstance(v, Variable):
            raise TypeError(f"the keys of gradients are Variables, got {type(v).__name__}")
        self._given[v] = gradient
        self._steps.setdefault(v)

    def __delitem__(self, v: Variable) -> None:
        del self._steps[v]
        self._given.pop(v, None)

    def __contains__(self, v) -> bool:
        return v in self._steps

    def __iter__(self) -> Iterator[Variable]:
        return iter(list(self._steps))

    def __len__(self) -> int:
        return len(self._steps)

    def copy(self) -> dict:
        """All gradients, in a dict."""
        return dict(self)

    def __copy__(self) -> Gradients:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, _given=dict(self), _steps=dict.fromkeys(self))
        return other

    def __repr__(self) -> str:
        return f"<Gradients in {len(self)} Variables>"


class _Step:
    """A Variable on the way back: what was made from it, and the gradient in it."""

    __slots__ = ("consumers", "g", "inputs", "is_done", "is_passed", "is_wanted", "n_waiting",
                 "node", "values", "variable", "y")  # fmt: skip
    # consumers: [(step of what was made from it, rule that leads back, array that went in), ...]
    # inputs: the steps of what it was made from, until gradients are computed
    # g: the gradient once `is_done`; None if nothing came back
    # is_passed: a short cut goes past it (see `shown_only`)
    # is_wanted: its gradient is computed at once
    # n_waiting: how many consumers are not in order yet
    # values, y: to use in place of what the node recorded, if `values` is not None


def _walk(result) -> list:
    """The step of `result`, then those of every Variable that it was computed from."""
    known = {result: _step(result)}
    stack = [known[result]]
    while stack:
        step = stack.pop()
        node = step.node
        if node is None:
            continue
        for x, rule, value in zip(node.inputs, node.rules, node.values):
            if rule is not None and isinstance(x, _Fields):
                before = known.get(x)
                if before is None:
                    known[x] = before = _step(x)
                    stack.append(before)
                step.inputs.append(before)
                before.consumers.append((step, rule, value))
                before.n_waiting += 1
                if type(rule) is shown_only:
                    before.is_passed = True
    return list(known.values())


def _step(v):
    step = _Step.__new__(_Step)
    step.variable, step.node = v, v._node
    step.consumers, step.inputs, step.n_waiting = [], [], 0
    step.g = step.values = step.y = None
    step.is_done = step.is_passed = False
    step.is_wanted = True
    return step


def _topological_order(steps: list) -> list:
    """The steps, each after those of everything made from it, so that its gradient is whole.

    Without the order (a plain walk along every path) time would double with every shared Variable.
    """
    ready, order = [], []
    if not steps[0].n_waiting:
        ready.append(steps[0])
    while ready:
        step = ready.pop()
        order.append(step)
        for x in step.inputs:
            x.n_waiting -= 1
            if not x.n_waiting:
                ready.append(x)
    if len(order) != len(steps):
        raise ValueError("get_gradients: the graph has a cycle (a Variable is its own input)")
    return order


def _mark_on_the_way(wrt: set, order: list) -> None:
    """Want only the gradients on the way to those in `wrt`."""
    for step in reversed(order):
        step.is_wanted = step.variable in wrt or any(x.is_wanted for x in step.inputs)


def _mark_late(order: list) -> None:
    """Want all gradients but those of leaves, and of what linear operations have made of them.

    Those of learnable leaves are going to be read: computed at once, they need no copy of an array.
    """
    for step in reversed(order[1:]):
        step.is_wanted = not _can_wait(step)


def _can_wait(step):
    """Whether nothing but g is needed for the gradient in a step, whose inputs have been asked.

    A linear operation needs no numbers but g. What goes into a function that the user wrote cannot
    wait: nobody knows which arrays that function will read.
    """
    if step.inputs:
        if type(step.node) is _Written:
            return False
        node = step.node
        if not node.traits.linear:
            return False
    elif step.variable.is_learnable:
        return False
    for x in step.inputs:
        if x.is_wanted:
            return False
    for consumer, _, _ in step.consumers:
        if type(consumer.node) is _Written:
            return False
    return True


def _compute(order, differentiable):
    for step in order:
        step.inputs = None  # with `consumers` a cycle, which would keep the graph from being freed
    for step in order:
        if step.is_wanted and not step.is_done:
            _pull(step, differentiable)


def _pull(step, differentiable):
    """Compute the gradient in a step whose consumers have theirs."""
    step.g = _sum(step, differentiable, False)
    step.is_done = True


def _sum(step, differentiable, shown):
    """Sum of what the Variables made from this one send back to it; None if they send nothing."""
    if differentiable:
        with _Recording():
            return _sum_of_parts(step, differentiable, shown)
    return _sum_of_parts(step, differentiable, shown)


def _sum_of_parts(step, differentiable, shown):
    total = None
    for consumer, rule, value in step.consumers:
        g = consumer.g
        if g is None or (type(rule) is shown_only) is not shown:
            continue
        how = consumer.node
        if type(how) is _Written:
            is_own = False
            part = rule(g, None)
        else:
            node = how
            is_own = node.traits.is_own
            if differentiable:
                values, y = _as_variables(consumer)
            elif consumer.values is None:
                values, y = node.values, node.y
            else:
                values, y = consumer.values, consumer.y
            if node.traits.waits and not differentiable:
                values = [_value(one) for one in values]
            part = rule(g, y, *values)
        if type(part) is not ndarray or part.dtype is not value.dtype or part.shape != value.shape:
            part = _fitting(part, value, rule, how, differentiable)
        if total is not None:
            part = total + part
            if type(part) is not ndarray:
                part = _as_gradient(part)
        elif not is_own and part is not g and isinstance(part, ndarray):
            part = part.copy()  # the user's rule may keep its array, and use it again
        total = part
    return total


def _freeze(order) -> None:
    """Copy the arrays that rules called later will need and that a user could write to.

    An array made by an operation and never looked at cannot be written to by anybody. It is lent
    instead: who looks at it later gets a copy.
    """
    copies = {}
    for step in order:
        if step.is_done and not step.is_passed:
            continue
        for consumer, rule, _ in step.consumers:
            if step.is_done and type(rule) is not shown_only:
                continue
            if type(consumer.node) is _Written or consumer.node.traits.linear:
                continue
            node = consumer.node
            multilinear = node.traits.multilinear
            if consumer.values is None:
                consumer.values, consumer.y = list(node.values), node.y
                if not multilinear:
                    consumer.y = _safe(node.y, consumer.variable, copies)
            if not node.held:
                for i in range(len(consumer.values)):
                    if not (multilinear and node.rules[i] is rule):
                        consumer.values[i] = _safe(node.values[i], node.inputs[i], copies)


def _safe(value, variable, copies):
    if not isinstance(value, ndarray):
        return value
    if isinstance(variable, _Fields):
        v = variable
        if v._private and v._held is value:  # else the mark is about an array assigned since
            v._lent = True
            return value
    if id(value) not in copies:
        copies[id(value)] = value.copy()
    return copies[id(value)]


def _gradient(step, differentiable):
    """The gradient in a step, with the part of it that does not flow on; None for zero."""
    stack = [step]
    while stack:  # those that it depends on come first
        top = stack[-1]
        if top.is_done:
            stack.pop()
            continue
        missing = [consumer for consumer, _, _ in top.consumers if not consumer.is_done]
        if missing:
            stack.extend(missing)
        else:
            _pull(top, differentiable)
    g = step.g
    extra = _sum(step, differentiable, True) if step.is_passed else None
    if g is None or extra is None:
        return g if extra is None else extra
    if not differentiable:
        return g + extra
    with _Recording():
        return g + extra


def _is_free(g, step) -> bool:
    """Whether nobody else in the graph has the array `g`, so that who reads it may keep it."""
    if g.base is not None or not g.flags.writeable or step.node is not None:
        return False
    for consumer, _, _ in step.consumers:
        if consumer.g is g:
            return False
        if type(consumer.node) is _Written:
            continue
        node = consumer.node
        for other in (node.y, consumer.y, *node.values, *(consumer.values or ())):
            if other is g:
                return False
    return True


def _as_variables(step):
    """Inputs and output of a step as Variables, linked to the graph also if rebound since."""

    def linked(v, value):
        if not isinstance(v, Variable) or v._held is value:
            return v
        value = _value(value)
        if v._array is value:
            return v
        rules = [lambda g, y, a: g]
        return _made(value, False, _recorded(_copy.traits, (v,), [value], rules, value, False))

    node, values, y = step.node, step.values, step.y
    if values is None:
        values, y = node.values, node.y
    inputs = zip(node.inputs, values)
    values = [linked(x, value) if isinstance(x, Variable) else value for x, value in inputs]
    return values, linked(step.variable, y)


def _as_gradient(g):
    return g if isinstance(g, (np.ndarray, Variable)) else np.asarray(g)


def _fitting(g, value: np.ndarray, rule, node, differentiable):
    """A gradient as a rule returned it, checked and taken into the shape and dtype of `value`."""
    name = "local_gradients" if type(rule) is _Function else node.traits.function.__name__
    if isinstance(g, Variable) and not differentiable:
        function = rule.function if type(rule) is _Function else rule
        raise TypeError(
            f"{name}: the rule {getattr(function, '__qualname__', function)} was given an array "
            "and returned a Variable: let it use variable.array, not a Variable from outside"
        )
    g = _as_gradient(g)
    if g.dtype.kind not in "fiub":
        raise TypeError(f"{name}: a rule must return a gradient of real numbers, got {g!r}")
    if g.shape != value.shape:
        if type(rule) is not _Function:
            raise ValueError(
                f"{name}: a rule returned a gradient of shape {g.shape} for an input of shape "
                f"{value.shape} (sum_to(gradient, input.shape) undoes broadcasting)"
            )
        g = _to_shape(g, value.shape)
    if g.dtype != value.dtype and value.dtype.kind == "f":
        from .ops import astype

        g = astype(g, value.dtype)
    return g


def _to_shape(g: np.ndarray, shape) -> np.ndarray:
    """For functions written with broadcasting in mind: sum or repeat `g` to `shape`."""
    try:
        whole = np.broadcast_to(g, np.broadcast_shapes(g.shape, shape))
    except ValueError:
        raise ValueError(
            f"a function in local_gradients returned a gradient of shape {g.shape} for an input "
            f"of shape {shape}"
        ) from None
    from .kernels import reference

    return reference.sum_to(whole, shape)


# ------------------------------------------------------------------------------------ short cuts
#
# Skip this on a first reading. An operation may be computed past one of its inputs: cross_entropy
# of what softmax made goes back to the logits, and max pooling of what leaky_relu made pools the
# array before it. The input that was passed still has a gradient (shown_only), and need not even
# have a value (Later).


class shown_only:
    """Marks a rule whose gradient is shown to who asks for it, but does not flow on from there.

    For an operation that takes a short cut past one of its inputs: the short cut carries the
    gradient on, and the input that was passed still has one.
    """

    __slots__ = ("rule",)

    def __init__(self, rule: Callable) -> None:
        self.rule = rule

    def __call__(self, *args):
        return self.rule(*args)


class Later:
    """The value of a primitive that is computed when somebody needs it.

    An operation that takes a short cut past it never does (see `short_cut`).

    Parameters
    ----------
    compute : function of the values of all arguments of the primitive
    shape, dtype : of the value
    worth : int
        Arguments that a user could write to are copied, lest they change before they are used: at
        most so many bytes of them. With more, the value is computed at once.
    """

    __slots__ = ("_array", "arguments", "compute", "dtype", "n", "shape", "traits", "values",
                 "worth")  # fmt: skip

    def __init__(self, compute: Callable, shape: tuple, dtype: np.dtype, worth: int = 0) -> None:
        self.compute = compute
        self.shape = shape
        self.dtype = dtype
        self.worth = worth
        self._array = self.values = None

    def value(self, values: list | None = None) -> np.ndarray:
        """The array: computed once, from the values of the arguments or from those held."""
        held = self.values  # before the question, since another thread may just be done
        if self._array is None:
            values = held if values is None else values
            self._array = self.compute(*[_value(one) for one in values])
            self.values = None
        return self._array

    def hold(self, traits, args, values, n) -> bool:
        """Keep the first `n` values as they are now; False if that took too large copies."""
        exposed = [
            isinstance(value, np.ndarray) and not getattr(a, "_private", False)
            for a, value in zip(args[:n], values)
        ]
        if sum(value.nbytes for value, e in zip(values, exposed) if e) > self.worth:
            return False
        for a, is_exposed in zip(args, exposed):
            if not is_exposed and isinstance(a, Variable):
                a._lent = True
        held = [value.copy() if e else value for value, e in zip(values, exposed)]
        self.traits, self.arguments, self.n = traits, args, n
        self.values = [*held, *values[n:]]
        return True


def _value(one):
    return one.value() if type(one) is Later else one


def _waiting(v: Variable):
    """The array of `v`, or its Later if that is not built on another: values are two deep at most,
    or reading the last of a long chain would recurse through all of it."""
    held = v._held
    if type(held) is Later and any(type(value) is Later for value in held.values or ()):
        return _computed(v)
    return held


def _recorded_later(later, rules):
    if not _is_recording():
        return None
    values = later.values[: later.n]
    return _recorded(later.traits, later.arguments, values, rules, later, True)


def not_computed(v, operation) -> Later | None:
    """The Later of `v` if it is one of `operation`, and nobody has needed its value so far."""
    later = v._held if isinstance(v, Variable) else None
    if type(later) is not Later or later.traits is not operation.traits or later.values is None:
        return None
    return later


def short_cut(operation, later: Later, passed: tuple, *parameters) -> Variable | None:
    """`operation` on what `later` was given, past the Variables in `passed`.

    The rules of `operation` are one for each input of `later`, and then one for each in `passed`.
    These must be `shown_only`: the gradient is shown to who asks for it, but goes on by the short
    cut, as far as Variables were recorded. None if another thread has needed the value of `later`
    meanwhile.
    """
    held = later.values
    if held is None:
        return None
    values = [_value(one) for one in held[: later.n]]
    y, *rules = operation.traits.function(*values, *[None] * len(passed), *parameters)
    y, node = _as_array(y), None
    if _is_recording():
        inputs = (*later.arguments[: later.n], *passed)
        values += [v._held for v in passed]
        for i in reversed(range(later.n, len(inputs))):
            if type(inputs[i]._node) is not _Node:  # made under no_grad: here the graph ends
                rules[: i + 1] = [*[None] * i, rules[i].rule]
                break
        node = _recorded(operation.traits, inputs, values, rules, y, True)
    return _made(y, True, node)
