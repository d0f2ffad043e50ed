"""Chains of five names: what an answer earns, what none can beat."""

from itertools import combinations, product

import numpy as np
import pytest

from vpo_lab.errors import LabError
from vpo_lab.tasks import get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.tasks.eureqa import tiny


@pytest.fixture(scope="module")
def task():
    return get_task("tiny_chain")


def test_the_world_is_sound(task):
    check_task(task)
    test, train = task.load(None, "test"), task.load(None, "train")
    assert len(test) == 200 and len(train) == 4096
    assert {row["prompt"][0]["content"] for row in train}.isdisjoint(row["prompt"][0]["content"] for row in test)
    assert all(len(name.encode()) > 1 for name in tiny.NAMES) and len(set(tiny.NAMES)) == 30


def test_every_name_has_three_neighbours_and_no_two_relations_are_alike():
    table = tiny.table()
    assert len(table) == len(tiny.NAMES) * len(tiny.RELATIONS) * len(tiny.KINDS)
    assert all(near in tiny.KINDS[kind] for (_, _, kind), near in table.items())
    by_relation = {tuple(table[n, r, k] for n in tiny.NAMES for k in tiny.KINDS) for r in tiny.RELATIONS}
    assert len(by_relation) == len(tiny.RELATIONS)


def test_nine_chains_fit_a_request():
    for request, meant in tiny.requests("test"):
        chains = request.chains()
        assert len(chains) == 9 and meant in chains and sum(chains.values()) == pytest.approx(1)
        assert sum(kind == tiny.ANY for _, kind in request.steps) == tiny.OPEN
        for chain in chains:
            for before, (relation, kind), name in zip(request.start + chain, request.steps, chain, strict=False):
                assert name in [tiny.table()[before, relation, k] for k in tiny.KINDS if kind in (k, tiny.ANY)]


def test_what_is_meant_follows_the_hidden_distribution():
    first = [(r, meant) for r, meant in tiny.requests("train") if r.steps[0] == ("Near", tiny.ANY)]
    shares = tiny.shares()["Near"]
    for kind, share in shares.items():
        found = np.mean([meant[0] in tiny.KINDS[kind] for _, meant in first])
        assert found == pytest.approx(share, abs=0.1)


def test_what_answers_earn(task):
    row = task.load(None, "test")[0]
    gold = row["gold"]
    other = next(name for name in tiny.NAMES if name not in gold)
    assert task.score([gold, f" {gold}\n", gold[:4] + other, other + gold[1:]], [row] * 4).tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],  # entity_A is the last one
        [1, 1, 1, 1, 0],
    ]
    for text in ("", gold[:4], gold + gold[0], " ".join(gold), "abcde", gold * 10**6):
        assert not task.score([text], [row]).any()


def test_the_ceilings_are_those_of_an_enumeration(monkeypatch):
    tried = 0
    for request, meant in tiny.requests("test"):
        chains = request.chains()
        names = [sorted({chain[step] for chain in chains}) for step in range(tiny.STEPS)]
        if np.prod([len(at_step) for at_step in names]) > 300 or tried == 4:
            continue
        tried += 1
        p_G = np.array(list(chains.values()))
        answers = ["".join(answer) for answer in product(*names)]
        rewards_AGD = np.array([[tiny.score(answer, chain) for chain in chains] for answer in answers])
        monkeypatch.setattr(tiny, "requests", lambda split, one=(request, meant): (one,))
        for k in (1, 2):
            pairs = np.array(list(combinations(range(len(answers)), k)))
            best_PGD = np.maximum(rewards_AGD[pairs[:, 0]], rewards_AGD[pairs[:, -1]])
            one_PG, other_PG = (rewards_AGD[pairs[:, at]].mean(axis=2) for at in (0, -1))
            passed_PG = np.maximum(*(rewards_AGD[pairs[:, at]].min(axis=2) for at in (0, -1)))
            assert tiny.ceiling.__wrapped__(k) == pytest.approx({
                "best": (np.maximum(one_PG, other_PG) @ p_G).max(),
                "pass": (passed_PG @ p_G).max(),
                "covered": (best_PGD.mean(axis=2) @ p_G).max(),
            })  # fmt: skip
        monkeypatch.undo()
    assert tried == 4


def test_ceilings_rise_to_one(task):
    values = [task.ceiling(k) for k in (1, 3, 9)]
    for metric in ("best", "pass", "covered"):
        assert values[0][metric] < values[1][metric] < values[2][metric] == pytest.approx(1)
    with pytest.raises(LabError):
        task.ceiling(0)


def test_demonstrations_fit_and_tell_nothing_of_what_is_meant(task):
    rows, rng = task.load(None, "train")[:400], np.random.default_rng(0)
    passed = []
    for row, (request, _) in zip(rows, tiny.requests("train"), strict=False):
        texts = task.demonstrations(row, 3, rng)
        assert len(set(texts)) == 3 and set(texts) <= request.chains().keys()
        passed.append(task.score([str(rng.choice(texts))], [row]).min())
    assert np.mean(passed) == pytest.approx(1 / 9, abs=0.05)
