"""Read the program in an answer, and compare what it gave with what was expected: on our side, as data.

An answer's objects never come here, only texts. So an object that equals everything, or a patched `int`, says nothing.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from decimal import Decimal
from typing import Any

_PYTHON = re.compile(r"|py|python[0-9.]*")  # the tags of a fence that may hold Python
# No two runs of digits meet in it: a long number with a wrong end would take quadratic time, in our process.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?")
UNFENCED = 20_000  # characters of an answer without a fence that are tried as Python


def program_in(answer: str) -> str:
    """Return the program that counts in an answer, "" if there is none. Never raises, linear in the text's length.

    The last block that is fenced as Python, or without a language, counts. One that is not closed ends with the text.
    Blocks of other languages are passed over. Without any fence the whole text counts, if it is Python that does
    something.
    """
    lines = answer.split("\n")
    fences = [(number, *fence) for number, line in enumerate(lines) if (fence := _fence(line)) is not None]
    if not fences:
        return answer if _does_something(answer) else ""
    program, opening = "", None
    for number, indent, tag in [*fences, (len(lines), 0, "")]:
        if opening is not None:
            start, width, language = opening
            block = "\n".join(_without_indent(line, width) for line in lines[start + 1 : number])
            if _PYTHON.fullmatch(language) and block.strip():
                program = block
        # A tag cannot stand on a closing fence: it opens a block although the one before was not closed.
        opening = (number, indent, tag) if opening is None or tag else None
    return program


def _fence(line: str) -> tuple[int, str] | None:
    """Return indentation and tag of a line that is a fence: three or more backticks, and no more of them behind."""
    text = line.strip()
    if not text.startswith("```"):
        return None
    rest = text.lstrip("`")
    return None if "`" in rest else (len(line) - len(line.lstrip()), rest.split(maxsplit=1)[0].lower() if rest else "")


def _without_indent(line: str, width: int) -> str:
    return line[min(width, len(line) - len(line.lstrip())) :]


def _does_something(text: str) -> bool:
    """Return True for Python with at least one statement that is more than a name or a constant."""
    if len(text) > UNFENCED:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(s, ast.Expr) or isinstance(s.value, ast.Call) for s in statements)


# --- Comparing --------------------------------------------------------------------------------


def same_value(wanted: str, got: str | None, *, tolerance: float = 0.0, as_set: bool = False) -> bool:
    """Return True if two JSON texts hold equal values; False if one cannot be read. Never raises.

    A bool equals bools only. Other numbers are equal by value; if one of two is a float, they may differ by
    `tolerance`, absolute. Lists stand for tuples too. `as_set`: two lists hold the same elements, in any number
    and order.
    """
    if got is None:
        return False
    try:
        one, other = json.loads(wanted), json.loads(got)
        if as_set and isinstance(one, list) and isinstance(other, list):
            return {_key(item) for item in one} == {_key(item) for item in other}
        return _same(one, other, tolerance)
    except (ValueError, RecursionError, OverflowError, MemoryError):
        return False


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        exact = isinstance(one, int) and isinstance(other, int)
        return one == other or (not exact and math.isfinite(one) and abs(one - other) <= tolerance)
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(_same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], tolerance) for key in one)
    return one == other


def _key(value: Any) -> str:
    """Return a text that is the same for equal values: 1.0 as 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{','.join(map(_key, value))}]"
    return json.dumps(value, sort_keys=True)


def same_output(wanted: str, got: str | None) -> bool:
    """Return True if a program printed what was wanted. Never raises.

    As LiveCodeBench compares: blank ends of lines and of the output do not count, and a line's numbers may be written
    in another way (2.50 for 2.5), if all that stands in the line are numbers.
    """
    if got is None:
        return False
    lines, others = _lines(wanted), _lines(got)
    return len(lines) == len(others) and all(map(_same_line, lines, others))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(one: str, other: str) -> bool:
    if one == other:
        return True
    tokens, others = one.split(), other.split()
    if len(tokens) != len(others) or not all(map(_NUMBER.fullmatch, [*tokens, *others])):
        return False
    return [Decimal(token) for token in tokens] == [Decimal(token) for token in others]
