"""Judges: scales that no batch changes, one judgement for equal pairs, and what a judge that fails costs."""

import re
import threading
import time

import numpy as np
import pytest

from vpo_lab.errors import LabError
from vpo_lab.tasks.judges import lexical
from vpo_lab.tasks.judges.judge import PATIENCE, PROBE, QUANTILES, Judge, Panel, each_pair, fit_scale


def judge_of(scores, name="length", low=0.0, high=10.0, **settings):
    return Judge(name, scores, low, high, **settings)


def length(prompt, answer):
    return float(len(answer))


STEADY = judge_of(each_pair(lambda prompt, answer: 1.0), "steady", 0.0, 2.0)


def test_rewards_are_scaled_between_two_fixed_numbers_and_clipped():
    panel = Panel([judge_of(each_pair(length), low=2, high=6), judge_of(each_pair(length), "short", low=6, high=2)])
    answers = ["a", "ab", "abc", "abcdef", "abcdefgh"]
    rewards = panel.score(["p"] * 5, answers)
    assert np.allclose(rewards, [[0, 1], [0, 1], [0.25, 0.75], [1, 0], [1, 0]])
    alone = np.concatenate([panel.score(["p"], [answer]) for answer in reversed(answers)])
    assert np.array_equal(alone[::-1], rewards)


def test_equal_pairs_are_judged_once_in_batches_of_a_limited_size():
    seen = []

    def scores(prompts, answers):
        assert len(answers) <= 3
        seen.extend(zip(prompts, answers, strict=True))
        return [len(answer) for answer in answers]

    panel = Panel([judge_of(scores, batch=3)])
    prompts, answers = ["p", "p", "q", "p", "q", "q"] * 2, ["a", "b", "a", "a", "c", "a"] * 2
    first = panel.score(prompts, answers)
    assert np.array_equal(panel.score(prompts, answers), first)
    assert sorted(seen) == [("p", "a"), ("p", "b"), ("q", "a"), ("q", "c")]


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("vpo_lab.tasks.judges.judge.KNOWN", 10)
    panel = Panel([judge_of(each_pair(length))])
    for number in range(30):
        rewards = panel.score(["p"] * 4, [f"{number}{letter}" for letter in "abcd"])
        assert len(panel._known["length"]) <= 10 and not np.isnan(rewards).any()
    assert panel.score(["p"] * 25, ["x" * n for n in range(25)])[7, 0] == 0.7  # more pairs than are kept


@pytest.mark.parametrize("nonsense", [None, float("nan"), float("inf"), "7", "often", [1, 2], object()])
def test_an_answer_without_a_number_earns_nothing_and_costs_no_other(nonsense, capsys):
    panel = Panel([judge_of(each_pair(lambda p, a: nonsense if a == "bad" else 5.0)), STEADY])
    rewards = panel.score(["p"] * 3 + ["q"], ["good", "bad", "fine", "bad"])
    assert np.array_equal(rewards, [[0.5, 0.5], [0, 0.5], [0.5, 0.5], [0, 0.5]])
    assert np.array_equal(panel.score(["p"], ["bad"]), [[0, 0.5]])  # alone as in a batch
    assert panel.lost["length"].total() == 2 and panel.lost["steady"].total() == 0
    assert "'length'" in capsys.readouterr().out


def test_a_judge_that_raises_for_a_text_loses_this_text_only():
    calls = []

    def scores(prompts, answers):
        calls.append(len(answers))
        if "bad" in answers:
            raise RuntimeError("server said no")
        return [5.0] * len(answers)

    panel = Panel([judge_of(scores), STEADY])
    answers = [f"answer {n}" for n in range(32)] + ["bad"]
    rewards = panel.score(["p"] * 33, answers)
    assert rewards[:, 0].tolist() == [0.5] * 32 + [0.0]
    assert len(calls) < 20  # halved, not one by one
    assert dict(panel.lost["length"]) == {"RuntimeError: server said no": 1}
    before = len(calls)
    assert panel.score(["p"], ["bad"])[0, 0] == 0.0 and len(calls) == before  # remembered


def broken_in_many_ways():
    def raises(prompts, answers):
        raise OSError("no route to host")

    def exits(prompts, answers):
        raise SystemExit(1)

    return {
        "raises": raises,
        "exits": exits,
        "none": lambda prompts, answers: None,
        "nones": lambda prompts, answers: [None] * len(answers),
        "one": lambda prompts, answers: 3.0,
        "too few": lambda prompts, answers: [1.0] * (len(answers) - 1),
        "text": lambda prompts, answers: "1" * len(answers),
        "no arguments": lambda: [],
    }


