"""The trainer of the course: VPOTrainer with a task in the place of reward functions.

It logs what the notebooks draw, evaluates on held-out requests without a loss, and does what rollouts by vLLM need:
LoRA weights merged without rounding drift, our own random seed.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from vpo_lab.chains import split_chain
from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.methods import Method
from vpo_lab.metrics import mean_reward
from vpo_lab.processes import environment_kept, gather, rank
from vpo_lab.set_reward import text_of
from vpo_lab.tasks import Task
from vpo_lab.train.decoding import merged_weights
from vpo_lab.train.gpu import check_engine, check_plain_engine
from vpo_lab.train.trl import is_unsloth
from vpo_lab.weights import dirichlet_weights, set_reward


def build_trainer(profile: Profile, task: Task, rows: Sequence[dict], method: Method, seed: int, **arguments):
    """Return a VPOTrainer for these arguments of it. The data set holds the `id` of a row beside each prompt.

    LabError if rollouts would not come from the vLLM that the backend names.
    """
    import torch
    from transformers import set_seed

    from vpo_lab.train.trl import VPOTrainer  # here, not at the top: Unsloth replaces its base when it loads the model

    row_of = {row["id"]: row for row in rows}
    reference_KD = dirichlet_weights(128, len(task.objectives), seed=0)

    class Trainer(VPOTrainer):
        """Ask a task what answers earn, in the place of reward functions."""

        tried = False
        fresh = ()  # log-probabilities of a few rollouts when they were sampled, where several steps share them
        sampled = None  # prompts, completions and the sampler's log-probabilities (None: not by vLLM) of the last batch

        def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
            given = (images, multimodal_fields, num_generations, has_tool_images)
            made = super()._generate_single_turn(prompt_ids, *given)
            if self._trains:
                self.sampled = prompt_ids, *made[:2]
            return made

        def score_answers(self, inputs, prompts, answers):
            self.began = time.perf_counter()
            rewards_nD = task.score([text_of(answer) for answer in answers], [row_of[row["id"]] for row in inputs])
            return self.accelerator.gather(torch.as_tensor(rewards_nD, device=self.accelerator.device))

        def measure(self, scored):
            texts = gather([text_of(completion) for completion in scored.completions])[0]
            shown = course_metrics(earned(scored), scored.truncated_B, texts, self._group_size(), reference_KD)
            seconds = time.perf_counter() - self.began
            shown |= {**self._true_worth(scored), "reward_seconds": seconds}
            if self._trains:
                shown |= checked_sampling(self)
                if self.accelerator.device.type == "cuda":
                    shown["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
            return {**super().measure(scored), **shown}

        def _true_worth(self, scored) -> dict[str, float]:
            """Return what the rollouts are really worth, where the task knows it; nothing of it is trained."""
            truth, hacked = getattr(task, "truth", None), getattr(task, "hacked", None)
            if truth is None or hacked is None:
                return {}
            m = scored.rewards_BMD.shape[1]
            rows = [row_of[row["id"]] for row in scored.inputs for _ in range(m)]
            split = (split_chain(text_of(completion), m) for completion in scored.completions)
            answers = [answer for chain in split for answer in chain]
            truths_nD, hacked_n = (gather(list(of(answers, rows)))[0] for of in (truth, hacked))
            truths_BMD = np.reshape(truths_nD, scored.rewards_BMD.shape)
            return truth_metrics(earned(scored), truths_BMD, np.array(hacked_n), reference_KD)

        def example(self) -> str:
            """Return the answers of a rollout of the last step, each with its reward vector."""
            if self.scored is None:
                return ""
            text = text_of(self.scored.completions[0])
            return describe_rollout(text, earned(self.scored)[self.accelerator.process_index], task.objectives)

        def training_step(self, model, inputs, num_items_in_batch=None):
            if not self.tried and self.accelerator.device.type == "cuda":
                try_longest(self, model)
            self.tried = True
            args: Any = self.args
            begins = self._step % args.gradient_accumulation_steps == 0
            before, loss = self.sampled, super().training_step(model, inputs, num_items_in_batch)
            if begins and args.steps_per_generation > args.gradient_accumulation_steps:
                self._note_ratio(is_fresh=self.sampled is not before)
            return loss

        def _note_ratio(self, is_fresh: bool) -> None:
            """Log how far the policy has moved from the one that sampled: several steps share a generation."""
            now = own_logps(self)
            self.fresh = now if is_fresh else self.fresh
            for name, value in ratio_metrics(now, self.fresh, self.epsilon_low, self.epsilon_high).items():
                self._metrics["train"][name].append(value)

        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            """Evaluate on held-out requests: rollouts and what they earn, no loss.

            What a loss needs would take the logits of all of them at once.
            """
            args: Any = self.args
            needs = self.vllm_importance_sampling_correction, self.beta, args.steps_per_generation
            self.vllm_importance_sampling_correction, self.beta, args.steps_per_generation = False, 0.0, 1
            try:
                self._generate_and_score_completions(inputs)
            finally:
                self.vllm_importance_sampling_correction, self.beta, args.steps_per_generation = needs
            return torch.zeros((), device=self.accelerator.device), None, None

    # The task scores all objectives at once: these only name them.
    trainer = Trainer(reward_funcs=[_named(objective) for objective in task.objectives], method=method, **arguments)
    if profile.policy.backend == "unsloth":
        check_engine(trainer)
    if profile.policy.backend == "vllm":
        check_plain_engine(trainer)
        if profile.policy.lora_rank:
            if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
                raise LabError("an adapter cannot go to vLLM from FSDP or DeepSpeed shards: use plain DDP, --multi_gpu")
            engine = trainer.vllm_generation
            engine._iter_named_params = lambda: merged_weights(engine.model)
        # vLLM in this process has seeded everything with a number of its own.
        set_seed(seed + rank())
    return trainer


ROWS = 4  # rollouts of a step whose probabilities are compared
TOKENS = 32  # fewer of them prove nothing
APART = 0.1  # mean difference of log-probabilities; bfloat16 and other kernels alone make 0.01 to 0.03


def checked_sampling(trainer) -> dict[str, float]:
    """Return how far vLLM's log-probabilities lie from those of the model that is trained, in a few rollouts.

    LabError if they lie too far apart: the rollouts then come from another policy, the base model perhaps, and nothing
    else would show it. Where Unsloth logs no entropy, that of these rollouts is returned, too. {} without vLLM.
    """
    prompts, completions, logps = trainer.sampled or ((), (), None)
    if logps is None or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return {}
    rows = [
        _difference(trainer, *row)
        for row in zip(prompts[:ROWS], completions[:ROWS], logps[:ROWS], strict=True)
        if row[1]
    ]
    # Sums of differences and of entropies, and tokens, of all processes.
    difference, entropy, tokens = np.sum(gather(rows)[0] or np.zeros((1, 3)), axis=0)
    difference, entropy = difference / max(tokens, 1), entropy / max(tokens, 1)
    if tokens >= TOKENS and not difference < APART:
        raise LabError(
            f"step {trainer.state.global_step + 1}: vLLM's log-probabilities differ by {difference:.2f} from "
            f"those of the model that is trained ({APART:g} is too much): it samples another policy. Install the "
            "versions of requirements/gpu.lock; what was trained so far is in the checkpoints"
        )
    return {"sampling_difference": difference} | ({"entropy": entropy} if is_unsloth(type(trainer)) else {})


def _difference(trainer, prompt: list[int], completion: list[int], logps: list[float]) -> tuple[float, float, int]:
    """Return the sums of |difference| and entropy over the tokens of a rollout, and how many they are."""
    own_T, entropy = _scored(trainer, prompt, completion)
    theirs_T = own_T.new_tensor([np.nan if x is None else x for x in logps])
    return (own_T - theirs_T).abs().nansum().item(), entropy, len(completion)


def _scored(trainer, prompt: list[int], completion: list[int]):
    """Return the log-probabilities (T,) that the model that is trained gives a completion, and its summed entropy."""
    import torch

    model, device = trainer.accelerator.unwrap_model(trainer.model), trainer.accelerator.device
    ids = torch.tensor([[*prompt, *completion]], device=device)
    with environment_kept("UNSLOTH_RETURN_LOGITS", "UNSLOTH_RETURN_HIDDEN_STATES"):
        os.environ |= {"UNSLOTH_RETURN_LOGITS": "1", "UNSLOTH_RETURN_HIDDEN_STATES": "0"}
        with torch.no_grad(), trainer.compute_loss_context_manager():
            logits_TV = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=len(completion) + 1, use_cache=False
            ).logits[0, :-1]
    logps, entropy = [], 0.0
    for start in range(0, len(completion), 256):  # in float32 a whole completion would take gigabytes
        part_TV = (logits_TV[start : start + 256].float() / trainer.temperature).log_softmax(-1)
        logps.append(part_TV.gather(1, ids[0, len(prompt) + start :][: len(part_TV), None])[:, 0])
        entropy -= (part_TV.exp() * part_TV).sum().item()
    return torch.cat(logps), entropy


def own_logps(trainer) -> list:
    """Return the log-probabilities, (T,) each, that the model gives a few rollouts of the last generation."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return []
    prompts, completions, _ = trainer.sampled
    pairs = zip(prompts[:ROWS], completions[:ROWS], strict=True)
    return [_scored(trainer, prompt, completion)[0] for prompt, completion in pairs if completion]


