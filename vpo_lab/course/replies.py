"""Put the replies of a real model side by side: GRPO's twelve, VPO's three, and what each judge gives them.

`save_replies` keeps a few requests of a run in one file, with their text, because the project ships no prompts of
others. The page and the explorer are made of that file alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from vpo_lab.course.results import cell
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_bytes, write_json
from vpo_lab.runs import Run
from vpo_lab.search.pool import Pool
from vpo_lab.search.summary import describe
from vpo_lab.show.side_by_side import number, rows_of
from vpo_lab.show.style import method_label
from vpo_lab.tasks import get_task

SHOWN = {"sft": 12, "grpo": 12, "best_of_set": 3, "vpo": 3}  # pool -> how many of its first candidates are kept

HEAD = """# Replies side by side

{about} The table is over all requests that were held out: `mean [low, high]`, a 95% interval
over requests. *EUM* is the set reward of k replies, and *different replies* the share of different texts among all.

Below it are a few requests. They were chosen before their replies were read, and the replies are the first that each
policy gave: twelve where single answers are trained, one set where sets are. In bold: the best of the set for
this judge, where its replies differ.
"""


def save_replies(runs: Sequence[Run], ids: Sequence[str], out: Path, data: str = "") -> Path:
    """Write the first candidates of the runs' pools for some requests to `out`, and return it.

    The file holds {"task", "objectives", "meanings", "requests": [{"id", "text", "sets": pool -> {"answers",
    "rewards"}}]}, and of all requests "policies": pool -> `search.summary.describe`. Pools of runs with a price on KL
    are called after it, as in "vpo_kl0.03". Of pools with one name that of the first run counts. `data` is where the
    task's rows are. LabError if there is no pool, or an id is not in one.
    """
    pools: dict[str, Pool] = {}
    for run in runs:
        kept = read_json(run.manifest)["settings"] if run.manifest.exists() else {}
        for name in SHOWN:
            if run.pool(name).exists():
                price = kept.get("rl.kl", 0) if name != "sft" else 0
                if (called := f"{name}_kl{price:g}" if price else name) not in pools:
                    pools[called] = Pool.load(run.pool(name))
    if not pools:
        raise LabError(f"{' and '.join(map(str, runs))} hold no pool of candidates: train and evaluate first")
    first = next(iter(pools.values()))
    for name, pool in pools.items():
        if missing := [one for one in ids if one not in pool.ids]:
            raise LabError(
                f"request {missing[0]!r} is not in the pool of {name}: choose of {', '.join(pool.ids[:9])}, ..."
            )
    task = get_task(first.task)
    text = {row["id"]: task.title(row) for row in task.load(data or None, "test")}
    requests = []
    for one in ids:
        sets = {}
        for name, pool in pools.items():
            answers, rewards_nD = pool.first(pool.ids.index(one), SHOWN[name.partition("_kl")[0]])
            rewards = np.where(np.isnan(rewards_nD), None, rewards_nD.round(4)).tolist()
            sets[name] = {"answers": answers, "rewards": rewards}
        requests.append({"id": one, "text": text[one], "sets": sets})
    about = {"task": task.name, "objectives": list(first.objectives), "meanings": getattr(task, "meanings", {})}
    most = min(pool.rewards_NCMD[0, :, :, 0].size for pool in pools.values())
    policies = {name: describe(pool, (1, 3, most)) for name, pool in pools.items()}
    write_json(
        out, {**about, "about": getattr(task, "about", ""), "policies": policies, "most": most, "requests": requests}
    )
    return out


def write_replies(saved: Path, out: Path) -> Path:
    """Write a page of tables, one of all policies and one for each request and policy; return its path."""
    found = read_json(saved)
    parts = [HEAD.format(about=found["about"]), _measured(found)]
    for request in found["requests"]:
        parts.append(f"## {_plain(request['text'])}\n")
        parts += [_replies(name, one, found["objectives"]) for name, one in request["sets"].items()]
    write_bytes(out, "\n".join(parts).encode())
    return out


def _measured(found: dict) -> str:
    """A table of all requests: a row for each policy, `mean [low, high]` over requests."""
    most, rows = str(found["most"]), []
    for name, one in found["policies"].items():
        cells = {"first reply, mean": one["k"]["1"]["best"]}
        cells |= {f"EUM, k = {k}": one["k"][k]["eum"] for k in ("3", most)}
        cells |= one["objectives"] | {"different replies": one["distinct_answers"]}
        texts = {key: cell(*interval, ".2f") for key, interval in cells.items()}
        rows.append({"policy": method_label(name)} | texts)
    return _markdown([list(rows[0]), *(list(row.values()) for row in rows)])


def _replies(name: str, found: dict, objectives: Sequence[str]) -> str:
    """A table of one policy's replies to one request: equal ones share a row; bold: no reply of the set is better."""
    rows = rows_of(name, found["answers"], np.array(found["rewards"], dtype=float), objectives)
    lines = [["", method_label(name), *objectives]]
    for row in rows:
        marks = [f"**{number(v)}**" if won else number(v) for v, won in zip(row.rewards_D, row.won_D, strict=True)]
        lines.append([f"{row.count} ×", _plain(row.answer) or "*no reply*", *marks])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    marked = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in marked) + "\n"


def _plain(text: str) -> str:
    """Return model-written text that cannot break a table or a page."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escape(" ".join(text.split()), quote=False))
