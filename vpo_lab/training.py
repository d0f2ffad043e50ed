"""The two training stages on TRL: SFT warmup, then a method of the GRPO family.

TRL does generation, loss, optimizer and checkpoints. Ours is what the reward of a rollout means
(`rollouts.VectorReward`) and how a stage is resumed, stopped and published (`stages`).
"""

from __future__ import annotations

import os
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vpo_lab.advantages import Method, get_method
from vpo_lab.chains import join_chain
from vpo_lab.errors import LabError
from vpo_lab.policy import load_policy, load_rows, render_prompt, trl_arguments, window
from vpo_lab.processes import environment_kept, rank, say, wait_for_all, world_size
from vpo_lab.profiles import Profile
from vpo_lab.rollouts import VectorReward
from vpo_lab.scalarization import draw_goal
from vpo_lab.stages import POLICY, has_policy, is_finished, run_stage, train_until
from vpo_lab.storage import write_bytes
from vpo_lab.tasks import Task, get_task
from vpo_lab.trainer import build_trainer, close_vllm
from vpo_lab.warmup import GOLDS, SAMPLES, Demonstrate, own_demonstrations


def candidates_of(profile: Profile, method: str) -> int:
    """M: how many answers a rollout of this method holds."""
    return profile.rl.candidates if get_method(method).multi_answer else 1


def group_size_of(profile: Profile, method: str) -> int:
    """G: rollouts per prompt. Equal budgets: with one answer in a rollout, a group has M times as many."""
    return profile.rl.group_size * profile.rl.candidates // candidates_of(profile, method)


def method_of(profile: Profile, name: str) -> Method:
    """The method of that name with the profile's options, but for those that make it what it is."""
    method = get_method(name)
    free = set(method.option_names) - set(dict(method.options))
    return method.with_options(**{name: getattr(profile.rl, name) for name in free if hasattr(profile.rl, name)})


def some_goal(task: Task, rng: np.random.Generator) -> dict[str, int]:
    """A random weighting for a prompt to state, in tenths."""
    return dict(zip(task.objectives, draw_goal(len(task.objectives), rng).tolist(), strict=True))


# --- Stage 1: SFT warmup ----------------------------------------------------------------------


def train_sft(profile: Profile, run_dir: Path, seed: int, *, name: str = "sft") -> Path:
    """Teach the answer format, single and as a chain of M. Returns the folder of the policy.

    `name` is the folder of the stage in the run. Half of the rows ask for one answer, half for M; before
    chains are packed from the policy's own samples (`sft.chains`), it learns the format from golds alone, in
    a stage within the stage. Finished work is not repeated; a killed stage continues from its last whole
    checkpoint.
    """
    stage, task = run_dir / name, get_task(profile.task)
    if is_finished(stage):
        return stage / POLICY
    start, demonstrate = None, task.demonstrations
    if profile.sft.chains == "own":
        start, samples = stage / GOLDS / POLICY, stage / SAMPLES
        if not has_policy(stage / GOLDS):
            _imitate(profile, task, stage / GOLDS, profile.sft.gold_steps, None, seed, demonstrate, chains=False)
        demonstrate = own_demonstrations(profile, task, start, samples, seed)
    return _imitate(profile, task, stage, profile.sft.steps, start, seed, demonstrate)


