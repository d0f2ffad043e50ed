"""SetReward: the set reward of several answers from ordinary reward functions, against a loop by hand."""

import asyncio
import functools
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_lab import SetReward, ask, unask
from vpo_lab.chains import join_chain
from vpo_lab.errors import LabError
from vpo_lab.methods import METHODS
from vpo_lab.set_reward import best_of, objective_metrics, set_reward_parts, split_answers, text_of
from vpo_lab.weights import dirichlet_weights, set_reward


def has_a(completions, **_):
    return [float("a" in completion) for completion in completions]


def short(completions, **_):
    return [1 / (1 + len(completion)) for completion in completions]


async def number(completions, target, **_):
    await asyncio.sleep(0)
    return [None if t is None else float(str(t) in c) for c, t in zip(completions, target, strict=True)]


def chat(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


# --- The arithmetic -------------------------------------------------------------------------------


def by_hand(rewards_MD, present_M, weights_KD, scale_D, floor) -> float:
    """R(S) of one rollout: a loop over the weights, renormalised over what was asked, then over the answers."""
    asked = [d for d in range(rewards_MD.shape[1]) if not np.isnan(rewards_MD[:, d]).all()]
    answers = [[floor if np.isnan(row[d]) else row[d] for d in asked] for row in rewards_MD[present_M]]
    answers = answers or [[floor] * len(asked)]
    total = 0.0
    for w in weights_KD:
        shares = [w[d] / sum(w[e] for e in asked) for d in asked]
        total += max(sum(s * scale_D[d] * r for s, d, r in zip(shares, asked, row, strict=True)) for row in answers)
    return total / len(weights_KD)


rewards = st.one_of(st.floats(-1, 2), st.sampled_from([0.0, 1.0]), st.just(float("nan")))


@st.composite
def batches(draw):
    b, m, d = draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)))
    values = draw(st.lists(rewards, min_size=b * m * d, max_size=b * m * d))
    present = draw(st.lists(st.booleans(), min_size=b * m, max_size=b * m))
    scale = draw(st.lists(st.floats(0.1, 3), min_size=d, max_size=d))
    return np.reshape(values, (b, m, d)), np.reshape(present, (b, m)), np.array(scale), draw(st.floats(-1, 0))


@settings(deadline=None)
@given(batches())
def test_the_parts_add_up_to_the_set_reward_by_hand(batch):
    rewards_BMD, present_BM, scale_D, floor = batch
    weights_KD = dirichlet_weights(16, rewards_BMD.shape[2], seed=3)
    parts_BD = set_reward_parts(rewards_BMD, present_BM, weights_KD, scale_D, floor)
    asked_BD = ~np.isnan(rewards_BMD).all(axis=1)
    assert np.array_equal(np.isnan(parts_BD), ~asked_BD)
    for b in np.flatnonzero(asked_BD.any(axis=1)):
        expected = by_hand(rewards_BMD[b], present_BM[b], weights_KD, scale_D, floor)
        assert np.nansum(parts_BD[b] * scale_D) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(batches())
def test_a_missing_answer_changes_nothing_and_never_helps(batch):
    rewards_BMD, present_BM, scale_D, _ = batch
    rewards_BMD = np.nan_to_num(rewards_BMD, nan=0.5)
    weights_KD = dirichlet_weights(16, rewards_BMD.shape[2], seed=3)

    def totals(values, present):
        return (set_reward_parts(values, present, weights_KD, scale_D, floor=-1.0) * scale_D).sum(axis=1)

    other = np.where(present_BM[..., None], rewards_BMD, 99.0)  # what a stand-in earned
    assert np.allclose(totals(rewards_BMD, present_BM), totals(other, present_BM))
    assert (totals(rewards_BMD, present_BM) <= totals(rewards_BMD, np.ones_like(present_BM)) + 1e-9).all()


def test_weights_may_differ_from_rollout_to_rollout():
    rng = np.random.default_rng(0)
    rewards_BMD, weights_BKD = rng.random((3, 2, 4)), dirichlet_weights(24, 4, seed=1).reshape(3, 8, 4)
    present_BM = np.ones((3, 2), dtype=bool)
    together = set_reward_parts(rewards_BMD, present_BM, weights_BKD)
    alone = [set_reward_parts(rewards_BMD[[b]], present_BM[[b]], weights_BKD[b])[0] for b in range(3)]
    assert np.allclose(together, alone)
    assert np.allclose(together.sum(axis=1), [set_reward(r, w) for r, w in zip(rewards_BMD, weights_BKD, strict=True)])


