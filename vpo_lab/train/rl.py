"""The two training stages on TRL: SFT warmup, then a method of the GRPO family.

TRL does generation, loss, optimizer and checkpoints. Ours is what a rollout is worth (`trl.VPOTrainer`) and how a
stage is resumed, stopped and published (`stage`).
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from vpo_lab.config import Profile, get_profile
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_json
from vpo_lab.methods import Method, get_method
from vpo_lab.metrics import solved
from vpo_lab.processes import (
    RENDEZVOUS,
    broadcast,
    environment_kept,
    gather,
    join_others,
    print0,
    rank,
    wait_for_all,
    world_size,
)
from vpo_lab.runs import Run, Stage, check_shared, find_run, open_run
from vpo_lab.tasks import Task, get_task
from vpo_lab.tasks.check import check_task
from vpo_lab.train.gpu import check_backend, close_vllm, schedules_itself, trl_arguments
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import (
    HELD_OUT,
    answers_per_rollout,
    load_rows,
    method_of,
    render_prompt,
    rollouts_per_prompt,
    rollouts_per_step,
    sample_goal,
)
from vpo_lab.train.sft import draw_answers, train_sft
from vpo_lab.train.stage import _common_arguments, _on_one_gpu, _split, run_stage, with_less_memory
from vpo_lab.train.trainer import build_trainer

SOLVED = "solved.json.gz"  # beside the start: how many of its samples solve each row

# --- Stage 2: GRPO, VPO and their kin ---------------------------------------------------------


def train_rl(profile: Profile, method_name: str, run: Run, seed: int, *, name: str = "", start: str = "sft") -> Path:
    """Train one method from the SFT policy. Returns the folder of the trained policy.

    `name` is that of the stage in the run (the method's, if empty), `start` that of the warmup.
    Finished work is not repeated; a killed stage continues from its last whole checkpoint. LabError if
    another process trains the stage.
    """
    method, stage = method_of(profile, method_name), run.stage(name or method_name)
    if stage.is_finished():
        return stage.policy
    with stage.lock():
        return with_less_memory(
            profile,
            "rl.micro_rollouts",
            lambda profile: _train_rl(profile, method, run, stage, run.stage(start).policy, seed),
        )


def _train_rl(profile: Profile, method: Method, run: Run, stage: Stage, start: Path, seed: int) -> Path:
    rl, method_name, task = profile.rl, method.name, get_task(profile.task)
    m = answers_per_rollout(profile, method_name)
    model, tokenizer = load_policy(profile, task, start, seed)

    from vpo_lab.train.trl import VPOConfig  # here, not at the top: Unsloth replaces its base when it loads the model

    group_size = rollouts_per_prompt(profile, method_name)
    shape = _split("rl.rollouts", rollouts_per_step(profile, method_name), rl.micro_rollouts)
    every = profile.evaluation.every
    args = VPOConfig(
        candidates=m,
        alpha=rl.alpha,
        weight_draws=rl.weight_draws,
        ask=False,  # the prompts do already
        **_common_arguments(profile, stage, seed),
        **shape,
        **trl_arguments(profile, m),
        max_steps=rl.steps,
        steps_per_generation=shape["gradient_accumulation_steps"] * rl.steps_per_generation,  # TRL counts passes
        num_generations=group_size,
        eval_strategy="steps" if every else "no",
        eval_steps=every or None,
        per_device_eval_batch_size=rollouts_of_a_look(profile, group_size),
        num_iterations=1,
        max_completion_length=profile.policy.max_answer_tokens * m,
        temperature=rl.temperature,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        learning_rate=rl.learning_rate,
        lr_scheduler_type=rl.schedule,
        warmup_steps=rl.warmup_steps,
        weight_decay=0.0,
        max_grad_norm=rl.max_grad_norm,
        beta=rl.kl,  # the reference is what `load_policy` loaded: the warmup, see tests/unit/test_kl.py
        epsilon=0.2,
        epsilon_high=0.2,
        loss_type="dapo",
        mask_truncated_completions=False,
        shuffle_dataset=False,  # the data set is in order already
        disable_dropout=True,
        logging_steps=1,
        save_steps=rl.checkpoint_every,
    )
    rows = load_rows(profile, task, "train", tokenizer, limit=rl.train_rows)
    rows = without_solved(profile, task, model, tokenizer, rows, start.parent / SOLVED, seed, stage)
    watched = load_rows(profile, task, HELD_OUT, tokenizer, limit=profile.evaluation.watch_requests) if every else []

    with environment_kept(*RENDEZVOUS):  # left as TRL's vLLM sets them, a second trainer would not stand alone
        trainer = build_trainer(
            profile,
            task,
            [*rows, *watched],
            method,
            seed,
            model=model,
            processing_class=tokenizer,
            args=_on_one_gpu(args),
            train_dataset=_rl_dataset(profile, task, tokenizer, method, m, rows, seed),
            eval_dataset=_prompts(task, tokenizer, method, m, watched, np.random.default_rng([seed, 3])) or None,
        )
        try:
            return run_stage(
                trainer, stage, rl.steps, stage.name.upper(), run.stop_at(profile.methods), trainer.example
            )
        finally:
            if profile.policy.backend == "vllm":
                close_vllm(trainer)


def rollouts_of_a_look(profile: Profile, group_size: int) -> int:
    """Return how many rollouts of a look at held-out rows a process samples at once, in whole groups.

    An engine that schedules them itself is given all: it would stand idle at the end of each part. Without one, as
    many as `evaluation.batch` allows.
    """
    evaluation = profile.evaluation
    groups = -(-evaluation.watch_requests // world_size())
    if not schedules_itself(profile):
        groups = min(groups, max(1, evaluation.batch // group_size))
    return groups * group_size


def without_solved(
    profile: Profile, task: Task, model, tokenizer, rows: list[dict], path: Path, seed: int, stage: Stage
):
    """Leave out the rows that the model solves in all of `rl.drop_solved` samples: their groups would teach nothing.

    What it solved, as shares by row id, is kept in the file `path`: methods of a run train on the same rows. LabError
    if no row is left.
    """
    if not profile.rl.drop_solved:
        return rows
    if not path.exists():
        n = profile.rl.drop_solved
        title = "which rows are solved already"
        drawn = draw_answers(profile, model, tokenizer, rows, n, title, seed + 3_000_003, stage)
        rewards_ND = task.score(
            [text for _, texts in drawn for text in texts], [row for row, _ in drawn for _ in range(n)]
        )
        shares_N = solved(rewards_ND).reshape(-1, n).mean(axis=1).tolist()
        found = [(row["id"], share) for (row, _), share in zip(drawn, shares_N, strict=True)]
        shares = dict(gather(found)[0])
        if rank() == 0:
            write_json(path, shares)
        wait_for_all()
    shares = read_json(path)
    kept = [row for row in rows if shares[row["id"]] < 1]
    print0(f"{len(rows) - len(kept)} of {len(rows)} rows are solved in all samples: RL leaves them out")
    if not kept:
        raise LabError(f"{path}: every row is solved in all samples, RL would teach nothing: take harder rows (data)")
    return kept


def _rl_dataset(profile: Profile, task: Task, tokenizer, method: Method, m: int, rows: list[dict], seed: int):
    """The prompts of the whole run, in order: one epoch, however few rows there are.

    TRL's own shuffle starts over when a run is resumed in its second epoch or later.
    """
    wanted = profile.rl.steps * (profile.rl.rollouts // profile.rl.group_size)
    rng = np.random.default_rng([seed, 2])
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-wanted // len(rows)))])[:wanted]
    return _prompts(task, tokenizer, method, m, [rows[i] for i in order], rng)


def _prompts(task: Task, tokenizer, method: Method, m: int, rows: list[dict], rng: np.random.Generator):
    """Return what TRL reads: prompts and row ids. Prompts of `goal_conditioned` state weights, in a column, too."""
    from datasets import Dataset

    goals = [sample_goal(task, rng) if method.states_goal else None for _ in rows]
    prompts = [render_prompt(tokenizer, row["prompt"], m, goal) for row, goal in zip(rows, goals, strict=True)]
    columns = {"prompt": prompts, "id": [row["id"] for row in rows]}
    return Dataset.from_dict({**columns, **({"goal": goals} if method.states_goal else {})})


def train_stages(
    profile_name: str,
    stages: list[str],
    seed: int = 0,
    run_dir: str | Path = "",
    overrides: dict | None = None,
    max_hours: float | None = None,
) -> list[Path]:
    """Train stages ("sft" or methods) in this process, or in all that `accelerate launch` started.

    Returns their policies. `max_hours` is for these stages alone. Raises LabError as `run_pipeline` does.
    """
    profile = get_profile(profile_name, overrides)
    methods = tuple(stage for stage in stages if stage != "sft")
    for method in methods:
        get_method(method)
    check_backend(profile)
    join_others()
    run = find_run(profile, run_dir)
    if rank() == 0:
        check_task(
            get_task(profile.task), profile.data or None
        )  # one download, not one of each process into the same file
        open_run(profile, seed, run_dir)
    wait_for_all()
    check_shared(run)
    if max_hours is not None:
        until = broadcast(time.time() + 3600 * max_hours)
        run = replace(run, until=min(until, run.until or until))  # who watches knows when the first try began
    sharing = replace(profile, methods=methods)  # only these have a share of the hours
    with run.lock():
        return [
            train_sft(profile, run, seed) if stage == "sft" else train_rl(sharing, stage, run, seed) for stage in stages
        ]
