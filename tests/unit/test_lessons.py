"""lessons.py and worlds.py: tables of the notebooks that a hand-made pool confirms; the worlds of a run."""

import numpy as np
import pandas as pd
import pytest

from vpo_lab.config import get_profile
from vpo_lab.course import lessons
from vpo_lab.course.notebooks import trainings_of
from vpo_lab.course.worlds import MAZE, open_worlds, worlds_of
from vpo_lab.errors import LabError
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool
from vpo_lab.tasks import get_task
from vpo_lab.tasks.tool_calls.plans import kind_of, means_second, plan_of, ranked_plans, thing_of
from vpo_lab.tasks.tool_calls.tiny import golds_of, kinds

ROWS = get_task("tiny_tools").load(None, "test")


def pool_of(answers, rewards, task="tiny_tools", name="vpo", ids=None) -> Pool:
    rewards = np.array(rewards, dtype=float)
    ids = tuple(ids or (f"row-{n}" for n in range(len(answers))))
    return Pool(name, task, get_task(task).objectives, ids, answers, rewards, np.full(rewards.shape[:2], 9))


# --- Worlds -----------------------------------------------------------------------------------


def test_a_run_has_the_maze_that_its_profile_names_in_a_folder_of_its_own(tmp_path):
    smoke, run = get_profile("smoke"), Run(tmp_path)
    own, maze = worlds_of(smoke, run)
    assert (own.settings, own.run) == (smoke, run) and maze.run.folder == tmp_path / MAZE
    assert [own.title, maze.title] == ["tool calls", "maze"] and not (tmp_path / MAZE).exists()
    assert [world.run for world in worlds_of(get_profile("smoke", {"maze": ""}), run)] == [run]
    assert {name: [stage.folder for _, stage in trained] for name, trained in trainings_of(smoke, run).items()} == {
        "02_sft_warmup": [tmp_path / "sft", tmp_path / MAZE / "sft"],
        "03_grpo_baseline": [tmp_path / "grpo", tmp_path / MAZE / "grpo"],
        "04_vpo_training": [tmp_path / "vpo", tmp_path / MAZE / "vpo"],
    }


def test_the_maze_of_another_seed_is_refused(tmp_path):
    smoke = get_profile("smoke")
    open_worlds(smoke, Run(tmp_path), seed=0)
    with pytest.raises(LabError, match="seed"):
        open_worlds(smoke, Run(tmp_path), seed=1)


def test_every_maze_that_a_profile_names_trains_what_the_profile_does():
    for name in ("tiny", "smoke"):
        profile = get_profile(name)
        assert get_profile(profile.maze).methods == profile.methods and not get_profile(profile.maze).maze


# --- Plans ------------------------------------------------------------------------------------


