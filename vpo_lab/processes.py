"""Several processes that train one policy: how many, which is this, and what they have to agree on.

`accelerate launch` starts them and says so in the environment; without it there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar


def _quiet_libraries() -> None:
    """One progress line is enough: bars and notices of loading and saving would bury it."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


T = TypeVar("T")


def world_size() -> int:
    """How many processes train together: 1 or more."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Which of them this is, from 0. The first alone prints, logs and writes."""
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
    """The items of all processes in their order, and where this one's lie if each has equally many."""
    if world_size() == 1:
        return items, slice(0, len(items))
    from accelerate.utils import gather_object

    _state()
    first = rank() * len(items)
    return gather_object(items), slice(first, first + len(items))


def broadcast(value: T) -> T:
    """The value that the first process holds: clocks and disks differ between them."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    return broadcast_object_list([value])[0]


def _state():
    """Accelerate's state, made before any trainer makes it: with the right device and with patience.

    By itself it takes several CPU processes for single ones, and gives up on GPUs that wait 10 minutes,
    as the others do while the first one samples or downloads.
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
    """These environment variables are as before when the block is over."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
