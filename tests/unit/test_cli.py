"""cli.py: every wrong input ends before any notebook runs, in one line that says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toolrl_rows import ROWS, as_record, write_parquet

from vpo_lab import cli
from vpo_lab.config import get_profile
from vpo_lab.course.notebooks import FREE, WAVES, run_pipeline
from vpo_lab.errors import LabError
from vpo_lab.files import write_json
from vpo_lab.runs import Run, open_run

NAMES = [name for wave in WAVES for name in wave]
REHEARSAL = ["--profile", "qwen3-1.7b", "--set", "policy.backend=transformers", "--set", "policy.model=m"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def vpo_lab(monkeypatch, *arguments: str) -> int:
    """The exit status of a command line."""
    monkeypatch.setattr(sys, "argv", ["vpo-lab", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command, check that it fails in one line before anything is executed; returns the line."""

    def run(*arguments: str, command: str = "run") -> str:
        status = vpo_lab(monkeypatch, command, *arguments)
        printed = capsys.readouterr()
        assert status == 1, printed
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed
        return printed.err

    return run


def note_and_finish(executed: list):
    """Stands for papermill: notes what it is given and leaves what a notebook leaves."""

    def execute(job, values, environment):
        executed.append((job.name, values, environment))
        write_json(job.target, {})
        if job.name == NAMES[-1]:
            write_json(job.target.parent / "summary.json", {})

    return execute


def test_all_notebooks_are_executed_once_with_the_settings(tmp_path):
    arguments = ("smoke", 3, "mine", {"rl.steps": 2, "rl.alpha": 0.5})
    executed = []
    assert run_pipeline(*arguments, execute=note_and_finish(executed)) == tmp_path / "mine" / "summary.json"
    expected = dict(zip(("profile", "seed", "run_dir", "overrides"), arguments, strict=True))
    assert sorted(name for name, *_ in executed) == NAMES
    expected |= {"run_dir": str(tmp_path / "mine")}
    assert all(values == ({} if name == FREE else expected) for name, values, _ in executed)
    executed.clear()
    run_pipeline(*arguments, execute=note_and_finish(executed))  # all is done already
    assert executed == []


def test_the_rows_that_are_checked_are_counted_and_not_loaded_again(monkeypatch, capsys):
    from vpo_lab.tasks import get_task

    loaded, task = [], type(get_task("tiny_tools"))

    class Counted(task):
        def load(self, path=None, split="train"):
            loaded.append(split)
            return super().load(path, split)

    monkeypatch.setattr("vpo_lab.course.notebooks.get_task", lambda name: Counted())
    overrides = {"evaluation.held_out": 5, "evaluation.requests": 0}
    run_pipeline("smoke", 0, "mine", overrides, execute=note_and_finish([]))
    assert loaded == ["train", "test"] and "evaluation: 205 requests" in capsys.readouterr().err


def test_a_stage_that_may_take_more_steps_runs_its_notebook_again(tmp_path):
    steady, executed = {"rl.schedule": "constant"}, []
    run_pipeline("smoke", 0, "mine", steady, execute=note_and_finish(executed))
    stage = Run(tmp_path / "mine").stage(get_profile("smoke").methods[1])
    stage.policy.mkdir(parents=True)
    stage.checkpoints.mkdir()
    executed.clear()
    run_pipeline("smoke", 0, "mine", {**steady, "rl.steps": 9}, execute=note_and_finish(executed))
    assert [name for name, *_ in executed] == ["04_vpo_training", "05_bestk_and_pareto"]


def test_a_notebook_that_fails_is_one_line_that_names_it():
    def fail(job, values, environment):
        raise ValueError("a b c")

    with pytest.raises(LabError, match=rf"{NAMES[0]}.*a b c"):
        run_pipeline("smoke", 0, "mine", execute=fail)


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--profile", "small"], "'small'"),
        (["--set", "task=foo"], "'foo'"),
        (["--set", 'methods=["foo"]'], "'foo'"),
        (["--set", 'methods=["vpo"]'], "methods"),
        (["--set", "methods=foo"], '["grpo", '),  # how to write a list
        (["--set", 'methods=[["vpo"]]'], "methods"),
        (["--set", "policy.backend=keras"], "policy.backend"),
        (["--set", "rl.alpha=NaN"], "rl.alpha"),
        (["--set", "rl.candidates=1"], "rl.candidates"),
        (["--set", "rl.stepz=3"], "'steps'"),
        (["--set", "rl.steps=many"], "rl.steps"),
        (["--set", "rl.steps"], "NAME=VALUE"),
        (["--set", "=3"], "NAME=VALUE"),
        (["--set", 'evaluation.budgets=["a"]'], "evaluation.budgets"),
        (["--set", "evaluation.budgets=[1.5]"], "evaluation.budgets"),
        (["--seed", "-1"], "seed"),
        (["--max-hours", "-1"], "--max-hours"),
        (["-p", "sed"], "NAME=VALUE"),
        (["-p", "sed=1"], "'sed'"),
        (["--data", "rows.parquet"], "tiny_tools"),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_no_folder(refused, tmp_path, arguments, hint):
    assert hint in refused("--profile", "smoke", "--run-dir", "run", *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["sft"], ["vpo", "sft"]])
