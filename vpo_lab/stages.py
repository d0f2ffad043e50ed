"""One stage of a run: a TRL trainer taken to its last step or to a deadline, through kills and resumes.

A stage is a folder of the run: `log.jsonl`, `checkpoints/`, and at the end `policy/`. Where the time
was up before the last step, `stopped.json` says at which one, and a later run goes on from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from vpo_lab.errors import LabError
from vpo_lab.live import LiveView, someone_looks
from vpo_lab.processes import first_ones, rank, say, wait_for_all
from vpo_lab.progress import StageProgress
from vpo_lab.storage import (
    atomic_folder,
    explain_full_disk,
    last_good_checkpoint,
    read_json,
    seal_checkpoint,
    write_bytes,
    write_json,
)

LOG = "log.jsonl"
LOOKS = "looks.jsonl"  # what the policy earned on held-out requests while it was trained
POLICY = "policy"
STOPPED = "stopped.json"
# Kernels inherit it: the time, in seconds since 1970, at which all training of this run must be over.
TRAIN_UNTIL = "VPO_LAB_TRAIN_UNTIL"


def train_until() -> float | None:
    """When all training must be over, in seconds since 1970; None: no limit."""
    return float(os.environ[TRAIN_UNTIL]) if os.environ.get(TRAIN_UNTIL) else None


def stopped_at(stage: Path) -> dict | None:
    """{"step", "steps", "until"} of a stage whose time was up before its last step, else None."""
    return read_json(stage / STOPPED) if (stage / STOPPED).exists() else None


def has_policy(stage: Path) -> bool:
    """Is there a policy, and nothing left to train? A stage that was stopped goes on in a run with other hours."""
    stopped, until = stopped_at(stage), train_until()
    time_is_up = until is not None and until <= time.time()
    return (stage / POLICY).exists() and (stopped is None or stopped["until"] == until or time_is_up)


def is_finished(stage: Path) -> bool:
    """Is nothing left to train? Says so, or a reader would wonder why nothing trains."""
    if finished := has_policy(stage):
        say(f"{stage.name} is trained already: its policy is in {stage.parent.name}/{stage.name}/{POLICY}")
    return finished


def run_stage(
    trainer,
    stage: Path,
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
    checkpoint, complaints = last_good_checkpoint(stage / "checkpoints")
    for complaint in complaints:
        say(complaint)
    trainer.add_callback(_stage_callback(stage, steps, title, stop_at, example))
    with explain_full_disk(stage):
        stage.mkdir(parents=True, exist_ok=True)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt:
            kept, _ = last_good_checkpoint(stage / "checkpoints")
            say(f"\n{title} interrupted: the same call goes on from {kept.name if kept else 'the beginning'}")
            raise
        done = trainer.state.global_step
        if rank() == 0 and done < steps:
            write_json(stage / STOPPED, {"step": done, "steps": steps, "until": train_until()})
        if trainer.is_fsdp_enabled:  # else each process would hold on to its part, and nothing be written
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        policy = stage / POLICY
        with atomic_folder(policy) if rank() == 0 else nullcontext(policy) as folder:
            folder = Path(first_ones(str(folder)))
            trainer.save_model(str(folder))  # by all: a sharded model has to be put together
            if rank() == 0:
                trainer.processing_class.save_pretrained(str(folder))
            wait_for_all()
        if rank() == 0:
            _forget_pools(stage)
            if done >= steps:
                (stage / STOPPED).unlink(missing_ok=True)
        wait_for_all()
    if done < steps:
        say(f"{title} stopped after step {done} of {steps}, its time was up: a run with more hours goes on from there")
    return policy


def _forget_pools(stage: Path) -> None:
    """Remove what an earlier policy of this stage answered."""
    for pool in (stage.parent / "pools").glob("*.json.gz"):
        if pool.name.removesuffix(".json.gz").partition("@")[0] in (stage.name, f"{stage.name}_chain"):
            pool.unlink()


def _stage_callback(stage: Path, steps: int, title: str, stop_at: float | None, example: Callable[[], str] | None):
    from transformers import TrainerCallback

    class StageCallback(TrainerCallback):
        """Seals checkpoints, appends the log, shows the progress, ends the training when its time is up."""

        def on_train_begin(self, args, state, control, **_):
            self.progress = StageProgress(title, steps, done=state.global_step)
            self.log = []
            self.view = LiveView(title, example) if someone_looks() else None
            if rank() == 0:
                for name in (LOG, LOOKS):
                    _drop_log_after(stage / name, state.global_step)
                if (stage / LOG).exists():
                    self.log = read_log(stage)

        def on_step_end(self, args, state, control, **_):
            self.progress.update(state.global_step)
            if stop_at is not None and first_ones(time.time() >= stop_at):
                control.should_save = control.should_training_stop = True

        def on_save(self, args, state, control, **_):
            wait_for_all()  # every process writes a part of its own
            if rank() == 0:
                seal_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_log(self, args, state, control, logs=None, **_):
            if not logs or "train_runtime" in logs or rank() > 0:
                return
            is_look = any(key.startswith("eval_") for key in logs)
            logs = {key.removeprefix("eval_"): value for key, value in logs.items()}
            entry = {"step": state.global_step, **{k: round(v, 6) for k, v in logs.items() if _is_kept(k, v)}}
            with open(stage / (LOOKS if is_look else LOG), "a") as file:
                file.write(json.dumps(entry) + "\n")
            if not is_look:
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


# --- The log ----------------------------------------------------------------------------------

# TRL's own view of the reward is the advantage here, and clipping never acts on fresh rollouts.
_NOISE = ("reward", "reward_std", "frac_reward_zero_std", "rewards/", "clip_ratio/", "completions/m", "epoch")
_NOISE += ("runtime", "samples_per_second", "steps_per_second")
_KEPT = ("completions/mean_length",)


def _is_kept(key: str, value: object) -> bool:
    """Is this metric worth a place in the log?"""
    return isinstance(value, (int, float)) and (key in _KEPT or not any(_matches(key, name) for name in _NOISE))


def _matches(key: str, name: str) -> bool:
    return key.startswith(name) if name.endswith(("/", "/m")) else key == name


def read_log(stage: Path, name: str = LOG) -> list[dict]:
    """A log of a stage, one dict per logged step; a line cut short by a kill is skipped."""
    path = Path(stage) / name
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
        kept = [entry for entry in read_log(path.parent, path.name) if entry["step"] <= step]
        write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
