"""What the warmup imitates: the gold as a single answer, and chains packed around it.

A chain has to teach the format and that answers differ, but no mistakes. A row has one gold. With
`sft.chains` "task" the task fills the chain (ToolRL: golds with one slip), with "own" distinct
samples of the policy itself do: no mistake is in them that it would not have made anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vpo_lab.policy import render_prompt, sample
from vpo_lab.processes import gather, rank, wait_for_all, world_size
from vpo_lab.profiles import Profile
from vpo_lab.progress import StageProgress
from vpo_lab.storage import read_json, write_json
from vpo_lab.tasks import Task

SAMPLES = "own_samples.json.gz"
# (row, n, rng) -> n answers to imitate.
Demonstrate = Callable[[dict, int, np.random.Generator], list[str]]


def demonstrator(
    profile: Profile, task: Task, model, tokenizer, rows: list[dict], stage: Path, seed: int
) -> Demonstrate:
    """What the warmup shows for a row, by `sft.chains`."""
    if profile.sft.chains == "task":
        return task.demonstrations
    samples = own_samples(profile, model, tokenizer, rows, stage, seed)
    return lambda row, n, rng: pack_chain(task, row["gold"], samples[row["id"]], n, rng)


def own_samples(profile: Profile, model, tokenizer, rows: list[dict], stage: Path, seed: int) -> dict[str, list[str]]:
    """`sft.own_samples` single answers of the untrained policy to every row, by row id.

    Sampled once and kept in the stage's folder; several processes share the rows.
    """
    path = stage / SAMPLES
    if path.exists():
        return read_json(path)
    n = profile.sft.own_samples
    mine = rows[rank() :: world_size()]
    prompts = [render_prompt(tokenizer, row["prompt"], 1) for row in mine for _ in range(n)]
    progress = StageProgress("own samples for the warmup", len(prompts))
    texts, _ = sample(
        model,
        tokenizer,
        prompts,
        max_new_tokens=profile.policy.max_answer_tokens,
        temperature=profile.rl.temperature,
        top_p=1.0,
        seed=seed + 2_000_003 + rank(),  # neither the seed of a training nor of an evaluation
        batch=profile.evaluation.batch,
        on_progress=progress.update,
    )
    progress.close()
    by_row = [(row["id"], texts[i * n : (i + 1) * n]) for i, row in enumerate(mine)]
    samples = dict(gather(by_row)[0])
    if rank() == 0:
        write_json(path, samples)
    wait_for_all()
    return samples


def pack_chain(task: Task, gold: str, samples: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """`n` answers, shuffled: the gold and distinct samples that earn something, other rewards first.

    Where there are too few, the gold again: nothing worse than it is made up.
    """
    known = {task.score(gold, gold).tobytes()}
    fresh, alike = [], []
    for text in dict.fromkeys(text.strip() for text in samples):
        rewards_D = task.score(text, gold)
        # A tag of a chain inside one of its answers would cut it in two.
        if text == gold.strip() or "<answer_" in text or not rewards_D.any():
            continue
        (alike if rewards_D.tobytes() in known else fresh).append(text)
        known.add(rewards_D.tobytes())
    answers = [gold, *fresh, *alike][:n]
    answers += [gold] * (n - len(answers))
    return [answers[i] for i in rng.permutation(n)]