@pytest.mark.parametrize("way", broken_in_many_ways())
def test_a_judge_that_does_not_work_is_not_asked_for_any_answer_and_given_up_in_the_end(way, capsys):
    calls = []

    def scores(*batch):
        calls.append(batch)
        return broken_in_many_ways()[way](*batch)

    panel = Panel([judge_of(scores), STEADY])
    for number in range(PATIENCE + 2):
        rewards = panel.score(["p", "p", "q"], [f"{number}", "same", "other"])
        assert np.isnan(rewards[:, 0]).all() and (rewards[:, 1] == 0.5).all()
    assert len(calls) <= 2 * PATIENCE  # a probe each time, and no more after that
    printed = capsys.readouterr().out.splitlines()
    assert 1 <= len(printed) <= 3 and "given up" in printed[-1]
    assert panel.lost["length"].total() >= 3 * PATIENCE - 2


def test_a_judge_that_recovers_is_asked_again_and_the_batch_without_it_is_not_remembered():
    works = [False]

    def scores(prompts, answers):
        if not works[0]:
            raise OSError("down")
        return [5.0] * len(answers)

    panel = Panel([judge_of(scores), STEADY])
    assert np.isnan(panel.score(["p"], ["a"])[0, 0])
    works[0] = True
    assert panel.score(["p", "p"], ["a", "b"])[:, 0].tolist() == [0.5, 0.5]
    works[0] = False  # what is known stays known; a row with an unknown answer is not asked, for every answer to it
    rewards = panel.score(["p", "p", "q"], ["a", "new", "a"])
    assert np.isnan(rewards[:, 0]).all()
    assert panel.score(["p"], ["a"])[0, 0] == 0.5


def test_without_a_judge_that_works_the_run_ends_in_a_line():
    panel = Panel([judge_of(lambda prompts, answers: None)])
    with pytest.raises(LabError, match="no judge works"):
        panel.score(["p"], ["a"])


def catastrophic(prompt, answer):
    return float(bool(re.fullmatch(r"(a+)+b", answer)))


def stubborn(prompt, answer):
    while answer == "bad":
        try:
            time.sleep(0.01)
        except Exception:
            pass
    return 1.0


def endless(prompt, answer):
    while answer == "bad":
        pass
    return 1.0


@pytest.mark.parametrize(
    ("hangs", "bad"), [(catastrophic, "a" * 40), (stubborn, "bad"), (endless, "bad")], ids=("regex", "sleep", "loop")
)
def test_a_judge_that_hangs_loses_the_text_it_hangs_on(hangs, bad):
    panel = Panel([judge_of(each_pair(hangs), low=-1.0, high=1.0, seconds=0.15), STEADY])
    began = time.monotonic()
    rewards = panel.score(["p"] * 48, ["good", "fine", bad, *(f"nice {n}" for n in range(45))])
    assert time.monotonic() - began < 5
    assert rewards[2, 0] == 0 and (np.delete(rewards[:, 0], 2) > 0).all()
    assert [reason.split(":")[0] for reason in panel.lost["length"]] == ["TimeoutError"]


def test_a_judge_that_always_hangs_costs_a_bounded_time():
    panel = Panel([judge_of(lambda prompts, answers: time.sleep(60), seconds=0.1), STEADY])
    began = time.monotonic()
    for number in range(10):
        assert np.isnan(panel.score(["p"] * 40, [f"{number} {n}" for n in range(40)])[:, 0]).all()
    assert time.monotonic() - began < 3


def test_off_the_main_thread_a_hanging_call_is_left_behind():
    results, free = [], threading.Event()

    def scores(prompts, answers):
        if "bad" in answers:
            free.wait(20)
        return [5.0] * len(answers)

    panel = Panel([judge_of(scores, seconds=0.2), STEADY])
    thread = threading.Thread(target=lambda: results.append(panel.score(["p"] * 3, ["a", "bad", "b"])))
    thread.start()
    thread.join(10)
    free.set()
    assert results[0][:, 0].tolist() == [0.5, 0.0, 0.5]


