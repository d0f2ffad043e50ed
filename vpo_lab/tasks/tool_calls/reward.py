"""ToolRL's reward vector: format, tool names, parameter names, parameter values (arXiv:2504.13958).

How an answer is read
---------------------
1. Think blocks are cut out; nothing inside them is read as a call. An unclosed `<think>`
   hides the rest of the text. A text whose first think tag is a closing one is read as if it
   began with `<think>`.
2. What is left is searched for closed `<tool_call>` blocks. A block holds JSON values one after
   another, each a call or an array of calls; a call is an object with a string `name` and an object
   `parameters` (or `arguments`; neither: no parameters). What is not a call is passed over: after
   text that is no JSON, reading goes on with the next line. NaN and Infinity are not JSON.
3. The response is the text of the first closed `<response>`.

`format` is strict. The other three objectives score what can be read: the calls of several blocks,
the good calls beside a broken one, an answer without a think block. So each objective measures one
thing, and a mistake in the format does not hide a correct call.

Caps bound the time. A text longer than MAX_CHARS is not read. A value deeper than MAX_DEPTH, or a
call beyond MAX_CALLS, ends the reading of its block. A string longer than MAX_NFC_CHARS is compared
without NFC, which takes quadratic time on hostile text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from math import fsum
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from vpo_lab.errors import LabError

OBJECTIVES = ("format", "tool_name", "param_name", "param_value")

MAX_CHARS = 100_000  # of an answer; the longest real ground truth has 3,000

MAX_DEPTH = 64  # nested brackets, counted from the call's own

MAX_CALLS = 32  # of an answer; real ones have up to 5

MAX_NFC_CHARS = 2_048  # of one string


@dataclass(frozen=True)
class Call:
    """Hold one tool call: names and keys as written, strings among the values in NFC and trimmed.

    Numbers are int or float, or Decimal where a float cannot hold the number exactly.
    """

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ParsedAnswer:
    """Hold what was read from an answer."""

    think: str | None  # the closed think block that opens the answer, trimmed
    calls: tuple[Call, ...]  # in the order written
    response: str  # trimmed, "" where there is none
    call_format: bool  # has the format of an answer with calls
    response_format: bool  # has the format of an answer without calls


class PairScore(NamedTuple):
    """Say how well one call answers one gold call; as a tuple, the larger is the better pair."""

    same_name: bool
    shared_keys: int
    equal_values: int
    key_f1: float
    value_share: float


def score(answer: str, gold: str) -> np.ndarray:
    """Return the reward vector of one answer: (4,) float64 in [0, 1], in the order of OBJECTIVES.

    - format: 1 if one closed think block comes first and is the only one, and then: where `gold`
      has calls, exactly one closed <tool_call> block that holds calls and nothing else; where it
      has none, no <tool_call> tag and a closed, non-empty <response>. Else 0.
    - tool_name: F1 of the multisets of names.
    - param_name: mean over aligned pairs of the F1 of the key sets; 1 if both are empty.
    - param_value: mean over aligned pairs of the share of gold parameters whose value matches;
      without gold parameters 1 if the answer has none either, else 0.

    Calls left over on either side are pairs that score 0. No calls on both sides: the last three
    are 1 if the response is non-empty, else 0. Calls on one side only: 0.

    answer: any text; what is not a str scores 0. gold: the row's ground-truth text, with
    or without its think block. Any text scores, in bounded time; LabError if `gold` is not a str.
    """
    if not isinstance(gold, str):
        raise LabError(f"gold is {type(gold).__name__}, not text: pass the row's 'gold'")
    parsed, wanted = parse_answer(answer), _parse_gold(gold)
    calls, gold_calls = parsed.calls, wanted.calls
    well_formed = parsed.call_format if gold_calls else parsed.response_format
    if calls and gold_calls:
        pairs = [pair for _, _, pair in _aligned(calls, gold_calls)]
        n_pairs = max(len(calls), len(gold_calls))
        shared_names = (Counter(c.name for c in calls) & Counter(c.name for c in gold_calls)).total()
        tool_name = 2 * shared_names / (len(calls) + len(gold_calls))
        # fsum rounds once, so that the order of the pairs cannot show.
        param_name = fsum(p.key_f1 for p in pairs) / n_pairs
        param_value = fsum(p.value_share for p in pairs) / n_pairs
    else:
        nothing_to_call = not calls and not gold_calls
        tool_name = param_name = param_value = float(nothing_to_call and parsed.response != "")
    return np.array([well_formed, tool_name, param_name, param_value], dtype=np.float64)


# --- Reading an answer ------------------------------------------------------------------------


def parse_answer(text: str) -> ParsedAnswer:
    """Read an answer by the rules at the top of this file. Never raises, whatever the text."""
    if not isinstance(text, str) or len(text) > MAX_CHARS:
        return ParsedAnswer(None, (), "", False, False)
    think, well_thought, rest = _read_thinking(text)
    calls: list[Call] = []
    all_parse = True
    n_blocks = 0
    for block in _blocks(rest, "<tool_call>", "</tool_call>"):
        n_blocks += 1
        all_parse &= block is not None and _read_calls(block, calls)
    response = (next(_blocks(rest, "<response>", "</response>"), None) or "").strip()
    return ParsedAnswer(
        think=think,
        calls=tuple(calls),
        response=response,
        call_format=well_thought and n_blocks == 1 and all_parse and bool(calls),
        response_format=well_thought and n_blocks == 0 and response != "",
    )


# Every rollout of a group is scored against the same gold.
_parse_gold = lru_cache(maxsize=8192)(parse_answer)


def _blocks(text: str, opening: str, closing: str) -> Iterator[str | None]:
    """Yield the text of each closed block, and None for a block at the end that is not closed."""
    start = 0
    while (begin := text.find(opening, start)) >= 0:
        begin += len(opening)
        end = text.find(closing, begin)
        if end < 0:
            yield None
            return
        yield text[begin:end]
        start = end + len(closing)


def _read_thinking(text: str) -> tuple[str | None, bool, str]:
    """Return the think block that opens the text, whether it is the only one, and the text outside all of them."""
    opening, closing = "<think>", "</think>"
    first_open, first_close = text.find(opening), text.find(closing)
    if first_open == first_close == -1:
        return None, False, text
    think, only_one = None, False
    position = 0
    if first_close >= 0 and (first_open < 0 or first_close < first_open):
        position = first_close + len(closing)
    elif first_close >= 0 and not text[:first_open].strip():
        position = first_close + len(closing)
        think = text[first_open + len(opening) : first_close].strip()
        only_one = text.find(opening, position) < 0
    outside = []
    while (begin := text.find(opening, position)) >= 0:
        outside.append(text[position:begin])
        end = text.find(closing, begin)
        position = len(text) if end < 0 else end + len(closing)
    outside.append(text[position:])
    # Joined by a newline, so that two halves cannot make a tag.
    return think, only_one, "\n".join(outside)


def _read_calls(block: str, calls: list[Call]) -> bool:
    """Append the calls of a block to `calls`; return True if the block holds nothing else."""
    whole, block = block, _cut_where_too_deep(block)
    nothing_else = block is whole
    position = _SPACE.match(block).end()
    while position < len(block):
        try:
            value, position = _DECODER.raw_decode(block, position)
        except RecursionError:
            return False
        except ValueError:
            nothing_else = False
            # Continue on the next line, so that a broken call does not hide those after it.
            position = block.find("\n", position) + 1 or len(block)
            value = []
        for item in value if isinstance(value, list) else [value]:
            call = _as_call(item)
            if call is None:
                nothing_else = False
            elif len(calls) == MAX_CALLS:
                return False
            else:
                calls.append(call)
        position = _SPACE.match(block, position).end()
    return nothing_else


def _as_call(item: Any) -> Call | None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return None
    parameters = item.get("parameters", item.get("arguments", {}))
    if not isinstance(parameters, dict):
        return None
    return Call(item["name"], {key: _normal(value) for key, value in parameters.items()})


def _normal(value: Any) -> Any:
    """Return the value with every string in it, except keys, in NFC and trimmed."""
    if isinstance(value, str):
        if not value.isascii() and len(value) <= MAX_NFC_CHARS:
            value = unicodedata.normalize("NFC", value)
        return value.strip()
    if isinstance(value, list):
        return [_normal(item) for item in value]
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return value


_SPACE = re.compile(r"[ \t\n\r]*")

_BRACKET_QUOTE_OR_ESCAPE = re.compile(r"[\[\]{}\"\\]")


def _cut_where_too_deep(block: str) -> str:
    """Return the block up to the bracket that nests too deep: Python's JSON reader recurses."""
    if block.count("[") + block.count("{") <= MAX_DEPTH:
        return block
    depth, in_string, escaped = 0, False, -1
    for match in _BRACKET_QUOTE_OR_ESCAPE.finditer(block):
        position, char = match.start(), match[0]
        if position == escaped:
            continue
        if char == "\\":
            escaped = position + 1
        elif char == '"':
            in_string = not in_string
        elif not in_string:
            depth += 1 if char in "[{" else -1
            if depth > MAX_DEPTH:
                return block[:position]
    return block


