"""Where the real rows of coding problems are, and whether answers can be run, for the tests that need it."""

from functools import lru_cache
from pathlib import Path

import pytest

from vpo_lab.errors import LabError

FOLDER = Path(__file__).parents[1].parent / "shared" / "data"


def data_file(name: str) -> Path:
    """The file in the folder beside the repository; skips, with the reason, where there is none."""
    file = FOLDER / name
    if not file.is_file():
        pytest.skip(f"no {name} in {FOLDER}")
    return file


@lru_cache
def no_sandbox() -> str:
    """Why no sandbox works here; "" if one does."""
    from vpo_lab.tasks.code.sandbox import open_sandbox

    try:
        open_sandbox().close()
    except LabError as error:
        return str(error)
    return ""