def ratio_metrics(now: list, then: list, low: float, high: float) -> dict[str, float]:
    """Return how far the importance ratios exp(now - then) of the tokens of all processes lie from 1.

    "ratio_from_one": their mean distance from it; "beyond_clip": the share outside 1 - low to 1 + high, where the loss
    may be clipped. Both are 0 on fresh rollouts.
    """
    rows = []
    for now_T, then_T in zip(now, then, strict=True):
        far_T = (now_T - then_T).exp() - 1
        rows.append((far_T.abs().sum().item(), ((far_T < -low) | (far_T > high)).sum().item(), len(far_T)))
    distance, beyond, tokens = np.sum(gather(rows)[0] or np.zeros((1, 3)), axis=0)
    return {"ratio_from_one": distance / max(tokens, 1), "beyond_clip": beyond / max(tokens, 1)}


def try_longest(trainer, model) -> None:
    """Take the worst step that may come, and forget it: a micro batch of the longest prompt with all its answers.

    Where memory is short it ends here, and not hours later, when that prompt comes. Nothing of it is kept.
    """
    import torch

    if trainer.is_deepspeed_enabled:  # its backward pass is a step
        return
    tokenizer, device = trainer.processing_class, trainer.accelerator.device
    rows, width = trainer.args.per_device_train_batch_size, trainer.max_completion_length
    prompts = list(dict.fromkeys(trainer.train_dataset["prompt"]))
    ids = max((tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts), key=len)
    ones = torch.ones(rows, width, device=device)
    inputs = {
        "prompt_ids": torch.tensor([ids] * rows, device=device),
        "prompt_mask": torch.ones(rows, len(ids), dtype=torch.long, device=device),
        "completion_ids": torch.full((rows, width), ids[-1], device=device),
        "completion_mask": ones.long(),
        "advantages": ones[:, 0],
        "num_items_in_batch": ones.sum(),
    }
    inputs |= {"importance_sampling_ratio": ones} if trainer.vllm_importance_sampling_correction else {}
    inputs |= {"ref_per_token_logps": torch.zeros_like(ones)} if trainer.beta else {}
    kept = copy.deepcopy(trainer._metrics)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, inputs)
        trainer.accelerator.backward(loss)
    model.zero_grad()
    trainer._metrics = kept


