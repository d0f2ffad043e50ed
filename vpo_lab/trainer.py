"""TRL's GRPOTrainer with what our methods need of it: advantages per answer, looks at held-out requests.

And with what its rollouts by vLLM need of us: unworn weights, our seed, an end.
"""

from __future__ import annotations

from types import MethodType

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.processes import rank, world_size
from vpo_lab.profiles import Profile
from vpo_lab.rollouts import VectorReward


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


def left_packed(inputs: dict, pad_token_id: int):
    """(B, T) advantages moved to where Unsloth's loss has the tokens: (B, T + the most padding of a prompt).

    It moves the padding of prompts behind the completions, for each micro-batch anew (unsloth_zoo
    2026.10.7, rl_replacements.grpo_accumulated_loss), so that completions begin at different columns.
    """
    import torch

    advantages_BT = inputs["advantages"]
    rows, width = advantages_BT.shape
    padding_B = (inputs["prompt_ids"] == pad_token_id).sum(dim=1)
    scored = inputs.get("old_per_token_logps")
    widest = int(padding_B.max()) if scored is None else scored.shape[1] - width
    columns_BT = (widest - padding_B).unsqueeze(1) + torch.arange(width, device=padding_B.device)
    return advantages_BT.new_zeros(rows, width + widest).scatter_(1, columns_BT, advantages_BT)


def merged_weights(generation):
    """(name, tensor) of what vLLM is sent: base plus LoRA, added on a copy.

    TRL adds and subtracts the adapter in place at every step, which wears a bfloat16 base down: after 1000
    steps the error is as large as a third of what was learned (trl issue 6688). Not for FSDP or ZeRO-3.
    """
    import torch

    model = generation.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if model.prefix in name:
                continue
            weight = parameter.data
            if name.endswith(".base_layer.weight"):
                layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
                delta = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
                weight = (weight + delta).to(parameter.dtype)
            yield name.removeprefix("base_model.model.").replace(".base_layer", ""), weight


def close_vllm(trainer) -> None:
    """Give back the GPU memory or the ports that TRL's vLLM holds: notebooks train and evaluate in one process."""
    generation = trainer.vllm_generation
    if generation.mode == "colocate":
        engine = generation.llm.llm_engine
        # The whole engine takes the process group with it, which other processes still train in.
        (engine.engine_core if world_size() == 1 else engine.model_executor).shutdown()
        del generation.llm
    elif rank() == 0:
        generation.vllm_client.close_communicator()