def test_one_answer_is_grpo_on_the_mean():
    texts = ["aa", "b", "ccc", "a long one"]
    scores = SetReward([has_a, short], candidates=1)(completions=texts)
    means = (np.array(has_a(texts)) + np.array(short(texts))) / 2
    assert np.allclose(scores, means)
    vectors = np.stack([has_a(texts), short(texts)], axis=1)[:, None]
    scores = np.reshape(scores, (4, 1, 1))
    assert np.allclose(METHODS["grpo"].advantages(scores, 4, None), METHODS["grpo"].advantages(vectors, 4, None))


def test_two_answers_and_two_objectives_have_a_closed_form():
    """Vectors (1, 0) and (0, 1): E[max(w, 1 - w)] = 3/4."""
    score = SetReward([has_a, lambda completions, **_: [float("b" in c) for c in completions]], 2)
    assert score(completions=[join_chain(["a", "b"])])[0] == pytest.approx(0.75, abs=1e-3)


# --- Reward functions -----------------------------------------------------------------------------


def test_functions_meet_single_answers_with_their_columns_and_the_plain_prompt():
    met = {}

    def spy(prompts, completions, target, trainer_state, completion_ids=None, **columns):
        met.update(prompts=prompts, completions=completions, target=target, state=trainer_state, ids=completion_ids)
        return [0.0] * len(completions)

    prompts = [ask("q1", 2), ask("q2", 2)]
    chains = [join_chain(["x", "y"]), join_chain(["z", "u"])]
    SetReward(spy, 2)(prompts, chains, target=[1, 2], trainer_state="state", completion_ids=[[1], [2]])
    assert met == {
        "prompts": ["q1", "q1", "q2", "q2"],
        "completions": ["x", "y", "z", "u"],
        "target": [1, 1, 2, 2],
        "state": "state",
        "ids": None,
    }


def test_chat_completions_keep_their_shape_and_the_last_assistant_message_is_read():
    met = []

    def spy(completions, **_):
        met.extend(completions)
        return [0.0] * len(completions)

    turns = [*chat("<answer_1>no</answer_1>"), {"role": "tool", "content": "42"}, *chat(join_chain(["x", "y"]))]
    SetReward(spy, 2)([[{"role": "user", "content": "q"}]], [turns])
    assert [text_of(answer) for answer in met] == ["x", "y"]
    assert [answer[:2] for answer in met] == [turns[:2]] * 2 and all(
        answer[-1]["role"] == "assistant" for answer in met
    )
    blocks = [{"role": "assistant", "content": [{"type": "text", "text": join_chain(["x", "y"])}]}]
    answers, present = split_answers(blocks, 2)
    assert answers[1][0]["content"] == [{"type": "text", "text": "y"}] and present == [True, True]
    assert text_of([{"role": "assistant", "content": None}]) == text_of([]) == ""


@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_async_functions_and_rows_that_an_objective_does_not_apply_to(inside_a_loop):
    score = SetReward([short, number], 2)
    chains = [join_chain(["7", "no"]), join_chain(["aa", "b"])]

    def call():
        return score.vectors(None, chains, target=[7, None])

    async def in_a_loop():
        return call()

    rewards_BMD, present_BM = asyncio.run(in_a_loop()) if inside_a_loop else call()
    assert rewards_BMD[0, :, 1].tolist() == [1.0, 0.0] and np.isnan(rewards_BMD[1, :, 1]).all()
    assert present_BM.all()
    scores = score(completions=chains, target=[7, None])
    assert scores[1] == pytest.approx(0.5)  # `short` alone, and its best answer


def test_nothing_asked_is_none():
    score = SetReward(number, 2)
    chains = [join_chain(["7", "8"])] * 2
    assert score(completions=chains, target=[7, None]) == [1.0, None]


