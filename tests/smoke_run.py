"""`vpo-lab run` under the smoke profile, in a process of its own and without a network; how a run is ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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


def kill_at(sign: str, run: Path, process: subprocess.Popen) -> None:
    """Kill a run once a file matches `sign`: nothing is waited for by the clock alone."""
    deadline = time.monotonic() + 900
    while not list(run.glob(sign)):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # kernels notice that their parent is gone


def results(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())
