"""`vpo-lab experiment` on the smoke profile: killed in the middle of a training, started again."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from smoke_run import finish


def start(folder, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vpo_lab.cli", "experiment", "--world", "smoke", "--seed", "0", *arguments]
    command += ["--variant", "vpo_search", "--variant", "max_at_k3", "--workers", "2"]
    command += ["--folder", str(folder / "runs"), "--out", str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def test_a_killed_experiment_goes_on_and_its_csv_files_are_complete(tmp_path):
    seed = tmp_path / "runs" / "smoke" / "seed-0"
    process = start(tmp_path)
    deadline = time.monotonic() + 900
    while not list(seed.glob("*/checkpoints/checkpoint-2/sealed.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)  # the trainings too
    process.wait()
    process = start(tmp_path)
    time.sleep(5)  # trainings have begun
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):  # none of the trainings outlives it
        os.killpg(process.pid, 0)
    warmup = (seed / "sft" / "policy" / "model.safetensors").stat().st_mtime_ns
    finish(start(tmp_path))
    assert (seed / "sft" / "policy" / "model.safetensors").stat().st_mtime_ns == warmup
    for variant in ("vpo_search", "max_at_k3"):
        steps = [line for line in (seed / variant / "log.jsonl").read_text().splitlines() if line]
        assert len(steps) == 4
    with open(tmp_path / "out" / "budgets.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["variant"].partition("@")[0] for row in rows} == {"sft", "sft_chain", "vpo_search", "max_at_k3"}
    assert all(0 <= float(row[metric]) <= 1 for row in rows for metric in ("best", "pass", "eum"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    finish(start(tmp_path, "--collect-only"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
