"""notebooks.py: which Python a notebook runs in, with which environment, and which settings its cells can take."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest

from vpo_lab.config import get_profile
from vpo_lab.course import notebooks
from vpo_lab.course.notebooks import (
    COURSE_RULES,
    Job,
    _execute,
    as_committed,
    check_parameters,
    kernel_environment,
    publish,
    waves_of,
)
from vpo_lab.course.worlds import worlds_of
from vpo_lab.errors import LabError
from vpo_lab.files import write_json
from vpo_lab.processes import Session, session
from vpo_lab.runs import Run
from vpo_lab.search.pool import pool_names

SMOKE = get_profile("smoke")

CELL = """
import sys, json, os, matplotlib.pyplot as plt
from vpo_lab.processes import session, world_size
plt.plot([1, 2]); plt.show()
print(json.dumps([sys.executable, world_size(), session().headless, os.environ.get("RANK"), value]))
"""


def notebook(path: Path, *cells: str) -> Path:
    parameters = nbformat.v4.new_code_cell("value: int = 0", metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [parameters, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def outputs(path: Path) -> list:
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def foreign_kernel(folder: Path) -> None:
    (folder / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": ["/no/such/python", "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))


def test_a_notebook_runs_in_this_python_and_shows_its_pictures_whatever_the_shell_says(tmp_path, monkeypatch):
    foreign_kernel(tmp_path / "jupyter")
    shell = {"JUPYTER_PATH": str(tmp_path / "jupyter"), "JUPYTER_PREFER_ENV_PATH": "0", "MPLBACKEND": "Agg"}
    shell |= {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "runs {a} {value}"
    folder.mkdir()
    job = Job("n", notebook(folder / "n.ipynb", CELL), folder / "done.ipynb")
    _execute(job, {"value": 7}, kernel_environment(SMOKE, until=None))
    found = outputs(job.target)
    assert any("image/png" in output.get("data", {}) for output in found)
    text = "".join(output.text for output in found if output.output_type == "stream" and output.name == "stdout")
    assert json.loads(text) == [sys.executable, 1, True, None, 7]


def test_figures_are_shown_in_a_notebook_that_a_reader_opened_under_another_backend(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    cell = "import vpo_lab.show, matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    job = Job("n", notebook(tmp_path / "n.ipynb", cell), tmp_path / "done.ipynb")
    _execute(job, {}, {**os.environ, "MPLBACKEND": "Agg"})
    assert any("image/png" in output.get("data", {}) for output in outputs(job.target))


def test_kernels_are_told_where_the_command_started_and_when_to_stop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in kernel_environment(SMOKE, until=9.5).items():
        monkeypatch.setenv(name, value)
    assert session() == Session(task_folder=str(tmp_path), until=9.5, headless=True)
    assert os.environ["OMP_NUM_THREADS"]


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, field",
    [
        ({"methods": ["vpo"]}, "methods"),
        ({"methods": ["grpo"]}, "methods"),
        ({"methods": ["vpo", "grpo"]}, "methods"),
        ({"methods": ["grpo", "gdpo"]}, "methods"),
        ({"methods": ["grpo", "vpo_credit"]}, "methods"),
        ({"rl.candidates": 1}, "rl.candidates"),
        ({"rl.candidates": 6}, "evaluation.candidates"),
        ({"evaluation.candidates": 3, "evaluation.budgets": [1, 3]}, "evaluation.candidates"),
    ],
)
def test_what_a_cell_cannot_digest_is_refused_by_name(overrides, field):
    profile = get_profile("smoke", overrides)  # a training can
    with pytest.raises(LabError, match=field):
        profile.checked(COURSE_RULES)


def test_every_profile_goes_through_the_notebooks():
    for name in ("tiny", "smoke", "maze", "qwen3-1.7b"):
        get_profile(name).checked(COURSE_RULES)


def test_check_parameters_reads_annotated_and_plain_declarations(tmp_path):
    declarations = "# note: x = 1\nprofile: str = 'tiny'\nseed = 0"
    cell = nbformat.v4.new_code_cell(declarations, metadata={"tags": ["parameters"]})
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    check_parameters(path, {"profile": "smoke", "seed": 1})
    with pytest.raises(LabError, match="'x'"):
        check_parameters(path, {"x": 2})


# --- Publishing -------------------------------------------------------------------------------


def test_published_notebooks_carry_outputs_but_no_timings():
    source = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1", id="a")])
    executed = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("seed = 3", id="injected"),
            nbformat.v4.new_code_cell(
                "1 + 1",
                id="a",
                execution_count=7,
                metadata={"papermill": {"duration": 1}},
                outputs=[nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=7)],
            ),
        ],
        metadata={"papermill": {"output_path": "somewhere"}},
    )
    result = as_committed(executed, source)
    assert [cell.id for cell in result.cells] == ["a"]
    assert result.cells[0].execution_count == result.cells[0].outputs[0].execution_count == 1
    assert "papermill" not in json.dumps(result)


def test_a_run_checks_the_folded_solution_and_the_published_cell_stays_empty(tmp_path):
    exercise = "What is 1 + 1?\n\n<details>\n<summary>Solution</summary>\n\n```python\n{}\n```\n\n</details>"

    def course(solution):
        cells = [nbformat.v4.new_markdown_cell(exercise.format(solution))]
        cells.append(nbformat.v4.new_code_cell("# Your answer.", metadata={"tags": ["answer"]}))
        path = notebook(tmp_path / "n.ipynb")
        found = nbformat.read(path, as_version=4)
        found.cells += cells
        nbformat.write(found, path)
        return path

    job = Job("n", course("total = 1 + 1\nassert total == 2\nprint(total)"), tmp_path / "done.ipynb")
    _execute(job, {}, dict(os.environ))
    assert outputs(job.target)[-1].text == "2\n"
    published = as_committed(nbformat.read(job.target, as_version=4), nbformat.read(job.source, as_version=4)).cells[-1]
    assert published.outputs == [] and published.source == "# Your answer." and published.execution_count == 2
    with pytest.raises(Exception, match="AssertionError"):
        _execute(replace(job, source=course("assert 1 + 1 == 3")), {}, dict(os.environ))


def test_a_run_is_published_with_the_results_of_both_worlds(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "notebook_folder", lambda: tmp_path / "notebooks")
    run, smoke = Run(tmp_path / "run"), get_profile("smoke")
    for folder in (tmp_path / "notebooks", run.folder):
        folder.mkdir()
        for name in (name for wave in waves_of(smoke) for name in wave):
            notebook(folder / f"{name}.ipynb", "1 + 1")
    for world in worlds_of(smoke, run):
        write_json(world.run.summary, {"profile": world.settings.name})
        for path in (
            *(stage / "log.jsonl" for stage in world.stages),
            *map(world.run.pool, pool_names(world.settings)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(world.settings.name.encode())
    written = publish(run)
    results = tmp_path / "results"
    for name in ("smoke", "smoke_maze"):
        assert (results / name / "pools" / "sft_chain.json.gz").read_bytes() == name.encode()
        assert (results / name / "vpo" / "log.jsonl").read_bytes() == name.encode()
    assert all(path.exists() for path in written) and len(written) == len(set(written))


def test_progress_counts_the_stages_of_both_worlds(tmp_path):
    profile = get_profile("smoke")
    display = notebooks.Display(profile, Run(tmp_path), [], None)
    job = Job("03_grpo_baseline", tmp_path / "in.ipynb", tmp_path / "out.ipynb", started=1.0)
    for folder, done in (("maze/grpo", 0.9 / 2), ("grpo", 0.9)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "log.jsonl").write_text(f'{{"step": {profile.rl.steps}}}\n')
        assert np.isclose(display._part(job)[0], done)
    assert display._part(job)[1] == "grpo 4/4, maze/grpo 4/4"
    own = Job("06_code_and_search", tmp_path / "in.ipynb", tmp_path / "out.ipynb", started=1.0)
    assert display._part(own) == (0.0, "running")
    steps = get_profile(profile.code).sft.steps
    (tmp_path / "code" / "sft").mkdir(parents=True)
    (tmp_path / "code" / "sft" / "log.jsonl").write_text(f'{{"step": {steps}}}\n')
    assert display._part(own) == (pytest.approx(0.9 / 3), f"code/sft {steps}/{steps}")
    both = replace(own, name="07_judges_and_hacking")  # it trains the same three twice
    (tmp_path / "judges_flawed" / "sft").mkdir(parents=True)
    (tmp_path / "judges_flawed" / "sft" / "log.jsonl").write_text('{"step": 99999}\n')
    assert display._part(both)[0] == pytest.approx(0.9 / 6)


def test_a_profile_that_names_no_code_and_no_judges_has_the_other_notebooks():
    assert [name[:2] for wave in waves_of(get_profile("maze")) for name in wave] == ["00", "01", "02", "03", "04", "05"]
    assert sorted(name[:2] for wave in waves_of(SMOKE) for name in wave) == [f"0{n}" for n in range(8)]


def test_the_whole_run_says_what_the_rest_of_rl_will_take(tmp_path):
    profile, run = get_profile("smoke", {"rl.steps": 50}), Run(tmp_path)
    display = notebooks.Display(profile, run, [], price=2.0)
    log = tmp_path / "grpo" / "log.jsonl"
    log.parent.mkdir()
    for step, now, told in ((0, 5, ""), (1, 100, ""), (15, 240, ""), (26, 350, "10 s a step, 0.2 h for 74 steps")):
        log.write_text("".join(f'{{"step": {n}}}\n' for n in range(1, step + 1)))
        assert told in display.rest(now) and bool(told) == bool(display.rest(now))
    assert "about 0.41 at 2 an hour" in display.rest(350)
    free = notebooks.Display(profile, run, [])
    assert free.rest(0) == free.rest(1) == ""
    log.write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 48)))
    assert free.rest(1000) == "" and "1.1 h for 53 steps" in free.rest(1600)


def test_a_notebook_whose_training_was_stopped_runs_again_with_those_that_read_it(tmp_path):
    def done_again(*stages: str) -> list[str]:
        """Which notebooks run again if these stages, of all that are trained, were stopped in an earlier run."""
        jobs = {name: Job(name, tmp_path, tmp_path / f"{name}.ipynb") for wave in waves_of(SMOKE) for name in wave}
        for job in jobs.values():
            write_json(job.target, {})
        for stage in (*stages, "grpo", "judges/grpo"):
            (tmp_path / stage / "policy").mkdir(parents=True, exist_ok=True)
            write_json(tmp_path / stage / "policy" / "config.json", {})
        for stage in stages:
            write_json(tmp_path / stage / "stopped.json", {"step": 1, "steps": 4, "until": 1.0})
        notebooks._take_up_stopped(jobs, SMOKE, Run(tmp_path))
        for stage in stages:
            (tmp_path / stage / "stopped.json").unlink()
        return [name[:2] for name, job in jobs.items() if not job.done]

    assert done_again() == []
    assert done_again("code/vpo") == ["06"]
    assert done_again("maze/vpo") == ["04", "05"]
    assert done_again("grpo", "judges/grpo") == ["03", "04", "05", "07"]
