"""chains.py: round trips, broken tags, hostile texts."""

import copy
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_lab.chains import answer_ends, answer_prompt, join_chain, split_chain
from vpo_lab.errors import LabError

AWKWARD = [
    '<think> a < b </think>\n<tool_call>\n{"name": "f", "parameters": {"x": "</answer"}}\n</tool_call>',
    "<response> Use <answer_> or <answer_x> or < answer_1> or <ANSWER_2> here. </response>",
    "",
    "line\r\n\r\nline \u2028 \x00 \ud83d 漢字 🙂",
    r"back\slash \1 \g<0> {m} %s </answer_0> </answer_99>",
]

# --- Round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("m", range(1, 6))
def test_round_trip(m):
    for shift in range(len(AWKWARD)):
        answers = (AWKWARD[shift:] + AWKWARD[:shift])[:m]
        assert split_chain(join_chain(answers), m) == answers


def test_text_around_the_tags_is_no_answer():
    text = f"Sure!\n{join_chain(['one', 'two'])}\nDone."
    assert split_chain(text, 2) == ["one", "two"]
    assert split_chain("<answer_1>  one \n</answer_1>", 1) == ["one"]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.text().filter(lambda t: "answer_" not in t), min_size=1, max_size=6))
def test_any_answers_survive_but_for_outer_space(answers):
    assert split_chain(join_chain(answers), len(answers)) == [answer.strip() for answer in answers]


def test_one_answer_stands_bare():
    assert join_chain(["only"]) == "only"
    assert split_chain("  only ", 1) == ["only"]
    assert split_chain("<answer_2>two</answer_2>", 1) == ["<answer_2>two</answer_2>"]


# --- Broken chains ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", ["", "", ""]),
        ("no tags at all", ["", "", ""]),
        ("<answer_2>b</answer_2>", ["", "b", ""]),
        ("<answer_3>c</answer_3><answer_1>a</answer_1>", ["a", "", "c"]),
        ("<answer_1>a</answer_1><answer_1>again</answer_1>", ["a", "", ""]),
        ("<answer_1></answer_1><answer_1>again</answer_1>", ["", "", ""]),
        ("<answer_1>a<answer_2>b</answer_2>", ["a", "b", ""]),
        ("<answer_1>a</answer_1><answer_2>b", ["a", "b", ""]),
        ("<answer_1>a</answer_2><answer_2>b</answer_1>", ["a</answer_2>", "b</answer_1>", ""]),
        ("<answer_1>a</answer_1>lost<answer_2>b</answer_2>lost", ["a", "b", ""]),
        ("a</answer_1><answer_2>b</answer_2>", ["", "b", ""]),
        ("<answer_0>z</answer_0><answer_1>a</answer_1>", ["a", "", ""]),
        ("<answer_4>d</answer_4><answer_3>c</answer_3>", ["", "", "c"]),
        ("<answer_3>c<answer_4>d</answer_4>", ["", "", "c"]),
        ("<answer_9999>x</answer_9999>", ["", "", ""]),
        ("<answer_" + "9" * 6000 + ">x<answer_1>a</answer_1>", ["a", "", ""]),
        ("<answer_-1>x</answer_-1><answer_1.0>y", ["", "", ""]),
        ("<answer_²>x</answer_²><answer_١>y</answer_١>", ["", "", ""]),  # digits that are not 0-9
        ("<answer_1><answer_2><answer_3>", ["", "", ""]),
    ],
)
def test_broken_chains(text, expected):
    assert split_chain(text, 3) == expected


TAGS = [f"<{slash}answer_{number}>" for slash in ("", "/") for number in (1, 2, 7)]
pieces = st.sampled_from([*TAGS, "<answer_", "</", "1", ">", "x", "\n"])


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(), st.lists(pieces).map("".join)), st.integers(1, 5))
def test_any_text_gives_m_stripped_parts_of_it(text, m):
    answers = split_chain(text, m)
    assert len(answers) == m
    assert all(isinstance(answer, str) and answer == answer.strip() and answer in text for answer in answers)


