"""Train one stage of a run: a TRL trainer taken to its last step or to a deadline, through kills and resumes."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec

from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.files import atomic_folder, explain_full_disk, write_bytes
from vpo_lab.processes import broadcast, print0, rank, wait_for_all, world_size
from vpo_lab.runs import EVAL_LOG, LOG, STOPPED, Stage, last_good_checkpoint, seal_checkpoint, step_of
from vpo_lab.show.live import LiveView, StageProgress, someone_looks

P = ParamSpec("P")


def run_stage(
    trainer,
    stage: Stage,
    steps: int,
    title: str,
    stop_at: float | None = None,
    example: Callable[[], str] | None = None,
) -> Path:
    """Run a TRL trainer with resume, log and progress; publish the policy atomically and return its folder.

    `stop_at` (seconds since 1970): end after the step that passes it, with a checkpoint. `example`: the
    answers of a rollout, as text, for a notebook that somebody watches.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    checkpoint, complaints = last_good_checkpoint(stage.checkpoints)
    for complaint in complaints:
        print0(complaint)
    trainer.add_callback(_stage_callback(stage, steps, title, stop_at, example))
    with explain_full_disk(stage.folder):
        stage.folder.mkdir(parents=True, exist_ok=True)
        if checkpoint and step_of(checkpoint) >= steps and _load_weights(trainer, checkpoint):
            done = step_of(checkpoint)  # killed before its policy stood: transformers would train a step too many
        else:
            _start_tracking(trainer, stage)
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except KeyboardInterrupt:
                kept, _ = last_good_checkpoint(stage.checkpoints)
                print0(f"\n{title} interrupted: the same call continues from {kept.name if kept else 'the beginning'}")
                raise
            done = trainer.state.global_step
        if rank() == 0 and done < steps:
            stage.stop(done, steps, stage.until)
        if trainer.is_fsdp_enabled:  # else each process would hold on to its part, and nothing be written
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        with atomic_folder(stage.policy) if rank() == 0 else nullcontext(stage.policy) as folder:
            folder = Path(broadcast(str(folder)))
            trainer.save_model(str(folder))  # by all: a sharded model has to be put together
            if rank() == 0:
                trainer.processing_class.save_pretrained(str(folder))
            wait_for_all()
        if rank() == 0:
            stage.forget_pools()
            if done >= steps:
                (stage / STOPPED).unlink(missing_ok=True)
        wait_for_all()
    if done < steps:
        print0(
            f"{title} stopped after step {done} of {steps}, its time was up: a run with more hours continues from there"
        )
    return stage.policy


BROKEN = 5  # steps in a row whose gradient is not finite


def drop_broken_gradient(model) -> bool:
    """Take the gradients away if one of them is not finite, and say so: a step with them would end the policy."""
    import torch

    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
        return False
    model.zero_grad()
    return True