def earned(scored: SimpleNamespace) -> np.ndarray:
    """Return what answers earned, (B, M, D): nothing where one is missing or its rollout was truncated."""
    nothing_BM = ~scored.present_BM | scored.truncated_B[:, None]
    return np.where(nothing_BM[..., None] & ~np.isnan(scored.rewards_BMD), 0.0, scored.rewards_BMD)


def course_metrics(
    rewards_BMD: np.ndarray,
    truncated_B: np.ndarray,
    completions: Sequence[str],
    group_size: int,
    reference_KD: np.ndarray,
) -> dict[str, float]:
    """Return what is worth a look at every step, the same for every method; unasked objectives are skipped."""
    scalar_BM = mean_reward(rewards_BMD)
    groups_PG = [completions[i : i + group_size] for i in range(0, len(completions), group_size)]
    return {
        "set_reward": float(set_reward(rewards_BMD, reference_KD).mean()),
        "mean_reward": float(scalar_BM.mean()),
        "best_of_rollout": float(scalar_BM.max(axis=1).mean()),
        "best_of_group": float(scalar_BM.reshape(len(groups_PG), -1).max(axis=1).mean()),
        "distinct_rollouts": float(np.mean([len(set(group)) / len(group) for group in groups_PG])),
        "truncated": float(np.mean(truncated_B)),
    }


def truth_metrics(
    rewards_BMD: np.ndarray, truths_BMD: np.ndarray, hacked_n: np.ndarray, reference_KD: np.ndarray
) -> dict[str, float]:
    """Return what rollouts are worth by a task's truth: of the answers that their scores would pick, and of all.

    "truth": under random weights w, the true worth of the answer of a rollout that scores best; "mean_truth": of
    every answer, the mean of the objectives; "hacked": the share of answers that hold a flaw.
    """
    best_BK1 = (rewards_BMD @ reference_KD.T).argmax(axis=1)[:, None]
    picked_BK = np.take_along_axis(truths_BMD @ reference_KD.T, best_BK1, axis=1)
    return {
        "truth": float(picked_BK.mean()),
        "mean_truth": float(truths_BMD.mean()),
        "hacked": float(np.mean(hacked_n)),
    }


def describe_rollout(text: str, rewards_MD: np.ndarray, objectives: Sequence[str]) -> str:
    """Return the answers of a rollout as lines, each with its reward vector."""
    lines = [f"one rollout of the last step; rewards: {', '.join(objectives)}"]
    for answer, rewards_D in zip(split_chain(text, len(rewards_MD)), rewards_MD, strict=True):
        lines.append(f"[{' '.join(f'{reward:.2f}' for reward in rewards_D)}]  {' '.join(answer.split())[:160]}")
    return "\n".join(lines)


def _named(objective: str):
    def unused(**_):
        raise NotImplementedError("the task scores the answers")

    unused.__name__ = objective
    return unused
