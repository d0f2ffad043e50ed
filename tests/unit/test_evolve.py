"""search/loop.py, evolution.py, closure.py and the journal: one candidate at a time, who solves what, what is kept."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from letters import Letters
from patch_world import NEEDS, PatchWorld, answers_of, write

from vpo_lab.errors import LabError
from vpo_lab.search.closure import reachable
from vpo_lab.search.evolution import Evolution, load_evolutions, save_evolutions, solved_within
from vpo_lab.search.loop import Population, Rules, best_of_n, evolve, sampled
from vpo_lab.search.policies import Journal
from vpo_lab.search.problems import budget_table

WORLD = PatchWorld()
ROWS = WORLD.load(None, "test")
KINDS = ("collapsed", "spread", "guess")


def answers(kind: str, n: int, rows=ROWS) -> list[list[str]]:
    return [answers_of(kind, row, n) for row in rows]


def search(kind: str, n: int = 96, rows=ROWS, **options) -> list[Evolution]:
    return evolve(WORLD, rows, sampled(answers(kind, n, rows), rows), n, **options)


def one(own: list[str], **options) -> Evolution:
    (found,) = evolve(WORLD, ROWS[:1], sampled([own], ROWS[:1]), len(own), **options)
    return found


# --- Who solves what --------------------------------------------------------------------------


@pytest.mark.parametrize("islands", [1, 2])
def test_answers_that_add_up_solve_every_problem_and_copies_none(islands):
    solved = {kind: solved_within(search(kind, rules=Rules(islands=islands)), 24).mean() for kind in KINDS}
    assert solved["collapsed"] == 0 and solved["spread"] == 1 and solved["guess"] < 0.3


def test_the_best_score_of_a_collapsed_policy_stays_where_its_answer_is():
    for found in search("collapsed"):
        assert found.best(0) == 0 and found.best(1) == found.best(96) == 0.5 and found.candidates == 96


def test_nothing_is_solved_without_evolution():
    for kind in KINDS:
        found = best_of_n(WORLD, ROWS, answers(kind, 48))
        assert solved_within(found, 48).sum() == 0
        assert all(set(e.parents) <= {-1, 0} and e.candidates == 48 for e in found)
        expected = [
            WORLD.score([a for a in own], [row] * 48).mean(axis=1).max()
            for own, row in zip(answers(kind, 48), ROWS, strict=True)
        ]
        assert [e.best(48) for e in found] == pytest.approx(expected)


def test_a_better_start_solves_more():
    shares = []
    for right in (0.1, 0.5):
        own = [answers_of("guess", row, 96, right=right) for row in ROWS]
        shares.append(solved_within(evolve(WORLD, ROWS, sampled(own, ROWS), 96), 96).mean())
    assert shares[0] + 0.2 < shares[1]


# --- A candidate, a budget --------------------------------------------------------------------


def test_an_invalid_answer_costs_its_place_and_leaves_no_program():
    wanted = PatchWorld.wanted(ROWS[0])
    found = one(["what?", "", write({"a": wanted["a"]}), "a = 1\nb = 1\nc = 1\nd = 1"])
    assert found.candidates == 4
    assert found.texts == ("", write({"a": wanted["a"]})) and found.found == (0, 3) and found.parents == (-1, 0)


def test_a_search_ends_when_it_has_solved():
    for found in search("spread"):
        assert found.candidates == found.solved_at == found.found[-1] < 96
        assert found.rewards_PD[-1].min() == 1 and found.rewards_PD[:-1].min(axis=1).max() == 0


def test_a_search_ends_where_no_answers_are_left():
    assert one(answers_of("collapsed", ROWS[0], 5)).candidates == 5
    (found,) = evolve(WORLD, ROWS[:1], sampled([["a = 1"]], ROWS[:1]), 90)
    assert found.candidates == 1


def test_a_start_that_passes_needs_no_candidate(monkeypatch):
    monkeypatch.setattr(PatchWorld, "start", PatchWorld.solution)
    assert [(found.candidates, found.solved_at) for found in search("spread")] == [(0, 0)] * len(ROWS)


def test_every_program_is_its_parent_with_an_answer_put_in():
    own = answers_of("guess", ROWS[0], 60)
    found = one(own)
    assert found.scores_P == pytest.approx(WORLD.evaluate(found.texts, [ROWS[0]] * len(found.texts)).mean(axis=1))
    for p in range(1, len(found.texts)):
        assert found.parents[p] < p
        assert found.texts[p] == WORLD.child(found.texts[found.parents[p]], own[found.found[p] - 1], ROWS[0])
    line = found.lineage()
    assert line[0] == 0 and found.scores_P[line[-1]] == found.scores_P.max() == found.best(60)
    assert all(found.parents[child] == parent for parent, child in itertools.pairwise(line))


def test_the_seed_decides_and_the_company_does_not():
    texts = [found.texts for found in search("guess", 48)]
    assert texts == [found.texts for found in search("guess", 48)]
    assert texts[3:5] == [found.texts for found in search("guess", 48, ROWS[3:5])]
    assert texts != [found.texts for found in search("guess", 48, seed=1)]


# --- Chains and parents -----------------------------------------------------------------------


class Chains:
    """Answers with chains of three, and notes what it was asked."""

    def __init__(self, kind="spread"):
        self.kind, self.asked = kind, []

    def __call__(self, requests):
        self.asked.append(requests)
        return [answers_of(self.kind, row, 3) for row, _ in requests]


def test_a_chain_is_three_candidates():
    ask = Chains("collapsed")
    evolve(WORLD, ROWS[:5], ask, 7)
    assert [len(requests) for requests in ask.asked] == [5, 5, 5]
    assert all(messages == row["prompt"] for requests in ask.asked for row, messages in requests)


def test_a_policy_that_sees_the_parent_patches_what_it_saw():
    ask = Chains()
    (found,) = evolve(WORLD, ROWS[:1], ask, 9, sees_parent=True, rules=Rules(exploration=1.0))
    assert len(ask.asked) == math.ceil(found.candidates / 3) > 1
    for number, ((row, messages),) in enumerate(ask.asked):
        *_, request = messages
        parents = {p for p, n in zip(found.parents, found.found, strict=True) if 3 * number < n <= 3 * number + 3}
        assert len(parents) <= 1
        for parent in parents:
            assert request["content"] == WORLD.prompt(row, found.texts[parent], found.rewards_PD[parent])[0]["content"]
    first = ask.asked[0][0][1][0]["content"]
    assert all(name in first for name in WORLD.objectives)  # names of failing tests,
    assert ROWS[0]["gold"] not in first and WORLD.solution(ROWS[0]) not in first  # not what they expect


def test_a_task_without_such_a_prompt_says_so():
    letters = Letters()
    with pytest.raises(LabError, match="prompt"):
        evolve(letters, letters.load(None, "test"), lambda requests: [["α"]], 3, sees_parent=True)


def test_without_methods_of_its_own_a_task_takes_an_answer_for_a_program():
    letters = Letters()
    rows = letters.load(None, "test")[:2]
    for found, row in zip(evolve(letters, rows, sampled([["α", "", "θ"]] * 2, rows), 3), rows, strict=True):
        assert found.texts == ("", "α", "θ") and found.candidates == 3
        assert found.rewards_PD == pytest.approx(letters.score(["", "α", "θ"], [row] * 3))


def test_objectives_that_are_not_asked_do_not_keep_a_search_from_solving():
    class Half(PatchWorld):
        def evaluate(self, programs, rows):
            rewards = super().evaluate(programs, rows)
            rewards[:, 3:] = np.nan
            return rewards

    found = evolve(Half(), ROWS, sampled(answers("collapsed", 6), ROWS), 6)
    assert solved_within(found, 1).all()
    assert np.isnan(Evolution.from_json(json.loads(json.dumps(found[0].as_json()))).rewards_PD[:, 3:]).all()


# --- The rule for parents ---------------------------------------------------------------------


def population(scores: list[float], **rules) -> Population:
    made = Population("0", np.array([scores[0]]), Rules(**rules), "seed")
    for n, score in enumerate(scores[1:], start=1):
        made.add(str(n), 0, np.array([score]), n, n % made.rules.islands)
    return made


def shares(made: Population, island: int = 0, draws: int = 6000) -> np.ndarray:
    return np.bincount([made.choose(island) for _ in range(draws)], minlength=len(made.texts)) / draws


def test_parents_are_explored_exploited_and_drawn_by_score():
    scores = [0.0, 0.2, 0.9, 0.4]
    expected = 0.2 / 4 + 0.1 * np.array(scores) / sum(scores)
    expected[2] += 0.7
    assert shares(population(scores, elites=1)) == pytest.approx(expected, abs=0.02)
    assert shares(population(scores, elites=2, exploration=0, exploitation=1)) == pytest.approx(
        [0, 0, 0.5, 0.5], abs=0.03
    )
    assert shares(population(scores, exploration=0, exploitation=0))[2] == pytest.approx(0.6, abs=0.03)


def test_islands_keep_to_themselves_until_they_migrate():
    apart = population([0.1, 0.5, 0.1, 0.6, 0.1, 0.7], islands=2, migrate_every=9)
    assert shares(apart, 0)[1::2].max() == 0 and shares(apart, 1)[::2].max() == 0
    mixed = population([0.1, 0.5, 0.1, 0.6, 0.1, 0.7], islands=2, migrate_every=3)
    assert 5 in mixed.islands[0] and 1 not in mixed.islands[0]
    empty = Population("0", np.array([0.1]), Rules(islands=3), "seed")
    assert shares(empty, 2)[0] == 1


def test_the_worst_leave_a_full_population():
    rng = np.random.default_rng(0)
    scores = rng.random(80).tolist()
    full = population(scores, population=20, elites=5)
    assert len(full.islands[0]) == 20 and set(full.elites) == set(np.argsort(scores)[-5:]) <= set(full.islands[0])


# --- What is kept -----------------------------------------------------------------------------


def test_evolutions_are_saved_whole(tmp_path):
    found = search("spread", 48)[:3] + search("collapsed", 48)[:1]
    save_evolutions(tmp_path / "found.json.gz", found)
    for before, after in zip(found, load_evolutions(tmp_path / "found.json.gz"), strict=True):
        assert (before.solved_at, before.texts, before.lineage()) == (after.solved_at, after.texts, after.lineage())
        np.testing.assert_allclose(before.rewards_PD, after.rewards_PD)
    (tmp_path / "other.json").write_text('[{"id": 1}]')
    with pytest.raises(LabError, match=r"other\.json"):
        load_evolutions(tmp_path / "other.json")


def test_an_evolution_can_be_cut_short():
    (found,) = search("guess", 40, ROWS[:1])
    assert found.until(20).as_json() == search("guess", 20, ROWS[:1])[0].as_json()
    assert found.until(math.inf).as_json() == found.as_json()


def test_the_table_counts_solved_problems_by_budget():
    found = search("spread", 48)
    rows = [line.split() for line in budget_table(found, 48).splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [12, 24, 48]
    assert [float(row[1]) for row in rows] == pytest.approx(
        [solved_within(found, b).mean() for b in (12, 24, 48)], abs=0.006
    )


class Dice:
    """A source of answers that depend on the number of the call, and may be interrupted."""

    def __init__(self, ends_at: int = 10**9):
        self.calls, self.ends_at = [], ends_at

    def __call__(self, requests, call):
        if call >= self.ends_at:
            raise KeyboardInterrupt
        self.calls.append(call)
        return [answers_of("guess", row, 6, seed=call) for row, _ in requests]


@pytest.mark.parametrize("sees_parent", [False, True])
def test_a_search_that_was_killed_goes_on_with_the_answers_it_had(tmp_path, sees_parent):
    def run(dice, path):
        return evolve(WORLD, ROWS[:4], Journal(dice, path), 40, sees_parent=sees_parent)

    whole = run(Dice(), None)
    with pytest.raises(KeyboardInterrupt):
        run(Dice(ends_at=4), tmp_path / "answers.jsonl")
    with open(tmp_path / "answers.jsonl", "a") as file:
        file.write('{"asked": "x", "ans')  # cut short while it was written
    again = Dice()
    assert [e.as_json() for e in run(again, tmp_path / "answers.jsonl")] == [e.as_json() for e in whole]
    assert again.calls == [4, 5, 6]


def test_a_journal_forgets_what_was_not_asked_this_time(tmp_path):
    path, requests = tmp_path / "a.jsonl", [(row, row["prompt"]) for row in ROWS[:3]]
    first = Journal(Dice(), path)
    kept = [first(requests[:2]), first(requests)]
    dice = Dice()
    second = Journal(dice, path)
    assert second(requests[:2]) == kept[0]
    second(requests[1:])
    assert dice.calls == [1] and len(path.read_text().splitlines()) == 2


# --- What can be reached at all ---------------------------------------------------------------


def test_the_closure_tells_the_policies_apart():
    for row in ROWS[:5]:
        assert reachable(WORLD, row, answers_of("collapsed", row, 1000)).solved is False
        assert reachable(WORLD, row, answers_of("spread", row, 1000)).solved is True


def test_order_matters_where_a_patch_breaks_one_line_and_repairs_another():
    row = {"id": "r", "prompt": [], "gold": "000000"}
    rest = ["b = 0\nc = 0", "d = 0\ne = 0"]
    assert reachable(WORLD, row, ["a = 0\nf = 1", "f = 0", *rest]).solved is True  # f last
    assert reachable(WORLD, row, ["a = 0\nf = 1", "f = 0\na = 1", *rest]).solved is False  # each undoes the other


def test_steps_count_by_what_they_do_and_only_if_they_are_likely():
    row = {"id": "r", "prompt": [], "gold": "000000"}
    common = ["a = 0\nb = 0\nc = 0"] * 996 + ["d = 0\ne = 0"] * 2
    assert reachable(WORLD, row, [*common, "f = 0", "f = 0\na = 0"], at_least=0.002).solved is True
    assert reachable(WORLD, row, [*common, "f = 0", "f = 0\na = 1"], at_least=0.002).solved is False
    assert reachable(WORLD, row, [*common, "f = 0", "f = 0\na = 1"], at_least=0.001).solved is True


def test_the_closure_is_that_of_trying_everything():
    rng = random.Random(3)
    outcomes = []
    for _ in range(60):
        row = {"id": "r", "prompt": [], "gold": "000000"}
        patches = [
            write({s: rng.choice("0001") for s in rng.sample("abcdef", rng.randint(1, 3))})
            for _ in range(rng.randint(3, 6))
        ]
        seen, new = {""}, [""]
        while new:
            children = {WORLD.child(program, patch, row) for program in new for patch in patches}
            new = list(children - seen)
            seen |= children
        solved = WORLD.solution(row) in seen
        found = reachable(WORLD, row, patches)
        assert found.solved is solved
        if not solved:
            assert found.programs == len(seen)
        outcomes.append(solved)
    assert 5 < sum(outcomes) < 55


def test_too_many_programs_are_no_verdict_and_no_answers_an_error():
    row = {"id": "r", "prompt": [], "gold": "000000"}
    many = [f"{step} = {v}" for step in "abcdef" for v in range(1, 8)]
    assert reachable(WORLD, row, many, limit=500).solved is None
    with pytest.raises(LabError):
        reachable(WORLD, row, [])


def test_another_way_to_write_the_right_line_is_right_too(monkeypatch):
    before = PatchWorld.evaluate
    twin = lambda self, programs, rows: before(self, [p.replace("f = 7", "f = 0") for p in programs], rows)  # noqa: E731
    row, own = {"id": "r", "prompt": [], "gold": "000000"}, ["a = 0\nb = 0\nc = 0", "d = 0\ne = 0\nf = 7"]
    assert reachable(WORLD, row, own).solved is False
    monkeypatch.setattr(PatchWorld, "evaluate", twin)
    assert reachable(WORLD, row, own).solved is True


def test_where_answers_are_programs_one_step_is_all():
    letters = Letters()
    row = letters.load(None, "test")[0]
    assert reachable(letters, row, ["α"] * 10).solved is False
    assert len(NEEDS) == 8 and reachable(letters, row, ["α", "β", "β"]).programs == 3
