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


def _as_array(value) -> np.ndarray:
    if type(value) is not ndarray:
        if isinstance(value, Variable):
            raise TypeError("a Variable holds an array, not another Variable: use variable.array")
        if isinstance(value, np.ndarray) and hasattr(value, "mask"):
            raise TypeError("a Variable cannot hold a masked array: its mask would be lost")
        refuse_lists_of_variables(value, "Variable")
        value = np.asarray(value)
    if value.dtype.kind not in "fiub":
        raise TypeError(f"a Variable holds real numbers, got an array of dtype {value.dtype}")
    return value


# Three marks of a Variable serve gradients that are computed late (see Gradients._freeze).
# `_private`: an operation made the array, and nobody has looked at it, so nobody can write into it.
# `_lent`: a late gradient counts on it, so who looks at it from now on gets a copy. `_later`: see
# Later.


class Variable:
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

    __slots__ = ("__dict__", "__weakref__", "_array", "_later", "_lent", "_node", "_private")
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
        self._array = _as_array(array)
        self._later = None
        self._private = False  # made by an operation, and nobody has looked at it
        self._lent = False  # a gradient that is still to be computed counts on the array
        self._node = None
        if local_gradients and _is_recording():
            self.local_gradients = local_gradients

    def __getattr__(self, name: str):
        # Only called where an attribute is missing, as `_array` is until it is computed.
        if name == "_array":
            later = self._later
            if later is not None:
                self._array = later.value()
                self._later = None
                if type(self._node) is _Node:
                    self._node.y = self._array
            return object.__getattribute__(self, "_array")
        raise AttributeError(f"a Variable has no attribute {name!r}")

    @property
    def array(self) -> np.ndarray:
        """The numbers, as an ndarray."""
        if self._lent:
            self._array = self._array.copy()
        self._private = self._lent = False
        return self._array

    @array.setter
    def array(self, value) -> None:
        self._array  # noqa: B018 - a value that waits to be computed is computed first
        self._array = _as_array(value)
        self._private = self._lent = False

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
        self._array  # noqa: B018 - as above
        self._node = _Written(pairs)

    # `_later or _array`: the shape is known before the value is.
    dtype = property(lambda self: (self._later or self._array).dtype, doc="Its array's dtype.")
    shape = property(lambda self: (self._later or self._array).shape, doc="Its array's shape.")
    ndim = property(lambda self: len(self.shape), doc="The number of dimensions.")
    size = property(lambda self: math.prod(self.shape), doc="The number of elements.")

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


class _Node:
    """How a Variable was made: the operation, its arguments, their arrays then, and the rules.

    `held` says that nobody can write into those arrays any more (see Later).
    """

    __slots__ = ("held", "inputs", "operation", "rules", "values", "y")

    def __init__(self, operation, inputs, values, rules, y, held=False):
        self.held = held
        self.operation = operation
        self.inputs = inputs
        self.values = values
        self.rules = rules
        self.y = y

    @property
    def pairs(self):
        edges = zip(self.inputs, self.rules)
        return tuple(
            [(v, _Bound(rule, self)) for v, rule in edges if isinstance(v, Variable) and rule]
        )


