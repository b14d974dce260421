"""Graphs that are built first and computed when asked: Lazy, Placeholder, learnables."""

from __future__ import annotations

from collections.abc import Callable

from numpy import ndarray

from .core import Variable


class AssignmentError(Exception):
    """A lazy node has no arguments, or is given them twice; a placeholder has no value."""


class Lazy:
    """A node of a lazy graph: a function whose arguments are set now and which runs later.

    >>> a = Placeholder()
    >>> b = Variable(np.ones([4, 2]))
    >>> y = Lazy(matmul)(a, b)
    >>> a.assign_value(Variable(np.ones([3, 4])))
    >>> result = y.run()

    Arguments may be other nodes, lists or tuples of nodes, Variables, arrays, anything.
    """

    def __init__(self, function: Callable) -> None:
        if not callable(function):
            raise TypeError(f"Lazy: expected a function, got {type(function).__name__}")
        self.function = function
        self.arguments = []
        self.keywords = {}
        self._is_called = False

    def __call__(self, *args, **kwargs) -> Lazy:
        """Set the arguments (once), and return the node itself."""
        if self._is_called or self.arguments:
            raise AssignmentError(f"Arguments already assigned to {self!r}.")
        self.arguments = args
        self.keywords = kwargs
        self._is_called = True
        return self

    def run(self):
        """Compute the value of this node. Each node that it needs runs once, however often used.

        Raises
        ------
        AssignmentError
            A node has no arguments, or a placeholder no value.
        """
        values = {}  # id of a node -> what it returned
        begun = set()
        stack = [self]
        while stack:
            node = stack[-1]
            key = id(node)
            if key in values:
                stack.pop()
                continue
            kind = type(node)
            if kind is not Lazy and kind is not Placeholder and node is not self:
                if getattr(kind, "run", None) is not Lazy.run:  # it runs in a way of its own
                    values[key] = node.run()
                    continue
            arguments, keywords = node.arguments, node.keywords
            if not arguments:
                node._check()
            missing = []
            args = [_filled(a, values, missing) for a in arguments]
            kwargs = keywords and {
                name: _filled(a, values, missing) for name, a in keywords.items()
            }
            if missing:
                begun.add(key)
                for child in missing:
                    if id(child) in begun:
                        raise AssignmentError(
                            f"{node!r} is its own argument, perhaps through others."
                        )
                stack.extend(reversed(missing))
                continue
            values[key] = node.function(*args, **kwargs) if kwargs else node.function(*args)
        return values[id(self)]

    def _check(self) -> None:
        if not self._is_called and not self.arguments:
            raise AssignmentError(f"No arguments have been assigned to {self!r}.")

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"<Lazy {name}>"


def _filled(argument, values, missing):
    """An argument, its nodes replaced by their values; those not run yet are `missing`."""
    if isinstance(argument, (list, tuple)):
        filled = [_filled_one(one, values, missing) for one in argument]
        changed = any(new is not old for new, old in zip(filled, argument))
        if not changed:
            return argument
        kind = type(argument)
        return kind._make(filled) if hasattr(kind, "_make") else kind(filled)  # a named tuple
    return _filled_one(argument, values, missing)


def _filled_one(argument, values, missing):
    kind = type(argument)
    if kind is Variable or kind is ndarray:
        return argument
    if kind is not Lazy and kind is not Placeholder:
        if isinstance(argument, (Variable, ndarray)) or not hasattr(argument, "run"):
            return argument
    key = id(argument)
    if key in values:
        return values[key]
    missing.append(argument)
    return argument


class Placeholder(Lazy):
    """A lazy node whose value is assigned, and may be assigned anew, before each run.

    Parameters
    ----------
    name : str, optional
        How error messages call it.
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(lambda a: a)
        self.name = name

    def assign_value(self, variable) -> None:
        """Set the value: a Variable, an array, or another node."""
        self.arguments = [variable]

    def _check(self) -> None:
        if not self.arguments:
            raise AssignmentError(f"No value has been assigned to {self!r}: use assign_value(...).")

    def __repr__(self) -> str:
        return f"<Placeholder {self.name or hex(id(self))}>"


def learnable(variable: Variable) -> Variable:
    """Flag `variable` as learnable, for `get_learnables` to find, and return it."""
    if not isinstance(variable, Variable):
        raise TypeError(f"learnable: expected a Variable, got {type(variable).__name__}")
    variable.is_learnable = True
    return variable


def get_learnables(lazy_node: Lazy) -> list[Variable]:
    """The learnable Variables that a lazy graph uses, each once, in order of first use."""
    found, seen = [], set()
    stack = [lazy_node]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if getattr(node, "is_learnable", False):
            found.append(node)
        if isinstance(node, (list, tuple)):
            children = node
        else:
            children = (*getattr(node, "arguments", ()), *getattr(node, "keywords", {}).values())
        stack.extend(reversed(children))
    return found
