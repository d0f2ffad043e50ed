"""What the warmup imitates when a chain is to be packed from the policy's own answers.

A chain has to teach the format and that answers differ, but no mistakes. A row has one gold. With
`sft.chains` "task" the task fills the chain (ToolRL: golds with one slip); with "own" distinct samples
of the policy itself do, after it has learned the format: no mistake is in them that it would not make.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vpo_lab.policy import load_policy, load_rows, render_prompt, sample
from vpo_lab.processes import gather, rank, say, wait_for_all, world_size
from vpo_lab.profiles import Profile
from vpo_lab.progress import StageProgress
from vpo_lab.storage import read_json, write_json
from vpo_lab.tasks import Task

GOLDS = "golds"  # the stage within the warmup that teaches the format
SAMPLES = "own_samples.json.gz"
# (row, n, rng) -> n answers to imitate.
Demonstrate = Callable[[dict, int, np.random.Generator], list[str]]


def own_demonstrations(profile: Profile, task: Task, policy: Path, path: Path, seed: int) -> Demonstrate:
    """Chains of the gold and of samples drawn from `policy`, which are kept in the file `path`."""
    if not path.exists():
        _sample_rows(profile, task, policy, path, seed)
    samples = read_json(path)
    return lambda row, n, rng: pack_chain(row["gold"], samples[row["id"]], n, rng)


def _sample_rows(profile: Profile, task: Task, policy: Path, path: Path, seed: int) -> None:
    """Draw `sft.own_samples` single answers to every row and keep, by row id, those that may be shown.

    Several processes share the rows. It says how many are left: where few are, chains repeat the gold.
    """
    model, tokenizer = load_policy(profile, task, policy, seed)
    rows = load_rows(profile, task, "train", tokenizer, limit=profile.sft.train_rows)
    mine, n, limit = rows[rank() :: world_size()], profile.sft.own_samples, profile.policy.max_answer_tokens
    prompts = [render_prompt(tokenizer, row["prompt"], 1) for row in mine for _ in range(n)]
    progress = StageProgress("own samples for the warmup", len(prompts))
    texts, lengths = sample(
        model,
        tokenizer,
        prompts,
        max_new_tokens=limit,
        temperature=profile.rl.temperature,
        top_p=1.0,
        seed=seed + 2_000_003 + rank(),  # neither the seed of a training nor of an evaluation
        batch=profile.evaluation.batch,
        on_progress=progress.update,
    )
    progress.close()
    ended = [text if length < limit else "" for text, length in zip(texts, lengths, strict=True)]
    found = [(row["id"], fit_to_show(task, row["gold"], ended[i * n : (i + 1) * n])) for i, row in enumerate(mine)]
    samples = dict(gather(found)[0])
    if rank() == 0:
        write_json(path, samples)
    full = sum(len(texts) >= profile.rl.candidates - 1 for texts in samples.values()) / len(samples)
    say(
        f"own samples: {np.mean([bool(text) for text in ended]):.0%} came to an end; {full:.0%} of the rows have "
        f"enough distinct ones for a chain of {profile.rl.candidates}"
    )
    wait_for_all()


def fit_to_show(task: Task, gold: str, samples: list[str]) -> list[str]:
    """The distinct samples that may stand beside the gold in a chain, those with other rewards first.

    Whole and well formed (as good as the gold in the objective "format", where a task has it), worth
    something, and without a tag that would cut the chain in two.
    """
    best_D = task.score(gold, gold)
    form = task.objectives.index("format") if "format" in task.objectives else None
    known, fresh, alike = {best_D.tobytes()}, [], []
    for text in dict.fromkeys(text.strip() for text in samples):
        rewards_D = task.score(text, gold)
        formed = rewards_D.any() if form is None else rewards_D[form] >= best_D[form]
        if not text or not formed or text == gold.strip() or "<answer_" in text:
            continue
        (alike if rewards_D.tobytes() in known else fresh).append(text)
        known.add(rewards_D.tobytes())
    return [*fresh, *alike]


def pack_chain(gold: str, samples: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """`n` answers, shuffled: the gold and the first samples; the gold again where they are too few."""
    answers = [gold, *samples][:n]
    answers += [gold] * (n - len(answers))
    return [answers[i] for i in rng.permutation(n)]