class _Bound:
    """The rule of a node as a function of g alone."""

    __slots__ = ("node", "rule")

    def __init__(self, rule, node):
        self.rule = rule
        self.node = node

    def __call__(self, g):
        node, values = self.node, self.node.values
        if node.operation.waits:
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
        return functools.partial(primitive, linear=linear, operands=operands, waits=waits)
    if not callable(function):
        raise TypeError(f"primitive: expected a function, got {type(function).__name__}")
    code = getattr(function, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code else ()

    module = getattr(function, "__module__", None) or ""
    # The library's own functions neither keep nor write what they are shown; others might.
    is_own = module.partition(".")[0] == __name__.partition(".")[0]

    @functools.wraps(function)
    def operation(*args, **kwargs):
        if kwargs:  # inputs given by name go to their places, where the rules expect them
            for name in names[len(args) :]:
                if name not in kwargs:
                    break
                args += (kwargs.pop(name),)
        variables, values = [], []
        for a in args:
            if isinstance(a, Variable):
                variables.append(a)
                # Somebody else's function may keep what it is shown, and what it returns.
                a = a._array if fast else _waiting(a) if waits else a.array
            elif not is_own or a is None or type(a) is int:
                pass
            elif isinstance(a, ndarray):
                if a.dtype.kind not in "fiub":
                    name = function.__name__.lstrip("_")
                    raise TypeError(f"{name}: expected real numbers, got dtype {a.dtype}")
            elif isinstance(a, (list, tuple)):
                refuse_lists_of_variables(a, function.__name__.lstrip("_"))
            values.append(a)
        if operands and 0 < len(variables) < operands:
            _take_dtype(args, values, variables, operands)
        returned = function(*values, **kwargs) if kwargs else function(*values)
        if type(returned) is not tuple or not returned:
            raise TypeError(f"{function.__name__} must return a tuple: its value, then its rules")
        y, rules = returned[0], returned[1:]
        if not variables:
            return y.value(values) if type(y) is Later else y
        n = len(rules)
        if len(args) > n or kwargs:
            for variable in (*args[n:], *kwargs.values()):
                if isinstance(variable, Variable):
                    raise TypeError(
                        f"{function.__name__}: a Variable stands where there is no gradient to "
                        "compute: pass its array"
                    )
        if type(y) is Later:
            if y.hold(operation, args, values, n):
                return _computed_later(y, rules)
            y = y.value(values)
        result = Variable(y)
        y = result._array
        alone = y.base is None
        for value in values:  # by identity; `in` would compare numbers
            if value is y:
                alone = False
        if alone:
            result._private = is_own
        else:
            if any(variable._lent for variable in variables):
                y = result._array = y.copy()
            for variable in variables:
                variable._private = False
        if not _silenced.get():
            inputs = values if len(values) == n else values[:n]
            result._node = _Node(operation, args, inputs, rules, y)
        return result

    fast = is_own and not waits
    operation.linear = linear
    operation.is_own = is_own
    operation.waits = waits
    operation.function = function
    return operation


def _take_dtype(args, values, variables, operands):
    dtype = functools.reduce(np.promote_types, [v.dtype for v in variables])
    if dtype.kind == "f":
        for i, arg in enumerate(args[:operands]):
            if not isinstance(arg, Variable):
                array = np.asarray(float(arg) if type(arg) is int else arg)
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
    computed, is worked out when it is first read; one that nobody reads costs nothing. It is the
    gradient at the numbers that the arrays held when `get_gradients` was called: what happens to
    the arrays afterwards, by assignment or in place, does not change it.
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
        self._edges, inputs, passed = _consumers(result)
        self._frozen = {}  # Variable -> (values, y) to use in place of what its node recorded
        self._given = {}  # what readers have, or have assigned
        order = _topological_order(result, self._edges, inputs)
        recorded = type(result._node) is _Node and type(result._node.y) is np.ndarray
        value = result._node.y if recorded else result._array
        seed = np.ones(value.shape, value.dtype)
        self._g = {result: Variable(seed) if differentiable else seed}
        if wrt is not None:
            self._compute(order, _on_the_way(wrt, order, inputs))
            self._keys = dict.fromkeys(wrt)
            for v in wrt:
                self[v]
            self._edges = self._g = None  # all has been handed out: free the rest
        else:
            self._keys = dict.fromkeys(order)
            late = set() if differentiable else _leaf_side(order, self._edges, inputs)
            self._compute(order, {v for v in order if v not in late})
            self._freeze(late.union(passed))

    def _compute(self, order, wanted) -> None:
        pull = self._pull if self._differentiable else self._sum
        g = self._g
        for v in order:
            if v in wanted and v not in g:
                g[v] = pull(v)

    def _pull(self, v, shown: bool = False):
        """Sum of what the Variables made from `v` send back to it; None if they send nothing."""
        if not self._differentiable:
            return self._sum(v, shown)
        with _Recording():
            return self._sum(v, shown)

    def _sum(self, v, shown=False):
        total = None
        for consumer, rule, value in self._edges[v]:
            g = self._g[consumer]
            if g is None or (type(rule) is shown_only) is not shown:
                continue
            node = consumer._node
            if type(node) is _Written:
                values, y = (), None
            elif self._differentiable:
                values, y = _as_variables(consumer, node)
            else:
                values, y = node.values, node.y
                if consumer in self._frozen:
                    values, y = self._frozen[consumer]
                if node.operation.waits:
                    values = [_value(one) for one in values]
            part = rule(g, y, *values)
            if (
                type(part) is not ndarray
                or part.dtype is not value.dtype
                or part.shape != value.shape
            ):
                part = _fitting(part, value, rule, node)
            if total is not None:
                part = total + part
                if type(part) is not ndarray:
                    part = _as_gradient(part)
            total = part
        return total

    def _freeze(self, variables) -> None:
        """Copy the arrays that gradients computed later will need and that a user could write to.

        An array made by an operation and never looked at cannot be written to by anybody. It is
        lent instead: who looks at it later gets a copy.
        """
        copies = {}

        def safe(value, variable):
            if not isinstance(value, np.ndarray):
                return value
            if getattr(variable, "_private", False):
                variable._lent = True
                return value
            if id(value) not in copies:
                copies[id(value)] = value.copy()
            return copies[id(value)]

        for v in variables:
            for consumer, _, _ in self._edges[v]:
                node = consumer._node
                if type(node) is not _Node or node.operation.linear:
                    continue
                if consumer not in self._frozen:
                    values = node.values
                    if not node.held:
                        values = [safe(value, x) for value, x in zip(values, node.inputs)]
                    self._frozen[consumer] = values, safe(node.y, consumer)

    def _ensure(self, v) -> None:
        """Compute the gradient in `v`, those it depends on first."""
        stack = [v]
        while stack:
            u = stack[-1]
            if u in self._g:
                stack.pop()
                continue
            missing = [c for c, _, _ in self._edges[u] if c not in self._g]
            if missing:
                stack.extend(missing)
            else:
                self._g[u] = self._pull(u)

    def _shown(self, v):
        """The gradient in `v`, with the part of it that does not flow on; None for zero."""
        if v not in self._edges:
            return None
        self._ensure(v)
        g, extra = self._g[v], self._pull(v, shown=True)
        if g is None or extra is None:
            return g if extra is None else extra
        if not self._differentiable:
            return g + extra
        with _Recording():
            return g + extra

    def __getitem__(self, v: Variable):
        if v in self._given:
            return self._given[v]
        if v not in self._keys:
            raise KeyError(f"the result does not depend on {v!r}: name it in wrt= to get zeros")
        g = self._shown(v)
        if g is None:
            edges = (self._edges or {}).get(v)
            like = edges[0][2] if edges else v
            g = np.zeros(like.shape, like.dtype)
            g = Variable(g) if self._differentiable else g
        elif self._differentiable:
            with _Recording():
                g = _copy(g)
        elif not self._is_free(g, v):
            g = g.copy()
        self._given[v] = g
        return g

    def _is_free(self, g, v) -> bool:
        """Whether the array `g` is nobody else's, so that who reads v's gradient may have it."""
        if g.base is not None or not g.flags.writeable or v._node is not None:
            return False
        for consumer, _, _ in self._edges[v]:
            node = consumer._node
            if type(node) is _Written or not node.operation.is_own:
                return False  # a rule of the user's may keep what it returns
            values, y = self._frozen.get(consumer, ((), None))
            others = (self._g[consumer], node.y, *node.values, y, *values)
            if any(g is other for other in others):
                return False
        return not any(g is other for other in self._given.values())

    def __setitem__(self, v: Variable, gradient) -> None:
        if not isinstance(v, Variable):
            raise TypeError(f"the keys of gradients are Variables, got {type(v).__name__}")
        self._given[v] = gradient
        self._keys[v] = None

    def __delitem__(self, v: Variable) -> None:
        del self._keys[v]
        self._given.pop(v, None)

    def __contains__(self, v) -> bool:
        return v in self._keys

    def __iter__(self) -> Iterator[Variable]:
        return iter(list(self._keys))

    def __len__(self) -> int:
        return len(self._keys)

    def copy(self) -> dict:
        """All gradients, in a dict."""
        return dict(self)

    def __repr__(self) -> str:
        return f"<Gradients in {len(self)} Variables>"


def _consumers(result: Variable) -> tuple[dict, dict, list]:
    """For every Variable that `result` was computed from, what was made from it.

    A list of (Variable, rule that leads back, array that went in). Second, what each was made from.
    Third, those Variables that a short cut goes past (see `shown_only`).
    """
    edges, inputs, passed = {result: []}, {}, []
    stack = [result]
    while stack:
        v = stack.pop()
        inputs[v] = mine = []
        node = v._node
        if node is None:
            continue
        for x, rule, value in zip(node.inputs, node.rules, node.values):
            if rule is not None and isinstance(x, Variable):
                mine.append(x)
                if x not in edges:
                    edges[x] = []
                    stack.append(x)
                edges[x].append((v, rule, value))
                if type(rule) is shown_only:
                    passed.append(x)
    return edges, inputs, passed


def _topological_order(result: Variable, edges: dict, inputs: dict) -> list:
    """The Variables of `edges`, each after everything made from it, so that its gradient is whole.

    Without the order (a plain walk along every path) time would double with every shared Variable.
    """
    waiting = {v: len(consumers) for v, consumers in edges.items()}
    ready = [result] if waiting[result] == 0 else []
    order = []
    while ready:
        v = ready.pop()
        order.append(v)
        for x in inputs[v]:
            waiting[x] -= 1
            if waiting[x] == 0:
                ready.append(x)
    if len(order) != len(edges):
        raise ValueError("get_gradients: the graph has a cycle (a Variable is its own input)")
    return order


def _on_the_way(wrt: list, order: list, inputs: dict) -> set:
    """The Variables of `order` whose gradient is on the way to one in `wrt`."""
    wanted = set(wrt)
    for v in reversed(order):
        if not wanted.isdisjoint(inputs[v]):
            wanted.add(v)
    return wanted


def _leaf_side(order: list, edges: dict, inputs: dict) -> set:
    """The leaves, and what linear operations alone have made of them: gradients that can wait.

    A linear operation needs no numbers but g. What goes into a function that the user wrote cannot
    wait: nobody knows which arrays that function will read.
    """
    late = set()
    for v in reversed(order[1:]):
        node = v._node
        if inputs[v] and not (type(node) is _Node and node.operation.linear):
            continue
        written = any(type(consumer._node) is _Written for consumer, _, _ in edges[v])
        if not written and late.issuperset(inputs[v]):
            late.add(v)
    return late


def _as_variables(consumer: Variable, node):
    """The inputs and output of a node as Variables, linked to the graph also if rebound since."""

    def linked(v, value):
        if not isinstance(v, Variable) or v._later is value:
            return v
        value = _value(value)
        if v._array is value:
            return v
        link = Variable(value)
        link._node = _Node(_copy, (v,), [value], [lambda g, y, a: g], value)
        return link

    inputs = zip(node.inputs, node.values)
    values = [linked(x, value) if isinstance(x, Variable) else value for x, value in inputs]
    return values, linked(consumer, node.y)


def _as_gradient(g):
    return g if isinstance(g, (np.ndarray, Variable)) else np.asarray(g)


def _fitting(g, value: np.ndarray, rule, node):
    """A gradient as a rule returned it, checked and taken into the shape and dtype of `value`."""
    g = _as_gradient(g)
    name = "local_gradients" if type(rule) is _Function else node.operation.__name__
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

    __slots__ = ("_array", "arguments", "compute", "dtype", "n", "operation", "shape", "values",
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

    def hold(self, operation, args, values, n) -> bool:
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
        self.operation, self.arguments, self.n = operation, args, n
        self.values = [*held, *values[n:]]
        return True


def _value(one):
    return one.value() if type(one) is Later else one


def _waiting(v: Variable):
    """The array of `v`, or its Later if that is not built on another: values are two deep at most,
    or reading the last of a long chain would recurse through all of it."""
    later = v._later
    if later is None or any(type(value) is Later for value in later.values or ()):
        return v._array
    return later


def _computed_later(later, rules) -> Variable:
    result = Variable.__new__(Variable)
    result._later, result._private, result._lent, result._node = later, True, False, None
    if _is_recording():
        values = later.values[: later.n]
        result._node = _Node(later.operation, later.arguments, values, rules, later, held=True)
    return result


def not_computed(v, operation) -> Later | None:
    """The Later of `v` if it is one of `operation`, and nobody has needed its value so far."""
    later = getattr(v, "_later", None)
    if later is None or later.operation is not operation or later.values is None:
        return None
    return later


def short_cut(operation, later: Later, passed: tuple, *parameters) -> Variable | None:
    """`operation` on what `later` was given, past the Variables in `passed`.

    The rules of `operation` are one for each input of `later`, and then one for each in `passed`.
    These must be `shown_only`: the gradient is shown to who asks for it, but goes on by the short
    cut. None if another thread has needed the value of `later` meanwhile.
    """
    held = later.values
    if held is None:
        return None
    values = [_value(one) for one in held[: later.n]]
    y, *rules = operation.function(*values, *[None] * len(passed), *parameters)
    result = Variable(y)
    result._private = True
    if _is_recording():
        inputs = (*later.arguments[: later.n], *passed)
        values += [v._later or v._array for v in passed]
        result._node = _Node(operation, inputs, values, rules, y, held=True)
    return result
