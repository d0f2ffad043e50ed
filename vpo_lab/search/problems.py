"""Search the test problems of a run with one of its policies, resumable; and sample many answers to them."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_json
from vpo_lab.metrics import bootstrap_interval
from vpo_lab.runs import Run, only_one_in
from vpo_lab.search.evolution import BUDGETS, Evolution, load_evolutions, save_evolutions, solved_within
from vpo_lab.search.evolve import evolve_in_openevolve
from vpo_lab.search.loop import evolve, messages_of, start_of
from vpo_lab.search.policies import Journal, Source, Trained
from vpo_lab.search.pool import Pool
from vpo_lab.show.live import StageProgress
from vpo_lab.tasks import get_task

ENGINES = ("openevolve", "loop")
# Completions that a tiny policy writes at a time, of which some are in vain: a real one writes no more than it must.
AHEAD = {"openevolve": 32, "loop": 8}


def search_problems(
    policy: Path,
    problems: int,
    candidates: int,
    *,
    engine: str = "openevolve",
    sees_parent: bool = False,
    unsolved: str = "",
    server: str = "",
    model: str = "",
    seed: int = 0,
    folder: Path | None = None,
) -> tuple[list[Evolution], Path]:
    """Search a program for the first test problems with the policy RUN/STAGE; return what was found, and its file.

    `unsolved`: only those that this pool of the run does not solve ("sft": the same for every policy). `server`: who
    answers in its place, by the OpenAI protocol; the settings are the policy's. `folder`: where all is kept, by
    default below the run; the same call goes on there after a kill. Raises LabError if it was made with other
    settings, another process works there, or nothing is left to search.
    """
    if engine not in ENGINES:
        raise LabError(f"unknown engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if min(problems, candidates) < 1:
        raise LabError(f"{problems} problems and {candidates} candidates: at least 1 of each")
    trained = Trained.find(policy)
    task, run = get_task(trained.profile.task), Run(trained.folder.parent)
    name = f"{trained.folder.name}-{engine}{'-parent' if sees_parent else ''}{'-server' if server else ''}"
    folder = Path(folder or run / "evolution" / name).expanduser().absolute()
    settings = {
        "policy": str(trained.folder),
        "fingerprint": trained.profile.fingerprint(),
        "problems": problems,
        "candidates": candidates,
        "engine": engine,
        "sees_parent": sees_parent,
        "unsolved": unsolved,
        "server": server,
        "model": model,
        "seed": seed,
    }
    _check_settings(folder / "settings.json", settings)
    result = folder / "evolutions.json.gz"
    if result.exists():
        return load_evolutions(result), result
    rows = trained.rows(0 if unsolved else problems)
    if unsolved:
        rows = _unsolved(rows, Pool.load(run.pool(unsolved)))[:problems]
    messages_of(task, rows[0], start_of(task, rows[0]) if sees_parent else None, np.zeros(len(task.objectives)))
    tiny = trained.profile.policy.backend == "scratch" and not server and not sees_parent
    ahead = min(AHEAD[engine], math.ceil(candidates / trained.m)) if tiny else 1
    source = Source(str(trained.folder), seed, ahead, server, model)
    title = f"{engine} with {trained.folder.name}"
    with only_one_in(folder):
        if engine == "loop":
            progress = StageProgress(f"{title}, {len(rows)} problems", candidates)
            ask = Journal(source.draw, folder / "answers.jsonl")
            found = evolve(task, rows, ask, candidates, sees_parent=sees_parent, seed=seed, on_step=progress.update)
        else:
            progress = StageProgress(f"{title}, problems", len(rows))
            found = evolve_in_openevolve(
                task,
                rows,
                source,
                candidates,
                folder=folder,
                sees_parent=sees_parent,
                seed=seed,
                on_problem=progress.update,
            )
        progress.close()
        save_evolutions(result, found)
        for path in (*folder.glob("[0-9]*"), folder / "answers.jsonl", folder / "openevolve.log"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return found, result


def _check_settings(path: Path, mine: dict) -> None:
    if not path.exists():
        write_json(path, mine)
        return
    theirs: dict = read_json(path)  # pyright: ignore
    if differ := [f"{key} {theirs.get(key)!r}, now {mine[key]!r}" for key in mine if theirs.get(key) != mine[key]]:
        raise LabError(f"{path.parent} was made with {'; '.join(differ)}: choose another --out")


def _unsolved(rows: list[dict], pool: Pool) -> list[dict]:
    found = dict(zip(pool.ids, pool.solved_NCM.any(axis=(1, 2)), strict=True))
    left = [row for row in rows if row["id"] in found and not found[row["id"]]]
    if not left:
        raise LabError(f"the pool of {pool.name} solves every problem: search without --unsolved")
    return left


def sample_answers(source: Source, rows: Sequence[dict], n: int, path: Path | None = None) -> list[list[str]]:
    """Return n answers to each row, without a parent: for `best_of_n`, `sampled` and `reachable`.

    `path`: where they are kept as they come, so that a killed call goes on there.
    """
    m = Trained.find(Path(source.policy)).m
    many = replace(source, ahead=math.ceil(n / m))
    ask, found = Journal(many.draw, path), []
    progress = StageProgress(f"answers of {os.path.basename(source.policy)}, problems", len(rows))
    for row in rows:
        found += [answers[:n] for answers in ask([(row, row["prompt"])])]
        progress.update(len(found))
    progress.close()
    return found


def budget_table(evolutions: Sequence[Evolution], candidates: int) -> str:
    """Return the share of problems solved within each budget, with a 95% interval over problems, and the best score."""
    budgets = [b for b in BUDGETS if b < candidates] + [candidates]
    lines = [f"{'candidates':>10}  {'solved':>6}  {'95% interval':>12}  {'best score':>10}"]
    for budget in budgets:
        share, low, high = bootstrap_interval(solved_within(evolutions, budget))
        best = np.mean([evolution.best(budget) for evolution in evolutions])
        lines.append(f"{budget:>10}  {share:>6.2f}  {f'{low:.2f} - {high:.2f}':>12}  {best:>10.2f}")
    return "\n".join(lines)
