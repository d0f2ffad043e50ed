"""The smoke profile through all notebooks, offline; killed and started again."""

import re
from pathlib import Path

import nbformat
import pytest
from smoke_run import finish, kill_at, results, start

from vpo_lab.course.notebooks import WAVES
from vpo_lab.runs import Run

NOTEBOOKS = [name for wave in WAVES for name in wave]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, str, str]:
    """A run that nobody disturbed: its folder, what it printed, the connections it tried."""
    folder = tmp_path_factory.mktemp("straight")
    calls = folder / "calls.txt"
    output = finish(start(folder / "run", calls))
    return folder / "run", output, calls.read_text() if calls.exists() else ""


def test_all_notebooks_run_and_the_summary_is_complete(straight):
    run, output, _ = straight
    for name in NOTEBOOKS:
        cells = nbformat.read(run / f"{name}.ipynb", as_version=4).cells
        assert not [o for c in cells for o in c.get("outputs", []) if o.output_type == "error"]
    summary = results(run)
    assert summary["profile"] == "smoke" and summary["seed"] == 0 and summary["versions"]["trl"]
    assert set(summary["methods"]) == {"sft", "sft_chain", "grpo", "vpo"}
    for method in summary["methods"].values():
        assert set(method["k"]) == {"1", "3", "6"}
        for figures in method["k"].values():
            for metric in ("best", "pass", "eum"):
                mean, low, high = figures[metric]
                assert 0 <= low <= mean <= high <= 1
    assert "best@k" in output
    maze = results(run / "maze")
    assert maze["profile"] == "smoke_maze" and set(maze["methods"]) == set(summary["methods"])
    assert all("hypervolume" in figures for method in maze["methods"].values() for figures in method["k"].values())


def test_nothing_tries_the_network(straight):
    assert straight[2] == ""


def test_finished_work_is_not_repeated(straight):
    run, _, _ = straight
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    output = finish(start(run, run.parent / "calls.txt"))
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
    assert "already done: 00, 01, 02, 03, 04, 05, 06, 07" in output


def test_killed_ended_by_its_hours_and_killed_again_gives_the_same_results(straight, tmp_path):
    """Killed while SFT trains, stopped after a step of RL with a summary, killed while it goes on, and finished."""
    run, calls = tmp_path / "run", tmp_path / "calls.txt"
    short = ("--set", "maze=", "--set", "code=", "--set", "judges=")
    kill_at("sft/log.jsonl", run, start(run, calls, *short))
    assert not (run / "summary.json").exists()

    output = finish(start(run, calls, *short, "--max-hours", "1e-6"))
    assert "vpo was stopped after 1 of 4 steps" in output
    summary = results(run)
    assert summary["stopped"] == {"grpo": "1 of 4 steps", "vpo": "1 of 4 steps"}
    assert set(summary["methods"]) == {"sft", "sft_chain", "grpo", "vpo"}  # evaluated as far as it came
    assert "already done: 00, 01, 02, 03, 04, 05\n" in finish(start(run, calls, *short, "--max-hours", "0"))
    assert results(run) == summary

    kill_at("vpo/checkpoints/checkpoint-2/sealed.json", run, start(run, calls, *short))
    output = finish(start(run, calls, *short))
    assert re.search(r"already done: 00, 01, 02(, 03)?\n", output)  # GRPO may have ended before VPO was killed
    whole = results(run)
    assert whole == results(straight[0])
    assert whole["stopped"] == {} and whole["methods"]["sft"] == summary["methods"]["sft"]
    assert whole["methods"]["vpo"] != summary["methods"]["vpo"]
    assert {Run(run).stage(name).last_step() for name in ("grpo", "vpo")} == {4}
