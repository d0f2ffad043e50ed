"""A training whose reward or sampler sleeps for ever is ended and goes on; and so is a notebook."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from waiting import alive, until

from vpo_lab.config import get_profile
from vpo_lab.course import notebooks
from vpo_lab.course.notebooks import Display, Job, kernel_environment
from vpo_lab.errors import LabError
from vpo_lab.files import read_json
from vpo_lab.runs import Run, read_log
from vpo_lab.train import watch
from vpo_lab.train.watch import RESTARTS

TASK = f"{Path(__file__).parents[1] / 'sleeps.py'}:Sleeps"
SETTINGS = {"task": TASK, "sft.steps": 10, "rl.steps": 5, "rl.checkpoint_every": 1, "patience": 0.15}
SETTINGS |= {"rl.drop_solved": 1}
SETTINGS |= {"policy.hidden_size": 32, "policy.intermediate_size": 64}


def train(folder: Path, naps: list[str]) -> subprocess.CompletedProcess:
    for name in naps:
        (folder / name).touch()
    command = [
        sys.executable,
        "-m",
        "vpo_lab.cli",
        "train",
        "sft",
        "vpo",
        "--profile=smoke",
        f"--run-dir={folder / 'run'}",
    ]
    command += [f"--set={name}={value}" for name, value in SETTINGS.items()]
    environment = {**os.environ, "VPO_LAB_SLEEPS": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def test_a_sampler_and_a_reward_that_sleep_for_ever_cost_a_wait_each_and_no_run(tmp_path):
    done = train(tmp_path, naps=["sampler-nap-0", "nap-0"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("vpo: no step and no answer for 0.15 minutes") == 2
    assert not list(tmp_path.glob("*nap-0"))  # both slept
    assert len(read_json(tmp_path / "run" / "sft" / "solved.json.gz")) == 48  # which rows the warmup solves
    assert [entry["step"] for entry in read_log(tmp_path / "run" / "vpo")] == [1, 2, 3, 4, 5]
    assert (tmp_path / "run" / "vpo" / "policy" / "model.safetensors").exists()


LOGS_AND_SLEEPS = """
import os, pathlib, subprocess, sys, time
log = pathlib.Path(sys.argv[1], "vpo", "log.jsonl")
log.parent.mkdir(exist_ok=True)
log.touch()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10_000)"])  # as vLLM has one
with open(log.parent / "children", "a") as file:
    print(child.pid, os.environ["VPO_LAB_WATCHED"], file=file)
time.sleep(10_000 if sys.argv[2] == "sleep" else 0)
child.kill()
sys.exit(7)
"""


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Watch a script that logs a step in place of `vpo-lab`; returns the exit status and the children it had."""
    monkeypatch.setattr(watch, "COMMAND", [sys.executable, "-c", LOGS_AND_SLEEPS])
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(then: str):
        profile = get_profile("smoke", {"patience": 0.01})
        return watch.watch([str(tmp_path), then], profile, ["vpo"], str(tmp_path), None)

    return run


def test_after_three_new_starts_it_gives_up_and_leaves_no_process(scripted, tmp_path):
    with pytest.raises(LabError, match="stood still 4 times"):
        scripted("sleep")
    children = [line.split() for line in (tmp_path / "vpo" / "children").read_text().splitlines()]
    assert len(children) == RESTARTS + 1 and {mark for _, mark in children} == {"1"}
    # On a busy machine a killed process takes a moment to go.
    assert until(lambda: not [pid for pid, _ in children if alive(int(pid))])


def test_the_exit_status_of_a_training_that_ends_is_its_own(scripted):
    assert scripted("end") == 7


def test_only_the_command_of_a_user_watches(monkeypatch):
    profile = get_profile("smoke", {"patience": 1.0})
    assert watch.is_to_watch(profile) and not watch.is_to_watch(get_profile("smoke"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not watch.is_to_watch(profile)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv(watch.WATCHED, "1")
    assert not watch.is_to_watch(profile)


def notebook(folder: Path, run: Run, naps: int, name: str, sign: Path) -> Job:
    """A notebook that logs a step or draws an answer (the file `sign`), and then sleeps, while there are naps left."""
    code = f"""
import time, pathlib
stage = pathlib.Path({str(run / sign.parent)!r})
stage.mkdir(parents=True, exist_ok=True)
(stage / {sign.name!r}).write_text('{{"step": 1}}')
with (stage / "starts").open("a") as file:
    print("start", file=file)
if len((stage / "starts").read_text().splitlines()) <= {naps}:
    time.sleep(10_000)
"""
    source = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), source)
    return Job(name, source, folder / "done.ipynb")


@pytest.mark.parametrize(
    "naps, name, sign",
    [
        (1, "02_sft_warmup", "sft/log.jsonl"),
        (RESTARTS + 1, "02_sft_warmup", "sft/log.jsonl"),
        (1, "05_bestk_and_pareto", "pools/sampling"),
    ],
    ids=["trains", "trains, never ends", "samples"],
)
def test_a_notebook_that_stands_still_is_started_again(tmp_path, naps, name, sign, capsys, monkeypatch):
    profile, run, sign = get_profile("smoke", {"patience": 0.03}), Run(tmp_path / "run"), Path(sign)
    job = notebook(tmp_path, run, naps, name, sign)
    execute = lambda job: notebooks._execute(job, {}, kernel_environment(profile, None))  # noqa: E731
    if naps > RESTARTS:
        with pytest.raises(LabError, match=name):
            notebooks._run_batch([job], execute, Display(profile, run, [job]), profile, run)
    else:
        notebooks._run_batch([job], execute, Display(profile, run, [job]), profile, run)
        assert job.done
    assert capsys.readouterr().err.count(f"{sign.parent}: no step and no answer") == naps
    assert (run / sign.parent / "starts").read_text().count("start") == min(naps, RESTARTS) + 1
