"""One job of the GPU tests in a process of its own: python gpu_worker.py SPEC.json

A backend changes its process for good (Unsloth rewrites TRL, vLLM claims memory), and a crash must not take other
tests with it. What a job finds it writes to the spec's "out" file as it goes along, so that a crash in the third
stage leaves the first two. torch, transformers and trl are imported late: Unsloth wants to come before the last two.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from pathlib import Path

import numpy as np
from gpu_measures import MemoryWatch, memory_now, used_on_device
from gpu_model import (
    ADAPTERS,
    build_model,
    build_tokenizer,
    profile_here,
    rows_of,
    save_adapters,
    shape_here,
    write_longest_rows,
    write_short_rows,
)
from gpu_watch import Watch, watched

from vpo_lab.files import write_json
from vpo_lab.runs import POLICY, Run
from vpo_lab.tasks import get_task
from vpo_lab.train.gpu import set_adapter
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import render_prompt
from vpo_lab.train.rl import train_rl
from vpo_lab.train.sampling import sample
from vpo_lab.train.sft import train_sft

TASK = get_task("toolrl")


# --- Jobs -------------------------------------------------------------------------------------


def build(spec: dict, report: dict) -> None:
    """The model, its tokenizer, two adapters and the prepared prompts, below spec["root"]; what the machine is."""
    import torch

    root, shape = Path(spec["root"]), shape_here()
    cuda = torch.cuda.is_available()
    tokenizer = build_tokenizer(rows_of(root / "data"), shape.vocabulary)
    model = build_model(shape, tokenizer, "cuda" if cuda else "cpu")
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    report["parameters"] = model.num_parameters()
    profile = profile_here(root / "model", root / "data", "transformers", {"policy.max_answer_tokens": 512})
    save_adapters(model, root / "adapters", profile.policy.lora_rank, profile.policy.lora_alpha)
    for name in ADAPTERS:
        tokenizer.save_pretrained(root / "adapters" / name)
    write_short_rows(root / "short")
    longest = profile_here(root / "model", root / "longest", "transformers", spec["longest"])
    report["longest_prompt"] = write_longest_rows(root / "longest", tokenizer, longest)
    report["device"] = torch.cuda.get_device_name(0) if cuda else "CPU"
    report["total_bytes"] = torch.cuda.get_device_properties(0).total_memory if cuda else None
    report["versions"] = versions()


def stages(spec: dict, report: dict) -> None:
    """SFT, GRPO, VPO, and VPO with an advantage per answer, one after another in this process."""
    run, profile = Run(Path(spec["folder"])), profile_of(spec)
    for stage in ("sft", "grpo", "vpo", "vpo_credit"):
        watch = Watch(probe=stage == "vpo_credit")
        before = memory_now(spec["before"])
        with watched(watch), MemoryWatch(spec["before"]) as memory:
            if stage == "sft":
                train_sft(profile, run, seed=0)
            else:
                train_rl(profile, stage, run, seed=0)
        seen = {"steps": watch.steps, "memory": memory.peaks(), "before": before, "after": memory_now(spec["before"])}
        seen["probe"], seen["log"] = watch.probed, run.log(stage)
        seen["eval"] = [] if stage == "sft" else run.stage(stage).eval_log()
        seen["moved"] = moved(run / stage / POLICY, None if stage == "sft" else run / "sft" / POLICY)
        seen["differs_when_loaded"] = differs_when_loaded(profile, run / stage / POLICY)
        report[stage] = seen
        save(spec, report)


def longest(spec: dict, report: dict) -> None:
    """One step of VPO with the longest prompts and answers."""
    run, watch = Run(Path(spec["folder"])), Watch()
    start_from(spec, run, ADAPTERS[0])
    with watched(watch), MemoryWatch(spec["before"]) as memory:
        train_rl(profile_of(spec), "vpo", run, seed=0, name="longest")
    report["longest"] = {"steps": watch.steps, "memory": memory.peaks(), "log": run.log("longest")}


def sampling(spec: dict, report: dict) -> None:
    """Rollouts of TRL with adapter one, then, after a step, with adapter two; last, samples as for an evaluation."""
    run, root, watch = Run(Path(spec["folder"])), Path(spec["root"]), Watch(keep=True)
    start_from(spec, run, ADAPTERS[0])
    profile = profile_of(spec)
    # The step in which a policy changes as much as it ever could.
    watch.after_step[1] = lambda trainer: set_adapter(trainer.model, root / "adapters" / ADAPTERS[1], seed=0)
    with watched(watch):
        train_rl(profile, "grpo", run, seed=0)
    report["rollouts"] = watch.kept
    save(spec, report)
    memory_now(None)
    model, tokenizer = load_policy(profile, TASK, root / "adapters" / ADAPTERS[1], 0)
    prompts = [render_prompt(tokenizer, row["prompt"], 1) for row in rows_of(root / "short")]
    texts, _ = sample(
        model,
        tokenizer,
        [prompt for prompt in prompts for _ in range(spec["samples"])],
        max_new_tokens=1,
        temperature=spec["temperature"],
        top_p=spec["top_p"],
        seed=0,
        batch=256,
    )
    every = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(tokenizer))]
    number = {text: i for i, text in enumerate(every)}  # parts of a character share a text
    report["token_of_text"] = [number[text] for text in every]
    report["samples"] = np.reshape([number[text] for text in texts], (len(prompts), -1)).tolist()
    report["prompts"] = tokenizer(prompts, add_special_tokens=False)["input_ids"]


def exact(spec: dict, report: dict) -> None:
    """What plain transformers computes for another job's prompts and rollouts: probabilities, log-probabilities."""
    import torch

    root, sampled = Path(spec["root"]), json.loads(Path(spec["sampled"]).read_text())
    profile, probabilities = profile_of(spec), {}
    for name, source in (("base", None), *((name, root / "adapters" / name) for name in ADAPTERS)):
        model, _ = load_policy(profile, TASK, source, 0)  # a fresh adapter changes nothing
        model.eval()

        def log_probabilities(ids: list[int], keep: int, model=model):
            with torch.inference_mode():
                logits = model(torch.tensor([ids], device=model.device), logits_to_keep=keep).logits[0]
            return torch.log_softmax(logits.float(), dim=-1)

        probabilities[name] = np.array(
            [log_probabilities(ids, 1)[0].exp().cpu().numpy() for ids in sampled["prompts"]], dtype=np.float32
        )
        logged = [rollout for kept in sampled["rollouts"] if kept["adapter"] == name for rollout in kept["logged"]]
        for rollout in logged:
            ids = rollout["completion"]
            scores_TV = log_probabilities(rollout["prompt"] + ids, len(ids) + 1)[:-1]
            rollout["exact"] = scores_TV.gather(1, torch.tensor(ids, device=model.device)[:, None])[:, 0].tolist()
        del model
        memory_now(None)
    np.savez_compressed(spec["probabilities"], **probabilities)
    report["rollouts"] = [{"adapter": r["adapter"], "logged": r["logged"]} for r in sampled["rollouts"]]


