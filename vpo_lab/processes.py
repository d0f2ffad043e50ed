"""What the processes of a run tell each other: `vpo-lab run` its kernels, and several that train one policy.

`accelerate launch` and torchrun start several and say so in the environment; without them there is one.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TypeVar

SESSION = "VPO_LAB_SESSION"

# What a launcher or a job scheduler says about several processes.
LAUNCHER = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)  # fmt: skip


RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what vLLM sets for itself


@dataclass(frozen=True)
class Session:
    """Hold what `vpo-lab run` tells its kernels, as JSON in one environment variable; elsewhere the defaults hold."""

    task_folder: str = ""  # where a relative path of a user's own task starts; "": the current folder
    until: float | None = None  # seconds since 1970 at which all training must be over; None: no limit
    headless: bool = False  # nobody watches: no live pictures, no widgets
    price: float | None = None  # of this machine an hour, to say what a training will cost

    def environment(self) -> dict[str, str]:
        """Return the variable that hands this on to a process."""
        return {SESSION: json.dumps(asdict(self))}


def session() -> Session:
    """Return what the command that started this process told it."""
    return Session(**json.loads(os.environ.get(SESSION) or "{}"))


def _quiet_libraries() -> None:
    """One progress line is enough: bars and notices of loading and saving would bury it."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


T = TypeVar("T")


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that is not one of several, whatever a job scheduler set."""
    return {name: value for name, value in environment.items() if name not in LAUNCHER}


def stand_alone() -> None:
    """Forget a job scheduler's variables, unless a launcher or `join_others` made this one of several processes."""
    if not _joined and "TORCHELASTIC_RUN_ID" not in os.environ:
        for name in LAUNCHER:
            os.environ.pop(name, None)


_joined = False


def join_others() -> None:
    """Wait until all processes that WORLD_SIZE speaks of are here, and print whom this one waits for."""
    global _joined
    if world_size() == 1:
        return
    _joined = True
    where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    print(f"process {rank()} of {world_size()} waits for the others at {where} (WORLD_SIZE is set)", flush=True)
    # The wait is in C++, where Python's own handler of Ctrl-C never comes to its turn.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _state()
    finally:
        signal.signal(signal.SIGINT, before)


def world_size() -> int:
    """Return how many processes train together: 1 or more."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Return which of them this is, from 0. The first alone prints, logs and writes."""
    return int(os.environ.get("RANK") or 0)


def print0(line: str) -> None:
    """Print a line, once for all processes."""
    if rank() == 0:
        print(line, flush=True)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        _state().wait_for_everyone()


def gather(items: list[T]) -> tuple[list[T], slice]:
    """Return the items of all processes in order, and where this one's lie if each has equally many."""
    if world_size() == 1:
        return items, slice(0, len(items))
    from accelerate.utils import gather_object

    _state()
    first = rank() * len(items)
    return gather_object(items), slice(first, first + len(items))


def broadcast(value: T) -> T:
    """Return the value that the first process holds: clocks and disks differ between them."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    return broadcast_object_list([value])[0]


def _state():
    """Return accelerate's state, made before any trainer makes it, with the right device and a long timeout.

    By itself accelerate takes several CPU processes for single ones. It also gives up after 10 minutes,
    and the others wait longer than that while the first one samples or downloads.
    """
    import torch
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        # Else a checkpoint cannot be loaded: transformers maps it to a device "cpu:0" that torch does not know.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    return PartialState(cpu=on_cpu, timeout=timedelta(hours=2))


@contextmanager
def environment_kept(*names: str) -> Iterator[None]:
    """Restore these environment variables when the block is over."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
