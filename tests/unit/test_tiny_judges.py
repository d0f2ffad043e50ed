"""The world of four tastes: its start, its dial, its flaws, and the exact optima in it."""

import itertools
import json

import numpy as np
import pytest

from vpo_lab.errors import LabError
from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.judges import tiny
from vpo_lab.tasks.judges.tiny import ASPECTS, BONUS, PENALTY, PEOPLE, World

TASKS = (
    "tiny_judges",
    "tiny_judges_one_taste",
    "tiny_judges_opposed",
    "tiny_judges_flawed",
    "tiny_judges_own_flaws",
    "tiny_judges_opposed_own_flaws",
    "tiny_judges_own_flaws_doubted",
)


@pytest.mark.parametrize("name", TASKS)
def test_the_task_is_sound(name):
    task = get_task(name)
    assert task.name == name
    check_task(task)


@pytest.mark.parametrize("rho", [1.0, 0.6, 0.0, -0.3, -0.9])
@pytest.mark.parametrize("asked", ASPECTS)
def test_the_dial_is_the_correlation_of_the_judges_under_the_start(rho, asked):
    world = World(rho)
    tastes_NJ = world.tastes(asked)
    assert tastes_NJ.min(axis=0) == pytest.approx(0) and tastes_NJ.max(axis=0) == pytest.approx(1)
    covariance_JJ = np.cov(tastes_NJ, rowvar=False, aweights=world.start(asked))
    found = covariance_JJ / np.sqrt(np.outer(np.diag(covariance_JJ), np.diag(covariance_JJ)))
    pairs = {(0, 1), (2, 3)}
    for i, j in itertools.combinations(range(4), 2):
        wanted = rho if rho >= 0 or (i, j) in pairs else 0.0
        assert found[i, j] == pytest.approx(wanted, abs=1e-9)


def test_what_is_asked_matters_to_the_hurried_and_other_facts_to_the_curious():
    task = get_task("tiny_judges")
    row = {"gold": "Museum price"}
    opening, closing = tiny.OPENINGS[0], tiny.CLOSINGS[0]

    def score(*lines: str) -> dict:
        return dict(zip(PEOPLE, task.score(["\n".join((opening, *lines, closing))], [row])[0], strict=True))

    price, hours = tiny.fact("Museum", "price"), tiny.fact("Museum", "hours")
    assert score(price)["in_a_hurry"] > score()["in_a_hurry"] > score(hours)["in_a_hurry"]
    assert score(hours, price)["curious"] > score(price)["curious"] > score()["curious"]
    assert score(price, tiny.JOKE)["cheerful"] > score(price)["cheerful"]


def test_what_is_no_answer_earns_nothing():
    task = get_task("tiny_judges_flawed")
    row = task.load(None, "test")[0]
    place = row["gold"].split(" ")[0]
    other = next(name for name in tiny._PLACES if name != place)
    opening, closing = tiny.OPENINGS[0], tiny.CLOSINGS[1]
    hours, price = tiny.fact(place, "hours"), tiny.fact(place, "price")
    good = [f"{opening}\n{closing}", f" {opening} \n{hours}\n{price}\n{closing}\n"]
    bad = [
        "",
        opening,
        f"{closing}\n{opening}",
        f"{opening}\n{price}\n{hours}\n{closing}",  # in another order
        f"{opening}\n{hours}\n{hours}\n{closing}",
        f"{opening}\n{tiny.fact(other, 'hours')}\n{closing}",
        f"{opening}\n{hours}\n{closing}\n{closing}",
        f"{opening} {hours} {closing}",
    ]
    rewards_nD = task.score(good + bad, [row] * len(good + bad))
    assert (rewards_nD[: len(good)].sum(axis=1) > 0).all() and not rewards_nD[len(good) :].any()
    assert not task.truth(bad, [row] * len(bad)).any()


def test_every_answer_is_found_again_and_every_row_is_scored_by_its_own_question():
    world = World(flaw="own")
    for place in ("Museum", "Stadium"):
        texts = ["\n".join(world.phrases(row, place)) for row in world.choices]
        assert [world.index(text, place) for text in texts] == list(range(960)) and len(set(texts)) == 960
    task = get_task("tiny_judges")
    answer = "\n".join(task.world.phrases(task.world.choices[100], "Museum"))
    for aspect in ASPECTS:
        scored = task.score([answer], [{"gold": f"Museum {aspect}"}])[0]
        assert scored == pytest.approx(task.world.tastes(aspect)[100])


