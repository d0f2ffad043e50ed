"""tiny_tools.py: the same world everywhere, hidden distributions, imperfect annotators, a true ceiling."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy.stats import chisquare

from vpo_lab.errors import LabError
from vpo_lab.tasks import get_task
from vpo_lab.tasks.tool_calls import tiny as tiny_tools
from vpo_lab.tasks.tool_calls.reward import parse_answer, score
from vpo_lab.tasks.tool_calls.tiny import ASK, DAYS, DOMAINS, QUESTION, ceiling, kinds, render_answer

TASK = get_task("tiny_tools")
REQUEST = re.compile(r"<user> Help me with (?P<words>.+) or (?P<second>\w+), (?P<day>\w+), (?P<number>\d)\. </user>")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {split: TASK.load(None, split) for split in ("train", "test")}


def facts(row: dict) -> dict:
    """Kind, things, day and number, read from the text that a policy sees."""
    found = REQUEST.search(row["prompt"][-1]["content"])
    occasion, first = found["words"].rsplit(" ", 1)
    kind = next(i for i, kind in enumerate(kinds()) if kind.occasion == occasion)
    return {"kind": kind, "things": (first, found["second"]), "day": found["day"], "number": int(found["number"])}


def calls_of(answer: str) -> list[dict]:
    return [{"name": call.name, "parameters": call.parameters} for call in parse_answer(answer).calls]


def outcome_of(row: dict) -> tuple[tuple[str, ...], int]:
    """The (plan, which thing) that the gold shows."""
    calls, known = calls_of(row["gold"]), facts(row)
    if not calls:
        return (ASK,), 0
    thing = DOMAINS[kinds()[known["kind"]].domain].thing
    return tuple(call["name"] for call in calls), known["things"].index(calls[0]["parameters"][thing])


# --- Rows -------------------------------------------------------------------------------------

HASH = """
import hashlib, json
from vpo_lab.tasks import get_task
from vpo_lab.tasks.tool_calls.tiny import kinds
task = get_task("tiny_tools")
world = [task.load(None, "train"), task.load(None, "test"), [[k.outcomes, k.probabilities] for k in kinds()]]
print(hashlib.sha256(json.dumps(world).encode()).hexdigest())
"""


def test_every_process_builds_the_same_world():
    hashes = {
        subprocess.run(
            [sys.executable, "-c", HASH],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "12345")
    }
    assert len(hashes) == 1 and len(hashes.pop().strip()) == 64


def test_splits_have_their_sizes_and_share_no_request(rows):
    assert (len(rows["train"]), len(rows["test"])) == (4096, 200)
    everything = [*rows["train"], *rows["test"]]
    assert len({row["id"] for row in everything}) == len(everything)
    assert len({row["prompt"][-1]["content"] for row in everything}) == len(everything)


def test_loading_twice_gives_equal_rows_that_are_not_shared(rows):
    rows["test"][0]["prompt"][-1]["content"] += "!"
    again = TASK.load(None, "test")[0]["prompt"][-1]["content"]
    assert again + "!" == rows["test"][0]["prompt"][-1]["content"]
    rows["test"][0]["prompt"][-1]["content"] = again


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gold_earns_everything_against_itself(rows, split):
    some = rows[split][:500]
    assert (TASK.score([row["gold"] for row in some], some) == 1).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_golds_are_plans_of_their_kind_with_values_of_the_request(rows, split):
    for row in rows[split]:
        known, request = facts(row), row["prompt"][-1]["content"]
        kind = kinds()[known["kind"]]
        assert outcome_of(row) in kind.outcomes
        for call in calls_of(row["gold"]):
            assert tuple(call["parameters"]) == DOMAINS[kind.domain].tools[call["name"]][1]
            assert all(re.search(rf"\b{value}\b", request) for value in call["parameters"].values())


def test_prompts_offer_the_tools_of_the_domain_and_hide_the_distribution(rows):
    for row in rows["test"]:
        domain = DOMAINS[kinds()[facts(row)["kind"]].domain]
        system = row["prompt"][0]["content"]
        assert re.findall(r"^\d+\. Name: (.*)$", system, flags=re.MULTILINE) == list(domain.tools)
        assert QUESTION not in system
    systems = {(facts(row)["kind"], row["prompt"][0]["content"]) for row in rows["train"]}
    assert len(systems) == 16 and len({system for _, system in systems}) == 4


def test_an_unknown_split_and_a_data_path_are_refused():
    with pytest.raises(LabError, match=r"unknown split 'dev'.*'train' or 'test'"):
        TASK.load(None, "dev")
    with pytest.raises(LabError, match=r"reads no file.*'rows\.parquet'"):
        TASK.load("rows.parquet", "train")


# --- Hidden distributions ---------------------------------------------------------------------


def test_there_are_16_kinds_with_2_to_6_outcomes():
    assert len(kinds()) == 16 and len({kind.occasion for kind in kinds()}) == 16
    for kind in kinds():
        assert 2 <= len(kind.outcomes) == len(set(kind.outcomes)) <= 6
        assert len(kind.probabilities) == len(kind.outcomes) and min(kind.probabilities) > 0
        assert sum(kind.probabilities) == pytest.approx(1)
    assert {len(kind.outcomes) for kind in kinds()} >= {2, 6}


def test_no_single_answer_is_nearly_always_right_and_asking_back_is_never_likeliest():
    assert max(max(kind.probabilities) for kind in kinds()) < 0.8
    asking = [kind for kind in kinds() if ((ASK,), 0) in kind.outcomes]
    assert asking
    for kind in asking:
        assert kind.outcomes[int(np.argmax(kind.probabilities))] != ((ASK,), 0)


def test_golds_follow_the_hidden_distribution(rows):
    counts = [Counter() for _ in kinds()]
    for row in rows["train"]:
        counts[facts(row)["kind"]][outcome_of(row)] += 1
    observed = [np.array([count[o] for o in kind.outcomes]) for count, kind in zip(counts, kinds(), strict=True)]
    assert sum(map(np.sum, observed)) == 4096 and min(map(np.sum, observed)) > 80
    hidden = [chisquare(o, o.sum() * np.array(k.probabilities)).pvalue for o, k in zip(observed, kinds(), strict=True)]
    even = [chisquare(o).pvalue for o in observed]
    assert min(hidden) > 1e-4 and np.mean(hidden) > 0.3
    assert np.median(even) < 1e-4  # the test would notice another distribution


# --- Demonstrations ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 10])
def test_demonstrations_are_as_many_as_asked_and_distinct(rows, n):
    rng = np.random.default_rng(0)
    for row in rows["train"][:100]:
        answers = TASK.demonstrations(row, n, rng)
        assert len(answers) == len(set(answers)) == n


def test_several_demonstrations_stand_in_the_order_of_the_tools(rows):
    rng = np.random.default_rng(0)
    for row in rows["train"][:100]:
        tools = list(DOMAINS[kinds()[facts(row)["kind"]].domain].tools)
        answers = [parse_answer(answer).calls for answer in TASK.demonstrations(row, 3, rng)]
        places = [[tools.index(call.name) for call in calls] for calls in answers]
        assert places == sorted(places)


def test_demonstrations_depend_on_the_generator_only(rows):
    first, again, other = (
        [TASK.demonstrations(row, 3, rng) for row in rows["train"][:50]]
        for rng in map(np.random.default_rng, (7, 7, 8))
    )
    assert first == again != other


def test_demonstrations_are_well_formed_and_far_from_the_gold(rows):
    rng = np.random.default_rng(0)
    some = [row for row in rows["train"][:400] for _ in range(3)]
    rewards = TASK.score([a for row in some[::3] for a in TASK.demonstrations(row, 3, rng)], some)
    solved = (rewards == 1).all(axis=1).mean()
    assert 0.03 < solved < 0.12
    assert 0.4 < rewards.mean() < 0.57
    assert rewards[:, 0].mean() > 0.85  # the format is taught well


def test_a_share_of_the_demonstrations_has_a_slip_in_its_parameters(rows):
    rng, slips, total = np.random.default_rng(0), 0, 0
    for row in rows["train"][:1500]:
        known = facts(row)
        domain = DOMAINS[kinds()[known["kind"]].domain]
        calls = calls_of(TASK.demonstrations(row, 1, rng)[0])
        if calls:
            clean = [
                [
                    {"name": call["name"], "parameters": {key: value(domain, known, key, which) for key in spec}}
                    for call in calls
                    for spec in [domain.tools[call["name"]][1]]
                ]
                for which in (0, 1)
            ]
            slips, total = slips + (calls not in clean), total + 1
    # Of the 10% that are corrupted a few name the other thing, which then looks meant.
    assert total > 1200 and 0.06 < slips / total <= 0.12


def value(domain, known: dict, key: str, which: int):
    return known["things"][which] if key == domain.thing else known["day"] if key == "day" else known["number"]


# --- The ceiling ------------------------------------------------------------------------------

FEWEST = sorted(range(16), key=lambda number: len(kinds()[number].outcomes))


def probabilities(number: int) -> np.ndarray:
    return np.array(kinds()[number].probabilities)


@pytest.mark.parametrize("number", FEWEST[:6])
def test_one_answer_cannot_beat_the_ceiling_in_the_whole_search(number):
    everything = tiny_tools._candidate_scores(number, prune=False)
    assert len(everything) > len(tiny_tools._candidate_scores(number))
    assert tiny_tools._best_coverage(number, 1) == pytest.approx((everything @ probabilities(number)).max(), abs=1e-7)


def test_the_coverage_of_two_answers_is_that_of_the_best_pair():
    for number in range(16):
        scores_AG = tiny_tools._candidate_scores(number)
        best = (np.maximum(scores_AG[:, None], scores_AG[None]) @ probabilities(number)).max()
        assert tiny_tools._best_coverage(number, 2) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("number", [n for n in FEWEST[4:16] if len(kinds()[n].outcomes) > 3])
def test_the_coverage_of_three_answers_is_that_of_the_best_three(number):
    triples = combinations(tiny_tools._candidate_scores(number), 3)
    best = max(np.max(chosen, axis=0) @ probabilities(number) for chosen in triples)
    assert tiny_tools._best_coverage(number, 3) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("number", FEWEST[:8])
def test_pruning_loses_nothing_for_pairs_of_answers(number):
    """One of the 60 best answers of the whole search with any other stays below the coverage."""
    everything, p = tiny_tools._candidate_scores(number, prune=False), probabilities(number)
    best_first = everything[np.argsort(-(everything @ p))[:60]]
    pairs = np.maximum(best_first[:, None], everything[None]) @ p
    assert pairs.max() <= tiny_tools._best_coverage(number, 2) + 1e-6


REQUEST_OF_ANY_KIND = {"day": DAYS[0], "number": 7}


@lru_cache
def golds_of(number: int) -> tuple[str, ...]:
    """The outcomes of a kind as answers to one request."""
    kind = kinds()[number]
    domain = DOMAINS[kind.domain]
    known = {"things": domain.things[:2], **REQUEST_OF_ANY_KIND}
    golds = []
    for plan, which in kind.outcomes:
        spec = {name: domain.tools[name][1] for name in plan if name != ASK}
        golds.append(
            render_answer(
                [
                    {"name": name, "parameters": {key: value(domain, known, key, which) for key in keys}}
                    for name, keys in spec.items()
                ]
            )
        )
    return tuple(golds)


@pytest.mark.parametrize("number", [FEWEST[0], FEWEST[10], FEWEST[-1]])
def test_answers_outside_the_search_do_not_beat_it_either(number):
    """Up to four calls, a foreign tool, any keys, any values: none is better than the ceiling."""
    rng, kind = np.random.default_rng(number), kinds()[number]
    domain = DOMAINS[kind.domain]
    known = {"things": domain.things[:2], **REQUEST_OF_ANY_KIND}
    keys, values = [domain.thing, "day", *domain.numbers], [*known["things"], known["day"], known["number"]]
    names = [*sorted({name for plan, _ in kind.outcomes for name in plan if name != ASK}), "no_such_tool"]

    def any_call() -> dict:
        parameters = {
            key: value(domain, known, key, rng.integers(2)) if rng.random() < 0.9 else values[rng.integers(4)]
            for key in keys
            if rng.random() < 0.5
        }
        return {"name": names[rng.integers(len(names))], "parameters": parameters}

    answers = [render_answer([any_call() for _ in range(rng.integers(1, 5))]) for _ in range(800)]
    scores_AG = np.array([[score(answer, gold).mean() for gold in golds_of(number)] for answer in answers])
    expected = scores_AG @ probabilities(number)
    assert 0.4 < expected.max() <= tiny_tools._best_coverage(number, 1) + 1e-9


@pytest.fixture(scope="module")
def ceilings() -> dict[int, dict[str, float]]:
    return {k: ceiling(k) for k in (1, 2, 3, 6, 8, 24)}


@pytest.mark.parametrize("metric", ["best", "pass"])
def test_the_ceiling_rises_with_k_to_one(ceilings, metric):
    values = [figures[metric] for figures in ceilings.values()]
    assert all(low < high or low == pytest.approx(1) for low, high in pairwise(values))
    assert values[0] < 0.8 and values[4] == values[5] == pytest.approx(1)
    assert all(0 < figures["pass"] <= figures["best"] <= 1 + 1e-9 for figures in ceilings.values())


def test_the_ceiling_of_pass_is_the_mass_of_the_likeliest_outcomes(ceilings):
    for k, figures in ceilings.items():
        masses = [sum(sorted(kind.probabilities)[-k:]) for kind in kinds()]
        assert figures["pass"] == pytest.approx(np.mean(masses))


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_an_oracle_that_samples_the_hidden_distribution_stays_below(ceilings, k):
    """4,000 requests of every kind, k answers each drawn as the golds are."""
    rng, best, passed = np.random.default_rng(k), [], []
    for number, kind in enumerate(kinds()):
        drawn = rng.choice(len(kind.outcomes), size=(4000, k), p=kind.probabilities)
        gold = rng.choice(len(kind.outcomes), size=(4000, 1), p=kind.probabilities)
        best.append(scores_of_outcomes(number)[drawn, gold].max(axis=1))
        passed.append((drawn == gold).any(axis=1))
        error = best[-1].std() / np.sqrt(4000)
        assert best[-1].mean() <= tiny_tools._best_coverage(number, k) + 4 * error
    assert np.mean(best) < ceilings[k]["best"]
    assert np.mean(passed) < ceilings[k]["pass"]


@lru_cache
def scores_of_outcomes(number: int) -> np.ndarray:
    """Scalar score of every outcome as an answer under every outcome as the gold."""
    return np.array([[score(answer, gold).mean() for gold in golds_of(number)] for answer in golds_of(number)])


def test_k_below_one_is_refused():
    for k in (0, -1):
        with pytest.raises(LabError, match=f"k = {k}: at least 1"):
            ceiling(k)


def test_answers_are_rendered_as_they_are_read():
    calls = [{"name": "a", "parameters": {"x": "Oslo", "n": 3}}, {"name": "b", "parameters": {}}]
    assert calls_of(render_answer(calls)) == calls
    assert parse_answer(render_answer([])).response == QUESTION
    assert json.loads(render_answer(calls).splitlines()[2]) == calls[0]