def _load_weights(trainer, checkpoint: Path) -> bool:
    """Load a checkpoint's weights without training; False where a sharded model needs `train` for that."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return False
    trainer._load_from_checkpoint(str(checkpoint))
    return True


def _stage_callback(stage: Stage, steps: int, title: str, stop_at: float | None, example: Callable[[], str] | None):
    from transformers import TrainerCallback

    class StageCallback(TrainerCallback):
        """Seal checkpoints, append the log, show the progress, end the training when its time is up."""

        def on_train_begin(self, args, state, control, **_):
            self.progress = StageProgress(title, steps, done=state.global_step)
            self.log, self.broken = [], 0
            self.view = LiveView(title, example) if someone_looks() else None
            if rank() == 0:
                stage.forget_steps_after(state.global_step)
                (stage / LOG).touch()  # from here on the next line must come in time, see `watch`
                self.log = stage.log()

        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            self.broken = self.broken + 1 if drop_broken_gradient(model) else 0
            if self.broken:
                print0(f"\n{title}: the gradient of step {state.global_step + 1} is not finite and was left out")
            if self.broken == BROKEN:
                raise LabError(
                    f"{title}: the gradients of {BROKEN} steps one after another were not finite: go on from the "
                    "last checkpoint with a smaller rl.learning_rate, or in float32 (policy.dtype)"
                )

        def on_step_end(self, args, state, control, **_):
            self.progress.update(state.global_step)
            if told := self.progress.measured(state.global_step):
                print0(f"\n{told}")
            whole = state.global_step % _steps_of_a_generation(args) == 0  # else its rollouts would be sampled anew
            if stop_at is not None and broadcast(whole and time.time() >= stop_at):
                control.should_save = control.should_training_stop = True

        def on_save(self, args, state, control, **_):
            wait_for_all()  # every process writes a part of its own
            if rank() == 0:
                seal_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_log(self, args, state, control, logs=None, **_):
            if not logs or "train_runtime" in logs or rank() > 0:
                return
            is_eval = any(key.startswith("eval_") for key in logs)
            logs = {key.removeprefix("eval_"): value for key, value in logs.items()}
            entry = {"step": state.global_step, **_entry(logs)}
            if self.log and not is_eval and _steps_of_a_generation(args) > 1:
                entry = {**self.log[-1], **entry}  # what its rollouts earned was logged by the step that sampled them
            with open(stage / (EVAL_LOG if is_eval else LOG), "a") as file:
                file.write(json.dumps(entry) + "\n")
            if not is_eval:
                self.progress.note(entry)
                self.log.append(entry)
                if self.view:
                    self.view.update(self.log)

        def on_train_end(self, args, state, control, **_):
            self.progress.close(state.global_step)
            if self.view:
                self.view.update(self.log, at_once=True)
            if "wandb" in args.report_to and rank() == 0:
                import wandb

                wandb.finish()
                wandb.teardown()  # the next stage of this process is a run of its own: it reads its settings anew

    return StageCallback()


def _steps_of_a_generation(args) -> int:
    """How many optimizer steps share a batch of rollouts; 1 in a training without any."""
    return max(1, getattr(args, "steps_per_generation", 1) // args.gradient_accumulation_steps)


# --- The log ----------------------------------------------------------------------------------

# Left out: what each objective contributed to R(S), clipping, which never acts on fresh rollouts, Unsloth's second name
# of a mean length, and TRL's clocks.
_NOISE = (
    "rewards/", "clip_ratio/", "completions/m", "completion_length", "epoch", "runtime", "samples_per_second",
    "steps_per_second",
)  # fmt: skip


def _entry(logs: dict) -> dict[str, float]:
    """Return the numbers of a log that are worth a place in ours; a group whose R(S) are all equal is silent."""
    kept = {k: v for k, v in logs.items() if k == "completions/mean_length" or not k.startswith(_NOISE)}
    if "frac_reward_zero_std" in kept:
        kept["silent_groups"] = kept["frac_reward_zero_std"]
    return {key: _rounded(value) for key, value in kept.items() if isinstance(value, int | float)}


def _rounded(value: float) -> float:
    """Six decimals, but of a small number, such as a learning rate, four digits."""
    return round(value, 6) if abs(value) >= 1e-3 else float(f"{value:.4g}")


# --- Both stages ------------------------------------------------------------------------------


def keywords(function: Callable[P, object], /, *_: P.args, **given: P.kwargs) -> dict[str, Any]:
    """Return the keywords for a later call of `function`: a type checker sees whether it takes them, as in the call."""
    return given


def _split(field: str, rows: int, micro: int) -> dict[str, Any]:
    """A batch of `rows` in forward passes of at most `micro` (0: all at once) on each process."""
    from transformers import TrainingArguments

    share, rest = divmod(rows, world_size())
    micro = min(micro or share, share)
    if rest or not share or share % micro:
        raise LabError(
            f"{field}: {rows} rows cannot be split over {world_size()} processes in passes of {micro or 1}: "
            "change the number of processes, or rl.rollouts, rl.micro_rollouts, sft.batch_rows, sft.micro_rows"
        )
    steps = share // micro
    return keywords(TrainingArguments, per_device_train_batch_size=micro, gradient_accumulation_steps=steps)


def with_less_memory(profile: Profile, field: str, train: Callable[[Profile], Path]) -> Path:
    """Call `train`; where the GPU's memory runs out, again with half the micro batch, from the last checkpoint.

    `field` is "rl.micro_rollouts" or "sft.micro_rows", which change no result. One of several processes cannot do so
    alone: LabError that says what to set.
    """
    import torch

    while True:
        try:
            return train(profile)
        except torch.OutOfMemoryError as error:
            if not (micro := _half_of(profile, field)):
                raise
            if world_size() > 1:
                raise LabError(
                    f"process {rank()} is out of memory: start all again with --set {field}={micro}"
                ) from error
        # Behind the block, because the error keeps the tensors of the step that failed.
        print0(f"\nout of memory: {field} is {micro} from here on, and the stage goes on from its last checkpoint")
        profile = profile.with_overrides({field: micro})


def _half_of(profile: Profile, field: str) -> int:
    """The largest micro batch of at most half the size that a batch can be split into; 0 if it is 1 already."""
    rows, now = {
        "rl.micro_rollouts": (profile.rl.rollouts, profile.rl.micro_rollouts),
        "sft.micro_rows": (profile.sft.batch_rows, profile.sft.micro_rows),
    }[field]
    return next((size for size in range((now or rows) // 2, 0, -1) if rows % size == 0), 0)


def _on_one_gpu(args):
    """The arguments of a trainer that keeps a batch together: transformers would split it over all GPUs it sees."""
    args._n_gpu = min(args._n_gpu, 1)
    return args


def _common_arguments(profile: Profile, stage: Stage, seed: int) -> dict[str, Any]:
    import torch
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    return keywords(
        TrainingArguments,
        output_dir=str(stage.checkpoints),
        seed=seed,
        data_seed=seed,
        use_cpu=not cuda,
        bf16=cuda and profile.policy.dtype == "bfloat16",
        fp16=False,
        optim="adamw_torch",
        gradient_checkpointing=cuda and bool(profile.policy.lora_rank),  # a CPU has the memory, and not the time
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
        ddp_timeout=7200,
        save_strategy="steps",
        save_total_limit=2,
        logging_strategy="steps",
        disable_tqdm=True,
        run_name=f"{profile.name}-{stage.name}-seed{seed}",
        report_to=["wandb"] if profile.track and _can_track() else [],
    )


# --- Weights & Biases -------------------------------------------------------------------------


def _can_track() -> bool:
    """Return True if there is a W&B key, or W&B is to log offline, and nothing turns it off."""
    off = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes")
    mode = os.environ.get("WANDB_MODE", "online")
    if off or mode == "disabled" or not (os.environ.get("WANDB_API_KEY") or mode == "offline"):
        return False
    if find_spec("wandb") is None:
        print0("a W&B key is set but wandb is not installed: logged to files only (pip install wandb)")
        return False
    return True


def _start_tracking(trainer, stage: Stage) -> None:
    """Open the W&B run of this stage, the same one when it is resumed; without it the training logs to files only."""
    if "wandb" not in trainer.args.report_to or rank() > 0:
        return
    from transformers.integrations import WandbCallback

    mark = stage / "wandb_id"
    if not mark.exists():
        write_bytes(mark, uuid.uuid4().hex[:8].encode())
    try:
        import wandb

        wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vpo-lab"),
            name=trainer.args.run_name,
            dir=str(stage),
            id=mark.read_text(),
            resume="allow",
            settings=wandb.Settings(init_timeout=30),
        )
    except Exception as error:  # no network, a wrong key: its own classes, and those of what it is built on
        trainer.remove_callback(WandbCallback)
        trainer.args.report_to = []
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print0(f"no W&B ({reason[0]}): logged to files only; WANDB_MODE=offline keeps a copy to upload later")