def test_logs_the_objectives_and_nests_the_extra_columns():
    logged, table = {}, {}

    def extra(completions, log_extra, **_):
        log_extra("length", [len(completion) for completion in completions])
        return [0.5] * len(completions)

    score = SetReward([has_a, extra], 2)
    chains = [join_chain(["a", "bb"]), join_chain(["b"]), join_chain(["aaa", "cc"])]
    chains[1] = "<answer_1>b</answer_1>"
    score(completions=chains, log_metric=logged.__setitem__, log_extra=table.__setitem__)
    assert table == {"length": [[1, 2], [1, 1], [3, 2]]}
    assert logged["answers"] == pytest.approx(5 / 3)
    assert logged["objective/has_a/mean"] == pytest.approx(2 / 5)
    assert logged["objective/has_a/best"] == pytest.approx(2 / 3)


def test_what_was_never_asked_is_not_logged():
    rewards_BMD = np.array([[[1.0, np.nan]], [[0.0, np.nan]]])
    metrics = objective_metrics(rewards_BMD, np.ones((2, 1), dtype=bool), ["f", "g"])
    assert metrics == {"answers": 1.0, "objective/f/mean": 0.5, "objective/f/best": 0.5}


def test_pickled_it_scores_the_same():
    score = SetReward([has_a, number], 2, reward_weights=[1, 2], name="mine")
    copy = pickle.loads(pickle.dumps(score))
    columns = dict(completions=[join_chain(["a 7", "b"])], target=[7])
    assert copy(**columns) == score(**columns) and copy.__name__ == "mine"


def test_names_are_unique_and_those_of_functions_or_classes():
    class Judge:
        def __call__(self, completions, **_):
            return [1.0] * len(completions)

    score = SetReward([short, functools.partial(short), Judge(), Judge()], 2)
    assert score.names == ["short", "short_2", "Judge", "Judge_2"]


# --- One rollout at a time ------------------------------------------------------------------------


def test_one_rollout_at_a_time_and_in_the_words_of_verl():
    score = SetReward([has_a, short], 3)
    chain = "<answer_1>aa</answer_1><answer_2>7</answer_2>"
    alone = score.one(chain)
    assert alone["score"] == score(completions=[chain])[0]
    assert (alone["answers"], alone["best_has_a"], alone["best_short"]) == (2, 1.0, 0.5)
    assert score.verl(data_source="x", solution_str=chain, ground_truth="7", extra_info={}) == alone
    assert score.one("no tags")["score"] == 0.0


def test_verl_is_given_no_nan_and_the_functions_the_prompt_that_was_not_asked():
    def echo(prompts, completions, **_):
        return [float(prompt == "q") for prompt in prompts]

    told = {"candidates": 2, "prompt": "q"}
    chain = join_chain(["a", "b"])
    scores = SetReward([echo, lambda completions, **_: [None] * len(completions)], 2).verl("x", chain, None, told)
    assert scores["score"] == 1.0 and scores["best_echo"] == 1.0 and None in scores.values()
    nothing = SetReward(lambda completions, **_: [None] * len(completions), 2, floor=-1.0)
    assert nothing.verl(solution_str=chain)["score"] == -1.0
    with pytest.raises(LabError, match="3 answers"):
        SetReward(echo, 2).verl("x", chain, None, {"candidates": 3})


def test_one_rollout_tells_what_does_not_apply():
    alone = SetReward([has_a, number], 2).one(join_chain(["a", "b"]), target=None)
    assert alone["score"] == 1.0 and np.isnan(alone["best_number"])


def test_best_of_a_rollout_without_answers_is_the_floor():
    rewards_BMD = np.array([[[0.5, np.nan], [0.9, np.nan]]])
    assert np.array_equal(best_of(rewards_BMD, np.array([[False, False]]), -1.0), [[-1.0, np.nan]], equal_nan=True)
    assert np.array_equal(best_of(rewards_BMD, np.array([[True, False]]), -1.0), [[0.5, np.nan]], equal_nan=True)


# --- Prompts and truncation -----------------------------------------------------------------------

PROMPTS = ["q", [{"role": "user", "content": "q"}], [{"role": "user", "content": [{"type": "text", "text": "q"}]}]]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_unask_undoes_ask(prompt):
    asked = ask(prompt, 3)
    assert asked != prompt and unask(asked, 3) == prompt
    assert unask(prompt, 3) == prompt and ask(prompt, 1) == prompt


def test_unask_reads_a_request_inside_the_last_block():
    """TRL makes blocks of a prompt that was a text when it was asked."""
    blocks = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ask("q", 3)}]}]
    assert unask(blocks, 3)[0]["content"] == [{"type": "image"}, {"type": "text", "text": "q"}]