def test_the_alarm_is_switched_off_and_given_back():
    import signal

    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        Panel([judge_of(each_pair(length), seconds=0.05)]).score(["p"], ["a"])
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        time.sleep(0.1)
        signal.raise_signal(signal.SIGALRM)
        assert rung == [1]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_scale_is_the_quantiles_of_reference_answers():
    answers = ["x" * n for n in range(1, 102)]
    fitted = fit_scale(judge_of(each_pair(length), low=None, high=None), ["p"] * 101, answers)
    low, high = np.quantile(np.arange(1, 102), QUANTILES)
    assert (fitted.low, fitted.high) == (low, high)
    some = each_pair(lambda p, a: None if len(a) % 2 else float(len(a)))
    assert fit_scale(judge_of(some), ["p"] * 101, answers).low == np.quantile(np.arange(2, 102, 2), QUANTILES[0])
    for scores, word in ((each_pair(lambda p, a: 4.0), "nearly all"), (each_pair(lambda p, a: None), "none")):
        with pytest.raises(LabError, match=word):
            fit_scale(judge_of(scores), ["p"] * 101, answers)
    with pytest.raises(LabError, match="scale"):
        Panel([judge_of(each_pair(length), low=None)]).score(["p"], ["a"])


def test_an_empty_answer_earns_nothing_and_is_no_loss():
    def scores(prompts, answers):
        assert all(answers)
        return [10.0] * len(answers)

    panel = Panel([judge_of(scores), judge_of(lambda prompts, answers: None, "broken"), STEADY])
    rewards = panel.score(["p", "p"], ["", "good"])
    assert rewards[:, 0].tolist() == [0, 1] and rewards[:, 2].tolist() == [0, 0.5]
    assert np.isnan(rewards[:, 1]).all() and not panel.lost["length"]


def test_judges_need_names_of_their_own():
    for judges in ([], [STEADY, STEADY]):
        with pytest.raises(LabError, match="name"):
            Panel(judges)


# --- The plain judges ---


def raw(judge, answer, prompt="How do I bake bread?"):
    return float(judge.scores([prompt], [answer])[0])


@pytest.mark.parametrize(
    ("judge", "more", "less"),
    [
        (lexical.BRIEF, "No.", "No, you should rather not do that."),
        (lexical.BRIEF, "A whole sentence.", "?!"),
        (lexical.BRIEF, "A whole sentence.", ""),
        (lexical.DETAILED, "Knead flour, water, yeast and salt.", "You can do that with some of these."),
        (lexical.DETAILED, "Knead flour and yeast.", "Knead, knead, knead, knead, knead!"),
        (lexical.DETAILED, "Knead flour.", "You bake bread! Bake bread!"),  # the prompt's own words
        (lexical.ASKS_BACK, "Sure. Which flour do you have?", "Sure, take any flour."),
        (lexical.ASKS_BACK, "Which flour do you have?", "?"),
        (lexical.ASKS_BACK, "Which flour do you have?", "How do I bake bread?"),  # parrots
        (lexical.ASKS_BACK, "Which flour?", "Which flour? Take any."),
        (lexical.NO_REFUSAL, "Knead flour and water.", "I’m sorry, but I can’t help with that."),
        (lexical.NO_REFUSAL, "Knead flour and water.", "I cannot say."),
    ],
)
def test_a_plain_judge_prefers(judge, more, less):
    assert raw(judge, more) > raw(judge, less)


@pytest.mark.parametrize("judge", [lexical.BRIEF, lexical.DETAILED, lexical.ASKS_BACK, lexical.NO_REFUSAL])
@pytest.mark.parametrize("text", ["", " ", "\n", "\0", "🍞" * 50, "\ud800", "?" * 3000, "a" * 10_000, "12 34", "¿Qué?"])
def test_any_text_gets_a_number_from_the_plain_judges(judge, text):
    assert 0 <= Panel([judge]).score([text], [text])[0, 0] <= 1


def test_the_lexicon_prefers_friendly_words():
    pytest.importorskip("vaderSentiment")
    assert raw(lexical.WARM, "I love that, you are wonderful!") > 0.5 > raw(lexical.WARM, "That is a terrible idea.")


def test_the_classifier_prefers_clean_words():
    pytest.importorskip("profanity_check")
    scores = lexical.CLEAN.scores(["p", "p"], ["Knead flour and water.", "You fucking idiot"])
    assert scores[0] > 0.8 > 0.3 > scores[1]


def test_the_language_of_a_sentence():
    pytest.importorskip("py3langid")
    german = lexical.in_language("de")
    assert raw(german, "Das ist doch eine sehr gute Frage, mein lieber Freund.") > 0.9
    assert raw(german, "That is a very good question, my dear friend.") < 0.1
    assert raw(german, "") == raw(german, "!?") == 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "profanity_check", None)
    with pytest.raises(LabError, match="pip install alt-profanity-check"):
        Panel([lexical.CLEAN]).score(["p"], ["a"])


def test_the_probe_can_be_judged_by_all_plain_judges():
    assert np.isfinite(Panel([lexical.BRIEF, lexical.DETAILED, lexical.ASKS_BACK]).score(*[[t] for t in PROBE])).all()