def test_a_gold_follows_one_of_the_plans_of_its_kind():
    task = get_task("tiny_tools")
    for row in task.load(None, "test")[:50]:
        kind = kind_of(row)
        shares = ranked_plans(kind)
        assert plan_of(row["gold"]) in shares and np.isclose(sum(shares.values()), 1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert 0 < np.mean([means_second(kind) for kind in kinds()]) < 0.4
    assert plan_of("nonsense") == ()


def test_the_thing_of_an_answer():
    row = ROWS[0]  # the Cellar or Lounge
    call = '<think> x </think>\n<tool_call>\n{{"name": "air_room", "parameters": {{"room": "{}"}}}}\n</tool_call>'
    assert [thing_of(call.format(room), row) for room in ("Cellar", "Lounge", "Attic")] == [0, 1, None]


def test_shares_favourites_and_the_second_thing_are_counted_by_position():
    some = [row for row in ROWS if means_second(kind_of(row))][:3]
    pool = pool_of(
        [[[row["gold"], "nonsense"]] * 2 for row in some],
        np.ones((len(some), 2, 2, 4)),
        ids=[row["id"] for row in some],
    )
    kind = kind_of(some[0])
    shares_MP = lessons.plan_shares(pool, ROWS, kind)
    assert np.allclose(shares_MP.sum(axis=1), 1) and shares_MP[1, -1] == 1 and shares_MP[0, -1] == 0
    table = lessons.specialisation({"vpo": pool}, ROWS)["VPO"]
    assert table["kinds with 1 different favourites"] == "0"
    assert table["kinds with 2 different favourites"] == f"{len({kind_of(row) for row in some})}"
    second = lessons.second_thing({"vpo": pool}, ROWS)
    assert second.loc["answer 2", "VPO"] == "0%" and second.loc["answer 1", "users who mean it"].endswith("%")


def test_what_the_second_thing_is_worth_is_the_best_single_gold_when_a_set_holds_one():
    task, expected = get_task("tiny_tools"), []
    for kind in filter(means_second, kinds()):
        golds = golds_of(kind)
        assert len(golds) == len(set(golds)) == len(kind.outcomes)
        rows = [{"gold": gold} for gold in golds]
        earned = [kind.probabilities @ task.score([one] * len(rows), rows).mean(axis=1) for one in golds]
        first = [i for i, (_, which) in enumerate(kind.outcomes) if not which]
        solved = [max(kind.probabilities), max(kind.probabilities[i] for i in first)]
        expected.append([max(earned), max(earned[i] for i in first), *solved])
    table = lessons.worth_of_second(1)
    best, first = table.iloc[:2].astype(float).to_numpy()
    means = np.mean(expected, axis=0)
    assert np.allclose([best[0], first[0]], means[:2], atol=0.01)
    assert np.allclose([best[1], first[1]], means[2:], atol=1e-3)
    same = sum(np.isclose(row[2], row[3]) for row in expected)
    assert table.loc["kinds in which they earn the same", "pass@1"] == f"{same} of {len(expected)}"


# --- Pools ------------------------------------------------------------------------------------


def test_settings_say_that_budgets_are_equal():
    table = lessons.settings_table(get_profile("tiny"))
    assert list(table) == ["GRPO", "VPO"]
    assert table.loc["answers in a step", "GRPO"] == table.loc["answers in a step", "VPO"] == "192"
    assert table.loc["rollouts to each prompt (G)"].tolist() == ["12", "4"]


def test_quarters_are_means_of_the_first_and_the_last():
    table = lessons.quarters([{"a": n} for n in range(8)], ["a", "b"])
    assert table.loc["a"].tolist() == [0.5, 6.5] and table.loc["b"].isna().all()


def test_copies_and_positions_of_chains():
    same = pool_of([[["x", "y"], ["x", "y"]]], np.ones((1, 2, 2, 4)) * [[[[0.5]], [[1]]]][0])
    other = pool_of([[["x", "y"], ["z", "x"]]], np.ones((1, 2, 2, 4)) / 2)
    table = lessons.copies({"vpo": same, "sft_chain": other}, 4)
    assert table.loc["same answers"].tolist() == ["100%", "0%"]
    assert table.loc["same first answer"].tolist() == ["100%", "0%"]
    assert table.loc["new answers in a second chain"].tolist() == ["0.00", "1.00"]
    rows = lessons.positions({"vpo": same}).loc["VPO"]
    assert (
        rows["different answers", "in a chain"] == 2
        and rows["best of the first", "2"] >= rows["best of the first", "1"]
    )


def test_treasures_of_a_chain_may_lie_in_different_walks():
    gold, diamond, none = [1, 0.5, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]
    chains = np.array([[[gold, diamond], [gold, gold], [none, none], [diamond, none]]])
    found = lessons.treasures({"vpo": pool_of([[["→", "↓"]] * 4], chains, task="maze")})["VPO"]
    share = {"gold": "50%", "diamonds": "50%", "both": "25%", "neither": "25%"}
    assert found.to_dict() == share | {"neither in answer 1": "25%", "neither in answer 2": "50%"}


def test_form_and_copying_are_told_apart_from_knowing_the_user():
    row = ROWS[0]
    wrong = '<think> x </think>\n<tool_call>\n{"name": "air_room", "parameters": {"room": "Mars"}}\n</tool_call>'
    asks = "<think> x </think>\n<response> Which? </response>"
    rewards = get_task("tiny_tools").score([row["gold"], wrong, asks, "nonsense"], [row] * 4)[None, :, None]
    pool = pool_of([[[row["gold"]], [wrong], [asks], ["nonsense"]]], rewards, ids=[row["id"]])
    shares = lessons.imitation({"sft": pool}, ROWS)["SFT"]
    assert shares.iloc[0] == 0.75 and shares.iloc[2] == 0.25 and shares.iloc[3] == 0.25
    assert 0 < shares.iloc[1] < 1


def test_a_table_has_the_ceiling_where_the_task_knows_it():
    class Task:
        @staticmethod
        def ceiling(k):
            return {"best": 1.0}

    pool = pool_of([[["x"], ["y"]]], np.array([[[[1, 1, 1, 1]], [[0, 0, 0, 0]]]]))
    table = lessons.table_at_k({"grpo": pool}, "best", (1, 2), Task)
    assert table.loc["GRPO"].tolist() == [0.5, 1.0] and table.loc["ceiling"].tolist() == [1.0, 1.0]
    assert "ceiling" not in lessons.table_at_k({"grpo": pool}, "pass", (1, 2), Task).index
    told = lessons.gains(pool, {"sft": pool}, "best", (1, 2))
    assert told.loc["minus SFT"].str.startswith("undecided +0.000").all()


# --- The experiment ---------------------------------------------------------------------------


def test_the_corners_separate_the_set_from_the_vector():
    names = ("grpo", "random_weights", "multi_rlvr", "best_of_set", "vpo")
    keys = [{"world": "maze", "variant": name, "seed": s} for name in (*names, "gdpo") for s in (0, 1)]
    tables = {
        "runs": pd.DataFrame(keys),
        "budgets": pd.DataFrame([{**key, "k": 3, "eum": 0.5 + key["seed"]} for key in keys]),
    }
    table = lessons.corners(tables, "eum@3", "maze")
    assert tuple(table.index.get_level_values("method")) == names
    assert list(table.index.get_level_values("a rollout holds")) == ["one answer"] * 2 + ["a set"] * 3
    assert (table[["mean", "least", "most", "seeds"]] == [1.0, 0.5, 1.5, 2]).all(axis=None)
