"""The notebooks as they are committed: read as JSON, never run. No torch."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from vpo_lab.course.notebooks import SOLUTION, with_solutions

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAMES = [
    "00_vpo_in_ten_minutes",
    "01_reward_vectors",
    "02_sft_warmup",
    "03_grpo_baseline",
    "04_vpo_training",
    "05_bestk_and_pareto",
    "06_code_and_search",
    "07_judges_and_hacking",
]
PATHS = sorted(FOLDER.glob("*.ipynb"))
FIRST, *WITH_THE_PACKAGE = PATHS  # 00 opens anywhere: it needs no package of ours, no profile and no run
PARAMETERS = {"profile": "str", "seed": "int", "run_dir": "str", "overrides": "dict"}
REPOSITORY = "OWNER/vpo-lab"  # its public address; a fork replaces it in the notebooks and here
MAX_BYTES, MAX_LINE = 500_000, 110

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Folders that exist only on the machine of whoever ran the notebook.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:work|root|tmp|home|Users)/")
MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def distribution(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("-", "_")


def read(path: Path) -> dict:
    """The notebook as a run executes it: its solutions are code like any other."""
    return with_solutions(nbformat.read(path, as_version=4))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def markdown(notebook: dict) -> str:
    return "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def tagged(notebook: dict, tag: str) -> list[dict]:
    return [cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", [])]


def tree(cell: dict) -> ast.Module:
    """The cell's syntax tree, lines of IPython magic replaced by `pass`."""
    return ast.parse(MAGIC.sub(r"\1pass", source(cell)))


def imported(cell: dict) -> set[str]:
    """The top-level packages that a cell imports."""
    nodes = list(ast.walk(tree(cell)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in plain | named}


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def output_texts(notebook: dict) -> list[str]:
    """All text in the outputs; pictures are left out, any letters may meet in them."""
    texts = []
    for output in outputs(notebook):
        texts.append("".join(output.get("text", [])))
        data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/png")}
        texts.append(json.dumps(data))
    return texts


def prose(notebook: dict) -> list[str]:
    """The words that are read: no code, no formulas, no addresses."""
    text = re.sub(r"(?s)```.*?```|\$\$.*?\$\$|</?\w+>|\]\([^)]*\)", " ", markdown(notebook))
    return [word for word in text.split() if re.search(r"\w", word)]


def test_there_are_exactly_these_in_order():
    assert [path.stem for path in PATHS] == NAMES


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path) -> dict:
    return read(path)


def test_is_valid_and_small(path, notebook):
    nbformat.validate(nbformat.reads(path.read_text(encoding="utf-8"), as_version=nbformat.NO_CONVERT))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert path.stat().st_size < MAX_BYTES
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", WITH_THE_PACKAGE, ids=lambda path: path.stem)
def test_one_parameters_cell_of_literals(notebook):
    (cell,) = tagged(notebook, "parameters")
    statements = tree(cell).body
    assert all(isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name) for s in statements)
    assert {s.target.id: ast.unparse(s.annotation) for s in statements} == PARAMETERS
    for statement in statements:
        value = ast.literal_eval(statement.value)  # fails on anything derived
        assert type(value).__name__ == PARAMETERS[statement.target.id]


def test_the_install_cell_is_the_same_everywhere_and_acts_only_where_the_package_is_missing():
    (cell,) = {source(code_cells(read(path))[0]) for path in WITH_THE_PACKAGE}
    _, guarded = tree({"source": cell}).body
    assert isinstance(guarded, ast.If) and not guarded.orelse
    assert ast.unparse(guarded.test) == "importlib.util.find_spec('vpo_lab') is None"
    (command,) = re.findall(r"%pip install .*", cell)
    assert command.endswith(f'"vpo-lab[course] @ git+https://github.com/{REPOSITORY}"')


def test_the_first_is_short_and_needs_numpy_and_matplotlib_alone():
    notebook = read(FIRST)
    assert set().union(*map(imported, code_cells(notebook))) == {"numpy", "matplotlib"}
    assert not tagged(notebook, "parameters") and not any(MAGIC.search(source(cell)) for cell in code_cells(notebook))
    assert len(notebook["cells"]) <= 25 and len(prose(notebook)) <= 900


