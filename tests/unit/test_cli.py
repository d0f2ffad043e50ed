"""cli.py: every wrong input ends before any notebook runs, in one line that says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from toolrl_rows import ROWS, as_record, write_parquet

from vpo_lab import cli
from vpo_lab.config import get_profile
from vpo_lab.course import figures as report
from vpo_lab.course import notebooks as pipeline
from vpo_lab.course.notebooks import WAVES
from vpo_lab.files import write_json
from vpo_lab.runs import open_run

NAMES = [name for wave in WAVES for name in wave]
REHEARSAL = ["--profile", "qwen3-1.7b", "--set", "policy.backend=transformers", "--set", "policy.model=m"]


@pytest.fixture(autouse=True)
def executed(tmp_path, monkeypatch) -> list[tuple[str, dict]]:
    """Notebooks with only a parameters cell; running one is noted and leaves its copy."""
    folder, notes = tmp_path / "notebooks", []
    folder.mkdir()
    for name in NAMES:
        cell = nbformat.v4.new_code_cell(
            'profile: str = "tiny"\nseed: int = 0\nrun_dir: str = ""\noverrides: dict = {}',
            metadata={"tags": ["parameters"]},
        )
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / f"{name}.ipynb")

    def execute(job, values):
        notes.append((job.name, values))
        write_json(job.target, {})
        if job.name == NAMES[-1]:
            write_json(job.target.parent / "summary.json", {})

    monkeypatch.setattr(pipeline, "notebook_folder", lambda: folder)
    monkeypatch.setattr(pipeline, "_execute", execute)
    monkeypatch.setattr(pipeline.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(report, "print_summary", lambda path: print(f"summary: {path}"))
    monkeypatch.chdir(tmp_path)
    return notes


def vpo_lab(monkeypatch, *arguments: str) -> int:
    """The exit status of a command line."""
    monkeypatch.setattr(sys, "argv", ["vpo-lab", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture
def refused(monkeypatch, capsys, executed):
    """Run `vpo-lab run`, check that it fails in one line before anything is executed; returns the line."""

    def run(*arguments: str, command: str = "run") -> str:
        status = vpo_lab(monkeypatch, command, *arguments)
        printed = capsys.readouterr()
        assert status == 1, printed
        assert executed == []
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed
        return printed.err

    return run


def test_a_right_command_executes_all_notebooks_with_its_settings(monkeypatch, capsys, executed, tmp_path):
    arguments = ["--profile", "smoke", "--seed", "3", "--run-dir", "mine"]
    arguments += ["--set", "rl.steps=2", "--set", "rl.alpha=0.5"]
    assert vpo_lab(monkeypatch, "run", *arguments) == 0
    assert sorted(name for name, _ in executed) == NAMES
    expected = {
        "profile": "smoke",
        "seed": 3,
        "run_dir": str(tmp_path / "mine"),
        "overrides": {"rl.steps": 2, "rl.alpha": 0.5},
    }
    assert all(values == expected for _, values in executed)
    assert f"summary: {tmp_path / 'mine' / 'summary.json'}" in capsys.readouterr().out
    executed.clear()
    assert vpo_lab(monkeypatch, "run", *arguments) == 0 and executed == []  # all is done already


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--profile", "small"], "unknown profile 'small': choose one of"),
        (["--set", "task=foo"], "unknown task 'foo': choose one of"),
        (["--set", 'methods=["foo"]'], "unknown method 'foo': choose one of"),
        (["--set", "methods=foo"], "expected tuple"),
        (["--set", 'methods=[["vpo"]]'], "methods"),
        (["--set", "policy.backend=keras"], "unknown policy.backend 'keras': choose one of"),
        (["--set", "rl.candidates=0"], "rl.candidates (M) = 0: at least 1"),
        (["--set", "rl.weight_draws=0"], "rl.weight_draws (K) = 0: at least 1"),
        (["--set", "rl.alpha=-1"], "rl.alpha = -1.0: must be positive"),
        (["--set", "rl.alpha=NaN"], "rl.alpha = nan: must be positive"),
        (["--set", "rl.group_size=1"], "rl.group_size (G) = 1: at least 2"),
        (["--set", "rl.stepz=3"], "did you mean 'steps'"),
        (["--set", "rl.steps=many"], "expected int"),
        (["--set", "rl.steps"], "write NAME=VALUE"),
        (["--set", "=3"], "write NAME=VALUE"),
        (["--set", 'evaluation.budgets=["a"]'], "evaluation.budgets"),
        (["--set", "evaluation.budgets=[1.5]"], "evaluation.budgets"),
        (["--set", "evaluation.requests=-1"], "evaluation.requests"),
        (["--set", "rl.checkpoint_every=0"], "rl.checkpoint_every"),
        (["--seed", "-1"], "seed"),
        (["-p", "sed"], "write NAME=VALUE"),
        (["-p", "sed=1"], "parameter 'sed' is not declared by 01_reward_vectors.ipynb: it has overrides, profile"),
        (["--data", "rows.parquet"], "tiny_tools is generated and reads no file"),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_no_folder(refused, tmp_path, arguments, hint):
    assert hint in refused("--profile", "smoke", "--run-dir", "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_without_a_gpu_the_full_profile_is_refused_before_its_data_is_fetched(refused, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("vpo_lab.tasks.tool_calls.toolrl.fetch", None)
    line = refused("--profile", "qwen3-1.7b", "--run-dir", "run")
    assert "needs a CUDA GPU" in line and "--profile tiny" in line
    assert not (tmp_path / "run").exists()


# --- Data -------------------------------------------------------------------------------------


def without_a_column(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [{key: value for key, value in as_record(row).items() if key != "reward_model"} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(records), path)


def without_rows(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([as_record(ROWS[0])]).slice(0, 0), path)


def cut_short(path: Path) -> None:
    write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "make, hint",
    [
        (lambda path: None, "no data file"),
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: path.write_text("not parquet at all"), "as parquet"),
        (cut_short, "as parquet"),
        (without_a_column, "has no column 'reward_model'"),
        (without_rows, "holds no rows"),
        (lambda path: path.mkdir(), "no train.parquet in"),
    ],
)
def test_data_that_cannot_be_read_is_one_line_that_names_it(refused, tmp_path, make, hint):
    make(tmp_path / "rows.parquet")
    line = refused(*REHEARSAL, "--run-dir", "run", "--data", "rows.parquet")
    assert hint in line and str(tmp_path / "rows.parquet") in line
    assert not (tmp_path / "run").exists()


def test_a_folder_with_one_split_is_refused_for_the_other(refused, tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train.parquet")
    assert "no test.parquet" in refused(*REHEARSAL, "--run-dir", "run", "--data", "data")


def test_data_that_can_be_read_is_taken_by_its_full_path(monkeypatch, executed, tmp_path):
    write_parquet(tmp_path / "rows.parquet")
    assert vpo_lab(monkeypatch, "run", *REHEARSAL, "--run-dir", "run", "--data", "rows.parquet") == 0
    assert executed[0][1]["overrides"]["data"] == str(tmp_path / "rows.parquet")


# --- Run folders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--profile", "tiny"], "profile 'smoke', now 'tiny'"),
        (["--profile", "smoke", "--seed", "1"], "seed 0, now 1"),
        (["--profile", "smoke", "--set", "rl.steps=9"], "fingerprint"),
    ],
)
def test_a_run_folder_of_another_run_is_refused_and_left_alone(refused, tmp_path, arguments, hint):
    run = open_run(tmp_path / "run", get_profile("smoke"), 0)
    before = sorted((path, path.stat().st_mtime_ns) for path in run.iterdir())
    line = refused("--run-dir", "run", *arguments)
    assert hint in line and "choose another --run-dir" in line
    assert sorted((path, path.stat().st_mtime_ns) for path in run.iterdir()) == before


@pytest.mark.parametrize("folder", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_made_is_refused(refused, tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    assert "--run-dir" in refused("--profile", "smoke", "--run-dir", folder)
    assert (tmp_path / "file").read_text() == "mine"


# --- The other commands, and the process ------------------------------------------------------


def test_figures_and_publish_need_a_finished_run(refused, tmp_path):
    assert "does not exist" in refused("--results", "nowhere", "--out", "figures", command="figures")
    assert "does not exist" in refused("nowhere", command="publish")
    assert not (tmp_path / "figures").exists()


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_pipeline", interrupted)
    assert vpo_lab(monkeypatch, "run", "--profile", "smoke") == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--profile", "small"], ["--set", 'methods=["foo"]'], ["--set", "task=toolrl", "--data", "absent"]]
)
def test_the_process_ends_with_status_1_and_no_traceback(tmp_path, arguments):
    process = subprocess.run(
        [sys.executable, "-m", "vpo_lab.cli", "run", "--run-dir", str(tmp_path / "run"), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    assert not (tmp_path / "run").exists()


def test_values_are_json_where_they_can_be_and_text_elsewhere():
    items = ["a=1", "b=0.5", 'c=["x"]', "d=text", "e=a=b", "f=", "g=true"]
    expected = {"a": 1, "b": 0.5, "c": ["x"], "d": "text", "e": "a=b", "f": "", "g": True}
    assert cli._assignments(items, "--set") == expected