# --- Numbers and equality ---------------------------------------------------------------------

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

_SHORT = 300  # digits; Python refuses to make an int of more than 4,300 of them


def _read_number(literal: str) -> float | Decimal:
    """Return the number that a JSON literal stands for, exactly. ValueError beyond 10^(10^18)."""
    if len(literal) <= _SHORT and literal.lstrip("-").isdecimal():
        return int(literal)
    try:
        exact = Decimal(literal)
    except ArithmeticError as error:
        raise ValueError("the exponent is too large") from error
    nearest = float(literal) if len(literal) <= _SHORT else None
    # A float reads better in a notebook: use one where it is exact.
    return nearest if nearest is not None and Decimal(repr(nearest)) == exact else exact


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_int=_read_number, parse_float=_read_number, parse_constant=_refuse_constant)


def values_equal(a: Any, b: Any) -> bool:
    """Return True if two parameter values of `Call`s are equal as JSON, recursively.

    A string that is a JSON number equals that number ("1.0" equals 1; "01", "+1" and "1,000" are
    not JSON numbers), but two strings compare as text. A bool equals only a bool, null only null.
    """
    if isinstance(a, str) and isinstance(b, str):
        return a == b
    if a is None or b is None or isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(values_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(values_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, dict)) or isinstance(b, (list, dict)):
        return False
    x, y = _as_number(a), _as_number(b)
    if x is None or y is None:
        return False
    return x == y if type(x) is type(y) else _as_decimal(x) == _as_decimal(y)


