"""Measure what a policy is worth to an evolutionary search: evolution, the control without it, and the closure.

Used by the experiments. The answers are sampled once: the first `candidates` of them are evolved, tried one by one as
the control, and all of them say which steps the policy takes at all. A policy that sees the parent is asked anew at
every step instead, and has no closure: what it answers depends on where the search stands.
"""

from __future__ import annotations

import math
from pathlib import Path

from vpo_lab.chains import split_chain
from vpo_lab.config import Profile
from vpo_lab.files import read_json, write_json
from vpo_lab.runs import Run, Stage
from vpo_lab.search.closure import reachable
from vpo_lab.search.evolution import BUDGETS, Evolution
from vpo_lab.search.loop import best_of_n, evolve, sampled
from vpo_lab.search.pool import asked_for, sample_pool
from vpo_lab.show.live import StageProgress
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import load_rows, render_prompt
from vpo_lab.train.sampling import sample

PROBLEMS = 30  # the first test requests
ANSWERS = 1008  # to each, for the closure: whole chains of 3
CANDIDATES = BUDGETS[-1]


def study(profile: Profile, name: str, run: Run, seed: int, *, method: str = "", suffix: str = "") -> list[dict]:
    """Return what the search makes of one policy, a dict per problem; sampled and saved, or read if it is there.

    `name`, `method` and `suffix` as for `pool.evaluate`. Keys: id, solved_at (candidates; None: never), control (the
    same without evolution), reachable (True, False, or None where it is not known), programs (of the closure), and
    best (the best score within each of BUDGETS).
    """
    path = study_file(run, name + suffix)
    if path.exists():
        return read_json(path)
    task, stage, m, states_goal = asked_for(profile, name, method)
    model, tokenizer = load_policy(profile, task, run.stage(stage).policy, seed)
    rows = load_rows(profile, task, "test", tokenizer, limit=PROBLEMS)
    if hasattr(task, "prompt"):
        evolutions = _seeing_parents(profile, task, model, tokenizer, rows, name + suffix, m, seed)
        controls = closures = [None] * len(rows)
    else:
        many = profile.with_overrides({"evaluation.candidates": math.ceil(ANSWERS / m) * m})
        pool = sample_pool(
            many, task, model, tokenizer, rows, name + suffix, m, seed + 1, Stage(path.parent), states_goal=states_goal
        )
        answers = [[answer for chain in chains for answer in chain] for chains in pool.answers]
        first = [own[:CANDIDATES] for own in answers]
        evolutions = evolve(task, rows, sampled(first, rows), CANDIDATES, seed=seed)
        controls = best_of_n(task, rows, first)
        closures = [reachable(task, row, own) for row, own in zip(rows, answers, strict=True)]
    found = [_row(*three) for three in zip(evolutions, controls, closures, strict=True)]
    write_json(path, found)
    return found


def study_file(run: Run, name: str) -> Path:
    """Return where the study of a pool's policy is kept."""
    return run / "studies" / f"{name}.json"


def _seeing_parents(profile, task, model, tokenizer, rows, name: str, m: int, seed: int) -> list[Evolution]:
    settings, calls = profile.evaluation, 0

    def ask(requests):
        nonlocal calls
        calls += 1
        texts, _ = sample(
            model,
            tokenizer,
            [render_prompt(tokenizer, messages, m) for _, messages in requests],
            max_new_tokens=profile.policy.max_answer_tokens * m,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=seed + 3_000_017 + calls,  # not the seed of a training or a pool
            batch=settings.batch,
        )
        return [split_chain(text, m) for text in texts]

    progress = StageProgress(f"evolution with {name}", CANDIDATES)
    evolutions = evolve(task, rows, ask, CANDIDATES, sees_parent=True, seed=seed, on_step=progress.update)
    progress.close()
    return evolutions


def _row(evolution: Evolution, control: Evolution | None, closure) -> dict:
    def solved_at(one: Evolution | None) -> int | None:
        return None if one is None or math.isinf(one.solved_at) else int(one.solved_at)

    return {
        "id": evolution.id,
        "solved_at": solved_at(evolution),
        "control": solved_at(control),
        "reachable": None if closure is None else closure.solved,
        "programs": None if closure is None else closure.programs,
        "best": [round(evolution.best(budget), 4) for budget in BUDGETS],
    }
