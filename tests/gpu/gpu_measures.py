"""What a GPU did: memory, time, distance to what its memory bandwidth allows; and the file that keeps it."""

from __future__ import annotations

import math
import os
import re
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

from plan import CARDS, WIDTH, Card, Shape, kv_bytes_per_token, kv_room, memory, peak, uses_vllm

from vpo_lab.config import Profile
from vpo_lab.files import read_json, write_json

# --- The card and its plan --------------------------------------------------------------------


def card_here(name: str, total_bytes: int) -> Card:
    """The card of plan's table that torch calls this; one of unknown speed if it is none of them.

    H100 and A100 also come as slower PCIe and NVL cards, which share a name with those of the table.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    for card in CARDS:
        label = card.name.lower().removeprefix("rtx ").partition("-")[0]
        if label in words and not words & {"pcie", "nvl"} and abs(card.gb * 1e9 - total_bytes) < 0.15 * total_bytes:
            return card
    return Card(name, math.floor(total_bytes / 1e9))


def planned_bytes(profile: Profile, shape: Shape, card: Card, total_bytes: int, micro: int) -> float:
    """The peak that plan.py foresees with this micro batch.

    Cards have a few percent more than their name says, and vLLM takes its share of all of it.
    """
    card = replace(card, gb=total_bytes / 1e9)
    policy, rl = profile.policy, profile.rl
    if uses_vllm(profile):
        cache = kv_room(profile, shape, card)
    else:  # as plan.plan counts what `generate` keeps
        tokens = rl.rollouts * rl.candidates * (policy.max_prompt_tokens + policy.max_answer_tokens)
        cache = float(tokens * kv_bytes_per_token(shape, WIDTH[policy.dtype]))
    return peak(profile, memory(profile, shape, cache, micro))


def decode_bytes(weight_bytes: float, token_bytes: float, prompts: list[int], completions: list[int]) -> float:
    """Bytes that decoding all rollouts together has to read: the weights once a step, and what each has cached."""
    cached = sum(p * c + c * c / 2 for p, c in zip(prompts, completions, strict=True))
    return weight_bytes * max(completions, default=0) + token_bytes * cached


# --- Memory -----------------------------------------------------------------------------------


def used_on_device() -> int | None:
    """Bytes in use on the first visible GPU as nvidia-smi sees them, all processes; None without a GPU."""
    device = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
    query = ["nvidia-smi", "-i", device, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(float(answer.split()[0]) * 2**20)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


class MemoryWatch:
    """What this process holds of the GPU while the block runs, see `peaks`. A thread asks nvidia-smi twice a second.

    `before`: bytes in use before this process touched the GPU.
    """

    def __init__(self, before: int | None):
        self.before, self.most, self.outside = before, 0, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if self.before is not None:
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        if self.before is not None:
            self.thread.join()

    def _watch(self) -> None:
        import torch

        while not self.over.wait(0.5):
            used = used_on_device()
            if used is not None and torch.cuda.is_initialized():
                used -= self.before
                self.most = max(self.most, used)
                self.outside = max(self.outside, used - torch.cuda.memory_reserved())

    def peaks(self) -> dict:
        """Bytes. `peak`: live tensors at their peak and all that is outside torch's allocator.

        The allocator's spare blocks, which it gives back where memory is short, are in `device` only.
        """
        import torch

        if not torch.cuda.is_initialized():
            return {"allocated": None, "device": None, "peak": None}
        allocated = torch.cuda.max_memory_allocated()
        return {"allocated": allocated, "device": self.most, "peak": allocated + self.outside}


def memory_now(before: int | None) -> int | None:
    """Bytes that this process holds of the GPU when all that can be freed is."""
    import gc

    import torch

    gc.collect()
    if before is None or not torch.cuda.is_initialized():
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    used = used_on_device()
    return None if used is None else used - before


# --- The record -------------------------------------------------------------------------------

NUMBER, WHOLE = (int, float), (int,)
# What an entry has to hold, and its type; every number may be null where it could not be measured.
ENTRY = {
    "backend": (str,),
    "stage": (str,),
    "rollouts": WHOLE,
    "prompt_tokens": WHOLE,
    "completion_tokens": WHOLE,
    "step_seconds": NUMBER,
    "decode_seconds": NUMBER,
    "sync_seconds": NUMBER,
    "train_seconds": NUMBER,
    "generated_tokens_per_second": NUMBER,
    "trained_tokens_per_second": NUMBER,
    "decode_limit_seconds": NUMBER,
    "decode_over_limit": NUMBER,
    "allocated_bytes": WHOLE,
    "device_bytes": WHOLE,
    "peak_bytes": WHOLE,
    "planned_bytes": NUMBER,
}
MACHINE = {
    "device": (str,),
    "total_bytes": WHOLE,
    "card": (str,),
    "bandwidth_gb_per_second": NUMBER,
    "versions": (dict,),
}
MACHINE |= {"shape": (str,), "parameters": WHOLE}


def record_path() -> Path:
    return Path("runs/gpu/record.json")


def complaints(record: dict) -> list[str]:
    """What is wrong with a record; empty if nothing is."""
    found = [] if set(record) == {"format", "machine", "entries"} else [f"fields {sorted(record)}"]
    tables = [("machine", record.get("machine", {}), MACHINE)]
    tables += [(f"entry {i}", entry, ENTRY) for i, entry in enumerate(record.get("entries", []))]
    for where, table, wanted in tables:
        found += [f"{where}: {name} is missing" for name in wanted if name not in table]
        for name, value in table.items():
            types = wanted.get(name)
            if types is None:
                found.append(f"{where}: {name} is not known")
            elif not (value is None or isinstance(value, types)) or isinstance(value, bool):
                found.append(f"{where}: {name} = {value!r}")
            elif isinstance(value, float) and not math.isfinite(value):
                found.append(f"{where}: {name} = {value}")
    return found


def add_entry(path: Path, machine: dict, entry: dict) -> None:
    """Add an entry to the record, in place of an earlier one of the same machine, backend and stage."""
    record = read_json(path) if path.exists() else {}
    entries = record.get("entries", []) if record.get("machine") == machine else []
    entries = [e for e in entries if (e["backend"], e["stage"]) != (entry["backend"], entry["stage"])]
    write_json(path, {"format": 1, "machine": machine, "entries": [*entries, entry]})


def entry_of(profile: Profile, shape: Shape, card: Card | None, backend: str, stage: str, seen: dict) -> dict:
    """An entry of the record from what the worker saw of a stage, by its last step: the first one warms up."""
    step, peaks = (seen["steps"] or [{}])[-1], seen["memory"]
    prompts, completions = step.get("prompts") or [], step.get("completions") or []
    seconds, decode, sync = step.get("seconds"), step.get("decode_seconds"), step.get("sync_seconds")
    train = seconds - (decode or 0) - (sync or 0) if seconds else None
    least = None
    if card is not None and card.bandwidth and completions:
        width = WIDTH[profile.policy.dtype]
        matrices = shape.layers * sum(a * b for a, b in shape.linears) + shape.vocabulary * shape.hidden
        read = decode_bytes(matrices * width, kv_bytes_per_token(shape, width), prompts, completions)
        least = read / (card.bandwidth * 1e9)
    return {
        "backend": backend,
        "stage": stage,
        "rollouts": len(completions) or None,
        "prompt_tokens": sum(prompts) or None,
        "completion_tokens": sum(completions) or None,
        "step_seconds": seconds,
        "decode_seconds": decode,
        "sync_seconds": sync,
        "train_seconds": train,
        "generated_tokens_per_second": sum(completions) / decode if decode else None,
        "trained_tokens_per_second": step["trained"] / train if train and step.get("trained") else None,
        "decode_limit_seconds": least,
        "decode_over_limit": decode / least if decode and least else None,
        "allocated_bytes": peaks["allocated"],
        "device_bytes": peaks["device"],
        "peak_bytes": peaks["peak"],
        "planned_bytes": seen.get("planned_bytes"),
    }