def _as_number(value: str | float | Decimal) -> float | Decimal | None:
    if not isinstance(value, str):
        return value
    try:
        return _read_number(value) if _NUMBER.fullmatch(value) else None
    except ValueError:
        return None


def _as_decimal(number: float | Decimal) -> Decimal:
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)


# --- Which call answers which -----------------------------------------------------------------


def score_pair(call: Call, gold: Call) -> PairScore:
    """Return how well one call answers one gold call."""
    n_keys, n_gold = len(call.parameters), len(gold.parameters)
    shared = call.parameters.keys() & gold.parameters.keys()
    equal = sum(values_equal(call.parameters[key], gold.parameters[key]) for key in shared)
    return PairScore(
        same_name=call.name == gold.name,
        shared_keys=len(shared),
        equal_values=equal,
        key_f1=2 * len(shared) / (n_keys + n_gold) if n_keys + n_gold else 1.0,
        value_share=equal / n_gold if n_gold else float(n_keys == 0),
    )


def align(calls: Sequence[Call], gold_calls: Sequence[Call]) -> list[tuple[int, int]]:
    """Return the one-to-one assignment of calls to gold calls, as pairs of indices (call, gold call).

    It maximises, summed over the pairs, first the equal names, then the shared keys, then the equal values; ties go
    to the higher key F1, then to the higher share of values. A call takes part if the other side has one for it,
    even under another name.
    """
    return [(i, j) for i, j, _ in _aligned(calls, gold_calls)] if calls and gold_calls else []


def _aligned(calls: Sequence[Call], gold_calls: Sequence[Call]) -> list[tuple[int, int, PairScore]]:
    # Sorted by content, so that the order in which calls are written cannot decide a tie.
    rows, columns = _by_content(calls), _by_content(gold_calls)
    table = [[(i, j, score_pair(calls[i], gold_calls[j])) for j in columns] for i in rows]
    if len(rows) == 1 or len(columns) == 1:
        return [max(chain(*table), key=itemgetter(2))]

    from scipy.optimize import linear_sum_assignment

    # The criteria as digits of one number. A ratio decides only where all criteria before it tie.
    same, shared, equal, f1, share = np.moveaxis([[pair for _, _, pair in row] for row in table], -1, 0)
    n = min(len(rows), len(columns))
    base = 1 + n * shared.max()  # more than any total of shared keys, and so of equal values
    weights = (same * base + shared) * base + equal + (f1 + 1e-6 * share) / (n + 1)
    return [table[row][column] for row, column in zip(*linear_sum_assignment(weights, maximize=True), strict=True)]


def _by_content(calls: Sequence[Call]) -> list[int]:
    if len(calls) == 1:
        return [0]
    texts = [json.dumps([c.name, c.parameters], sort_keys=True, default=str) for c in calls]
    return sorted(range(len(calls)), key=texts.__getitem__)
