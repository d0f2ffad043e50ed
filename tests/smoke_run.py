"""`vpo-lab run` under the smoke profile, in a process of its own and without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def start(run: Path, calls: Path, *arguments: str) -> subprocess.Popen:
    """`vpo-lab run` under the smoke profile in a process of its own, without a network."""
    blocker = shutil.copytree(Path(__file__).parent / "pipeline" / "no_network", calls.parent, dirs_exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(blocker), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "vpo_lab.cli", "run", "--profile", "smoke", "--run-dir", str(run), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    return output


def results(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())
