"""What several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toolrl_dir() -> Path:
    """The folder with ToolRL's real rows; skips, with the reason, where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "toolrl"
    folder = Path(os.environ.get("VPO_LAB_TOOLRL") or default)
    if (folder / "test.parquet").is_file():
        return folder
    reason = f"real ToolRL rows not found at {folder}; set VPO_LAB_TOOLRL"
    if os.environ.get("VPO_LAB_REQUIRE_TOOLRL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
