"""The stages of the full profile on Unsloth's own trainers, on a CPU: for `unsloth_case`, in a process with Unsloth.

Its rewritten trainers and what it wraps around TRL's vLLM are real. Stand-ins are the model's loader (peft's LoRA of a
small random Qwen3) and the engine, which samples by transformers: without the adapter as the base model would.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT = Path(__file__).parents[2]
STEPS = 4
SETTINGS = {
    "policy.lora_rank": 8,
    "policy.max_answer_tokens": 12,
    "policy.dtype": "float32",
    "sft.steps": 2,
    "sft.batch_rows": 4,
    "sft.train_rows": 6,
    "sft.own_samples": 3,
    "sft.least_share": 0.0,  # random text has no form
    "rl.steps": STEPS,
    "rl.rollouts": 8,
    "rl.group_size": 4,
    "rl.micro_rollouts": 4,
    "rl.learning_rate": 1e-2,
    "rl.warmup_steps": 0,
    "rl.checkpoint_every": 2,
    "rl.train_rows": 6,
    "rl.drop_solved": 1,
    "evaluation.held_out": 3,
    "evaluation.every": 2,
    "evaluation.watch_requests": 3,  # of 2, VPO's 8 rollouts would be the default, which Unsloth takes for no choice
    "evaluation.requests": 3,
    "evaluation.candidates": 6,
    "evaluation.budgets": (1, 3, 6),
    "track": False,
    "patience": 0.0,
}


class Interrupted(BaseException):
    """Like a signal: nothing in between catches it."""


class Engine:
    """What Unsloth's vLLM is to us and to TRL: answers to token ids, with the adapter only if it is asked for."""

    shared_weights = True

    def __init__(self, model, tokenizer, events: list):
        self.model, self.tokenizer, self.events = model, tokenizer, events
        self.interrupt_at = 0  # the generation of a training in which the process is killed; 0: none
        window = SimpleNamespace(max_model_len=1_000_000)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=window))

    def generate(self, prompts, sampling_params=None, use_tqdm=True, lora_request=None):
        import torch

        from vpo_lab.processes import environment_kept

        several = isinstance(sampling_params, list)
        settings, training = sampling_params[0] if several else sampling_params, self.model.training
        kind = "samples" if several else "rollouts" if training else "look"
        self.events.append((kind, len(prompts)))
        if self.interrupt_at and not several and training:
            self.interrupt_at -= 1
            if not self.interrupt_at:
                raise Interrupted
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        width, pad, end = max(map(len, rows)), self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        self.model.eval()
        with environment_kept("UNSLOTH_RETURN_HIDDEN_STATES"), torch.no_grad():
            os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
            with nullcontext() if lora_request else self.model.disable_adapter():
                made = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=settings.temperature,
                    top_k=0,
                    max_new_tokens=settings.max_tokens,
                    pad_token_id=pad,
                    eos_token_id=end,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
        self.model.train(training)
        logps_TBV = (torch.stack(made.logits) / settings.temperature).log_softmax(-1)
        outputs = []
        for row, new in enumerate(made.sequences[:, width:].tolist()):
            new = new[: new.index(end) + 1] if end in new else new
            logps = [{i: SimpleNamespace(logprob=logps_TBV[t, row, i].item(), rank=1)} for t, i in enumerate(new)]
            outputs.append(SimpleNamespace(token_ids=new, logprobs=logps))
        return [SimpleNamespace(prompt_token_ids=ids, outputs=[one]) for ids, one in zip(rows, outputs, strict=True)]


