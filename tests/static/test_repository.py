"""What agrees with what: README and results, figures. No torch, seconds."""

import re
import shutil
from pathlib import Path

import pytest

from vpo_lab.course.results import (
    BLOCK,
    EXPECTED,
    read_tables,
    readme_table,
    update_expected,
    update_notebooks,
    update_results_page,
)
from vpo_lab.files import read_json

ROOT = Path(__file__).resolve().parents[2]


def test_ci_runs_the_command_of_the_readme():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_readme_shows_the_committed_results():
    block = BLOCK.search((ROOT / "README.md").read_text())
    summary = read_json(ROOT / "results" / "tiny" / "summary.json")
    assert block[0].removeprefix(block[1]).removesuffix(block[2]) == readme_table(summary)


def test_the_results_page_shows_the_committed_csv_files(tmp_path):
    page = tmp_path / "README.md"
    page.write_text((ROOT / "results" / "README.md").read_text())
    update_results_page(page, read_tables(ROOT / "results" / "experiment"))
    assert page.read_text() == (ROOT / "results" / "README.md").read_text()


def test_the_results_page_has_the_committed_ratios_to_bare_trl():
    rows = read_json(ROOT / "results" / "bench.json")["rows"]
    ratios = [row["value"] for row in rows if row["part"].endswith("step / bare TRL step")]
    grpo, vpo = (f"{ratio:.2f}" for ratio in ratios)
    assert f"gave {grpo} for GRPO and {vpo} for VPO" in (ROOT / "results" / "README.md").read_text()


def test_notebooks_and_readme_expect_what_the_committed_csv_files_say(tmp_path):
    copies = shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    readme = Path(shutil.copy(ROOT / "README.md", tmp_path))
    texts = [path.read_text() for path in (*copies.glob("*.ipynb"), readme)]
    assert {name for text in texts for name in re.findall(r"<!-- table: ([\w-]+)", text)} == EXPECTED.keys()
    tables = read_tables(ROOT / "results" / "experiment")
    assert update_notebooks(copies, tables) == update_expected(readme, tables) == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "results/README.md", "figures/README.md"])
def test_links_and_pictures_of_the_documents_exist(document):
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text())
    folder = (ROOT / document).parent
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (folder / target).exists()] == []


def test_the_gallery_shows_every_figure():
    shown = re.findall(r"!\[[^\]]+\]\(([\w.]+)\)", (ROOT / "figures" / "README.md").read_text())
    assert sorted(shown) == sorted(path.name for path in (ROOT / "figures").glob("*.png"))