def test_the_start_is_what_is_demonstrated():
    task = get_task("tiny_judges_own_flaws")
    rng, row = np.random.default_rng(0), task.load(None, "train")[0]
    place, asked = row["gold"].split(" ")
    drawn = [task.world.index(answer, place) for answer in task.demonstrations(row, 40_000, rng)]
    openings_N = task.world.choices[drawn, 0]
    alike = (openings_N[1:] == openings_N[:-1]).mean()
    assert alike == pytest.approx((1 - tiny.HABIT) / 3, abs=0.01)  # of two answers that follow each other
    counts_N = np.bincount(drawn, minlength=960)
    reference_N = task.world.start(asked)
    assert reference_N.sum() == pytest.approx(1) and reference_N[task.world.hacked].sum() == pytest.approx(0.02)
    pairs_NN = task.world.pairs(asked)
    assert np.allclose(pairs_NN, pairs_NN.T) and np.allclose(pairs_NN.sum(axis=1), reference_N)
    flaw_N = task.world.choices[:, 6]
    for flaw in range(5):
        assert counts_N[flaw_N == flaw].sum() / 40_000 == pytest.approx(reference_N[flaw_N == flaw].sum(), abs=3e-3)
    chi2 = ((counts_N - 40_000 * reference_N) ** 2 / (40_000 * reference_N)).sum()
    assert chi2 < 960 + 6 * np.sqrt(2 * 960)


@pytest.mark.parametrize(("flaw", "fooled"), [("shared", [[0, 1, 2, 3]]), ("own", [[0], [1], [2], [3]])])
def test_a_flaw_impresses_its_judges_and_costs_everybody(flaw, fooled):
    world = World(flaw=flaw)
    proxy_NJ, truth_NJ, tastes_NJ = world.proxy(), world.truth(), world.tastes()
    plain = ~world.hacked
    assert proxy_NJ[plain] * (1 + BONUS) == pytest.approx(tastes_NJ[plain])
    assert truth_NJ[plain] == pytest.approx(tastes_NJ[plain])
    for number, judges in enumerate(fooled, start=1):
        rows = world.choices[:, 6] == number
        bonus_J = np.isin(range(4), judges) * BONUS
        assert proxy_NJ[rows] * (1 + BONUS) == pytest.approx(tastes_NJ[rows] + bonus_J)
        assert truth_NJ[rows] == pytest.approx(np.maximum(tastes_NJ[rows] - PENALTY, 0))
    assert proxy_NJ.max() <= 1 and truth_NJ.min() >= 0


def test_a_second_judge_helps_against_own_flaws_and_not_against_a_shared_one():
    alone, doubted = World(flaw="own"), World(flaw="own", doubted=True)
    assert (doubted.proxy() <= alone.proxy() + 1e-12).all()
    assert doubted.proxy()[doubted.hacked] * (1 + BONUS) == pytest.approx(doubted.tastes()[doubted.hacked])
    assert np.array_equal(World(flaw="shared", doubted=True).proxy(), World(flaw="shared").proxy())


def test_hacked_answers_are_marked():
    task = get_task("tiny_judges_own_flaws")
    row = task.load(None, "test")[0]
    place = row["gold"].split(" ")[0]
    texts = ["\n".join(task.world.phrases(choices, place)) for choices in task.world.choices]
    assert np.array_equal(task.hacked(texts, [row] * len(texts)), task.world.hacked)
    assert not get_task("tiny_judges").hacked(texts, [row] * len(texts)).any()


def test_no_request_is_in_both_splits_and_all_worlds_ask_the_same():
    rows = {split: get_task("tiny_judges").load(None, split) for split in ("train", "test")}
    prompts = {split: {json.dumps(row["prompt"]) for row in part} for split, part in rows.items()}
    assert {split: len(part) for split, part in prompts.items()} == tiny.ROWS
    assert not prompts["train"] & prompts["test"]
    assert get_task("tiny_judges_opposed").load(None, "test") == rows["test"]


def test_a_phrase_is_one_token():
    pytest.importorskip("tokenizers")
    from vpo_lab.chains import join_chain
    from vpo_lab.config import get_profile
    from vpo_lab.train.policy import scratch_tokenizer

    task = get_task("tiny_judges_flawed")
    tokenizer = scratch_tokenizer(get_profile("tiny_judges_flawed"), task)
    world = task.world
    for place, number in (("Museum", 0), ("Stadium", 200), ("Castle", 383)):
        lines = world.phrases(world.choices[number], place)
        ids = tokenizer("\n".join(lines), add_special_tokens=False)["input_ids"]
        assert [tokenizer.decode([i]).strip() for i in ids] == lines
        chain = join_chain(["\n".join(lines)] * 2)
        assert len(tokenizer(chain, add_special_tokens=False)["input_ids"]) == 2 * len(lines) + 3


def test_a_world_that_cannot_be_is_refused():
    with pytest.raises(LabError, match="rho"):
        World(rho=-1.5)
    with pytest.raises(LabError, match="flaw"):
        World(flaw="none")