def test_train_and_experiment_refuse_a_seed_like_run(refused, tmp_path, arguments):
    assert "seed" in refused(*arguments, "--profile", "smoke", "--seed", "-1", "--run-dir", "run", command="train")
    assert "seed" in refused("--world", "smoke", "--seed", "-1", "--folder", "run", command="experiment")
    assert not (tmp_path / "run").exists()


def test_without_a_gpu_the_full_profile_is_refused_before_its_data_is_fetched(refused, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("VPO_LAB_CACHE", str(tmp_path / "cache"))
    line = refused("--profile", "qwen3-1.7b", "--run-dir", "run")
    assert "GPU" in line and "--profile tiny" in line
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


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
    "make",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not parquet at all"),
        cut_short,
        without_a_column,
        without_rows,
        lambda path: path.mkdir(),
    ],
)
def test_data_that_cannot_be_read_is_one_line_that_names_it(refused, tmp_path, make):
    make(tmp_path / "rows.parquet")
    line = refused(*REHEARSAL, "--run-dir", "run", "--data", "rows.parquet")
    assert str(tmp_path / "rows.parquet") in line and ("reward_model" in line) == (make is without_a_column)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_one_split_is_refused_for_the_other(refused, tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train.parquet")
    assert "test.parquet" in refused(*REHEARSAL, "--run-dir", "run", "--data", "data")


@pytest.mark.parametrize(
    "settings, data",
    [([], "rows.parquet"), ([], "~/rows.parquet"), (["data=rows.parquet"], ""), (["data=~/rows.parquet"], "")],
)
def test_a_folder_named_from_here_becomes_absolute(tmp_path, monkeypatch, settings, data):
    """Notebooks run in another one; shells leave the "~" of `--data=~/x` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.overrides_of(settings, data) == {"data": str(tmp_path / "rows.parquet")}
    (tmp_path / "model").mkdir()
    assert cli.overrides_of(["policy.model=~/model"], "") == {"policy.model": str(tmp_path / "model")}
    assert cli.overrides_of(["policy.model=Qwen/Qwen3-1.7B"], "") == {"policy.model": "Qwen/Qwen3-1.7B"}


# --- Run folders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--profile", "tiny"], "profile"),
        (["--profile", "smoke", "--seed", "1"], "seed"),
        (["--profile", "smoke", "--set", "rl.alpha=9"], "rl.alpha"),
    ],
)
def test_a_run_folder_of_another_run_is_refused_and_left_alone(refused, tmp_path, arguments, hint):
    run = open_run(get_profile("smoke"), 0, tmp_path / "run").folder
    before = sorted((path, path.stat().st_mtime_ns) for path in run.iterdir())
    line = refused("--run-dir", "run", *arguments)
    assert hint in line and "--run-dir" in line
    assert sorted((path, path.stat().st_mtime_ns) for path in run.iterdir()) == before


@pytest.mark.parametrize("folder", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_made_is_refused(refused, tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / folder) in refused("--profile", "smoke", "--run-dir", folder)
    assert (tmp_path / "file").read_text() == "mine"


# --- The other commands, and the process ------------------------------------------------------


def test_figures_and_publish_need_a_finished_run(refused, tmp_path):
    assert "nowhere" in refused("--results", "nowhere", "--out", "figures", command="figures")
    none = [part for name in ("experiment", "code", "judges") for part in (f"--{name}", f"no-{name}")]
    assert "no-judges" in refused(*none, "--out", "figures", command="figures")
    assert "nowhere" in refused("nowhere", command="publish")
    assert not (tmp_path / "figures").exists()


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("vpo_lab.course.notebooks.run_pipeline", interrupted)
    assert vpo_lab(monkeypatch, "run", "--profile", "smoke") == 130
    assert "the same command" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--profile", "small"], ["--set", "task=toolrl", "--data", "absent"]])
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
    assert cli.assignments(items, "--set") == expected
