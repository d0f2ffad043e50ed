"""What agrees with what: README and results, figures. No torch, seconds."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from vpo_lab.course.notebooks import small_table
from vpo_lab.course.results import code_tables, page_tables, paper_tables, read, update_page
from vpo_lab.files import read_json

ROOT = Path(__file__).resolve().parents[2]


def test_ci_runs_the_command_of_the_readme():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_pages_show_the_committed_results(tmp_path):
    summary, tables = read_json(ROOT / "results" / "tiny" / "summary.json"), read(ROOT / "results" / "experiment")
    code = read(ROOT / "results" / "code")
    texts = page_tables(summary, tables) | code_tables(code) | paper_tables(tables, code)
    marked = []
    for page in (ROOT / "README.md", ROOT / "results" / "README.md", ROOT / "docs" / "paper.md"):
        copy = Path(shutil.copy(page, tmp_path))
        update_page(copy, texts)
        assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
        marked += re.findall(r"<!-- table: (\w+)", page.read_text(encoding="utf-8"))
    assert sorted(marked) == sorted(texts)


def test_the_report_shows_the_committed_results():
    notebook = json.loads((ROOT / "results" / "report.ipynb").read_text(encoding="utf-8"))
    shown: list = []
    names = {"display": shown.append}
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        body = ast.parse("".join(cell["source"])).body
        last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
        shown.clear()
        exec(compile(ast.Module(body, []), cell["id"], "exec"), names)
        value = eval(compile(last, cell["id"], "eval"), names) if last else None
        tables = [small_table(table._repr_html_()) for table in [*shown, value] if table is not None]
        committed = ["".join(output["data"]["text/html"]) for output in cell["outputs"] if "data" in output]
        assert committed == tables, cell["id"]
        assert len(cell["outputs"]) == max(1, len(tables))


def test_no_notebook_is_written_between_marks():
    folders = (ROOT / "notebooks", ROOT / "results")
    pages = [path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("*.ipynb")]
    assert len(pages) == 9 and not any("<!-- table:" in page for page in pages)


def test_the_results_page_has_the_committed_ratios_to_bare_trl():
    rows = read_json(ROOT / "results" / "bench.json")["rows"]
    ratios = [row["value"] for row in rows if row["part"].endswith("step / bare TRL step")]
    grpo, vpo = (f"{ratio:.2f}" for ratio in ratios)
    assert f"gave {grpo} for GRPO and {vpo} for VPO" in (ROOT / "results" / "README.md").read_text()


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", "results/README.md", "figures/README.md"]
    + [f"docs/{name}.md" for name in ("house", "paper", "verified")],
)
def test_links_and_pictures_of_the_documents_exist(document):
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text())
    folder = (ROOT / document).parent
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (folder / target).exists()] == []


def test_the_gallery_shows_every_figure_with_one_sentence():
    page = (ROOT / "figures" / "README.md").read_text()
    shown = re.findall(r"!\[[^\]]+\]\(([\w.]+)\)", page)
    assert sorted(shown) == sorted(path.name for path in (ROOT / "figures").glob("*.png"))
    for section in page.split("\n## ")[1:]:
        text = re.sub(r"`[^`]*`|\([^)]*\)", "", section.partition("\n\n")[2].partition("\n\n")[2])
        assert len(re.findall(r"[.!?](?:\s|$)", text)) == 1, section.partition("\n")[0]


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1100
