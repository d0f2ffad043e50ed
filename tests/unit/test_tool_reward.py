"""tool_reward.py against DESIGN's rules, a second implementation, and texts that mean harm."""

import json
import random
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_scorer import reference_score
from scipy.optimize import linear_sum_assignment
from toolrl_rows import ROWS, THOUGHT, call, call_answer

from vpo_lab.errors import LabError
from vpo_lab.tasks.tool_calls import reward as tool_reward
from vpo_lab.tasks.tool_calls.reward import (
    MAX_CALLS,
    MAX_CHARS,
    MAX_DEPTH,
    OBJECTIVES,
    Call,
    align,
    parse_answer,
    score,
    values_equal,
)

props = settings(deadline=None, derandomize=True, max_examples=200)
GOLD = call_answer(call("get", page=1, lang="en"))
ASK = f"{THOUGHT}\n<response> Which one? </response>"
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>"]
HANG_S = 5.0  # far above what is measured, so that only a hang fails


def wrapped(block: str) -> str:
    return f"{THOUGHT}\n<tool_call>\n{block}\n</tool_call>"


def with_value(literal: str) -> str:
    return wrapped(f'{{"name": "f", "parameters": {{"a": {literal}}}}}')


def assert_agrees(answer: str, gold: str) -> None:
    got, expected = score(answer, gold), reference_score(answer, gold)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12, err_msg=f"{answer!r}\n{gold!r}")


# --- format ---


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (GOLD, 1),
        ("\n \t" + GOLD, 1),
        (GOLD.replace(THOUGHT, "<think></think>"), 1),
        (GOLD + "\n<response> I look it up. </response>", 1),
        (GOLD.replace(THOUGHT, ""), 0),
        ("Sure! " + GOLD, 0),
        (GOLD.replace("</think>", ""), 0),
        (GOLD.replace("<think>", ""), 0),
        (GOLD + THOUGHT, 0),
        (THOUGHT + GOLD, 0),
        (GOLD + "</think>", 1),
        (GOLD.replace("</tool_call>", ""), 0),
        (GOLD.replace("<tool_call>", ""), 0),
        (GOLD + GOLD.replace(THOUGHT, ""), 0),
        (wrapped('{"name": "get", "parameters": {"tag": "<tool_call>"}}'), 1),  # a tag that is only a value
        (GOLD + "<tool_call>", 0),
        (GOLD + "</tool_call>", 1),  # a stray end opens nothing: still exactly one closed block
        (THOUGHT + '</tool_call><tool_call>{"name": "get"}', 0),
        (wrapped(""), 0),
        (wrapped("[]"), 0),
        (wrapped('{"name": "get"} and more'), 0),
        (wrapped('{"name": "get"}, {"name": "get"}'), 0),
        (wrapped('{"parameters": {}}'), 0),
        (wrapped('{"name": 3}'), 0),
        (wrapped('{"name": "get", "parameters": [1]}'), 0),
        (wrapped('{"name": "get", "parameters": null}'), 0),
        (wrapped('[[{"name": "get"}]]'), 0),
        (wrapped('"get"'), 0),
        (wrapped('{"name": "get"}'), 1),
        (wrapped('[{"name": "get"}, {"name": "put"}]'), 1),
        (ASK, 0),
        ("", 0),
    ],
)
def test_format_where_the_gold_has_calls(answer, expected):
    assert score(answer, GOLD)[0] == expected
    assert reference_score(answer, GOLD)[0] == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ASK, [1, 1, 1, 1]),
        (THOUGHT + "\n<response>Yes.</response>", [1, 1, 1, 1]),
        (THOUGHT, [0, 0, 0, 0]),
        ("<think></think>", [0, 0, 0, 0]),  # earns everything in a known scorer
        (THOUGHT + "<response>  \n </response>", [0, 0, 0, 0]),
        (THOUGHT + "<response> cut off", [0, 0, 0, 0]),
        ("<response> no thought </response>", [0, 1, 1, 1]),
        (THOUGHT + " Which one?", [0, 0, 0, 0]),
        (GOLD, [0, 0, 0, 0]),
        (GOLD + "<response> and words </response>", [0, 0, 0, 0]),
        (ASK + "<tool_call></tool_call>", [0, 1, 1, 1]),
        (f"<think> {GOLD} <response> Yes. </response>", [0, 0, 0, 0]),
    ],
)
def test_rows_that_want_no_call(answer, expected):
    assert score(answer, ASK).tolist() == expected
    assert reference_score(answer, ASK) == expected


