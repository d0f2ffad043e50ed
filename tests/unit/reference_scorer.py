"""A second implementation of ToolRL's four objectives, to hold the first against.

Written from the rules, in another style: regular expressions cut the text, numbers stay the text
they were, alignment tries every subset, ratios are exact fractions. Slow, and without caps.

Where the rules are silent it follows the same readings as the scorer: think blocks are cut out
wherever they are, an unclosed one to the end; calls are read from every closed <tool_call> block,
passing over what is not a call and, after text that is no JSON, going on with the next line; names
and keys compare exactly; ties of the alignment go to the higher key F1, then to the higher share of
values.
"""

import json
import re
import unicodedata
from fractions import Fraction


def reference_score(answer, gold):
    """[format, tool_name, param_name, param_value] as floats."""
    wants_calls = bool(calls_in(outside_think(gold)))
    visible = outside_think(answer)
    return [
        float(has_format(answer, wants_calls)),
        *map(
            float,
            tool_scores(calls_in(visible), calls_in(outside_think(gold)), response_in(visible)),
        ),
    ]


# --- text ---


def outside_think(text):
    first_tag = re.search(r"</?think>", text)
    if first_tag and first_tag[0] == "</think>":
        text = "<think>" + text
    return re.sub(r"<think>.*?(?:</think>|\Z)", "\n", text, flags=re.DOTALL)


def has_format(answer, wants_calls):
    if len(re.findall("<think>.*?</think>", answer, re.DOTALL)) != 1:
        return False
    opened = re.match(r"\s*<think>.*?</think>", answer, re.DOTALL)
    if not opened:
        return False
    after = answer[opened.end() :]
    if "<think>" in after:
        return False
    if not wants_calls:
        closed = re.search("<response>(.*?)</response>", after, re.DOTALL)
        return "<tool_call>" not in after and bool(closed and closed[1].strip())
    block = re.search("<tool_call>(.*?)</tool_call>", after, re.DOTALL)
    if not block or "<tool_call>" in after[block.end() :]:
        return False
    values, clean = json_values(block[1])
    items = flattened(values)
    return clean and bool(items) and all(as_call(item) is not None for item in items)


def response_in(visible):
    found = re.search(r"<response>(.*?)</response>", visible, re.DOTALL)
    return found[1].strip() if found else ""


def calls_in(visible):
    blocks = re.findall(r"<tool_call>(.*?)</tool_call>", visible, re.DOTALL)
    calls = [as_call(item) for block in blocks for item in flattened(json_values(block)[0])]
    return [call for call in calls if call is not None]


# --- JSON, numbers kept as ("number", sign, digits, exponent) ---


def number(literal):
    sign, whole, part, exponent = re.fullmatch(
        r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?", literal
    ).groups()
    digits = whole + (part or "")
    power = int(exponent or 0) - len(part or "")
    power += len(digits) - len(digits.rstrip("0"))
    digits = digits.strip("0")
    return ("number", sign, digits, power) if digits else ("number", "", "", 0)


def not_json(name):
    raise ValueError(name)


decoder = json.JSONDecoder(parse_int=number, parse_float=number, parse_constant=not_json)


def json_values(block):
    """The JSON values of a block; is there nothing else in it?"""
    values, clean, text = [], True, block.strip(" \t\r\n")
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:
            clean = False
            text = text.partition("\n")[2].lstrip(" \t\r\n")
            continue
        values.append(value)
        text = text[end:].lstrip(" \t\r\n")
    return values, clean


def flattened(values):
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def as_call(item):
    match item:
        case {"name": str(name), "parameters": parameters}:
            pass
        case {"name": str(name), "arguments": parameters}:
            pass
        case {"name": str(name)}:
            parameters = {}
        case _:
            return None
    if not isinstance(parameters, dict):
        return None
    return name, parameters


def plain(text):
    return unicodedata.normalize("NFC", text).strip()


def same(a, b):
    kinds = kind(a), kind(b)
    if kinds == ("string", "string"):
        return plain(a) == plain(b)
    if "string" in kinds and "number" in kinds:
        text, value = (a, b) if kinds[0] == "string" else (b, a)
        try:
            return number(plain(text)) == value
        except AttributeError:  # no match: not a number
            return False
    if kinds[0] != kinds[1]:
        return False
    if kinds[0] == "list":
        return len(a) == len(b) and not any(not same(x, y) for x, y in zip(a, b, strict=True))
    if kinds[0] == "object":
        return set(a) == set(b) and not any(not same(a[key], b[key]) for key in a)
    return a == b


def kind(value):
    if isinstance(value, bool):
        return "bool"
    names = {str: "string", tuple: "number", list: "list", dict: "object", type(None): "null"}
    return names[type(value)]


# --- scores ---


def tool_scores(calls, gold, response):
    if not calls and not gold:
        return [1, 1, 1] if response else [0, 0, 0]
    if not calls or not gold:
        return [0, 0, 0]
    size = max(len(calls), len(gold))
    *_, f1, share = best_assignment(calls, gold)
    return [name_f1(calls, gold), f1 / size, share / size]


def best_assignment(calls, gold):
    """The largest total of `pair_facts` over all assignments: every subset of golds is tried."""
    if len(calls) > len(gold):
        gold = gold + [None] * (len(calls) - len(gold))
    best = {0: (0, 0, 0, Fraction(0), Fraction(0))}  # taken golds, as bits -> best total
    for call in calls:
        facts = [pair_facts(call, target) for target in gold]
        longer = {}
        for taken, total in best.items():
            for j, fact in enumerate(facts):
                if not taken >> j & 1:
                    key = taken | 1 << j
                    candidate = tuple(x + y for x, y in zip(total, fact, strict=True))
                    longer[key] = max(longer.get(key, candidate), candidate)
        best = longer
    return max(best.values())


def pair_facts(call, gold):
    """(same name, shared keys, equal values, key F1, share of gold values)."""
    if gold is None:
        return (0, 0, 0, Fraction(0), Fraction(0))
    (name, given), (gold_name, wanted) = call, gold
    shared = [key for key in wanted if key in given]
    equal = [key for key in shared if same(given[key], wanted[key])]
    if not given and not wanted:
        f1 = share = Fraction(1)
    else:
        f1 = Fraction(2 * len(shared), len(given) + len(wanted))
        share = Fraction(len(equal), len(wanted)) if wanted else Fraction(0)
    return (int(name == gold_name), len(shared), len(equal), f1, share)


def name_f1(calls, gold):
    left = [name for name, _ in gold]
    hits = 0
    for name, _ in calls:
        if name in left:
            left.remove(name)
            hits += 1
    precision, recall = Fraction(hits, len(calls)), Fraction(hits, len(gold))
    return 2 * precision * recall / (precision + recall) if hits else 0
