"""The two training stages on TRL: SFT warmup, then a method of the GRPO family.

TRL does generation, loss, optimizer and checkpoints. Ours is what the reward of a rollout means:
`VectorReward` scores every candidate of every completion and hands TRL the method's advantages.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np

from vpo_lab.advantages import Method, get_method
from vpo_lab.chains import answer_ends, join_chain, split_chain
from vpo_lab.errors import LabError
from vpo_lab.policy import load_policy, render_prompt
from vpo_lab.profiles import Profile
from vpo_lab.progress import StageProgress
from vpo_lab.scalarization import dirichlet_weights, draw_goal, set_reward
from vpo_lab.storage import atomic_folder, explain_full_disk, last_good_checkpoint, seal_checkpoint, write_bytes
from vpo_lab.tasks import Task, get_task

LOG = "log.jsonl"
POLICY = "policy"


def candidates_of(profile: Profile, method: str) -> int:
    """M: how many answers a rollout of this method holds."""
    return profile.rl.candidates if get_method(method).multi_answer else 1


def group_size_of(profile: Profile, method: str) -> int:
    """G: rollouts per prompt. Equal budgets: with one answer in a rollout, a group has M times as many."""
    return profile.rl.group_size * profile.rl.candidates // candidates_of(profile, method)


def some_goal(task: Task, rng: np.random.Generator) -> dict[str, int]:
    """A random weighting for a prompt to state, in tenths."""
    return dict(zip(task.objectives, draw_goal(len(task.objectives), rng).tolist(), strict=True))


def score_rollouts(task: Task, completions: list[str], golds: list[str], m: int) -> np.ndarray:
    """Completions to reward vectors: (B,) texts -> (B, M, D). A missing answer is a zero vector."""
    rewards_BMD = np.zeros((len(completions), m, len(task.objectives)))
    known: dict[tuple[str, str], np.ndarray] = {}  # a small policy repeats itself: score once
    for b, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
        for j, answer in enumerate(split_chain(completion, m)):
            if answer:
                if (answer, gold) not in known:
                    known[answer, gold] = task.score(answer, gold)
                rewards_BMD[b, j] = known[answer, gold]
    return rewards_BMD


class VectorReward:
    """A TRL reward function that returns the method's advantages.

    With `scale_rewards="none"` TRL only subtracts the group mean, which is zero already, so what a
    method computes reaches the loss unchanged. Credit per answer has no number for a whole rollout:
    `token_advantages` then holds, after each call, one advantage per token for the trainer.
    """

    __name__ = "advantage"

    def __init__(self, task: Task, method: Method, m: int, group_size: int, seed: int, tokenizer=None):
        self.task, self.method, self.m, self.group_size, self.seed = task, method, m, group_size, seed
        self.tokenizer = tokenizer
        self.token_advantages: list[np.ndarray] | None = None
        self.token_lengths: dict[int, int] = {}
        self.reference_KD = dirichlet_weights(128, len(task.objectives), seed=0)

    def __call__(
        self, prompts, completions, gold, trainer_state, log_metric, completion_ids=None, goal=None, **_
    ) -> list[float]:
        start = time.perf_counter()
        rewards_BMD = score_rollouts(self.task, completions, gold, self.m)
        # A rollout that never ends earns nothing. Nothing reads what follows the last answer, so
        # without this a policy drifts into endless text, whose many tokens then rule the gradient.
        unended_B = np.zeros(len(completions), dtype=bool)
        if self.tokenizer is not None:
            end = self.tokenizer.eos_token_id
            unended_B = np.array([not ids or ids[-1] != end for ids in completion_ids])
        # From seed and step, not from process state: a resumed run draws the same weights.
        rng = np.random.default_rng([self.seed, trainer_state.global_step])
        method, earned_BMD = self.method, np.where(unended_B[:, None, None], 0.0, rewards_BMD)
        if "void_B" in method.option_names:  # credit per answer needs what the first answers earned
            method = method.with_options(void_B=unended_B)
        else:
            rewards_BMD = earned_BMD
        if goal is not None:
            goals_PD = [[tenths / 10 for tenths in stated.values()] for stated in goal[:: self.group_size]]
            method = method.with_options(goals_PD=np.array(goals_PD))
        advantages = method.advantages(rewards_BMD, self.group_size, rng)
        if advantages.ndim == 2:
            self.token_advantages = [
                row_M[answer_of_tokens(self.tokenizer, ids, text, self.m, self.token_lengths)]
                for row_M, ids, text in zip(advantages, completion_ids, completions, strict=True)
            ]
            advantages = advantages.mean(axis=1)  # for TRL's log only
        log_metric("reward_seconds", time.perf_counter() - start)
        log_metric("unended_rollouts", float(unended_B.mean()))
        for name, value in self.measure(earned_BMD, completions).items():
            log_metric(name, value)
        return advantages.tolist()

    def measure(self, rewards_BMD: np.ndarray, completions: list[str]) -> dict[str, float]:
        """What is worth a look at every step, the same for every method."""
        scalar_BM = rewards_BMD.mean(axis=2)
        groups_PG = [completions[i : i + self.group_size] for i in range(0, len(completions), self.group_size)]
        rewards_PGMD = rewards_BMD.reshape(len(groups_PG), self.group_size, *rewards_BMD.shape[1:])
        return {
            "set_reward": float(set_reward(rewards_BMD, self.reference_KD).mean()),
            "mean_reward": float(scalar_BM.mean()),
            "best_of_rollout": float(scalar_BM.max(axis=1).mean()),
            "best_of_group": float(scalar_BM.reshape(len(groups_PG), -1).max(axis=1).mean()),
            "distinct_rollouts": float(np.mean([len(set(group)) / len(group) for group in groups_PG])),
            # Groups in which every rollout earned the same teach nothing.
            "silent_groups": float((np.ptp(rewards_PGMD, axis=1) < 1e-9).all(axis=(1, 2)).mean()),
            **{f"objective/{name}": float(rewards_BMD[:, :, d].mean()) for d, name in enumerate(self.task.objectives)},
        }


def answer_of_tokens(tokenizer, ids: list[int], text: str, m: int, known: dict[int, int] | None = None) -> np.ndarray:
    """Which answer each token of a completion belongs to: (T,) of 0..m-1, by where the token starts.

    What closes an answer belongs to it, and what comes before it. Never later than the truth: the
    baseline of an earlier answer is unbiased for its successors too. `known` remembers the length of
    every token's text from call to call.
    """
    known = {} if known is None else known
    if new := [i for i in dict.fromkeys(ids) if i not in known]:
        pieces = tokenizer.batch_decode([[i] for i in new], skip_special_tokens=True)
        known.update(zip(new, map(len, pieces), strict=True))
    starts = np.cumsum([0, *(known[i] for i in ids)])
    if starts[-1] != len(text):  # a character split between tokens: count it where it is complete
        ends = [len(tokenizer.decode(ids[:t], skip_special_tokens=True).rstrip("\ufffd")) for t in range(len(ids))]
        starts = np.array([*ends, len(text)])
    return np.searchsorted(answer_ends(text, m), starts[: len(ids)], side="right")


# --- Stage 1: SFT warmup ----------------------------------------------------------------------


def train_sft(profile: Profile, run_dir: Path, seed: int, *, name: str = "sft") -> Path:
    """Teach the answer format, single and as a chain of M. Returns the folder of the policy.

    `name` is the folder of the stage in the run.
    Half of the rows ask for one answer, half for M. Finished work is not repeated; a killed stage
    continues from its last whole checkpoint.
    """
    stage = run_dir / name
    if _is_finished(stage):
        return stage / POLICY
    task = get_task(profile.task)
    model, tokenizer = load_policy(profile, task, None, seed)

    from trl import SFTConfig, SFTTrainer

    sft = profile.sft
    micro = sft.micro_rows or sft.batch_rows
    args = SFTConfig(
        **_common_arguments(profile, stage, seed),
        max_steps=sft.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=sft.batch_rows // micro,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.schedule,
        warmup_steps=int(sft.warmup_share * sft.steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        packing=False,
        logging_steps=max(1, sft.steps // 70),
        save_steps=max(2, sft.steps // 7),
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=_sft_dataset(profile, task, tokenizer, seed),
    )
    return _train(trainer, stage, sft.steps, "SFT warmup")


def _sft_dataset(profile: Profile, task: Task, tokenizer, seed: int):
    """Prompt and demonstrations, tokenized apart as generation will meet them; loss on the answer.

    A quarter of the single answers stand under a goal that the demonstration does not heed: the
    start can read such a prompt, and what it means is left to `goal_conditioned`.
    """
    from datasets import Dataset

    rng, m = np.random.default_rng([seed, 1]), profile.rl.candidates
    rows = load_rows(profile, task, "train", tokenizer, limit=profile.sft.train_rows)
    # Every step draws rows anew from this many; a demonstration is seldom met twice.
    wanted = max(len(rows), min(profile.sft.steps * profile.sft.batch_rows, 4 * len(rows)))
    examples = []
    for number in range(wanted):
        row, answers = rows[number % len(rows)], (1, m)[(number + number // len(rows)) % 2]
        goal = some_goal(task, rng) if answers == 1 and rng.random() < 0.25 else None
        text = render_prompt(tokenizer, row["prompt"], answers, goal)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        chain = join_chain(task.demonstrations(row, answers, rng)) + tokenizer.eos_token
        completion = tokenizer(chain, add_special_tokens=False)["input_ids"]
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
    rl = profile.rl
    method = get_method(method_name)
    fixed = dict(method.options)
    chosen = {n: getattr(rl, n) for n in method.option_names if n not in fixed and hasattr(rl, n)}
    method = method.with_options(**chosen)
    stage = run_dir / (name or method_name)
    if _is_finished(stage):
        return stage / POLICY
    task = get_task(profile.task)
    m = candidates_of(profile, method_name)
    model, tokenizer = load_policy(profile, task, run_dir / start / POLICY, seed)

    # Late, because Unsloth rebinds trl.GRPOTrainer when the policy is loaded.
    from trl import GRPOConfig, GRPOTrainer

    group_size = group_size_of(profile, method_name)
    rollouts = rl.rollouts // rl.group_size * group_size
    micro = rl.micro_rollouts or rollouts
    args = GRPOConfig(
        **_common_arguments(profile, stage, seed),
        max_steps=rl.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rollouts // micro,
        steps_per_generation=rollouts // micro,
        num_generations=group_size,
        num_iterations=1,
        max_completion_length=profile.policy.max_answer_tokens * m,
        temperature=rl.temperature,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        use_vllm=profile.policy.backend == "unsloth",
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

    class Trainer(GRPOTrainer):
        """GRPOTrainer with one advantage per token where the method gives one per answer."""

        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            if reward.token_advantages is not None:
                batch["advantages"] = _padded(reward.token_advantages, like=batch["completion_mask"])
            return batch

    trainer = Trainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=_rl_dataset(profile, task, tokenizer, method, m, seed),
    )
    return _train(trainer, stage, rl.steps, stage.name.upper())


def _padded(rows: list[np.ndarray], like):
    """(B, T) float tensor from rows of at most T values, zeros at the right: TRL pads completions there."""
    import torch

    padded = np.zeros(like.shape, dtype=np.float32)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded).to(like.device)


def _rl_dataset(profile: Profile, task: Task, tokenizer, method: Method, m: int, seed: int):
    """The prompts of the whole run, in order: one epoch, however few rows there are.

    TRL's own shuffle starts over when a run is resumed in its second epoch or later. The prompts of
    `goal_conditioned` state a weighting each, which the reward is told too.
    """
    from datasets import Dataset

    rows = load_rows(profile, task, "train", tokenizer, limit=profile.rl.train_rows)
    wanted = profile.rl.steps * (profile.rl.rollouts // profile.rl.group_size)
    rng = np.random.default_rng([seed, 2])
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-wanted // len(rows)))])[:wanted]
    goals = [some_goal(task, rng) for _ in order] if method.states_goal else [None] * wanted
    prompts = [render_prompt(tokenizer, rows[i]["prompt"], m, goal) for i, goal in zip(order, goals, strict=True)]
    columns = {"prompt": prompts, "gold": [rows[i]["gold"] for i in order]}
    return Dataset.from_dict({**columns, **({"goal": goals} if method.states_goal else {})})


# --- Both stages ------------------------------------------------------------------------------


def _is_finished(stage: Path) -> bool:
    """Is the stage's policy there? Says so, or a reader would wonder why nothing trains."""
    if finished := (stage / POLICY).exists():
        print(f"{stage.name} is trained already: its policy is in {stage.parent.name}/{stage.name}/{POLICY}")
    return finished


