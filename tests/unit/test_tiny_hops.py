"""Questions over facts with two readings: what an answer earns, what none can beat."""

import json
from itertools import combinations, product

import numpy as np
import pytest

from vpo_lab.errors import LabError
from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.cover import best_cover
from vpo_lab.tasks.musique import tiny


@pytest.fixture(scope="module")
def task():
    return get_task("tiny_hops")


@pytest.fixture(scope="module")
def rows(task):
    return task.load(None, "test")


def test_the_world_is_sound(task, rows):
    check_task(task)
    train = {row["prompt"][0]["content"] for row in task.load(None, "train")}
    assert len(rows) == 200 and len(train) == 4096
    assert train.isdisjoint(row["prompt"][0]["content"] for row in rows)


def test_four_paths_lead_through_the_facts_and_their_chances_hang_on_who_asks():
    hops = set()
    for question, meant in tiny.questions("test"):
        hops.add(len(question.words))
        assert len(question.paths) == 4 == len({path[-1] for path in question.paths}) and 0 <= meant < 4
        assert sum(question.probabilities) == pytest.approx(1)
        assert len(question.facts) == tiny.FACTS == len(set(question.facts.values()))
        for path in question.paths:
            name = question.start
            for fact, word in zip(path, question.words, strict=True):
                before, relation, after = question.facts[fact]
                assert before == name and any(relation in words.get(word, ()) for words in tiny.WORDS)
                name = after
    assert hops == {2, 3}
    assert len(set(tiny.readings().values())) == 17  # 4 askers x 4 words with two readings, and (1.0,)


def test_what_answers_earn(task, rows):
    row = next(row for row in rows if len(json.loads(row["gold"])["hops"]) == 2)
    question, meant = tiny.questions("test")[rows.index(row)]
    right = question.answer(question.paths[meant])
    vectors = {path: task.score([question.answer(question.paths[path])], [row])[0] for path in range(4)}
    assert all(np.isnan(v[2]) for v in vectors.values())
    earned = sorted(tuple(v[[0, 1, 3]].tolist()) for v in vectors.values())
    assert earned == [(0, 0, 0), (0, 0, 0), (1, 0, 0), (1, 1, 1)] and vectors[meant][[0, 1, 3]].all()
    first = sorted({path[0] for path in question.paths})
    both = question.start + "".join(map(question.quote, first))  # both readings of one step
    assert task.score([both], [row])[0, [0, 1, 3]].tolist() == [1, 0, 0]
    for text in ("", right + question.quote(0), f"{right}.", right.replace(" ", "\n"), right * 1000, "Anna " * 10**6):
        assert not np.nansum(task.score([text], [row]))


def test_the_ceilings_are_those_of_an_enumeration():
    for question, _ in tiny.questions("test")[:8]:
        hops, p_G = len(question.words), np.array(question.probabilities)
        names = {question.facts[path[-1]][2] for path in question.paths}
        # All that answers can earn: (answers, golds, objectives).
        vectors = {
            tuple((*(fact in cited for fact in path), name == question.facts[path[-1]][2]) for path in question.paths)
            for cited, name in product(combinations(range(tiny.FACTS), hops), names)
        }
        rewards_AGD = np.array(sorted(vectors), dtype=float)
        for k in (1, 2):
            sets_SK = np.array(list(combinations(range(len(rewards_AGD)), k)))
            one_SGD, other_SGD = rewards_AGD[sets_SK[:, 0]], rewards_AGD[sets_SK[:, -1]]
            best_SG = np.maximum(one_SGD.mean(axis=2), other_SGD.mean(axis=2))
            passed_SG = np.maximum(one_SGD.min(axis=2), other_SGD.min(axis=2))
            covered_SG = np.maximum(one_SGD, other_SGD).mean(axis=2)
            expected = [float((metric_SG @ p_G).max()) for metric_SG in (best_SG, passed_SG, covered_SG)]
            assert tiny._ceiling(question, k) == pytest.approx(expected)


def test_ceilings_rise_to_one(task):
    values = [task.ceiling(k) for k in (1, 3, 4)]
    for metric in ("best", "pass", "covered"):
        assert values[0][metric] < values[1][metric] < values[2][metric] == pytest.approx(1)
    with pytest.raises(LabError):
        task.ceiling(0)


def test_demonstrations_are_paths_and_tell_nothing_of_what_is_meant(task):
    rows, rng = task.load(None, "train")[:400], np.random.default_rng(0)
    passed = 0
    for row in rows:
        texts = task.demonstrations(row, 3, rng)
        assert len(set(texts)) == 3
        passed += np.nanmin(task.score([rng.choice(texts)], [row]))
    assert passed / len(rows) == pytest.approx(0.25, abs=0.07)


def test_covering_golds_is_that_of_an_enumeration():
    rng = np.random.default_rng(0)
    worth_AG = rng.random((2, 6, 5))  # requests, answers, golds
    bits_SG = np.arange(32)[:, None] >> np.arange(5) & 1
    worth_NS = (bits_SG @ worth_AG.swapaxes(1, 2)).max(axis=2)
    for k in (1, 2, 3, 6, 9):
        sets = combinations(range(6), min(k, 6))
        best_N = np.max([worth_AG[:, list(chosen)].max(axis=1).sum(axis=1) for chosen in sets], axis=0)
        assert best_cover(worth_NS, k) == pytest.approx(best_N)


def test_short_questions_come_last_and_have_no_fact_to_spare(task):
    rows = task.load(None, "train")
    for number, (question, _) in enumerate(tiny.questions("train")):
        assert (len(question.facts) == tiny.FACTS) == (number < tiny.LONG_ROWS)
        if number >= tiny.LONG_ROWS:
            assert set().union(*question.paths) == question.facts.keys()
    rewards_ND = task.score([row["answer"] for row in rows[-50:]], rows[-50:])
    assert np.nanmin(rewards_ND) == 1 and np.isnan(rewards_ND[:, 2]).all()
