"""`vpo-lab report` on a repository of its own: a notebook of two cells, two pages."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from vpo_lab.course.notebooks import write_report
from vpo_lab.course.results import read
from vpo_lab.errors import LabError

RESULTS = Path(__file__).resolve().parents[2] / "results"


@pytest.fixture
def root(tmp_path):
    """A repository with the committed results of three policies in the tiny world."""
    (tmp_path / "results" / "experiment").mkdir(parents=True)
    (tmp_path / "results" / "tiny").mkdir()
    shutil.copy(RESULTS / "tiny" / "summary.json", tmp_path / "results" / "tiny")
    for name, rows in read(RESULTS / "experiment").items():
        few = rows.query("world == 'tiny' and variant in ('sft', 'grpo', 'vpo')")
        few.to_csv(tmp_path / "results" / "experiment" / f"{name}.csv", index=False)
    (tmp_path / "README.md").write_text("<!-- table: run -->\n<!-- /table -->\n")
    (tmp_path / "results" / "README.md").write_text("<!-- table: tiny -->\n<!-- /table -->\n")
    return tmp_path


def write(root: Path, *sources: str) -> Path:
    path = root / "results" / "report.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(text, id=f"c{n}") for n, text in enumerate(sources)]), path)
    return path


def test_the_report_is_executed_and_the_pages_are_written(root):
    read_here = "from vpo_lab.course import results; tables = results.read('experiment')"
    path = write(root, read_here, "results.collinearity(tables)")
    assert write_report(root) == [path, root / "README.md", root / "results" / "README.md"]
    first, second = nbformat.read(path, as_version=4).cells
    assert (first.outputs, first.execution_count, second.execution_count) == ([], 1, 2)
    assert set(second.outputs[0].data) == {"text/html"} and "grpo" in second.outputs[0].data["text/html"]
    assert "VPO minus GRPO" in (root / "README.md").read_text()
    assert "| grpo " in (root / "results" / "README.md").read_text()
    once = path.read_bytes()
    write_report(root)
    assert path.read_bytes() == once


def test_a_cell_that_fails_is_one_line_and_changes_nothing(root):
    path = write(root, "1 / 0")
    before = path.read_bytes()
    with pytest.raises(LabError, match="ZeroDivisionError") as caught:
        write_report(root)
    assert "\n" not in str(caught.value) and path.read_bytes() == before
