"""What this machine can run, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from vpo_lab.runs import default_run_dir

OK, WARN, FAIL = "ok", "note", "missing"

DRIVER = 580  # the first that runs CUDA 13


def checks() -> list[tuple[str, str, str]]:
    """(what, "ok" | "note" | "missing", finding and advice), each check one row."""
    return [_python(), *_packages(), *_gpu(), _threads(), _disk(), _toolrl(), _tracking()]


def print_report() -> int:
    """Print the checks as a table; returns 1 if the tiny profile cannot run, else 0."""
    from rich.console import Console
    from rich.table import Table

    rows = checks()
    table = Table(title="vpo-lab doctor")
    for heading in ("what", "", "finding"):
        table.add_column(heading)
    colours = {OK: "green", WARN: "yellow", FAIL: "red"}
    for what, state, finding in rows:
        table.add_row(what, f"[{colours[state]}]{state}[/]", finding)
    console = Console()
    console.print(table)
    blocked = [what for what, state, _ in rows if state == FAIL]
    console.print(f"the tiny profile cannot run: {', '.join(blocked)}" if blocked else "the tiny profile can run here")
    return 1 if blocked else 0


def _python() -> tuple[str, str, str]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 12)
    advice = "" if supported else "; the pinned packages are for 3.11 and 3.12"
    return ("Python", OK if supported else FAIL, platform.python_version() + advice)


def _packages() -> list[tuple[str, str, str]]:
    """One row if all pins hold, else a row per package that is absent or of another version."""
    try:
        count, wrong = _pins("")
    except PackageNotFoundError:
        return [("vpo-lab", FAIL, "not installed: pip install -e '.[dev]' in the repository")]
    return [(name, FAIL, finding) for name, finding in wrong] or [("packages", OK, f"all {count} pins hold")]


def _pins(extra: str) -> tuple[int, list[tuple[str, str]]]:
    """How many packages the extra ("" for what is always needed) pins, and (name, finding) where one does not hold."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires("vpo-lab") or []]
    always = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    needed = [r for r in wanted if r not in always and r.marker.evaluate({"extra": extra})] if extra else always
    wrong = []
    for requirement in needed:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        if not found or not requirement.specifier.contains(found, prereleases=True):
            is_now = f"{found} is installed" if found else "not installed"
            wrong.append((requirement.name, f"{is_now}: pip install '{requirement.name}{requirement.specifier}'"))
    return len(needed), wrong


def _gpu() -> list[tuple[str, str, str]]:
    try:
        import torch
    except ImportError:
        return []  # already reported as a package
    if not torch.cuda.is_available():
        return [("GPU", WARN, "none: tiny and smoke run without, qwen3-1.7b needs one of 24 GB or more")]
    properties = torch.cuda.get_device_properties(0)
    size, capability = properties.total_memory / 1e9, (properties.major, properties.minor)
    fits = size >= 22 and capability >= (8, 0)
    advice = "" if fits else "; qwen3-1.7b wants 24 GB and compute capability 8.0 (L4, A10, 3090, 4090, A100, H100)"
    rows = [("GPU", OK if fits else WARN, f"{properties.name}, {size:.0f} GB, capability {capability}{advice}")]
    rows += _driver()
    count, wrong = _pins("gpu")
    rows += [(name, WARN, f"{finding}; for qwen3-1.7b") for name, finding in wrong]
    return rows if wrong else [*rows, ("GPU packages", OK, f"all {count} pins hold")]


def _driver() -> list[tuple[str, str, str]]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()[0]
        new_enough = int(driver.split(".")[0]) >= DRIVER
    except (OSError, IndexError, ValueError, subprocess.SubprocessError):
        return [("driver", WARN, f"nvidia-smi does not answer: CUDA 13 wants driver {DRIVER} or newer")]
    return [
        ("driver", OK if new_enough else WARN, driver + ("" if new_enough else f": CUDA 13 wants {DRIVER} or newer"))
    ]


def _threads() -> tuple[str, str, str]:
    cores = os.cpu_count() or 1
    return ("CPU", OK if cores >= 2 else WARN, f"{cores} cores" + ("" if cores >= 2 else ": 03 and 04 run in turn"))


def _disk() -> tuple[str, str, str]:
    folder = default_run_dir("tiny")
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    advice = "" if free > 10 else ": tiny is content with 1 GB, qwen3-1.7b wants 10 (model 4, checkpoints 4)"
    return ("disk", OK if free > 2 else WARN, f"{free:.0f} GB free for runs{advice}")


def _toolrl() -> tuple[str, str, str]:
    from vpo_lab.tasks.tool_calls.toolrl import cache_folder

    folder: Path = cache_folder()
    if (folder / "train.parquet").exists():
        return ("ToolRL data", OK, f"cached in {folder}")
    return ("ToolRL data", WARN, "not cached: qwen3-1.7b downloads it, or pass --data FOLDER")


def _tracking() -> tuple[str, str, str]:
    if os.environ.get("WANDB_API_KEY"):
        return ("W&B", OK, "a key is set: qwen3-1.7b tracks its training there")
    return ("W&B", WARN, "no WANDB_API_KEY: training is logged to files only")
