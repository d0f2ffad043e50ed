"""expected.py: the ranges over seeds that notebooks promise."""

import json

import numpy as np
import pytest

from vpo_lab.course.results import EXPECTED, expected_table, own_numbers, update_expected, update_notebooks
from vpo_lab.errors import LabError
from vpo_lab.search.pool import Pool
from vpo_lab.search.summary import at_k


def tables(**missing) -> dict[str, list[dict]]:
    """Two seeds of sft and three of grpo; grpo is better by .1, .3 (and its third seed has no partner)."""
    best = {"sft": [0.5, 0.5], "grpo": [0.6, 0.8, 0.9]}
    budgets = [
        {"world": "tiny", "variant": name, "seed": seed, "k": k, "best": value, "pass": value / 2}
        for name, values in best.items()
        for seed, value in enumerate(values)
        for k in (1, 24)
    ]
    runs = [
        {"world": "tiny", "variant": name, "seed": seed, "distinct_answers": 0.1 * (seed + 1), "entropy": float("nan")}
        for name, values in best.items()
        for seed in range(len(values))
    ]
    elsewhere = [{**row, "world": "maze", "best": 99.0} for row in budgets]
    return {"budgets": budgets + elsewhere, "runs": runs, **missing}


def row(table: str, title: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {title} |")]
    return line.split(" | ")[1:]


def test_the_range_over_seeds_of_this_world_only():
    table = expected_table(tables(), "expected-grpo")
    assert row(table, "best@1") == ["0.767", "0.600", "0.900", "3 |"]
    assert row(table, "share of different answers among 24") == ["0.200", "0.100", "0.300", "3 |"]


def test_a_difference_is_taken_within_each_seed_that_has_both():
    assert row(expected_table(tables(), "expected-grpo"), "best@1, GRPO minus its start") == [
        *("+0.200", "+0.100", "+0.300", "2 |")
    ]


def test_what_was_not_measured_has_no_row():
    assert "entropy" not in expected_table(tables(), "expected-grpo")
    assert expected_table(tables(budgets=[], runs=[]), "expected-vpo").count("\n") == 2


def notebook(folder, text: str):
    path = folder / "01.ipynb"
    cells = [{"cell_type": kind, "source": [text]} for kind in ("markdown", "code")]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_only_marked_text_changes_and_twice_is_once(tmp_path):
    path = notebook(tmp_path, "before\n<!-- table: expected-grpo -->\nold\n<!-- /table -->\nafter")
    assert update_notebooks(tmp_path, tables()) == [path]
    text, code = ("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    assert text.startswith("before\n<!-- table: expected-grpo -->\n| measured |") and text.endswith("after")
    assert "old" in code and "old" not in text
    assert update_notebooks(tmp_path, tables()) == []


def test_an_unknown_mark_is_named(tmp_path):
    path = notebook(tmp_path, "<!-- table: expected-magic -->\n<!-- /table -->")
    before = path.read_text()
    with pytest.raises(LabError, match=r"01.ipynb marks a table 'expected-magic'.*expected-sft"):
        update_notebooks(tmp_path, tables())
    assert path.read_text() == before


def pool(seed: int, kinds: int) -> Pool:
    """Two requests, four single answers to each, `kinds` different ones among them."""
    rewards_NCMD = np.random.default_rng(seed).random((2, 4, 1, 2))
    answers = [[[f"answer {c % kinds}"] for c in range(4)] for _ in range(2)]
    return Pool("p", "mine", ("a", "b"), ("r0", "r1"), answers, rewards_NCMD, np.ones((2, 4), dtype=int))


def test_own_numbers_are_those_of_the_pools_and_logs():
    sft, grpo = pool(0, kinds=4), pool(1, kinds=2)
    log = [{"step": 1, "entropy": 5.0}] + [{"step": n, "entropy": 0.25} for n in range(2, 22)]
    lines = own_numbers("expected-grpo", {"sft": sft, "grpo": grpo}, {"grpo": log}).splitlines()
    found = {line[:54].strip(): line[54:].strip() for line in lines}
    assert found["best@1"] == f"{at_k(grpo, 'best', 1).mean():.3f}"
    assert found["best@1, GRPO minus its start"] == f"{(at_k(grpo, 'best', 1) - at_k(sft, 'best', 1)).mean():+.3f}"
    assert found["entropy of a token at the end of the training, nats"] == "0.250"
    assert found["share of different answers among 24"] == "0.500"
    assert "best@24" not in found  # the pools hold fewer candidates
    assert "entropy" not in own_numbers("expected-grpo", {"grpo": grpo})


def test_another_world_stands_before_the_variant():
    rows = [{"world": "maze", "variant": "grpo", "seed": 0, "k": 3, "eum": 0.4}]
    table = expected_table({"budgets": rows, "runs": []}, "expected-set-or-vector")
    assert row(table, "maze, expected utility of 3: `grpo`") == ["0.400", "0.400", "0.400", "1 |"]


def test_a_page_keeps_the_marks_of_others(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- table: costs -->\nkept\n<!-- /table -->\n<!-- table: expected-grpo -->\n<!-- /table -->\n")
    assert update_expected(page, tables()) == [page]
    assert "kept" in page.read_text() and "| best@1 |" in page.read_text()
    assert update_expected(page, tables()) == []


def test_every_row_names_columns_that_exist():
    for rows in EXPECTED.values():
        for _, variant, column, k in rows:
            assert column in (("best", "pass", "eum") if k else ("distinct_answers", "entropy", "correlation")), variant
