"""What importing costs, which way imports point, and that no file names a path of one machine."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vpo_lab"

# A room may import only what stands to its left, and itself. A new module needs a place here.
ORDER = (
    "errors", "weights", "methods", "chains", "metrics", "set_reward", "config", "processes", "files", "runs",
    "show", "tasks", "train", "search", "course", "cli",
)  # fmt: skip

LIGHT = ("errors", "config", "tasks", "chains", "weights", "methods", "metrics", "set_reward")
HEAVY = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "vllm", "unsloth", "wandb", "scipy",
    "pandas", "pyarrow", "moocore", "matplotlib", "plotly", "anywidget", "ipywidgets", "IPython", "papermill",
)  # fmt: skip


def test_importing_the_light_modules_loads_nothing_heavy():
    names = ["vpo_lab", *(f"vpo_lab.{name}" for name in LIGHT)]
    code = f"import sys, {', '.join(names)}; print(*({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """The name in ORDER that a file belongs to: its top folder or its own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The names in ORDER that a file imports, wherever the import stands."""
    package = ["vpo_lab", *path.relative_to(PACKAGE).parent.parts]
    targets = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            targets += [[*base, alias.name] for alias in node.names]
    # `from vpo_lab import __version__` names no module.
    return {t[1] for t in targets if t[0] == "vpo_lab" and len(t) > 1 and not t[1].startswith("__")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_only_to_the_left(path):
    own = place(path)
    if own == "__main__":
        return
    if own == "__init__":
        assert imported(path) == set(), "importing vpo_lab must stay free: import nothing of the package here"
        return
    assert own in ORDER, f"give {own} its place in ORDER"
    for name in imported(path) - {own}:
        assert name in ORDER, f"{path.name} imports vpo_lab.{name}, which has no place in ORDER"
        assert ORDER.index(name) < ORDER.index(own), f"{own} imports {name}, which stands to its right"


def test_the_check_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks" / "one.py"
    path.write_text(
        "import numpy, vpo_lab.cli\nfrom vpo_lab import show, __version__\nfrom vpo_lab.train.policy import x\n"
        "from . import two\nfrom ..widgets import y\ndef f():\n    from .. import training\n"
    )
    assert place(path) == "tasks"
    assert imported(path) == {"cli", "show", "train", "tasks", "widgets", "training"}


# Built in two halves, so that this file does not name what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.~])/" + r"(?:work|root)/")


def test_no_file_names_a_path_of_one_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: git tells which files belong to the project")
    listed = subprocess.run(["git", "ls-files", "-co", "-z", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip(f"git does not list the files: {listed.stderr.decode(errors='replace').strip()[:200]}")
    found = []
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or not path.is_file() or path.stat().st_size > 5_000_000:
            continue
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue  # not text
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line[max(0, match.start() - 20) :][:80].strip()}")
    assert not found, "\n".join(found)
