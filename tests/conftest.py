"""What several test files share: the options of this suite, and ToolRL's real rows."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two threads can be far slower than one

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "toolrl"


def pytest_addoption(parser):
    group = parser.getgroup("VPO Lab")
    group.addoption("--need", action="append", default=[], choices=("toolrl", "gpu"), help="fail where this is missing")
    group.addoption("--toolrl", type=Path, default=BESIDE, metavar="FOLDER", help="ToolRL's real rows")
    group.addoption("--chromium", metavar="FILE", help="a browser other than the one that is installed")
    group.addoption("--screenshots", type=Path, metavar="FOLDER", help="keep what the browser shows")


@pytest.fixture(scope="session")
def toolrl_dir(request) -> Path:
    """The folder with ToolRL's real rows; skips, with the reason, where there is none."""
    folder = request.config.getoption("toolrl")
    if (folder / "test.parquet").is_file():
        return folder
    reason = f"real ToolRL rows not found in {folder}: name their folder by --toolrl"
    (pytest.fail if "toolrl" in request.config.getoption("need") else pytest.skip)(reason)