@pytest.mark.parametrize(
    "unit",
    [
        "<answer_1>",
        "</answer_1>",
        "<answer_1></answer_2>",
        "<answer_",
        "<answer_1",
        "<",
        "9",
        "<answer_9999>",
        "<answer_2>x</answer_2>",
        " ",
    ],
)
def test_a_megabyte_of_anything_takes_linear_time(unit):
    text = "<answer_1>" + unit * (1_000_000 // len(unit))
    for m in (1, 3, 9999):
        start = time.process_time()
        assert len(split_chain(text, m)) == m == len(answer_ends(text, m)) + 1
        assert time.process_time() - start < 2  # quadratic would be minutes


def test_many_unclosed_answers_take_linear_time():
    text = "".join(f"<answer_{i}>{'x' * 90}" for i in range(1, 10_000))
    start = time.process_time()
    assert split_chain(text, 9999) == ["x" * 90] * 9999
    assert time.process_time() - start < 2


# --- Where answers are over -------------------------------------------------------------------


def test_ends_of_a_canonical_chain():
    text = join_chain(["one", "two", "three"])
    assert [text[:end].count("</answer_") for end in answer_ends(text, 3)] == [1, 2]
    assert [text[:end].endswith(f"</answer_{j}>") for j, end in enumerate(answer_ends(text, 3), start=1)] == [True] * 2
    assert answer_ends(text, 2) == answer_ends(text, 3)[:1] and answer_ends(text, 1) == answer_ends("", 1) == []


NEVER = None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [NEVER, NEVER]),
        ("no tags", [NEVER, NEVER]),
        ("<answer_1>a</answer_1>", ["<answer_1>a</answer_1>", NEVER]),  # whole, and what follows is the second's
        ("<answer_1>a", [NEVER, NEVER]),
        ("<answer_1>a<answer_2>b</answer_2>", [NEVER, NEVER]),  # the second begins, but the first is not closed
        ("<answer_1>a</answer_1><answer_2>b", ["<answer_1>a</answer_1>", NEVER]),
        ("<answer_2>b</answer_2>", [NEVER, NEVER]),
        ("a</answer_1><answer_1>", [NEVER, NEVER]),
        ("<answer_2>b</answer_2><answer_1>a</answer_1>", ["<answer_2>b</answer_2><answer_1>a</answer_1>", NEVER]),
        ("<answer_1></answer_1><answer_1></answer_1>", ["<answer_1></answer_1>", NEVER]),
        ("<answer_1>a<answer_1>b</answer_1>", ["<answer_1>a<answer_1>b</answer_1>", NEVER]),
        (
            "<answer_1>🙂</answer_1>\n<answer_2>漢</answer_2>!",
            ["<answer_1>🙂</answer_1>", "<answer_1>🙂</answer_1>\n<answer_2>漢</answer_2>"],
        ),
    ],
)
def test_ends_of_broken_chains(text, expected):
    ends = [len(text) + 1 if part is NEVER else len(part) for part in expected]
    assert answer_ends(text, 3) == ends


more_pieces = st.sampled_from([*TAGS, "<answer_01>", "</answer_01>", "<answer_", "1>", "x", "\n", "\ud83d", "🙂"])
texts = st.one_of(st.text(), st.lists(more_pieces, max_size=12).map("".join))


@settings(deadline=None, max_examples=400)
@given(texts, texts, st.integers(1, 5))
def test_nothing_behind_its_end_can_change_an_answer(text, other, m):
    ends = answer_ends(text, m)
    assert len(ends) == m - 1 and ends == sorted(ends) and all(0 < end <= len(text) + 1 for end in ends)
    for j, end in enumerate(ends, start=1):
        if end <= len(text):  # else it never ends, and more text may still change it
            changed = text[:end] + other
            assert split_chain(changed, m)[:j] == split_chain(text, m)[:j]
            assert answer_ends(changed, m)[:j] == ends[:j]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text().filter(lambda t: "answer_" not in t), min_size=2, max_size=5), texts)
def test_every_answer_of_a_whole_chain_ends_behind_its_tag(answers, other):
    m = len(answers)
    text = join_chain(answers)
    for j, end in enumerate(answer_ends(text, m), start=1):
        assert text[:end] == join_chain([*answers, "x"])[:end] and text[:end].endswith(f"</answer_{j}>")
        assert split_chain(text[:end] + other, m)[:j] == [answer.strip() for answer in answers[:j]]


# --- The request ------------------------------------------------------------------------------


def test_answer_prompt_asks_at_the_end_of_the_last_turn():
    prompt = [{"role": "system", "content": "Tools."}, {"role": "user", "content": "Go {m}.", "id": 1}]
    before = copy.deepcopy(prompt)
    one, three = answer_prompt(prompt, 1), answer_prompt(prompt, 3)
    assert prompt == before
    for messages in (one, three):
        assert messages[0] == before[0]
        assert messages[1]["role"] == "user" and messages[1]["id"] == 1
        assert messages[1]["content"].startswith("Go {m}.\n")
    assert "answer_" not in one[1]["content"]
    assert "3 different answers" in three[1]["content"]
    for tag in ("<answer_1>", "</answer_1>", "<answer_3>", "</answer_3>"):
        assert tag in three[1]["content"]
    assert answer_prompt(prompt, 3) == three  # the same words each time


def test_m_below_one_is_an_error():
    for m in (0, -3):
        with pytest.raises(LabError, match=f"M = {m}"):
            split_chain("text", m)
        with pytest.raises(LabError, match=f"M = {m}"):
            answer_ends("text", m)
        with pytest.raises(LabError, match=f"M = {m}"):
            answer_prompt([{"role": "user", "content": "x"}], m)
    with pytest.raises(LabError, match="M = 0"):
        join_chain([])
