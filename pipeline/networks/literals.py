"""Sizes that the methods of a network's modules hold as numbers, such as the 48 of `x[:, :48]`.

Each is given a name, such as `forward_size_0` for the first one of `forward`. `replace` gives a module another class,
derived from its own, whose methods read attributes of these names. From then on the numbers are attributes like others
(sizes.py). Such a module is copied and pickled as others are; what it is unpickled by reads the source again.

Sizes are whole numbers of 2 or more in the bounds of slices and in calls of CALLS. A method stays as it is where its
source can't be had or isn't what runs, where it is decorated, where it takes names from a function around it, or where
making a class runs code of the user's.
"""

from __future__ import annotations
import __future__

import abc
import ast
import inspect
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Generic

from torch import nn

from pipeline.errors import UserError

CALLS = ("split", "split_with_sizes", "view", "reshape", "unflatten", "narrow")


def literals(module: nn.Module) -> dict[str, int]:
    """The name of each size in the module's methods -> its number; none once they are attributes."""
    kind = type(module)
    found = {name: number for function in _methods(kind) for name, number in _numbers(function).items()}
    return {} if "_written_as" in vars(kind) or any(hasattr(module, name) for name in found) else found


def replace(module: nn.Module) -> None:
    """Let the module's methods read their sizes from attributes, in place; these begin with the numbers as written."""
    vars(module).update(literals(module))
    module.__class__ = _reading(type(module))  # type: ignore[arg-type]


@cache
def _reading(kind: type[nn.Module]) -> type[nn.Module]:
    """A class like it, whose methods read attributes."""
    methods = {function.__name__: _anew(function) for function in _methods(kind) if _numbers(function)}
    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    metaclass: Any = type(kind)  # ABC's, or the usual one
    return metaclass(kind.__name__, (kind,), {**own, **methods, "_written_as": kind, "__reduce_ex__": _reduced})


def _reduced(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    kind: type[nn.Module] = type(module)._written_as  # type: ignore[attr-defined]
    names = [name for function in _methods(kind) for name in _numbers(function)]
    return _blank, (kind, names), module.__getstate__()  # type: ignore[attr-defined]


def _blank(kind: type[nn.Module], names: list[str]) -> nn.Module:
    """For pickle and copy. UserError where the class's methods have other sizes than when it was pickled."""
    if names != [name for function in _methods(kind) for name in _numbers(function)]:
        raise UserError(
            f"the source of {kind.__name__} can't be read or isn't what it was when the network was pickled"
        )
    made = _reading(kind)  # type: ignore[arg-type]
    return made.__new__(made)


def _anew(function: types.FunctionType) -> types.FunctionType:
    tree = _tree(function)
    nodes = dict(zip(_numbers(function), _constants(tree), strict=True))
    changed = _Attributes({id(node): key for key, node in nodes.items()}).visit(tree)
    made = types.FunctionType(
        _compiled(changed, function), function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    made.__kwdefaults__, made.__annotations__ = function.__kwdefaults__, function.__annotations__
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    return made


def _methods(kind: type) -> Iterator[types.FunctionType]:
    """The plain methods that a module's class has beside those of torch's; none where other code is told of classes."""
    told = any("__init_subclass__" in vars(base) for base in kind.__mro__ if base not in (object, Generic))
    if told or type(kind) not in (type, abc.ABCMeta):  # such as a list of all classes, to build from
        return
    seen: set[str] = set()
    for base in kind.__mro__:
        for name, method in vars(base).items():
            plain = inspect.isfunction(method) and method.__name__ == name and not name.startswith("__")
            if name not in seen and plain and str(method.__module__).partition(".")[0] != "torch":
                yield method
            seen.add(name)


@cache
def _numbers(function: types.FunctionType) -> dict[str, int]:
    """Name -> number of a method's sizes; none where the method can't be replaced."""
    try:
        tree = _tree(function)
        code, own = _compiled(tree, function), function.__code__
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):  # no source, or not a method's
        return {}
    if any(getattr(code, part) != getattr(own, part) for part in SAME):
        return {}
    return {f"{function.__name__}_size_{n}": int(node.value) for n, node in enumerate(_constants(tree))}  # type: ignore[arg-type]


SAME = ("co_code", "co_consts", "co_names", "co_varnames", "co_freevars", "co_argcount", "co_kwonlyargcount")
FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


def _tree(function: types.FunctionType) -> ast.Module:
    """The method within a class of no name, with the lines of its file."""
    tree = ast.parse(f"class _:\n{inspect.getsource(function)}")
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 2)
    [kind] = tree.body
    [method] = kind.body  # type: ignore[attr-defined]
    if not isinstance(method, ast.FunctionDef) or method.decorator_list or not method.args.args:
        raise ValueError(f"{function.__name__} isn't a plain method")
    return tree


def _compiled(tree: ast.Module, function: types.FunctionType) -> types.CodeType:
    """The method's code. Calls of what the file imports are compiled in another way, so that it must be known."""
    held = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    here = function.__globals__.get("__name__")
    foreign = [name for name, value in held.items() if getattr(value, "__module__", None) != here]
    imports = [ast.Import([ast.alias(name)], lineno=1, col_offset=0) for name in foreign]
    whole = ast.fix_missing_locations(ast.Module([*imports, *tree.body], []))
    code = compile(whole, function.__code__.co_filename, "exec", function.__code__.co_flags & FUTURE, dont_inherit=True)
    for _ in ("class", "method"):
        code = next(part for part in code.co_consts if isinstance(part, types.CodeType))
    return code


def _constants(tree: ast.Module) -> list[ast.Constant]:
    """A method's sizes, in the order of the source."""
    found: dict[int, ast.Constant] = {}
    for node in ast.walk(tree):
        places: list[ast.AST | None] = []
        if isinstance(node, ast.Slice):
            places = [node.lower, node.upper]
        elif isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            places = [*node.args, *(one.value for one in node.keywords)] if name in CALLS else []
        for place in places:
            for part in ast.walk(place) if place is not None else ():
                if isinstance(part, ast.Constant) and type(part.value) is int and part.value > 1:
                    found[id(part)] = part
    return sorted(found.values(), key=lambda part: (part.lineno, part.col_offset))


class _Attributes(ast.NodeTransformer):
    """Puts attributes of the method's first argument in place of constants."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names
        self.own = ""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        self.own = self.own or node.args.args[0].arg
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> Any:
        if id(node) not in self.names:
            return node
        own = ast.copy_location(ast.Name(self.own, ast.Load()), node)
        return ast.copy_location(ast.Attribute(own, self.names[id(node)], ast.Load()), node)