JOBS = {job.__name__: job for job in (build, stages, longest, sampling, exact)}


# --- Odds and ends ----------------------------------------------------------------------------


def profile_of(spec: dict):
    return profile_here(Path(spec["root"]) / "model", Path(spec["data"]), spec["backend"], spec["settings"])


def start_from(spec: dict, run: Path, adapter: str) -> None:
    """Put a prepared adapter where RL looks for the warmup's."""
    shutil.copytree(Path(spec["root"]) / "adapters" / adapter, run / "sft" / POLICY)


def weights_of(policy: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(policy / "adapter_model.safetensors")


def moved(policy: Path, start: Path | None) -> dict:
    """How many of a policy's up-projections (lora_B) differ from where they started, at zero or in `start`."""
    after = {name: weight for name, weight in weights_of(policy).items() if "lora_B" in name}
    before = weights_of(start) if start is not None else {name: weight * 0 for name, weight in after.items()}
    finite = all(bool(weight.isfinite().all()) for weight in after.values())
    count = sum(bool((weight != before[name]).any()) for name, weight in after.items())
    return {"of": len(after), "moved": count, "finite": finite}


def differs_when_loaded(profile, policy: Path) -> list[str]:
    """The weights that are not the saved ones when a policy is loaded again; none, if all is well."""
    import torch
    from peft import get_peft_model_state_dict

    model, _ = load_policy(profile, TASK, policy, seed=1)
    loaded, saved = get_peft_model_state_dict(model), weights_of(policy)
    return sorted(
        name
        for name in loaded.keys() | saved.keys()
        if name not in loaded or name not in saved or not torch.equal(loaded[name].cpu().float(), saved[name].float())
    )


def versions() -> dict:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "transformers", "trl", "peft", "vllm", "unsloth", "unsloth_zoo"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def save(spec: dict, report: dict) -> None:
    write_json(Path(spec["out"]), report)


def main() -> None:
    spec, report = json.loads(Path(sys.argv[1]).read_text()), {}
    spec["before"] = used_on_device()
    try:
        JOBS[spec["job"]](spec, report)
    except BaseException as error:
        report["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        save(spec, report)


if __name__ == "__main__":
    main()
