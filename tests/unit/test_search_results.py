"""What an experiment on code says of searches: the study of one policy, its rows, the table and the pictures."""

import math

import numpy as np
import pandas as pd
import pytest

from vpo_lab import show
from vpo_lab.course import results
from vpo_lab.errors import LabError
from vpo_lab.search import study as studies
from vpo_lab.search.closure import Closure
from vpo_lab.search.evolution import BUDGETS, Evolution


def table(rows: list[tuple]) -> dict[str, pd.DataFrame]:
    columns = ["world", "variant", "seed", "id", "solved_at", "control", "reachable", "programs"]
    return {"search": pd.DataFrame(rows, columns=columns).astype({"reachable": "boolean"})}


TABLES = table(
    [
        ("tiny_code", "vpo", seed, f"test-{n}", at, control, reach, 9.0)
        for seed, n, at, control, reach in (
            (0, 0, 10, math.nan, True),
            (0, 1, 30, math.nan, True),
            (1, 0, 12, 200, True),
            (1, 1, math.nan, math.nan, False),
        )
    ]
    + [("tiny_repair", "vpo", 0, "test-0", 5, math.nan, None, math.nan)]
)


def test_unsolved_problems_are_never_solved():
    found = results.solved_at(TABLES, "tiny_code")
    assert found["vpo"].tolist() == [[10, 30], [12, math.inf]]


def test_shares_count_problems_within_the_budget():
    row = results.search(TABLES, "tiny_code").loc["vpo"]
    assert [row[str(budget)].split()[0] for budget in BUDGETS] == ["0.50", "0.50", "0.75", "0.75", "0.75", "0.75"]
    assert row["control"].split()[0] == "0.25" and row["reachable"] == "0.75" and row["seeds"] == "2"


def test_a_policy_that_sees_parents_has_no_control_and_no_closure():
    row = results.search(TABLES, "tiny_repair").loc["vpo"]
    assert row["control"] == row["reachable"] == "–" and row["12"].startswith("1.00")


def test_a_row_of_a_study_says_never_as_none():
    rewards_PD = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    found = Evolution("a", ("test_1", "test_2"), 40, ("", "x", "y"), (-1, 0, 1), (0, 3, 20), rewards_PD)
    row = studies._row(found, found.until(10), Closure(7, None))
    assert (row["solved_at"], row["control"], row["reachable"], row["programs"]) == (20, None, None, 7)
    assert row["best"] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_solved_curves_rise_with_the_budget():
    figure = show.solved_curves(results.solved_at(TABLES, "tiny_code"), BUDGETS)
    (line,) = figure.axes[0].get_lines()
    assert line.get_ydata().tolist() == [0.5, 0.5, 0.75, 0.75, 0.75, 0.75]
    with pytest.raises(LabError):
        show.solved_curves({}, BUDGETS)


def test_searches_stand_side_by_side():
    figure = show.searches({world: results.solved_at(TABLES, world) for world in ("tiny_code", "tiny_repair")}, BUDGETS)
    assert [line.get_ydata()[0] for axes in figure.axes for line in axes.get_lines()] == [0.5, 1.0]
    for nothing in ({}, {"none": {}}):
        with pytest.raises(LabError):
            show.searches(nothing, BUDGETS)


def test_a_lineage_lights_the_tests_that_pass():
    rewards_PD = np.array([[0.0, np.nan], [1.0, np.nan]])
    axes = show.lineage([0, 4], rewards_PD, ["no step yet", "name = 1\nnote = 2"], "one search").axes[0]
    colors = [patch.get_facecolor()[:3] for patch in axes.patches]
    assert len(colors) == 4 and len(set(colors)) == 3  # failed, passed, not asked
    texts = [text.get_text() for text in axes.texts]
    assert {"start", "4", "0%", "100%", "name = 1\nnote = 2"} <= set(texts)
    with pytest.raises(LabError, match="2 programs"):
        show.lineage([0], rewards_PD, ["a", "b"])