@pytest.mark.parametrize(
    ("text", "tail", "expected"),
    [
        (join_chain(["a", "b"]), 64, [True, True]),
        (join_chain(["a", "b"]) + " " * 200, 64, [True, True]),
        (join_chain(["a", "b"]) + "x" * 65, 64, [False, False]),
        (join_chain(["a", "b"]) + "x" * 65, None, [True, True]),
        ("<answer_1>a</answer_1><answer_2>cut " + "x" * 99, 64, [True, False]),
        ("<answer_1>a</answer_1><answer_2>cut", None, [True, True]),
        ("<answer_1>never closed <answer_2>b</answer_2>", 64, [True, True]),
        ("<answer_2>b</answer_2><answer_1>cut", 64, [False, True]),
        ("<answer_1>cut", 64, [False, False]),
        ("nothing", 64, [False, False]),
        ("", 64, [False, False]),
    ],
)
def test_text_behind_the_last_answer_and_an_answer_cut_off(text, tail, expected):
    assert split_answers(text, 2, tail)[1] == expected


pieces = st.sampled_from([*"ab \n", *(f"<{slash}answer_{number}>" for number in (1, 2) for slash in ("", "/"))])


def test_a_single_answer_is_never_void():
    assert split_answers("a" * 500, 1, tail=64) == (["a" * 500], [True])


@settings(deadline=None)
@given(st.lists(pieces).map("".join), st.integers(1, 3))
def test_any_text_is_split_without_an_empty_answer(text, m):
    answers, present = split_answers(text, m, tail=3)
    assert len(answers) == len(present) == m
    assert all(answers) or not text
    assert SetReward(short, m)(completions=[text])[0] >= 0


# --- Bad input ------------------------------------------------------------------------------------


def returns(value):
    def broken(completions, **_):
        return value(completions) if callable(value) else value

    return broken


@pytest.mark.parametrize(
    "value",
    [
        None,
        1.0,
        "word",
        [0.5],
        lambda completions: [0.5] * (len(completions) + 1),
        lambda completions: ["x"] * len(completions),
        lambda completions: [float("inf")] * len(completions),
    ],
)
def test_a_function_that_returns_no_list_of_numbers_is_named(value):
    with pytest.raises(LabError, match="'broken'") as error:
        SetReward([has_a, returns(value)], 2)(completions=[join_chain(["a", "b"])] * 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(functions=[]), "functions"),
        (dict(functions=["accuracy"]), r"functions\[0\]"),
        (dict(functions=[has_a], candidates=0), "candidates"),
        (dict(functions=[has_a], candidates=2.5), "candidates"),
        (dict(functions=[has_a], candidates=True), "candidates"),
        (dict(functions=[has_a, short], reward_weights=[1]), "reward_weights"),
        (dict(functions=[has_a, short], alpha=0), "alpha"),
        (dict(functions=[has_a, short], draws=0), "draws"),
    ],
)
def test_a_bad_argument_is_named(arguments, named):
    with pytest.raises(LabError, match=named) as error:
        SetReward(**arguments)
    assert "\n" not in str(error.value)


def told(score, **columns) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score(**columns)
        score(**columns)
    return [str(warning.message) for warning in caught]


def test_warns_once_of_a_reward_below_the_floor():
    chains = [join_chain(["a", "b"])] * 2
    penalty = returns(lambda completions: [-0.25] * len(completions))
    (line,) = told(SetReward([has_a, penalty], 2), completions=chains)
    assert "'broken'" in line and "floor" in line
    assert told(SetReward([has_a, penalty], 2, floor=-1), completions=chains) == []


def test_warns_once_when_no_completion_holds_an_answer():
    (line,) = told(SetReward(has_a, 2), completions=["no", "tags"])
    assert "<answer_1>" in line and "ask(prompt, 2)" in line
    assert told(SetReward(has_a, 2), completions=["no"]) == []  # one rollout may well have none


def test_warns_once_of_a_function_that_gives_no_number_at_all():
    silent = returns(lambda completions: [None] * len(completions))
    (line,) = told(SetReward([has_a, silent], 2), completions=[join_chain(["a", "b"])] * 2)
    assert "'broken'" in line
