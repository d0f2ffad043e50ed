"""Build docs/explorer.html: the sets of several policies under weights that a reader sets, without a kernel.

The page is one file: `explorer.html`, with the script of `vpo_lab.show.explorer` and the data of saved results in it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

from vpo_lab.course.experiment import read_examples, read_mazes
from vpo_lab.course.figures import small_png
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_bytes, write_json
from vpo_lab.methods import METHODS
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool, sample_sets
from vpo_lab.show.explorer import SCRIPT, CandidateSet, explorer_data, make_world, one_line
from vpo_lab.show.style import method_label
from vpo_lab.tasks import get_task

TEMPLATE = Path(__file__).with_name("explorer.html")
REQUESTS = 4  # of the results: the first ones, not chosen
PRICE = 0.01  # of KL, in the optimal policies of the judges' world
WORLDS = {  # what a task is called, the objective that has all weight at first, and where its sets come from
    "maze": (
        "Maze: objectives compete",
        "gold",
        " The page opens in a maze where GRPO brings no gold, as in about half of them: that with VPO's median lead.",
    ),
    "tiny_code": ("Code patches: six hidden tests", "test_1", ""),
    "tiny_judges": (
        "Letters: four judges",
        "formal",
        f" No model wrote these: they are drawn from the exact optimum of each method (a price of {PRICE} on KL).",
    ),
    "tiny_tools": ("Tool calls: often one right answer", "", ""),
}


def write_explorer(
    results: Path,
    experiment: Path,
    out: Path,
    code: Path = Path(),
    optima: Path = Path(),
    replies: Path = Path(),
) -> Path:
    """Write the page from a folder of saved results and, where they exist, sets of other worlds; return its path.

    `experiment` and `code` are folders of experiments, `optima` is a file of `write_optima` and `replies` one of
    `save_replies`. The page shows the SFT policy and every method of which `results` holds a pool. The same results
    give the same bytes. Raises LabError if there is no pool.
    """
    run = Run(results)
    names = [name for name in ("sft", *METHODS) if run.pool(name).exists()]
    if not names:
        raise LabError(f"{run.pool('sft').parent} holds no pool of candidates: run the notebooks first")
    pools = {name: Pool.load(run.pool(name)) for name in names}
    first = next(iter(pools.values()))
    saved = {"maze": read_mazes(experiment), "tiny_code": read_examples(code, "tiny_code")}
    saved["tiny_judges"] = read_json(optima) if optima.is_file() else {}
    worlds = [_world(task, _compared(requests)) for task, requests in saved.items() if requests]
    worlds += [_real_world(read_json(replies))] if replies.is_file() else []
    worlds.append(_world(first.task, {row_id: sample_sets(pools, n) for n, row_id in enumerate(first.ids[:REQUESTS])}))
    write_bytes(out, fill(explorer_data(worlds)).encode())
    return out


def write_optima(path: Path) -> Path:
    """Draw the sets of the judges' world from its exact optima and write them; return the path."""
    from vpo_lab.course.tastes import optimal_sets

    write_json(path, optimal_sets("tiny_judges", PRICE))
    return path


def take_picture(page: Path, out: Path) -> Path:
    """Write what a window of 1,200 pixels shows of the page when it opens, as PNG; return its path.

    Needs Chromium; its fonts are those of the machine, so the bytes differ between machines. LabError without it.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        raise LabError("no chromium to take the picture with: install it, or leave --picture out")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/user")
        size = ("--window-size=1200,740", "--force-device-scale-factor=1", f"--screenshot={shot}")
        done = subprocess.run([browser, *flags, *size, page.resolve().as_uri()], capture_output=True, text=True)
        if not shot.exists():
            raise LabError(f"{browser} took no picture of {page}: {one_line(done.stderr or 'it said nothing')}")
        write_bytes(out, small_png(shot.read_bytes()))
    return out


def _compared(requests: Mapping[str, Mapping[str, dict]]) -> dict[str, dict[str, CandidateSet]]:
    """The four sets to compare of an experiment's examples."""
    names = ("sft", "grpo", "best_of_set", "vpo")
    return {
        row_id: {name: (found[name]["answers"], found[name]["rewards"]) for name in names if name in found}
        for row_id, found in requests.items()
    }


def _real_world(found: dict) -> dict:
    """The world of a file of `save_replies`: three replies of each policy to real requests."""
    named = [
        {method_label(name): (one["answers"][:3], one["rewards"][:3]) for name, one in request["sets"].items()}
        for request in found["requests"]
    ]
    about = SimpleNamespace(about=found["about"], meanings=found["meanings"])
    titles = [request["text"] for request in found["requests"]]
    names = list(found["requests"][0]["sets"])
    dear = {name.partition("_kl")[0] for name in names if "_kl" in name}  # trained with a price, too: that one counts
    apart = {method_label(name) for name in names if name == "best_of_set" or name in dear}
    return make_world(named, found["objectives"], titles, task=about, apart=apart) | {"name": "Replies of a real model"}


def _world(task_name: str, requests: Mapping[str, Mapping[str, CandidateSet]]) -> dict:
    task = get_task(task_name)
    rows = {row["id"]: row for row in task.load(None, "test")}
    asked = [rows[row_id] for row_id in requests]
    names = list(next(iter(requests.values())))
    last = next((name for name in ("vpo", "vpo_credit") if name in names), names[-1])  # the game is about it
    names.sort(key=lambda name: name == last)
    apart = {method_label(name) for name in names if len(names) > 3 and name not in ("sft", "grpo", last)}
    named = [{method_label(name): sets[name] for name in names if name in sets} for sets in requests.values()]
    title, start, source = WORLDS.get(task_name, (task_name.replace("_", " ").capitalize(), "", ""))
    world = make_world(named, task.objectives, task=task, rows=asked, start=start, apart=apart)
    return world | {"name": title, "about": world["about"] + source}


def fill(data: dict) -> str:
    """Return the page with its script and data, in which no text can end the script that it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("/* script */", SCRIPT.read_text(encoding="utf-8"))
    return page.replace("/* data */", text)
