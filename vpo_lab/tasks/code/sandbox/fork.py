"""The back end for Linux: a warm Python forks a child per answer and locks it with seccomp. No root, no package."""

from __future__ import annotations

import sys
from pathlib import Path

from .workers import Workers, WorkerSandbox

SERVER = Path(__file__).with_name("fork_server.py")


def command() -> list[str]:
    """Return the command line of a server: no environment, no site packages, no folder of its own to import from."""
    return [sys.executable, "-I", "-S", "-B", str(SERVER)]


def problem() -> str:
    """Return "" if a server starts here and its locked child can do nothing that it must not, else why not."""
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, this is {sys.platform}: pip install 'vpo-lab[code]' for the sandbox \"wasm\""
    workers = Workers(command(), size=1)
    try:
        return workers.problem()
    finally:
        workers.close()


class ForkSandbox(WorkerSandbox):
    """Run answers in children of warm servers, one server per core."""

    name = "fork"

    def __init__(self):
        super().__init__(command())


SANDBOX = ForkSandbox
