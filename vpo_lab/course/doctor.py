"""What this machine can run, what is missing, and what to do about it."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from vpo_lab.runs import default_run_dir

OK, WARN, FAIL = "ok", "note", "missing"
DRIVER = 580  # the first that runs CUDA 13
Row = tuple[str, str, str]


def print_report(extra: str = "course") -> int:
    """Print the checks as a table; return 1 if something is missing, else 0."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = checks(extra)
    table = Table(title="vpo-lab doctor")
    for heading in ("what", "", "finding"):
        table.add_column(heading)
    colours = {OK: "green", WARN: "yellow", FAIL: "red"}
    for what, state, finding in rows:
        table.add_row(what, f"[{colours[state]}]{state}[/]", escape(finding))
    console = Console()
    console.print(table)
    blocked = [what for what, state, _ in rows if state == FAIL]
    console.print(f"not ready: {', '.join(blocked)}" if blocked else "the tiny profile can run here")
    return 1 if blocked else 0


def checks(extra: str = "course") -> list[Row]:
    """Return rows (what, "ok" | "note" | "missing", finding and advice) for an installation with this extra."""
    python = ("Python", OK, f"{platform.python_version()} in {sys.prefix}")
    return [python, packages(extra), _notebooks(), *_kernel(), *_gpu(extra), _disk(), _toolrl(), *_sandboxes()]


def packages(extra: str, state: str = FAIL) -> Row:
    """Return "ok" if all packages of the extra are in range, else this state and those that are not."""
    try:
        wanted = needed(extra)
    except PackageNotFoundError:
        return ("packages", FAIL, "vpo-lab itself is not installed: pip install -e '.[course]' in its repository")
    wrong = []
    for requirement in wanted:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        if not found or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier} ({found or 'absent'})")
    if wrong:
        return ("packages", state, f"{', '.join(wrong)}: pip install 'vpo-lab[{extra}]'")
    return ("packages", OK, f"all {len(wanted)} of the extra {extra!r}")


def needed(extra: str) -> list:
    """Return the requirements of the package with this extra, those of extras within it included."""
    from packaging.requirements import Requirement

    extras, found = [extra], {}
    for name in extras:  # grows: an extra may name others
        for requirement in map(Requirement, requires("vpo-lab") or []):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": name}):
                continue
            if requirement.name == "vpo-lab":
                extras += requirement.extras - set(extras)
            else:
                found[requirement.name] = requirement
    return list(found.values())


def _notebooks() -> Row:
    """A wheel brings no notebooks."""
    folder = Path(__file__).resolve().parents[2] / "notebooks"
    if (folder / "01_reward_vectors.ipynb").is_file():
        return ("notebooks", OK, str(folder))
    return (
        "notebooks",
        FAIL,
        "not beside the installed package: clone the repository, pip install -e '.[course]' there",
    )


def _kernel() -> list[Row]:
    """Jupyter finds the kernel `python3` by its name: another Python may have registered it."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return []  # reported as a package
    try:
        python = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return [("kernel", FAIL, "no kernel 'python3': pip install ipykernel")]
    if Path(python).parent in (Path(), Path(sys.executable).parent):  # a bare name means the Python that asks
        return [("kernel", OK, f"'python3' is {python}")]
    advice = f"another than {sys.executable}; `jupyter kernelspec list` shows where it is registered"
    return [("kernel", WARN, f"JupyterLab would run the notebooks in {python}, {advice}")]


def _gpu(extra: str) -> list[Row]:
    try:
        import torch
    except ImportError:
        return []  # reported as a package
    if not torch.cuda.is_available():
        return [("GPU", WARN, f"none: only qwen3-1.7b needs one, of 24 GB or more, and driver {DRIVER} or newer")]
    properties = torch.cuda.get_device_properties(0)
    size, capability = properties.total_memory / 1e9, (properties.major, properties.minor)
    fits = size >= 22 and capability >= (8, 0)
    advice = "" if fits else "; qwen3-1.7b wants 24 GB and compute capability 8.0 (L4, A10, 3090, 4090, A100, H100)"
    rows = [("GPU", OK if fits else WARN, f"{properties.name}, {size:.0f} GB, capability {capability}{advice}")]
    return rows if extra == "gpu" else [*rows, packages("gpu", WARN)]


def _disk() -> Row:
    folder = default_run_dir("tiny")
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    advice = "" if free > 10 else ": tiny is content with 1 GB, qwen3-1.7b wants 10 (model 4, checkpoints 4)"
    return ("disk", OK if free > 2 else WARN, f"{free:.0f} GB free for runs{advice}")


def _toolrl() -> Row:
    from vpo_lab.tasks.tool_calls.toolrl import cache_folder

    folder = cache_folder()
    if (folder / "train.parquet").exists():
        return ("ToolRL data", OK, f"cached in {folder}")
    return ("ToolRL data", WARN, "not cached: qwen3-1.7b downloads it, or pass --data FOLDER")


def _sandboxes() -> list[Row]:
    """Model-written code runs in one of these or not at all."""
    from vpo_lab.tasks.code.sandbox import available

    return [(f"sandbox {name}", WARN if reason else OK, reason or "works here") for name, reason in available().items()]
