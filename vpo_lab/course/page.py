"""Build docs/explorer.html: the sets of several policies under weights that a reader turns, without a kernel.

The page is one file: `explorer.html`, with the script of `vpo_lab.show.explorer` and the data of saved results in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vpo_lab.course.experiment import read_examples
from vpo_lab.errors import LabError
from vpo_lab.files import write_bytes
from vpo_lab.methods import METHODS
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool, sample_sets
from vpo_lab.show.explorer import SCRIPT, CandidateSet, explorer_data, make_world
from vpo_lab.tasks import Task, get_task

TEMPLATE = Path(__file__).with_name("explorer.html")
REQUESTS = 12  # of the results: the first ones, not chosen


def write_explorer(results: Path, experiment: Path, out: Path) -> Path:
    """Write the page from a folder of saved results and from an experiment's mazes, if it has any; return its path.

    It shows the SFT policy and every method of which `results` holds a pool. The same results give the same bytes.
    Raises LabError if there is no pool.
    """
    run = Run(results)
    names = [name for name in ("sft", *METHODS) if run.pool(name).exists()]
    if not names:
        raise LabError(f"{run.pool('sft').parent} holds no pool of candidates: run the notebooks first")
    label = {"sft": "SFT"} | {name: method.label for name, method in METHODS.items()}
    pools = {label[name]: Pool.load(run.pool(name)) for name in names}
    first = next(iter(pools.values()))
    ids = first.ids[:REQUESTS]
    worlds = [_world(get_task(first.task), {row_id: sample_sets(pools, n) for n, row_id in enumerate(ids)})]
    if mazes := read_examples(experiment, "maze"):
        requests = {
            row_id: {label[n]: (found[n]["answers"], found[n]["rewards"]) for n in names if n in found}
            for row_id, found in mazes.items()
        }
        worlds.insert(0, _world(get_task("maze"), requests))
    write_bytes(out, fill(explorer_data(worlds)).encode())
    return out


def _world(task: Task, requests: Mapping[str, Mapping[str, CandidateSet]]) -> dict:
    rows = {row["id"]: row for row in task.load(None, "test")}
    asked = [rows[row_id] for row_id in requests]
    world = make_world(list(requests.values()), task.objectives, task=task, rows=asked)
    return world | {"name": task.name.replace("_", " ").capitalize()}


def fill(data: dict) -> str:
    """Return the page with its script and data, in which no text can end the script that it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("/* script */", SCRIPT.read_text(encoding="utf-8"))
    return page.replace("/* data */", text)
