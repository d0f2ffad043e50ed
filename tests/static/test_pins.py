"""Ranges in pyproject.toml, exact versions in requirements/*.lock: they agree, and every install uses them."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED_WITH = {"course": ("dev",), "gpu": ("gpu", "dev")}  # lock: the extras that it is for


def locked(name: str) -> dict[str, str]:
    """{package: version} of a lock file."""
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


def wanted(*extras: str) -> list[Requirement]:
    """What the base and these extras ask for, extras within extras included."""
    lines, names = list(PROJECT["dependencies"]), list(extras)
    for name in names:  # grows
        for line in EXTRAS[name]:
            requirement = Requirement(line)
            if requirement.name == PROJECT["name"]:
                names += sorted(requirement.extras - set(names))
            else:
                lines.append(line)
    return [Requirement(line) for line in lines]


def test_the_base_is_three_packages_and_nothing_is_pinned():
    assert {Requirement(line).name for line in PROJECT["dependencies"]} == {"numpy", "scipy", "moocore"}
    assert [str(r) for r in wanted(*EXTRAS) if any(s.operator in ("==", "===") for s in r.specifier)] == []


@pytest.mark.parametrize("lock", INSTALLED_WITH)
def test_a_lock_has_every_package_in_its_range(lock):
    versions = locked(lock)
    assert len(versions) > 100
    for requirement in wanted(*INSTALLED_WITH[lock]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), (
            f"{requirement}: make lock"
        )


def test_both_locks_have_the_same_versions():
    course, gpu = locked("course"), locked("gpu")
    assert {name: gpu[name] for name in course.keys() & gpu.keys()} == {
        name: course[name] for name in course.keys() & gpu.keys()
    }


@pytest.mark.parametrize("lock", INSTALLED_WITH)
def test_a_lock_names_packages_and_no_places(lock):
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    assert re.findall(r"://|^-|@|\+", text, re.MULTILINE) == []


def test_every_install_uses_a_lock_and_has_no_version_of_its_own():
    make, conda = (ROOT / "Makefile").read_text(), (ROOT / "environment.yml").read_text()
    assert '-c $(LOCK) -e ".[dev]"' in make and "LOCK ?= requirements/course.lock" in make
    assert "-c requirements/gpu.lock\n" in conda and "-e .[gpu,dev]\n" in conda and "==" not in conda


# A room: the extras whose packages its modules may import; anything else has the base alone.
ROOMS = {"processes": ["train"], "search": ["train", "code"], "train": ["gpu"]}
ROOMS |= {name: ["course"] for name in ("show", "tasks", "course", "cli")}
BROUGHT_BY = {"PIL": "matplotlib", "IPython": "ipykernel", "jupyter_client": "ipykernel"}
BROUGHT_BY |= {"packaging": "trl", "traitlets": "anywidget", "openai": "openevolve", "pydantic_monty": "pydantic-monty"}


def test_a_module_imports_only_what_its_extra_brings():
    for path in (ROOT / "vpo_lab").rglob("*.py"):
        room = path.relative_to(ROOT / "vpo_lab").with_suffix("").parts[0]
        allowed = {r.name for r in wanted(*ROOMS.get(room, []))} | {"vpo_lab"} | sys.stdlib_module_names
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module)
            for name in {name.partition(".")[0] for name in names}:
                assert BROUGHT_BY.get(name, name) in allowed, f"{path}: {name} is in no extra of {room}"


def test_pre_commit_uses_the_locked_ruff():
    found = set(re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()))
    assert found == {locked("course")["ruff"]}