def load_rows(profile: Profile, task: Task, split: str, tokenizer, limit: int = 0) -> list[dict]:
    """Rows of a split whose prompt fits the profile's window, the first `limit` of them (0: all)."""
    rows = task.load(profile.data or None, split)
    longest = profile.policy.max_prompt_tokens
    texts = [render_prompt(tokenizer, row["prompt"], profile.rl.candidates) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= longest]
    if not fitting:
        raise LabError(
            f"no {split} prompt of {task.name} fits policy.max_prompt_tokens = {longest} "
            f"(the shortest has {min(lengths)}): raise it"
        )
    if len(fitting) < len(rows):
        print(f"{len(rows) - len(fitting)} of {len(rows)} {split} prompts are longer than {longest} tokens: left out")
    return fitting[:limit] if limit else fitting


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
        save_strategy="steps",
        save_total_limit=2,
        logging_strategy="steps",
        disable_tqdm=True,
        report_to=["wandb"] if profile.track and _has_wandb_key() else [],
    )


def _has_wandb_key() -> bool:
    return bool(os.environ.get("WANDB_API_KEY")) or os.environ.get("WANDB_MODE") == "offline"


def _train(trainer, stage: Path, steps: int, title: str) -> Path:
    """Run a TRL trainer to its end with resume, log and progress; publish the policy atomically."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    checkpoint, complaints = last_good_checkpoint(stage / "checkpoints")
    for complaint in complaints:
        print(complaint)
    trainer.add_callback(_stage_callback(stage, steps, title))
    with explain_full_disk(stage):
        stage.mkdir(parents=True, exist_ok=True)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        with atomic_folder(stage / POLICY) as folder:
            trainer.save_model(str(folder))
            trainer.processing_class.save_pretrained(str(folder))
    return stage / POLICY


def _stage_callback(stage: Path, steps: int, title: str):
    from transformers import TrainerCallback

    class StageCallback(TrainerCallback):
        """Seals checkpoints, appends the log, shows the progress."""

        def on_train_begin(self, args, state, control, **_):
            self.progress = StageProgress(title, steps, done=state.global_step)
            _drop_log_after(stage / LOG, state.global_step)

        def on_step_end(self, args, state, control, **_):
            self.progress.update(state.global_step)

        def on_save(self, args, state, control, **_):
            seal_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_log(self, args, state, control, logs=None, **_):
            if not logs or "train_runtime" in logs:
                return
            entry = {"step": state.global_step, **{k: round(v, 6) for k, v in logs.items() if _is_kept(k, v)}}
            with open(stage / LOG, "a") as file:
                file.write(json.dumps(entry) + "\n")
            self.progress.note(entry)

        def on_train_end(self, args, state, control, **_):
            self.progress.close()

    return StageCallback()


# TRL's own view of the reward is the advantage here, and clipping never acts on fresh rollouts.
_NOISE = ("reward", "reward_std", "frac_reward_zero_std", "rewards/", "clip_ratio/", "completions/m", "epoch")
_KEPT = ("completions/mean_length",)


def _is_kept(key: str, value: object) -> bool:
    """Is this metric worth a place in the log?"""
    return isinstance(value, (int, float)) and (key in _KEPT or not any(_matches(key, name) for name in _NOISE))


def _matches(key: str, name: str) -> bool:
    return key.startswith(name) if name.endswith(("/", "/m")) else key == name


def read_log(stage: Path) -> list[dict]:
    """The log of a stage, one dict per logged step; a line cut short by a kill is skipped."""
    path = Path(stage) / LOG
    if not path.exists():
        raise LabError(f"{path} does not exist: run the stage that writes it first")
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _drop_log_after(path: Path, step: int) -> None:
    """A resumed run logs the steps after its checkpoint again."""
    if path.exists():
        kept = [entry for entry in read_log(path.parent) if entry["step"] <= step]
        write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