def loader(events: list):
    """What loads the policy in the place of `_load_unsloth`, once for a process, as that does; and its engine."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from unsloth_case import as_unsloth_has_it

    from vpo_lab.train.gpu import set_adapter
    from vpo_lab.train.prompts import _with_pad_and_eos

    kept = []

    def load(profile, task, source, seed):
        if not kept:
            model = AutoModelForCausalLM.from_pretrained(profile.policy.model)
            tokenizer = _with_pad_and_eos(AutoTokenizer.from_pretrained(profile.policy.model))
            names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            rank = profile.policy.lora_rank
            lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, task_type="CAUSAL_LM")
            model = as_unsloth_has_it(get_peft_model(model, lora))
            model.vllm_engine = Engine(model, tokenizer, events)
            model.fast_generate = model.vllm_engine.generate
            model.load_lora = lambda folder, load_tensors: ("adapter", load_tensors)
            kept[:] = model, tokenizer
        set_adapter(kept[0], source, seed)
        return kept[0], kept[1]

    return load, kept


@contextmanager
def stood_in(load):
    """Put the loader, and the little of vLLM that TRL asks for, in their places."""
    from unittest.mock import patch

    from trl.generation import vllm_generation

    vllm = ModuleType("vllm")
    vllm.SamplingParams = SimpleNamespace
    with (
        patch.dict(sys.modules, vllm=vllm),
        patch.multiple("vpo_lab.train.policy", _load_unsloth=load, check_backend=lambda profile: None),
        patch.multiple(vllm_generation, create=True, is_vllm_available=lambda: True, SamplingParams=SimpleNamespace),
    ):
        yield


def run_stages(folder: Path) -> dict:
    """Train and sample as `vpo-lab run` does; VPO is then killed and resumed, once with another micro batch."""
    sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
    import shutil
    from unittest.mock import patch

    from safetensors.torch import load_file
    from small_qwen3 import build_model
    from toolrl_rows import write_parquet
    from untagged import PAID, untagged

    from vpo_lab.config import get_profile
    from vpo_lab.errors import LabError
    from vpo_lab.runs import Run
    from vpo_lab.search.pool import evaluate
    from vpo_lab.train import rl
    from vpo_lab.train.rl import train_rl
    from vpo_lab.train.sft import train_sft

    data = folder / "data"
    data.mkdir(parents=True)
    for split in ("train", "test"):
        write_parquet(data / f"{split}.parquet")
    model = str(build_model(data, folder / "model"))
    profile = get_profile("qwen3-1.7b", {"policy.model": model, "data": str(data), "task": PAID, **SETTINGS})
    events, trainers, saw, run = [], [], {}, Run(folder / "run")
    load, kept = loader(events)
    build = rl.build_trainer

    def noted(*args, **arguments):
        trainers.append(build(*args, **arguments))
        return trainers[-1]

    def adapter(run, stage):
        return load_file(run / stage / "policy" / "adapter_model.safetensors")

    def from_the_warmup(name: str) -> Run:
        shutil.copytree(run / "sft", folder / name / "sft")
        return Run(folder / name)

    with stood_in(load), untagged(), patch.object(rl, "build_trainer", noted):
        for stage in ("sft", *profile.methods):
            events.append((stage, 0))
            train_sft(profile, run, 0) if stage == "sft" else train_rl(profile, stage, run, 0)
        events.append(("pools", 0))
        for name in ("sft", "vpo"):
            saw[f"pool {name}"] = evaluate(profile, name, run, 0).rewards_NCMD.shape
        saw["events"] = list(events)
        for name, micro in (("same", 4), ("another", 2)):
            again = from_the_warmup(name)
            kept[0].vllm_engine.interrupt_at = 4  # in step 4: two steps are kept, the third is made again
            try:
                train_rl(profile, "vpo", again, 0)
            except Interrupted:
                saw[f"checkpoints {name}"] = sorted(path.name for path in (again / "vpo" / "checkpoints").glob("ch*"))
            train_rl(profile.with_overrides({"rl.micro_rollouts": micro}), "vpo", again, 0)
            saw[f"adapter {name}"], saw[f"log {name}"] = adapter(again, "vpo"), again.log("vpo")
        kept[0].load_lora = lambda folder, load_tensors: None  # rollouts of the base model, as some versions had them
        with patch("vpo_lab.train.trainer.APART", 0.005):  # a small model has moved less in two steps
            try:
                train_rl(profile, "vpo", from_the_warmup("base"), 0)
            except LabError as error:
                saw["of the base model"] = str(error)
    saw["bases"] = [[parent.__name__ for parent in type(trainer).__mro__] for trainer in trainers]
    for stage in ("sft", *profile.methods):
        saw[stage], saw[f"log {stage}"] = adapter(run, stage), run.log(stage)
    saw["looks"] = run.stage("vpo").eval_log()
    return saw
