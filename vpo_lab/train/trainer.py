"""TRL's GRPOTrainer with what our methods need of it: advantages per answer, looks at held-out requests.

And with what its rollouts by vLLM need of us: unworn weights, our seed, an end.
"""

from __future__ import annotations

from types import MethodType

import numpy as np

from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.processes import rank
from vpo_lab.train.gpu import left_packed, merged_weights
from vpo_lab.train.rollouts import VectorReward


def build_trainer(profile: Profile, reward: VectorReward, tokenizer, seed: int, **arguments):
    """A GRPOTrainer (TRL's, or Unsloth's in its place) for these arguments of GRPOTrainer.

    LabError if Unsloth was to replace TRL's trainer and did not.
    """
    import torch
    from transformers import set_seed

    # Late, because Unsloth rebinds trl.GRPOTrainer when the policy is loaded.
    from trl import GRPOTrainer

    is_unsloth = profile.policy.backend == "unsloth"
    if is_unsloth and not GRPOTrainer.__name__.startswith("Unsloth"):
        raise LabError(
            "unsloth did not patch TRL's trainer (its warning above says why): restart, import unsloth first"
        )

    class Trainer(GRPOTrainer):
        """GRPOTrainer with one advantage per token where the method gives one per answer."""

        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            if reward.token_advantages is not None:
                batch["advantages"] = padded(reward.token_advantages, like=batch["completion_mask"])
            return batch

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if is_unsloth and inputs["advantages"].dim() == 2:
                inputs = {**inputs, "advantages": left_packed(inputs, tokenizer.pad_token_id)}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            """A look at held-out requests: rollouts and what they earn, no loss."""
            correction = self.vllm_importance_sampling_correction
            self.vllm_importance_sampling_correction = False  # it would need the logits of a whole group at once
            try:
                self._generate_and_score_completions(inputs)
            finally:
                self.vllm_importance_sampling_correction = correction
            return torch.zeros((), device=self.accelerator.device), None, None

    trainer = Trainer(reward_funcs=reward, processing_class=tokenizer, **arguments)
    if profile.policy.backend == "vllm":
        if profile.policy.lora_rank:
            if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
                raise LabError("an adapter cannot go to vLLM from FSDP or DeepSpeed shards: use plain DDP, --multi_gpu")
            trainer.vllm_generation._iter_named_params = MethodType(merged_weights, trainer.vllm_generation)
        # vLLM in this process has seeded everything with a number of its own.
        set_seed(seed + rank())
    return trainer


def padded(rows: list[np.ndarray], like):
    """(B, T) float tensor from rows of at most T values, zeros at the right: TRL pads completions there."""
    import torch

    values_BT = np.zeros(like.shape, dtype=np.float32)
    for row, values in zip(values_BT, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(values_BT).to(like.device)