def _imitate(
    profile: Profile,
    task: Task,
    stage: Path,
    steps: int,
    start: Path | None,
    seed: int,
    demonstrate: Demonstrate,
    chains: bool = True,
) -> Path:
    """SFT from the policy in `start` (None: the untrained one) on demonstrations."""
    model, tokenizer = load_policy(profile, task, start, seed)

    from trl import SFTConfig, SFTTrainer

    sft = profile.sft
    args = SFTConfig(
        **_common_arguments(profile, stage, seed),
        **_split("sft.batch_rows", sft.batch_rows, sft.micro_rows),
        max_steps=steps,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.schedule,
        warmup_steps=int(sft.warmup_share * steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        packing=False,
        padding_free=False,  # Unsloth's default would map the rows anew, in processes beside a running vLLM
        logging_steps=max(1, steps // 70),
        save_steps=max(2, steps // 7),
    )
    trainer = SFTTrainer(
        model=model,
        args=_on_one_gpu(args),
        processing_class=tokenizer,
        train_dataset=_sft_dataset(profile, tokenizer, task, steps, demonstrate, seed, chains),
    )
    return run_stage(trainer, stage, steps, "SFT warmup" if chains else "SFT on golds")


def _sft_dataset(
    profile: Profile, tokenizer, task: Task, steps: int, demonstrate: Demonstrate, seed: int, chains: bool = True
):
    """Prompt and demonstrations, tokenized apart as generation will meet them; loss on the answer.

    A quarter of the single answers stand under a goal that the demonstration does not heed: the
    start can read such a prompt, and what it means is left to `goal_conditioned`.
    """
    from datasets import Dataset

    rng, m = np.random.default_rng([seed, 1]), profile.rl.candidates
    rows = load_rows(profile, task, "train", tokenizer, limit=profile.sft.train_rows)
    sizes, longest = (1, m) if chains else (1, 1), window(profile, m)
    # Every step draws rows anew from this many; a demonstration is seldom met twice.
    wanted = max(len(rows), min(steps * profile.sft.batch_rows, 4 * len(rows)))
    examples = []
    for number in range(wanted):
        row, answers = rows[number % len(rows)], sizes[(number + number // len(rows)) % 2]
        goal = some_goal(task, rng) if answers == 1 and rng.random() < 0.25 else None
        text = render_prompt(tokenizer, row["prompt"], answers, goal)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        chain = join_chain(demonstrate(row, answers, rng)) + tokenizer.eos_token
        completion = tokenizer(chain, add_special_tokens=False)["input_ids"]
        if len(prompt) + len(completion) > longest:  # it would be cut, and then teach an end where there is none
            continue
        examples.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return Dataset.from_list(examples)


# --- Stage 2: GRPO, VPO and their kin ---------------------------------------------------------


def train_rl(
    profile: Profile, method_name: str, run_dir: Path, seed: int, *, name: str = "", start: str = "sft"
) -> Path:
    """Train one method from the SFT policy. Returns the folder of the trained policy.

    `name` is the folder of the stage in the run (the method's, if empty), `start` that of the warmup.
    Finished work is not repeated; a killed stage continues from its last whole checkpoint.
    """
    rl, method = profile.rl, method_of(profile, method_name)
    stage = run_dir / (name or method_name)
    if is_finished(stage):
        return stage / POLICY
    task = get_task(profile.task)
    m = candidates_of(profile, method_name)
    model, tokenizer = load_policy(profile, task, run_dir / start / POLICY, seed)

    # Late, because Unsloth rebinds it when the policy is loaded.
    from trl import GRPOConfig

    group_size = group_size_of(profile, method_name)
    rollouts = rl.rollouts // rl.group_size * group_size
    shape = _split("rl.rollouts", rollouts, rl.micro_rollouts)
    looks = profile.evaluation.every
    args = GRPOConfig(
        **_common_arguments(profile, stage, seed),
        **shape,
        **trl_arguments(profile, m),
        max_steps=rl.steps,
        steps_per_generation=shape["gradient_accumulation_steps"],
        num_generations=group_size,
        eval_strategy="steps" if looks else "no",
        eval_steps=looks or None,
        per_device_eval_batch_size=group_size,
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
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.2,
        loss_type="dapo",
        scale_rewards="none",  # the method has normalised already
        mask_truncated_completions=False,
        shuffle_dataset=False,  # the data set is in order already
        disable_dropout=True,
        logging_steps=1,
        save_steps=rl.checkpoint_every,
    )
    reward = VectorReward(task, method, m, group_size, seed, tokenizer)
    watched = load_rows(profile, task, "test", tokenizer, limit=profile.evaluation.watched) if looks else []

    with environment_kept("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        # Left as TRL's vLLM sets them, a second trainer would believe that it is one of several.
        trainer = build_trainer(
            profile,
            reward,
            tokenizer,
            seed,
            model=model,
            args=_on_one_gpu(args),
            train_dataset=_rl_dataset(profile, task, tokenizer, method, m, seed),
            eval_dataset=_prompts_and_golds(task, tokenizer, method, m, watched, np.random.default_rng([seed, 3]))
            if looks
            else None,
        )
        try:
            return run_stage(trainer, stage, rl.steps, stage.name.upper(), _stop_at(profile, stage), reward.example)
        finally:
            if profile.policy.backend == "vllm":
                close_vllm(trainer)


def _rl_dataset(profile: Profile, task: Task, tokenizer, method: Method, m: int, seed: int):
    """The prompts of the whole run, in order: one epoch, however few rows there are.

    TRL's own shuffle starts over when a run is resumed in its second epoch or later.
    """
    rows = load_rows(profile, task, "train", tokenizer, limit=profile.rl.train_rows)
    wanted = profile.rl.steps * (profile.rl.rollouts // profile.rl.group_size)
    rng = np.random.default_rng([seed, 2])
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-wanted // len(rows)))])[:wanted]
    return _prompts_and_golds(task, tokenizer, method, m, [rows[i] for i in order], rng)


def _prompts_and_golds(task: Task, tokenizer, method: Method, m: int, rows: list[dict], rng: np.random.Generator):
    """What TRL reads. The prompts of `goal_conditioned` state a weighting each, which the reward is told too."""
    from datasets import Dataset

    goals = [some_goal(task, rng) if method.states_goal else None for _ in rows]
    prompts = [render_prompt(tokenizer, row["prompt"], m, goal) for row, goal in zip(rows, goals, strict=True)]
    columns = {"prompt": prompts, "gold": [row["gold"] for row in rows]}
    return Dataset.from_dict({**columns, **({"goal": goals} if method.states_goal else {})})


# --- Both stages ------------------------------------------------------------------------------


def _split(field: str, rows: int, micro: int) -> dict:
    """A batch of `rows` in forward passes of at most `micro` (0: all at once) on each process."""
    share, rest = divmod(rows, world_size())
    micro = min(micro or share, share)
    if rest or not share or share % micro:
        raise LabError(
            f"{field}: {rows} rows cannot be split over {world_size()} processes in passes of {micro or 1}: "
            "change the number of processes, or rl.rollouts, rl.micro_rollouts, sft.batch_rows, sft.micro_rows"
        )
    return dict(per_device_train_batch_size=micro, gradient_accumulation_steps=share // micro)


def _on_one_gpu(args):
    """The arguments of a trainer that keeps a batch together: transformers would split it over all GPUs it sees."""
    args._n_gpu = min(args._n_gpu, 1)
    return args


def _stop_at(profile: Profile, stage: Path) -> float | None:
    """When this stage's time is up: what is left for training, shared by the methods that still wait for it."""
    until = train_until()
    if until is None:
        return None
    waiting = [method for method in profile.methods if not has_policy(stage.parent / method)]
    now = time.time()
    return now + max(0.0, until - now) / max(1, len(waiting))


def _common_arguments(profile: Profile, stage: Path, seed: int) -> dict:
    import torch

    cuda = torch.cuda.is_available()
    return dict(
        output_dir=str(stage / "checkpoints"),
        seed=seed,
        data_seed=seed,
        use_cpu=not cuda,
        bf16=cuda and profile.policy.dtype == "bfloat16",
        fp16=False,
        optim="adamw_torch",
        gradient_checkpointing=bool(profile.policy.lora_rank),
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
        ddp_timeout=7200,
        save_strategy="steps",
        save_total_limit=2,
        logging_strategy="steps",
        disable_tqdm=True,
        run_name=f"{profile.name}-{stage.name}-seed{seed}",
        report_to=["wandb"] if profile.track and _can_track(stage) else [],
    )


def _can_track(stage: Path) -> bool:
    """Is there a W&B key, or is it to log offline? Then every stage has a W&B run of its own, resumed or not."""
    if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") != "offline":
        return False
    if find_spec("wandb") is None:
        say("a W&B key is set but wandb is not installed: logged to files only (pip install wandb)")
        return False
    mark = stage / "wandb_id"
    if rank() == 0 and not mark.exists():
        write_bytes(mark, uuid.uuid4().hex[:8].encode())
    wait_for_all()
    os.environ.setdefault("WANDB_PROJECT", "vpo-lab")
    os.environ.update(WANDB_DIR=str(stage), WANDB_RUN_ID=mark.read_text(), WANDB_RESUME="allow")
    return True