def test_calls_on_one_side_only_score_zero():
    assert score(ASK, GOLD).tolist() == [0, 0, 0, 0]
    assert score(GOLD, ASK).tolist() == [0, 0, 0, 0]


def test_text_in_think_is_never_searched_for_calls():
    wrong = call_answer(call("other"), think="")
    mention = GOLD.replace("I look", f"Maybe {wrong} but I look")
    assert score(mention, GOLD).tolist() == [1, 1, 1, 1]
    hidden = f"<think> I think of {call_answer(call('get', page=1, lang='en'), think='')} </think>"
    assert score(hidden, GOLD).tolist() == [0, 0, 0, 0]
    assert score(f"{wrong}<think> {GOLD.replace(THOUGHT, '')}", GOLD)[1] == 0
    # The prompt may have opened the block.
    assert score(f"Maybe {wrong}. </think>{GOLD.replace(THOUGHT, '')}", GOLD).tolist() == [
        0,
        1,
        1,
        1,
    ]


def test_think_halves_make_no_tag():
    assert not parse_answer('<tool_<think> </think>call>{"name": "get"}</tool_call>').calls


def test_a_slip_in_the_tags_does_not_hide_the_calls():
    for slip in (
        GOLD.replace(THOUGHT, ""),
        "Sure: " + GOLD,
        GOLD + THOUGHT,
        wrapped('{"name": "get", "parameters": {"page": 1, "lang": "en"}}\n{"name": "ge'),
        wrapped('{"name": "ge\n{"name": "get", "parameters": {"page": 1, "lang": "en"}}'),
        wrapped('```json\n{"name": "get", "parameters": {"page": 1, "lang": "en"}}\n```'),
    ):
        assert score(slip, GOLD).tolist() == [0, 1, 1, 1]
        assert reference_score(slip, GOLD) == [0, 1, 1, 1]


def test_a_block_that_is_not_closed_holds_nothing():
    assert score(GOLD.replace("</tool_call>", ""), GOLD).tolist() == [0, 0, 0, 0]


def test_a_broken_call_costs_the_same_wherever_it_stands():
    good, broken = '{"name": "get", "parameters": {"page": 1}}', '{"name": "put", "parameters": {"page": }}'
    gold = wrapped(good + '\n{"name": "put", "parameters": {"page": 2}}')
    first, last = (score(wrapped(f"{a}\n{b}"), gold).tolist() for a, b in ((broken, good), (good, broken)))
    assert first == last == [0, pytest.approx(2 / 3), 0.5, 0.5]


