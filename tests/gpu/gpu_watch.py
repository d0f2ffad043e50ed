"""What trainers do, seen from outside: times, lengths, rollouts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpu_model import ADAPTERS
from untagged import untagged

from vpo_lab.train import rl, sft

LOGGED = 16  # rollouts of a prompt whose log-probabilities are compared


def now() -> float:
    """Seconds, when the GPU has done all that it was given."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Watch:
    """What trainers did: a dict per optimizer step with its seconds, its decoding and its lengths in tokens.

    `probe`: check once which tokens the loss gives an advantage to. `keep`: keep the rollouts.
    """

    def __init__(self, probe: bool = False, keep: bool = False):
        self.steps: list[dict] = []
        self.probe, self.keep, self.probed, self.kept = probe, keep, None, []
        self.after_step: dict = {}  # step -> what to do with the trainer when it is over
        self.in_step = False

    def attach(self, trainer) -> None:
        from transformers import TrainerCallback

        watch = self

        class Steps(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                watch.in_step, watch.began = True, now()
                watch.steps.append({"prompts": [], "completions": []})

            def on_step_end(self, args, state, control, **_):
                watch.in_step = False
                step = watch.steps[-1]
                step["seconds"] = now() - watch.began
                step["trained"] = sum(step["prompts"]) + sum(step["completions"])
                if state.global_step in watch.after_step:
                    watch.after_step[state.global_step](trainer)

            def on_log(self, args, state, control, logs=None, **_):
                if watch.steps and not watch.steps[-1]["trained"] and "num_tokens" in (logs or {}):  # SFT
                    watch.steps[-1]["trained"] = int(logs["num_tokens"] / state.global_step)

        trainer.add_callback(Steps())
        if not hasattr(trainer, "_generate_single_turn"):
            return  # SFT
        self._watch_generation(trainer)
        if self.probe:
            self._watch_loss(trainer)

    def _watch_generation(self, trainer) -> None:
        generate, sync = trainer._generate_single_turn, None
        if getattr(trainer, "vllm_generation", None) is not None:
            sync = trainer.vllm_generation.sync_weights

        def timed_sync(*args, **kwargs):
            start, result = now(), sync(*args, **kwargs)
            self.sync_seconds += now() - start
            return result

        def timed(prompt_ids, *args, **kwargs):
            self.sync_seconds, start = 0.0, now()
            completions, logps = generate(prompt_ids, *args, **kwargs)
            seconds = now() - start
            if self.in_step:
                self.steps[-1].update(
                    sync_seconds=self.sync_seconds,
                    decode_seconds=seconds - self.sync_seconds,
                    prompts=[len(ids) for ids in prompt_ids],
                    completions=[len(ids) for ids in completions],
                )
                if self.keep:
                    self.kept.append(kept_rollouts(ADAPTERS[len(self.kept)], prompt_ids, completions, logps))
            return completions, logps

        trainer._generate_single_turn = timed
        if sync is not None:
            trainer.vllm_generation.sync_weights = timed_sync

    def _watch_loss(self, trainer) -> None:
        compute_loss = trainer.compute_loss

        def probing(model, inputs, return_outputs=False, num_items_in_batch=None):
            if self.probed is None:
                pad = trainer.processing_class.pad_token_id
                self.probed = probe_advantages(lambda edited: compute_loss(model, edited), inputs, pad)
            return compute_loss(model, inputs, return_outputs, num_items_in_batch)

        trainer.compute_loss = probing


def probe_advantages(loss_of, inputs: dict, pad: int) -> dict:
    """The loss under advantages that differ at every token, over that under advantages of 1: got and expected.

    On fresh rollouts the loss is -sum(advantage) / n over the tokens of completions, so that the quotient is known.
    It comes out wrong if an advantage reaches another token than its own. Rollouts are cut to different lengths.
    """
    import torch

    edited = {**inputs, "completion_ids": inputs["completion_ids"].clone()}
    edited["completion_mask"] = inputs["completion_mask"].clone()
    rows, width = edited["completion_mask"].shape
    for row in range(rows):
        length = max(1, width - row * width // (2 * rows))
        edited["completion_ids"][row, length:] = pad
        edited["completion_mask"][row, length:] = 0
    edited.pop("old_per_token_logps", None)  # then the ratio to them is 1
    if "importance_sampling_ratio" in edited:
        edited["importance_sampling_ratio"] = torch.ones_like(edited["importance_sampling_ratio"])
    mask_BT = edited["completion_mask"].float()
    advantages_BT = torch.arange(rows, device=mask_BT.device)[:, None] / rows + torch.linspace(
        1, 3, width, device=mask_BT.device
    )
    ones_B = torch.ones(rows, device=mask_BT.device)
    losses = []
    for advantages in (advantages_BT * mask_BT, ones_B):
        loss = loss_of({**edited, "advantages": advantages})
        losses.append(float(loss.detach()))
        del loss
    return {
        "got": losses[0] / losses[1],
        "expected": float((advantages_BT * mask_BT).sum() / mask_BT.sum()),
        "paddings": (inputs["prompt_mask"] == 0).sum(dim=1).tolist(),
    }


def kept_rollouts(adapter: str, prompts: list, completions: list, logps: list | None) -> dict:
    """First tokens by prompt, and some rollouts with the log-probabilities that the sampler gave."""
    by_prompt: dict[tuple, list[int]] = {}
    for b, ids in enumerate(prompts):
        by_prompt.setdefault(tuple(ids), []).append(b)
    logged = [
        {"prompt": list(ids), "completion": list(completions[b]), "logps": list(logps[b]) if logps else None}
        for ids, numbers in by_prompt.items()
        for b in numbers[:LOGGED]
    ]
    first = [[list(ids), [completions[b][0] for b in numbers]] for ids, numbers in by_prompt.items()]
    return {"adapter": adapter, "first": first, "logged": logged}


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Trainers are watched, and what random weights write counts as answers."""
    run_stage = rl.run_stage

    def watched_run_stage(trainer, *args, **kwargs):
        watch.attach(trainer)
        return run_stage(trainer, *args, **kwargs)

    rl.run_stage = sft.run_stage = watched_run_stage
    try:
        with untagged():
            yield
    finally:
        rl.run_stage = sft.run_stage = run_stage
