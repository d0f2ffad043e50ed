"""The full profile through all six notebooks on a CPU: papermill, LoRA, real rows, W&B offline, killed and resumed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_qwen3 import build_model, copy_rows
from smoke_run import finish, kill_at

from vpo_lab.files import read_json
from vpo_lab.runs import EVAL_LOG, read_log

SETTINGS = {
    "policy.backend": "transformers",  # no CUDA for Unsloth and vLLM
    "policy.max_answer_tokens": 48,  # random weights seldom write an end
    "sft.steps": 2,
    "sft.train_rows": 8,
    "sft.own_samples": 3,
    "sft.least_share": 0.0,  # random text has no form
    "rl.steps": 3,
    "rl.rollouts": 16,
    "rl.train_rows": 12,
    "rl.drop_solved": 1,
    "rl.checkpoint_every": 1,
    "evaluation.requests": 2,
    "evaluation.candidates": 6,
    "evaluation.budgets": [1, 3, 6],
    "evaluation.every": 2,
    "evaluation.watch_requests": 2,
    "evaluation.held_out": 3,
}


def start(root: Path) -> subprocess.Popen:
    shutil.copytree(Path(__file__).parent / "no_network", root, dirs_exist_ok=True)  # notes calls in root/calls.txt
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
    settings = [f"--set={name}={json.dumps(value)}" for name, value in SETTINGS.items()]
    command = [sys.executable, "-m", "vpo_lab.cli", "run", "--profile=qwen3-1.7b", f"--run-dir={root / 'run'}"]
    command += [f"--data={root / 'data'}", f"--set=policy.model={root / 'model'}", *settings]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def root(toolrl_dir, tmp_path_factory) -> Path:
    """A finished run in root/run, killed while VPO trained and started again; what was there at the kill in root."""
    root = tmp_path_factory.mktemp("full")
    (root / "data").mkdir()
    copy_rows(toolrl_dir, root / "data")
    build_model(root / "data", root / "model")
    kill_at("vpo/checkpoints/checkpoint-1/sealed.json", root / "run", start(root))
    (root / "log_at_the_kill.jsonl").write_bytes((root / "run/vpo/log.jsonl").read_bytes())
    (root / "last_checkpoint").write_text(str(max(len(list((root / "run/vpo/checkpoints").glob("*/sealed.json"))), 1)))
    (root / "output.txt").write_text(finish(start(root)))
    return root


def test_the_killed_run_ends_at_the_same_step_and_repeats_at_most_one_interval(root):
    assert "already done: 00, 01, 02, 03" in (root / "output.txt").read_text()
    logs = {stage: read_log(root / "run" / stage) for stage in ("sft", "grpo", "vpo")}
    assert [entry["step"] for entry in logs["sft"]] == [1, 2]
    for stage in ("grpo", "vpo"):
        assert [entry["step"] for entry in logs[stage]] == [1, 2, 3]
    before = [json.loads(line) for line in (root / "log_at_the_kill.jsonl").read_text().splitlines()]
    kept = int((root / "last_checkpoint").read_text())
    assert len(before) - kept <= SETTINGS["rl.checkpoint_every"]
    assert logs["vpo"][:kept] == before[:kept]  # times included: these steps were not made again


def test_every_stage_of_the_recipe_left_its_mark(root):
    run = root / "run"
    for stage in ("sft", "grpo", "vpo"):
        assert (run / stage / "policy" / "adapter_model.safetensors").exists()
        assert not (run / stage / "policy" / "model.safetensors").exists()
    samples = read_json(run / "sft" / "own_samples.json.gz")
    assert len(samples) == 8 and not any(samples.values())  # chains repeat the gold
    assert not (run / "sft" / "sft_single").exists()  # the untouched model was sampled
    assert len(read_json(run / "sft" / "solved.json.gz")) == 12  # random text solves nothing: none was left out
    for stage in ("grpo", "vpo"):
        evaluated = read_log(run / stage, EVAL_LOG)
        assert [entry["step"] for entry in evaluated] == [2, 3]  # every second step, and the last
        assert {"mean_reward", "best_of_rollout", "best_of_group", "set_reward"} <= set(evaluated[0])
    summary = read_json(run / "summary.json")
    assert set(summary["methods"]) == {"sft", "sft_chain", "grpo", "vpo"} and not summary["stopped"]


def test_wandb_logs_each_stage_as_one_run_and_nothing_leaves_the_machine(root):
    runs = {path.name.rpartition("-")[2] for path in (root / "run").rglob("wandb/offline-run-*")}
    stages = ("sft", "grpo", "vpo")
    marks = {(root / "run" / stage / "wandb_id").read_text() for stage in stages}
    assert runs == marks and len(runs) == 3  # the resumed one goes on in its own
    calls = root / "calls.txt"
    assert not calls.exists() or calls.read_text() == ""
