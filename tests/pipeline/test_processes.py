"""Several processes that train one policy: two of them on a CPU, started as on a machine with two GPUs."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vpo_lab.config import get_profile
from vpo_lab.files import read_json
from vpo_lab.runs import STOPPED, Run, read_log
from vpo_lab.tasks import get_task, score_chains
from vpo_lab.train.sft import train_sft
from vpo_lab.train.trainer import earned

HERE, METHOD = Path(__file__).parent, "vpo_credit"
# Three rollouts of a group of four on one process, the fourth on the other.
SETTINGS = {"rl.rollouts": 24, "rl.group_size": 8, "rl.micro_rollouts": 6, "rl.checkpoint_every": 1, "rl.steps": 3}


def launch(out: Path, run: Path, *arguments: str, processes: int = 2) -> subprocess.CompletedProcess:
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(HERE / "train_and_record.py"), str(out), "train", METHOD, "--profile=smoke", f"--run-dir={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    out.mkdir(exist_ok=True)
    return subprocess.run(
        [*command, *settings, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A run folder with the warmup that all runs here start from."""
    run = tmp_path_factory.mktemp("start")
    train_sft(get_profile("smoke", {"sft.steps": 40}), Run(run), seed=0)
    return run


def new_run(start: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "sft").symlink_to(start / "sft")
    return folder


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory) -> SimpleNamespace:
    """Two processes that train VPO for three steps, and what each of them saw."""
    folder = tmp_path_factory.mktemp("two")
    run = new_run(start, folder / "run")
    done = launch(folder / "out", run)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [pickle.loads((folder / "out" / f"steps-{rank}.pickle").read_bytes()) for rank in range(2)]
    return SimpleNamespace(run=run, steps=steps, said=done.stdout + done.stderr)


def test_each_scores_its_own_rollouts_and_both_know_what_all_earned(whole):
    """What they make of it: tests/pipeline/test_vpo_processes.py."""
    task = get_task("tiny_tools")
    rows = {row["id"]: row for row in task.load()}
    assert [len(steps) for steps in whole.steps] == [3, 3]
    for one, other in zip(*whole.steps, strict=True):
        assert [len(scored.completions) for scored in (one, other)] == [12, 12]  # a group of eight lies across the two
        assert one.completions != other.completions
        asked = [rows[row["id"]] for row in one.inputs + other.inputs]
        rewards_BMD = score_chains(task, one.completions + other.completions, asked, 3)
        rewards_BMD[one.truncated_B] = 0
        assert np.array_equal(earned(one), rewards_BMD) and np.array_equal(earned(other), rewards_BMD)
    assert np.ptp(rewards_BMD) > 0  # something was compared


def test_the_files_are_those_of_one_process(whole):
    log = read_log(whole.run / METHOD)
    assert [entry["step"] for entry in log] == [1, 2, 3]
    for entry, scored in zip(log, whole.steps[0], strict=True):
        assert entry["mean_reward"] == pytest.approx(earned(scored).mean(), abs=1e-6)
    weights = load_file(whole.run / METHOD / "policy" / "model.safetensors")
    before = load_file(whole.run / "sft" / "policy" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    assert not (whole.run / METHOD / STOPPED).exists()
    assert whole.said.count(f"{whole.run}/{METHOD}/policy\n") == 1  # one of them talks


def test_stopped_by_the_clock_and_resumed_it_ends_with_the_same_weights(whole, start, tmp_path):
    run = new_run(start, tmp_path / "run")
    first = launch(tmp_path / "first", run, "--max-hours=1e-9")
    assert first.returncode == 0, first.stderr[-3000:]
    stopped = read_json(run / METHOD / STOPPED)
    assert (stopped["step"], stopped["steps"]) == (1, 3)
    assert "stopped after step 1 of 3" in first.stdout
    second = launch(tmp_path / "second", run)
    assert second.returncode == 0, second.stderr[-3000:]
    assert not (run / METHOD / STOPPED).exists()
    assert [entry["step"] for entry in read_log(run / METHOD)] == [1, 2, 3]
    ended, straight = (load_file(folder / METHOD / "policy" / "model.safetensors") for folder in (run, whole.run))
    assert all(torch.equal(ended[name], straight[name]) for name in straight)


def test_a_batch_that_cannot_be_shared_is_one_line(start, tmp_path):
    done = launch(
        tmp_path / "out",
        new_run(start, tmp_path / "run"),
        "--set=rl.rollouts=32",
        "--set=rl.micro_rollouts=0",
        processes=3,
    )
    assert done.returncode != 0
    assert "error: rl.rollouts: 32 rows cannot be split over 3 processes" in done.stderr


def test_one_that_waits_for_others_says_for_whom_and_hears_ctrl_c(tmp_path):
    """WORLD_SIZE of a job of two nodes, or a variable left in the shell."""
    command = [sys.executable, "-m", "vpo_lab.cli", "train", "sft", "--profile=smoke", f"--run-dir={tmp_path / 'run'}"]
    shell = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    process = subprocess.Popen(command, env={**os.environ, **shell}, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "0 of 2" in line and "127.0.0.1:29517" in line and "WORLD_SIZE" in line
        for _ in range(60):  # the signal may come before the wait has begun
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=2)
                break
            except subprocess.TimeoutExpired:
                continue
        assert process.poll() not in (None, 0)
    finally:
        process.kill()
    assert not (tmp_path / "run").exists()