@pytest.mark.parametrize("path", WITH_THE_PACKAGE[:5], ids=lambda path: path.stem)
def test_an_evening_is_enough_for_the_course_itself(notebook):
    assert len(prose(notebook)) <= 2200 and len(notebook["cells"]) <= 50


def test_every_notebook_names_one_address(notebook):
    text = json.dumps(notebook)
    assert set(re.findall(r"github(?:\.com)?/([\w.-]+/vpo-lab)\b", text)) == {REPOSITORY}
    assert re.search(rf"colab\.research\.google\.com/github/{REPOSITORY}/blob/main/notebooks/\d\d_\w+\.ipynb", text)


def test_code_compiles_and_its_lines_are_short(notebook):
    for cell in code_cells(notebook):
        compile(tree(cell), cell["id"], "exec")
        assert [line for line in source(cell).splitlines() if len(line) > MAX_LINE] == []


def test_imports_only_what_the_project_depends_on(notebook):
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *extras["train"], *extras["course"]]
    allowed = {"vpo_lab", *sys.stdlib_module_names, *map(distribution, needed)}
    for cell in code_cells(notebook):
        assert imported(cell) <= allowed, cell["id"]


def test_exercises_have_folded_solutions_that_run(path, notebook):
    text, solutions = markdown(notebook), tagged(notebook, "answer")
    folded = re.findall(r"<details>\n.*?</details>", text, re.DOTALL)
    least = 1 if path == FIRST else 2
    assert len(folded) >= least and len(solutions) >= least
    assert text.count("<details>") == text.count("</details>") == len(folded)
    assert text.count("<summary>Solution</summary>") == len(SOLUTION.findall(text)) == len(solutions)
    committed = tagged(nbformat.read(path, as_version=4), "answer")
    for cell, empty in zip(solutions, committed, strict=True):
        assert source(empty).startswith("# Your answer") and not empty["outputs"] and "\n" not in source(empty)
        assert f"```python\n{source(cell)}\n```" in "\n".join(folded), f"{cell['id']} is not the solution that is shown"
        assert any(isinstance(node, ast.Assert) for node in ast.walk(tree(cell)))


def test_links_lead_to_files_and_on_to_the_next(path, notebook):
    targets = re.findall(r"\]\(([^)\s]+)\)", markdown(notebook))
    local = [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
    assert [target for target in local if not (FOLDER / target).exists()] == []
    if path.stem != NAMES[-1]:
        assert f"{NAMES[NAMES.index(path.stem) + 1]}.ipynb" in local
    badge = next(target for target in targets if target.startswith("https://colab.research.google.com/github/"))
    assert badge.endswith(f"/notebooks/{path.name}")


def test_the_glossary_sends_readers_to_notebooks_that_use_its_words():
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    words = {word: re.findall(r"\(\.\./notebooks/([\w.]+)\)", where) for word, where in rows[1:]}
    assert len(words) > 30 and list(words) == sorted(words, key=str.lower)
    for word, places in words.items():
        assert places, word
        for place in places:
            text = " ".join(markdown(read(FOLDER / place)).lower().split())
            parts = word.lower().removesuffix(")").split(" (")  # "expected utility (EUM)"
            assert any(part in text for part in parts), f"{place} never says {word!r}"


def test_every_notebook_leads_to_the_glossary(notebook):
    assert "(../docs/glossary.md)" in markdown(notebook)


def test_no_widget_state_no_timings_no_errors(notebook):
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags", "jupyter", "editable", "slideshow"}, cell["id"]
    for output in outputs(notebook):
        assert output["output_type"] != "error"
        assert not [mime for mime in output.get("data", {}) if "widget" in mime]


def test_no_path_of_one_machine(notebook):
    texts = [*(source(cell) for cell in notebook["cells"]), *output_texts(notebook)]
    assert [text[m.start() : m.start() + 60] for text in texts for m in MACHINE_PATH.finditer(text)] == []


def test_committed_outputs_are_of_one_run_from_the_top(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    expected = range(1, len(counts) + 1) if outputs(notebook) else [None] * len(counts)
    assert counts == list(expected)
