"""Read tests that are written as Python, as data: arguments and expected value of an assert, calls in a text."""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_CALL = 20_000  # characters of a call in a text


@dataclass(frozen=True)
class Assertion:
    """Hold what an assert says about one call."""

    arguments: list
    wanted: Any
    wrap: str = ""  # what is done to the returned value before it is compared: "", "bool" or "list"
    as_set: bool = False
    tolerance: float = 0.0


def read_assert(test: ast.expr, name: str) -> Assertion:
    """Return what the expression behind an `assert` says about a call of `name`.

    Forms: `f(x) == y`, `is`, `abs(f(x) - y) < e`, `set(f(x)) == set(y)`, the same with `tuple`, `f(x)`, `not f(x)`.
    A set has no place in JSON: it is compared as a list whose order does not count.
    Raises ValueError, with the reason, for other forms and for what is no literal.
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return Assertion(_arguments(test.operand, name), wanted=False, wrap="bool")
    if isinstance(test, ast.Call) and _name(test.func) == name:
        return Assertion(_arguments(test, name), wanted=True, wrap="bool")
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        raise ValueError("neither a call nor one comparison")
    left, right, sign = test.left, test.comparators[0], test.ops[0]
    if isinstance(sign, ast.Lt) and isinstance(difference := _inside(left, "abs"), ast.BinOp):
        if isinstance(difference.op, ast.Sub):
            wanted, tolerance = value_of(difference.right), value_of(right)
            return Assertion(_arguments(difference.left, name), wanted, tolerance=tolerance)
    if not isinstance(sign, ast.Eq | ast.Is):
        raise ValueError(f"compared by {type(sign).__name__}")
    for maker in ("set", "tuple"):
        inner, wanted = _inside(left, maker), _inside(right, maker)
        if inner is not None and wanted is not None:
            return Assertion(_arguments(inner, name), list(value_of(wanted)), wrap="list", as_set=maker == "set")
    wanted = value_of(right)
    if isinstance(wanted, set):
        return Assertion(_arguments(left, name), list(wanted), wrap="list", as_set=True)
    return Assertion(_arguments(left, name), wanted)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _inside(node: ast.expr, function: str) -> ast.expr | None:
    """Return x of `function(x)`, None for anything else."""
    is_it = isinstance(node, ast.Call) and _name(node.func) == function and len(node.args) == 1 and not node.keywords
    return node.args[0] if is_it and isinstance(node, ast.Call) else None


def _arguments(node: ast.expr, name: str) -> list:
    if not isinstance(node, ast.Call) or _name(node.func) != name:
        raise ValueError(f"compares something else than what {name} returns")
    if node.keywords:
        raise ValueError("arguments by name")
    return [value_of(argument) for argument in node.args]


def value_of(node: ast.expr) -> Any:
    """Return the value of a literal, in which numbers and texts may be added, multiplied ... ValueError for others."""
    if isinstance(node, ast.BinOp) and type(node.op) in (*_OPERATORS, ast.Pow):
        left, right = value_of(node.left), value_of(node.right)
        if isinstance(left, str) and isinstance(right, str) and isinstance(node.op, ast.Add):
            return left + right
        if not _is_number(left) or not _is_number(right):
            raise ValueError("no literal")
        if isinstance(node.op, ast.Pow):
            if not 0 <= right <= 64 or abs(left) > 2**32:
                raise ValueError("a large power")
            return left**right
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Tuple):
        return tuple(map(value_of, node.elts))
    if isinstance(node, ast.List):
        return list(map(value_of, node.elts))
    if isinstance(node, ast.Set):
        return set(map(value_of, node.elts))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ValueError(f"no literal: {ast.unparse(node)[:40]}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def calls_in(text: str, name: str) -> Iterator[list]:
    """Yield the arguments of each call `name(...)` with literals anywhere in a text, such as a docstring."""
    for found in re.finditer(rf"\b{re.escape(name)}\s*\(", text):
        end = found.end() - 1
        while (end := text.find(")", end + 1)) >= 0 and end - found.start() < _CALL:
            try:
                node = ast.parse(text[found.start() : end + 1].strip(), mode="eval").body
                yield _arguments(node, name)
            except SyntaxError:  # a bracket inside the call
                continue
            except (ValueError, RecursionError, MemoryError):
                pass
            break


def is_plain(value: Any) -> bool:
    """Return True if JSON holds this value, types included: no tuple, set, or key that is no text."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(is_plain, value.values()))
    return value is None or isinstance(value, bool | int | str)


def as_json(value: Any) -> str:
    """Return the JSON text of an expected value, tuples as lists. ValueError for what JSON cannot hold (sets, NaN)."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"JSON holds no {type(value).__name__}") from error


def like(value: Any, example: Any) -> Any:
    """Return a value out of JSON with the types of an example: tuples where the example has them, in every depth.

    Elements beyond the example's take the types of its last element of the same kind.
    """
    if isinstance(value, str) and isinstance(example, complex):  # JSON holds no complex number
        return complex(value)
    if isinstance(value, dict) and isinstance(example, dict) and example:
        types = list(example.values())
        return {key: like(item, example.get(key, types[-1])) for key, item in value.items()}
    if not isinstance(value, list) or not isinstance(example, list | tuple):
        return value
    holders = [item for item in example if isinstance(item, list | tuple | dict)]
    items = [
        like(item, example[i] if i < len(example) and _alike(item, example[i]) else _last(holders, item))
        for i, item in enumerate(value)
    ]
    return tuple(items) if isinstance(example, tuple) else items


def _alike(item: Any, example: Any) -> bool:
    return isinstance(item, list) == isinstance(example, list | tuple)


def _last(holders: list, item: Any) -> Any:
    return holders[-1] if holders and isinstance(item, list | dict) else None