def test_a_long_block_of_broken_lines_is_read_in_time():
    for line in ("[", '{"a":', '"', "[1,", '{"name": "get", "parameters": {"a": [', "[" * 60):
        start = time.process_time()
        score(wrapped('"\n' + f"{line}\n" * (90_000 // (len(line) + 1))), GOLD)
        assert time.process_time() - start < 5  # a guard against hanging: it takes well under a second


def test_one_block_per_call_is_read_and_costs_the_format():
    gold = call_answer(call("a", x=1), call("b", x=2))
    split = THOUGHT + call_answer(call("a", x=1), think="") + call_answer(call("b", x=2), think="")
    assert score(split, gold).tolist() == [0, 1, 1, 1]


# --- framings ---


def framings(calls: list[dict]) -> list[str]:
    """Every accepted way to write the same calls."""
    lines = [json.dumps(c) for c in calls]
    renamed = [json.dumps({"name": c["name"], "arguments": c["parameters"]}) for c in calls]
    return [
        "\n".join(lines),
        "\n\n \n".join(lines),
        "".join(lines),
        " ".join(lines),
        "\n".join(json.dumps(c, indent=4) for c in calls),
        json.dumps(calls),
        json.dumps(calls, indent=2),
        "\n".join(f"[{line}]" for line in lines),
        "\n".join(renamed),
        "\r\n".join(renamed),
        "\n".join(json.dumps({"id": 7, **c}, ensure_ascii=False) for c in calls),
    ]


@pytest.mark.parametrize("row", [row for row in ROWS if "<tool_call>" in row["gold"]])
def test_framings_score_alike(row):
    calls = json_lines(row["gold"])
    for text in framings(calls):
        assert score(wrapped(text), row["gold"]).tolist() == [1, 1, 1, 1], text


def test_parameters_win_over_arguments_and_may_be_missing():
    both = wrapped('{"name": "get", "arguments": {"page": 2}, "parameters": {"page": 1, "lang": "en"}}')
    assert score(both, GOLD).tolist() == [1, 1, 1, 1]
    assert score(wrapped('{"name": "now"}'), call_answer(call("now"))).tolist() == [1, 1, 1, 1]


# --- names, keys, values, by hand ---


def test_name_f1_counts_the_multiset():
    gold = call_answer(call("a"), call("a"), call("b"))
    assert score(call_answer(call("a")), gold)[1] == pytest.approx(2 * 1 / 4)
    assert score(call_answer(call("a"), call("b"), call("b")), gold)[1] == pytest.approx(2 * 2 / 6)
    assert score(call_answer(call("c")), gold)[1] == 0


def test_keys_and_values_of_one_call():
    got = score(call_answer(call("get", page=1, size=3, sort="up")), GOLD)
    assert got.tolist() == [1, 1, pytest.approx(2 * 1 / 5), pytest.approx(1 / 2)]


def test_a_wrong_name_keeps_its_keys_and_values():
    assert score(call_answer(call("fetch", page=1, lang="en")), GOLD).tolist() == [1, 0, 1, 1]


def test_parameters_on_one_side_only():
    none, some = call_answer(call("get")), call_answer(call("get", page=1))
    assert score(none, none).tolist() == [1, 1, 1, 1]
    assert score(some, none).tolist() == [1, 1, 0, 0]
    assert score(none, some).tolist() == [1, 1, 0, 0]


def test_duplicates_cost():
    once = call("get", page=1, lang="en")
    got = score(call_answer(*[once] * 9), GOLD)
    assert got.tolist() == [1, pytest.approx(2 / 10), pytest.approx(1 / 9), pytest.approx(1 / 9)]


def test_left_over_calls_count_as_zero_pairs():
    gold = call_answer(call("a", x=1), call("b", y=2))
    assert score(call_answer(call("b", y=2)), gold).tolist() == [1, pytest.approx(2 / 3), 0.5, 0.5]


def test_names_align_before_keys_and_keys_before_values():
    gold = call_answer(call("a", x=1), call("b", y=2))
    swapped = call_answer(call("a", y=2), call("b", x=1))
    assert score(swapped, gold).tolist() == [1, 1, 0, 0]
    gold = call_answer(call("a", x=1, y=1, z=1), call("a", x=2))
    answer = call_answer(call("a", x=1), call("a", x=2, y=3, z=3))
    # The second answer shares three keys with the first gold, which outweighs equal values.
    assert score(answer, gold)[2:].tolist() == [1, 0]


def test_ties_go_to_the_better_score():
    gold = call_answer(call("a", x=1, y=2), call("a", x=1))
    assert score(call_answer(call("a", x=1)), gold)[2:].tolist() == [0.5, 0.5]
    # By keys F1: the calls without parameters belong together.
    answer = call_answer(call("p"), call("q", x=1))
    for gold in (call_answer(call("r", y=1), call("s")), call_answer(call("r"), call("s", y=1))):
        assert score(answer, gold)[2:].tolist() == [0.5, 0.5]
    # By values: the equal one weighs more against the gold that has fewer.
    gold = call_answer(call("a", w=2), call("a", w=2, y=1))
    answer = call_answer(call("a", w=2), call("a", w=1))
    assert score(answer, gold)[3] == 0.5


@pytest.mark.parametrize(
    ("given_json", "gold_json", "expected"),
    [
        ("1", '"1"', True),
        ('"1"', "1", True),
        ('" 1\\n"', "1", True),
        ('"1.0"', "1", True),
        ("1.0", "1", True),
        ("1e0", "1", True),
        ('"1E+2"', "100", True),
        ("-0.0", "0", True),
        ('"0.10"', "0.1", True),
        ("1e23", "100000000000000000000000", True),
        ("0.1", "0.1000000000000000055511151231257827", False),
        ("9007199254740993", "9007199254740992.0", False),
        ("9007199254740993.0", "9007199254740993", True),
        ("1" * 6000, '"' + "1" * 6000 + '"', True),
        ("1" * 6000, "1" * 5999 + "2", False),
        ("1e999999", '"10e999998"', True),
        ("1e999999", "1e999998", False),
        ("1e-999999", "0", False),
        ('"1e99999999999999999999"', '"1e99999999999999999999"', True),
        ('"1e99999999999999999999"', "1", False),
        ("-1", "1", False),
        ('"-1"', '"1"', False),
        ("3.14", "314", False),
        ('"01"', "1", False),
        ('"+1"', "1", False),
        ('"1,000"', "1000", False),
        ('"1_000"', "1000", False),
        ('"\\uff11"', "1", False),
        ('"NaN"', "0", False),
        ('"1"', '"1.0"', False),
        ('"Infinity"', '"Infinity"', True),
        ("true", "true", True),
        ("true", "1", False),
        ("1", "true", False),
        ("false", "0", False),
        ('"false"', "false", False),
        ('"true"', "true", False),
        ("null", "null", True),
        ("null", '"null"', False),
        ("null", "false", False),
        ('""', "null", False),
        ('" a b "', '"a b"', True),
        ('"A"', '"a"', False),
        ('"a b"', '"a  b"', False),
        ('"don\'t!"', '"dont"', False),
        ('"gru\\u0308n"', '"gr\\u00fcn"', True),
        ('"\\ud800"', '"\\ud800"', True),
        ("[1, 2]", "[1, 2]", True),
        ("[1, 2]", "[2, 1]", False),
        ("[1, 2]", "[1]", False),
        ('["1", 2.0]', '[1, "2"]', True),
        ("[]", "{}", False),
        ("[]", "null", False),
        ("[1]", "1", False),
        ('"[1]"', "[1]", False),
        ('{"a": 1, "b": 2}', '{"b": "2", "a": 1}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ('{"a": [true, {"b": null}]}', '{"a": [true, {"b": null}]}', True),
        ('{"a": [true, {"b": null}]}', '{"a": [1, {"b": null}]}', False),
    ],
)
def test_values(given_json, gold_json, expected):
    answer, gold = with_value(given_json), with_value(gold_json)
    assert score(answer, gold).tolist() == [1, 1, 1, expected]
    assert_agrees(answer, gold)


def test_names_and_keys_are_taken_as_written():
    gold = with_value("1")
    assert score(gold.replace('"name": "', '"name": " '), gold)[1] == 0
    spare = wrapped('{"name": "get", "parameters": {"a": 1, " a": 2}}')
    swapped = wrapped('{"name": "get", "parameters": {" a": 2, "a": 1}}')
    wanted = wrapped('{"name": "get", "parameters": {"a": 1}}')
    assert score(spare, wanted).tolist() == score(swapped, wanted).tolist() == [1, 1, pytest.approx(2 / 3), 1]
    assert_agrees(spare, wanted)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1e9" + "9" * 30])
def test_what_is_not_json_is_not_a_call(constant):
    answer = wrapped(f'{{"name": "get"}}{{"name": "get", "parameters": {{"page": {constant}}}}}')
    parsed = parse_answer(answer)
    assert len(parsed.calls) == 1 and not parsed.call_format


# --- what is read ---


def test_parse_answer_says_what_it_read():
    parsed = parse_answer(GOLD + "<response> Wait. </response>")
    assert parsed.think == "I look at what is asked."
    assert parsed.calls == (Call("get", {"page": 1, "lang": "en"}),)
    assert parsed.response == "Wait."
    assert parsed.call_format and not parsed.response_format
    assert parse_answer("x").think is None


def test_align_gives_indices_of_both_sides():
    a, b, c = (Call(name, {"x": i}) for i, name in enumerate("abc"))
    assert sorted(align([c, a, b], [a, b, c])) == [(0, 2), (1, 0), (2, 1)]
    assert align([b], [a, b, c]) == [(0, 1)]
    assert align([], [a]) == align([a], []) == []


def test_what_is_not_text():
    for answer in (None, 3, b"<think>", ["a"], float("nan")):
        for gold in (GOLD, ASK):
            got = score(answer, gold)
            assert got.shape == (4,) and got.dtype == np.float64 and not got.any()
    with pytest.raises(LabError, match="pass the row's 'gold'"):
        score("", {"gold": ""})


# --- against the second implementation ---


def json_lines(gold: str) -> list[dict]:
    if "<tool_call>" not in gold:
        return []
    block = gold.partition("<tool_call>")[2].partition("</tool_call>")[0]
    return [json.loads(line) for line in block.splitlines() if line.strip()]


def other_value(value, rng: random.Random):
    """The value in another type, dress or size; at times the same value by the rules."""
    options = [None, True, False, 0, "", "x", [value], {"v": value}, str(value), json.dumps(value)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        options += [-value, float(value), f" {value} ", f"{value}.0", f"+{value}", value + 1]
    if isinstance(value, str):
        options += [value + " ", value.upper(), unicodedata.normalize("NFD", value), "-" + value]
        options += [value.replace(".", ""), value[:-1]]
        options += [float(value)] if value.isdecimal() and value.isascii() else []
    if isinstance(value, list):
        options += [value[::-1], value[1:], [*value, 1], [str(item) for item in value]]
    if isinstance(value, dict):
        options += [dict(reversed(value.items())), {**value, "extra": 1}]
    return rng.choice(options)


def mutate_calls(calls: list[dict], rng: random.Random) -> list[dict]:
    calls = [{"name": c["name"], "parameters": dict(c["parameters"])} for c in calls]
    if not calls:
        return [call("f", x=1)] if rng.random() < 0.5 else []
    chosen = rng.choice(calls)
    parameters = chosen["parameters"]
    key = rng.choice(list(parameters)) if parameters else None
    match rng.randrange(9):
        case 0:
            chosen["name"] = rng.choice([chosen["name"] + "x", rng.choice(calls)["name"], "", " "])
        case 1 if key is not None:
            del parameters[key]
        case 2:
            parameters[rng.choice(["extra", "q", ""])] = rng.choice([1, "1", None])
        case 3 if key is not None:
            parameters[rng.choice([key + "_", key.upper(), f" {key}"])] = parameters.pop(key)
        case 4 | 5 if key is not None:
            parameters[key] = other_value(parameters[key], rng)
        case 6:
            rng.shuffle(calls)
        case 7 if len(calls) < 5:
            calls.append({"name": chosen["name"], "parameters": dict(parameters)})
        case 8:
            calls.remove(chosen)
    return calls


def mutate_text(text: str, rng: random.Random) -> str:
    """Damage to the tags, or none."""
    match rng.randrange(16):
        case 0:
            return text.replace(rng.choice(TAGS), "")
        case 1:
            return text[: rng.randrange(len(text) + 1)]
        case 2:
            at = rng.randrange(len(text) + 1)
            return text[:at] + rng.choice(TAGS) + text[at:]
        case 3:
            return text.partition("</think>")[2] + text.partition("</think>")[0] + "</think>"
        case 4:
            return f"<think> {text} </think>"
        case 5:
            return "<think> " + text.partition("</think>")[2] + " </think>" + text
        case 6:
            return f"{THOUGHT}<response> Just words. </response>"
        case 7:
            return text + rng.choice(["<response> And words. </response>", text, "junk", "\n\n"])
        case 8:
            return rng.choice(["junk", "\n\n", "[", "{"]) + text
        case _:
            return text


def mutants(gold: str, rng: random.Random, n: int):
    for _ in range(n):
        calls = json_lines(gold)
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            calls = mutate_calls(calls, rng)
        think = gold.partition("</think>")[0] + "</think>"
        if calls:
            block = rng.choice([*framings(calls), *(json.dumps(c) for c in calls)])
            text = f"{think}\n<tool_call>\n{block}\n</tool_call>"
        else:
            text = gold
        yield mutate_text(text, rng)


def assert_mutants_agree(golds: list[str], n: int) -> None:
    rng = random.Random(0)
    seen = set()
    for i, gold in enumerate(golds):
        assert_agrees(gold, gold)
        assert_agrees(golds[i - 1], gold)
        for answer in mutants(gold, rng, n):
            assert_agrees(answer, gold)
            seen.add(tuple(score(answer, gold)))
    assert len(seen) > 100  # the mutants reach many kinds of scores


def test_mutants_of_our_rows_agree_with_the_second_scorer():
    assert_mutants_agree([row["gold"] for row in ROWS], n=150)


def test_mutants_of_real_rows_agree_with_the_second_scorer(real_golds):
    assert_mutants_agree(real_golds, n=16)


@pytest.fixture(scope="module")
def real_golds(toolrl_dir):
    from vpo_lab.tasks.tool_calls.toolrl import read_rows

    names = ("test.parquet", "train_sft400.parquet")
    return [row["gold"] for name in names for row in read_rows(toolrl_dir / name)]


# Few names, keys and values, so that ties and near misses are common.
values = st.sampled_from([0, 1, "1", True, None, "a", " a", [1], ["1"], {"k": 1.0}, {"k": "1"}])
few_calls = st.lists(
    st.builds(
        lambda name, parameters: {"name": name, "parameters": parameters},
        st.sampled_from("abc"),
        st.dictionaries(st.sampled_from("wxyz"), values, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
PIECES = ['{"name": "a"}', '{"name": "a", "parameters": {"x": 1}}', '{"name": "b', '{"x": 1}']
soup = st.lists(st.sampled_from([*TAGS, *PIECES, *" \nx[],"]), max_size=14).map("".join)


@props
@given(few_calls, few_calls)
def test_small_calls_agree_with_the_second_scorer(calls, gold):
    assert_agrees(call_answer(*calls), call_answer(*gold))


@settings(props, max_examples=600)
@given(soup, st.sampled_from([GOLD, ASK, call_answer(call("a", x=1))]))
@example("<think></think><think></think><response>x</response>", ASK)
@example("</think><response>x</response>", ASK)
def test_tag_soup_agrees_with_the_second_scorer(answer, gold):
    assert_agrees(answer, gold)


# --- properties ---

# Any text but tags: inside a call a tag would end the block.
words = st.text(st.characters(exclude_characters="<"), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
any_calls = st.lists(
    st.builds(
        lambda name, parameters: {"name": name, "parameters": parameters},
        words,
        st.dictionaries(words, json_values, max_size=4),
    ),
    min_size=1,
    max_size=5,
)
any_text = st.text(st.characters(codec=None), max_size=200) | soup


@settings(props, max_examples=500)
@given(any_text, any_text)
def test_any_text_scores(answer, gold):
    got = score(answer, gold)
    assert got.shape == (len(OBJECTIVES),) and got.dtype == np.float64
    assert ((got >= 0) & (got <= 1)).all()


@props
@given(any_calls)
def test_gold_against_itself_scores_one(calls):
    gold = call_answer(*calls)
    assert score(gold, gold).tolist() == [1, 1, 1, 1]
    assert score(gold, gold.replace(THOUGHT, "")).tolist() == [1, 1, 1, 1]


@props
@given(few_calls, few_calls, st.randoms(use_true_random=False))
def test_the_order_of_calls_never_matters(calls, gold, rng):
    expected = score(call_answer(*calls), call_answer(*gold))
    calls, gold = rng.sample(calls, len(calls)), rng.sample(gold, len(gold))
    assert score(call_answer(*calls), call_answer(*gold)).tolist() == expected.tolist()


def test_the_order_of_many_uneven_calls_never_matters():
    # So many sizes that not every criterion of the alignment fits into a float.
    rng = random.Random(1)
    sides = [
        [call("f", **{f"k{rng.randrange(60)}": rng.randrange(2) for _ in range(n)}) for n in range(29)]
        for _ in range(2)
    ]
    expected = score(*(call_answer(*side) for side in sides))
    # The first criteria still decide.
    calls, gold = (parse_answer(call_answer(*side)).calls for side in sides)
    pairs = [tool_reward.score_pair(calls[i], gold[j]) for i, j in align(calls, gold)]
    table = [[tool_reward.score_pair(c, g)[:3] for g in gold] for c in calls]
    weights = np.array(table) @ [10**8, 10**4, 1]
    rows, columns = linear_sum_assignment(weights, maximize=True)
    assert sum(np.array(p[:3]) @ [10**8, 10**4, 1] for p in pairs) == weights[rows, columns].sum()
    for _ in range(5):
        shuffled = [rng.sample(side, len(side)) for side in sides]
        assert score(*(call_answer(*side) for side in shuffled)).tolist() == expected.tolist()


@props
@given(any_calls, few_calls, st.sampled_from(range(11)))
def test_the_framing_never_matters(calls, gold, which):
    gold = call_answer(*gold, *calls[:1])
    assert score(wrapped(framings(calls)[which]), gold).tolist() == score(call_answer(*calls), gold).tolist()


@props
@given(few_calls, few_calls)
def test_the_think_block_matters_to_the_format_alone(calls, gold):
    gold = call_answer(*gold)
    with_it, without = score(call_answer(*calls), gold), score(call_answer(*calls, think=""), gold)
    assert with_it[0] == 1 and without[0] == 0
    assert with_it[1:].tolist() == without[1:].tolist()


@props
@given(few_calls, st.integers(1, 5))
def test_calls_too_many_cost_on_all_three(calls, n):
    gold = call_answer(*calls)
    more = score(call_answer(*calls, *[calls[0]] * n), gold)
    assert (more[1:] < 1).all() and (score(gold, gold)[1:] == 1).all()


@props
@given(few_calls, st.data())
def test_a_repaired_value_never_costs(calls, data):
    wanted = calls[0]
    gold = call_answer(wanted)
    given_ = {key: data.draw(values) for key in wanted["parameters"]}
    before = score(call_answer({**wanted, "parameters": given_}), gold)
    for key in given_:
        given_[key] = wanted["parameters"][key]
        after = score(call_answer({**wanted, "parameters": given_}), gold)
        assert after[3] >= before[3]
        before = after
    assert before.tolist() == [1, 1, 1, 1]


@props
@given(json_values, json_values)
def test_equality_is_reflexive_and_symmetric(a, b):
    a, b = (parse_answer(call_answer(call("f", v=v))).calls[0].parameters["v"] for v in (a, b))
    assert values_equal(a, a) and values_equal(a, b) == values_equal(b, a)


# --- texts that mean harm ---

L = MAX_CHARS - 300


def many(n: int, **parameters) -> str:
    return wrapped("".join([json.dumps(call("f", **parameters), ensure_ascii=False)] * n))


MARKS = "\u0301\u0323"  # written in the wrong order, which makes NFC sort them
HOSTILE = {
    "a megabyte": "a" * 1_000_000,
    "a megabyte of brackets": wrapped("[" * 1_000_000),
    "100,000 brackets": wrapped("[" * 100_000),
    "brackets": wrapped("[" * L),
    "nested objects": wrapped('{"a":' * (L // 5)),
    "nested in a call": with_value("[" * 5000 + "]" * 5000),
    "brackets in a string": with_value('"' + "[" * 5000 + '"'),
    "a long integer": with_value("9" * 6000),
    "a longer integer": with_value("9" * (L - 100)),
    "a huge exponent": with_value("1e999999"),
    "an exponent beyond decimal": with_value("1e" + "9" * 5000),
    "NaN": with_value("NaN"),
    "Infinity": with_value("[-Infinity]"),
    "lone surrogates": wrapped('{"name": "\ud800", "parameters": {"\udfff": "\\ud800"}}'),
    "nulls": "\0" * 5000,
    "think opened": "<think>" * (L // 7),
    "think closed": "</think>" * (L // 8),
    "think blocks": "<think></think>" * (L // 15),
    "100,000 think blocks": "<think></think>" * 100_000,
    "call blocks": THOUGHT + "<tool_call></tool_call>" * (L // 23),
    "call blocks opened": THOUGHT + "<tool_call>" * (L // 11),
    "100,000 calls opened": THOUGHT + "<tool_call>" * 100_000,
    "bad call blocks": THOUGHT + "<tool_call>{</tool_call>" * (L // 24),
    "half tags": "<" * L,
    "thousands of calls": wrapped('{"name": "f"}' * (L // 13)),
    "an array of thousands": wrapped("[" + '{"name": "f"},' * (L // 14) + '{"name": "f"}]'),
    "calls with many keys": many(MAX_CALLS, **{str(i): 0 for i in range(300)}),
    "calls of many sizes": wrapped(
        "".join(json.dumps(call("f", **{str(i): 0 for i in range(17 * n)})) for n in range(MAX_CALLS))
    ),
    "calls with long lists": many(MAX_CALLS, a=["1"] * 600),
    "combining marks": with_value('"' + MARKS * (L // 2 - 50) + '"'),
    "many combining marks": many(1, **{str(i): MARKS * 1000 for i in range(45)}),
    "quotes": wrapped('"' * L),
    "backslashes": wrapped('{"name": "' + "\\" * L),
    "spaces": " " * L + "<think>" + " " * 50,
    "the same key": wrapped('{"name": "f", "parameters": {' + '"a": 1, ' * (L // 9) + '"a": 1}}'),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_neither_raises_nor_hangs(text):
    tool_reward._parse_gold.cache_clear()
    for gold in (GOLD, ASK, text):
        started = time.process_time()
        got = score(text, gold)
        assert time.process_time() - started < HANG_S
        assert got.shape == (4,) and ((got >= 0) & (got <= 1)).all()


def test_the_caps_stand_where_they_are_said_to():
    padding = " " * (MAX_CHARS - len(GOLD))
    assert score(GOLD + padding, GOLD).tolist() == [1, 1, 1, 1]
    assert score(GOLD + padding + " ", GOLD).tolist() == [0, 0, 0, 0]
    for n_lists, readable in ((MAX_DEPTH - 2, True), (MAX_DEPTH - 1, False)):
        nested = "[" * n_lists + "]" * n_lists
        answer = wrapped(f'{{"name": "f", "parameters": {{"[{{": {nested}, "s": "\\"{"[" * 99}"}}}}')
        assert parse_answer(answer).call_format is readable
    for n_calls, readable in ((MAX_CALLS, True), (MAX_CALLS + 1, False)):
        parsed = parse_answer(wrapped('{"name": "f"}' * n_calls))
        assert parsed.call_format is readable and len(parsed.calls) == MAX_CALLS


def test_what_comes_before_the_deep_value_is_read():
    deep = json.dumps(call("get", page=1, lang="en")) + '{"name": "f", "parameters": ' + "[" * 99_000
    assert score(wrapped(deep), GOLD).tolist() == [0, 1, 1, 1]


def test_scores_do_not_depend_on_the_stack_that_is_left():
    def deeper(n):
        return deeper(n - 1) if n else score(nested, nested).tolist()

    nested = with_value("[" * 60 + "]" * 60)
    assert deeper(600) == deeper(0) == [1, 1, 1, 1]
