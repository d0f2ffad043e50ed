"""docs/explorer.html: the sets of SFT, GRPO and VPO with sliders over the weights, without a kernel.

Open the file in any browser: turn the weights and see which answer of each set wins, what each set is
worth over all weightings, and who wins where. It is one file, with its data and its script inside; this
module fills the template explorer.html from saved results. The page repeats the arithmetic of
`scalarization` and `widgets` in JavaScript; tests/browser compares the two.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vpo_lab.course.experiment import read_examples
from vpo_lab.course.widgets import CandidateSet, short_answer, utility_weights
from vpo_lab.errors import LabError
from vpo_lab.files import write_bytes
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool, sample_sets
from vpo_lab.show.style import METHOD_LABEL, OKABE_ITO
from vpo_lab.tasks import get_task
from vpo_lab.tasks.maze.draw import MARKERS, MAZE_CELLS, maze_grid, maze_walks
from vpo_lab.weights import winners

TEMPLATE = Path(__file__).with_name("explorer.html")

MARK = "/* data */"

METHODS = {  # what the page shows, and what it says of each
    "sft": "the common start: it guesses",
    "grpo": "trained for the best single answer",
    "vpo": "trained for the best set of answers",
}

REQUESTS = 12  # of the tool calls; the first ones, not chosen

MEANING = {
    "maze": {
        "completion": "reaches the exit",
        "gold": "share of the gold taken",
        "diamond": "share of the diamonds taken",
        "avoid_lava": "1 for no lava, ½ for one cell, 0 for two",
    },
    "tool": {
        "format": "a program can read it",
        "tool_name": "the right tools",
        "param_name": "the right parameters",
        "param_value": "the right values",
    },
}


def write_explorer(results: Path, experiment: Path, out: Path) -> Path:
    """Build the page from a folder of saved results and one of an experiment; returns its path.

    The same results give the same bytes. LabError if there are no candidate pools in `results`; an
    experiment without maze examples is left out.
    """
    worlds = [world for world in (_mazes(experiment), _tool_calls(results)) if world]
    write_bytes(out, fill(TEMPLATE.read_text(encoding="utf-8"), page_data(worlds)).encode())
    return out


def page_data(worlds: list[dict]) -> dict:
    """What the page's script reads: worlds and what its arithmetic shares with Python."""
    sizes = {len(world["objectives"]) for world in worlds}
    return {
        "worlds": worlds,
        # Nine digits: the last bits of a logarithm differ between processors, the file must not.
        "utility_weights": {d: utility_weights(d).round(9).tolist() for d in sorted(sizes)},
        "tolerance": inspect.signature(winners).parameters["tolerance"].default,
        "palette": OKABE_ITO,
        "maze_key": [[kind, face, MARKERS[marker], color] for kind, (face, marker, color) in MAZE_CELLS.items()],
    }


def fill(template: str, data: dict) -> str:
    """The template with the data in it, so that no text in the data can end the script it stands in."""
    if template.count(MARK) != 1:
        raise LabError(f"{TEMPLATE.name} must hold {MARK} once: that is where the data go")
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    # A lone surrogate is a legal model output but not legal UTF-8.
    return template.replace(MARK, text.encode("utf-8", "replace").decode())


def _sets(sets: Mapping[str, CandidateSet], drawing: str = "") -> list[dict]:
    """The sets of a request as the page reads them, each answer in one line."""
    return [
        {
            "name": METHOD_LABEL[name],
            "about": METHODS[name],
            "answers": [short_answer(answer) for answer in answers],
            "rewards": np.asarray(rewards_MD).tolist(),
            **({"walks": maze_walks(drawing, answers)} if drawing else {}),
        }
        for name, (answers, rewards_MD) in sets.items()
    ]


def _tool_calls(results: Path) -> dict:
    pools = {name: Pool.load(Run(results).pool(name)) for name in METHODS}
    task = get_task(pools["vpo"].task)
    rows = {row["id"]: row for row in task.load(None, "test")}
    requests = []
    for n, row_id in enumerate(pools["vpo"].ids[:REQUESTS]):
        asked = rows[row_id]["prompt"][-1]["content"].rpartition("<user>")[2].partition("</user>")[0].strip()
        meant = short_answer(rows[row_id]["gold"])
        label = f"{n + 1}: {asked}"
        requests.append({"label": label, "title": asked, "meant": meant, "sets": _sets(sample_sets(pools, n))})
    return {
        "name": "Tool calls",
        "about": "A request that says too little, answered by one or two tool calls. What was meant is known "
        "here and was not known to the policies. Often one answer is right in everything: then it wins everywhere.",
        "objectives": list(task.objectives),
        "meaning": [MEANING["tool"].get(name, "") for name in task.objectives],
        "requests": requests,
    }


def _mazes(experiment: Path) -> dict | None:
    examples = read_examples(experiment, "maze")
    if not examples:
        return None
    task = get_task("maze")
    drawings = {row["id"]: row["gold"] for row in task.load(None, "test")}
    requests = []
    for n, (row_id, answered) in enumerate(examples.items()):
        sets = {name: (answered[name]["answers"], answered[name]["rewards"]) for name in METHODS if name in answered}
        drawing = drawings[row_id]
        requests.append(
            {
                "label": f"Maze {n + 1}",
                "title": "Walk from start to exit. There is gold on one way and diamonds on another.",
                "maze": {"size": len(drawing.split()), "grid": maze_grid(drawing)},
                "sets": _sets(sets, drawing),
            }
        )
    return {
        "name": "Mazes",
        "about": "No walk can have both treasures, and lava lies on good ways. So no answer is best for everyone.",
        "objectives": list(task.objectives),
        "meaning": [MEANING["maze"].get(name, "") for name in task.objectives],
        "requests": requests,
    }
