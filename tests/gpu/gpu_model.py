"""What the GPU tests train: Qwen3 of the published size (or a small one) with random weights, adapters, rows.

No weights are downloaded. Two things make random weights behave enough like a trained model's to test with:
logits are spread until few tokens hold most of the probability, and an answer never ends by itself, so that
every rollout has the full length that memory and time are counted for.
"""

from __future__ import annotations

import json
import math
import os
import string
from itertools import product
from pathlib import Path

from plan import SHAPES, Shape
from small_qwen3 import chat_tokenizer, shape_config, trained_backend
from toolrl_rows import write_parquet
from untagged import PAID

from vpo_lab.config import Profile, get_profile
from vpo_lab.tasks import get_task
from vpo_lab.train.prompts import render_prompt

SIZE = os.environ.get("VPO_LAB_GPU") or "full"  # or "small", or "cpu", which rehearses the small one
ON_CPU = SIZE == "cpu"
FULL = next(shape for shape in SHAPES if shape.name == "Qwen3-1.7B")
SMALL = Shape("small", hidden=128, intermediate=256, layers=2, heads=2, kv_heads=1, head_dim=64, vocabulary=4096)
SHORT_PROMPTS = ("Where is the ferry?", "Roast two kilos.", "Is it high tide?", "Play song 42.")
GOLD = "<think> I look. </think>\n<response> Which one? </response>"
ADAPTERS = ("one", "two")
EVALUATION = {"temperature": 0.7, "top_p": 0.95}  # as the profile evaluates
FIRST_LAYER = 16.0
PEAKED = 1.3  # how far beyond the spread at which a softmax over normal logits begins to hang on a few of them


def shape_here() -> Shape:
    """The shape that VPO_LAB_GPU asks for; a CPU gets the small one."""
    return FULL if SIZE == "full" else SMALL


def profile_here(model: Path, data: Path, backend: str, changes: dict | None = None) -> Profile:
    """qwen3-1.7b for a few steps on this backend, with `changes`."""
    small = shape_here() is SMALL
    settings = {
        "policy.backend": backend,
        "policy.model": str(model),
        "data": str(data),
        "task": PAID,
        "sft.least_share": 0.0,  # random weights have no answers of their own
        "sft.steps": 2,
        "sft.train_rows": 8,
        "sft.own_samples": 3,
        "rl.steps": 2,
        "rl.rollouts": 16,
        "rl.drop_solved": 0,
        "rl.warmup_steps": 0,  # or the first step would have a learning rate of 0
        "evaluation.every": 2,
        "evaluation.watch_requests": 2,
        "evaluation.held_out": 2,
    }
    if small:
        settings["policy.max_answer_tokens"] = 12
    elif backend == "transformers":
        settings["policy.max_answer_tokens"] = 128  # `generate` takes minutes for the full 512
    return get_profile("qwen3-1.7b", {**settings, **(changes or {})})


def sampling_changes(per_prompt: int) -> dict:
    """Profile fields for rollouts of which the first token is counted: `per_prompt` to each short prompt."""
    return {
        "rl.candidates": 1,
        "rl.rollouts": per_prompt * len(SHORT_PROMPTS),
        "rl.group_size": per_prompt,
        "rl.micro_rollouts": 64,
        "rl.train_rows": len(SHORT_PROMPTS),
        "policy.max_prompt_tokens": 256,
        "policy.max_answer_tokens": 8,
        "evaluation.every": 0,
        "evaluation.held_out": 0,
    }


def build_tokenizer(rows: list[dict], vocabulary: int):
    """Qwen3's chat format, 2,000 tokens trained on the rows, and made-up words up to the size of the vocabulary."""
    from tokenizers import Tokenizer

    backend = trained_backend(rows)
    # Every id has a text, as nearly all of the real tokenizer have; no merge leads to these.
    ids = backend.get_vocab()
    words = ("Ġ" + "".join(letters) for length in (3, 4) for letters in product(string.ascii_lowercase, repeat=length))
    fresh = (word for word in words if word not in ids)
    state = json.loads(backend.to_str())
    state["model"]["vocab"].update({next(fresh): number for number in range(len(ids), vocabulary)})
    return chat_tokenizer(Tokenizer.from_str(json.dumps(state)))


def build_model(shape: Shape, tokenizer, device: str):
    """A Qwen3 of this shape in bfloat16, see the top of the file."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = shape_config(
        shape,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.9 / math.sqrt(shape.hidden),  # 0.02 at full size; a smaller one needs more to mix tokens
    )
    with torch.device(device), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        embedding = model.get_input_embeddings().weight  # the head too: rows of the last norm's width
        wanted = PEAKED * math.sqrt(2 * math.log(shape.vocabulary))
        embedding.mul_(wanted / (config.initializer_range * math.sqrt(shape.hidden)))
        embedding[[tokenizer.pad_token_id, tokenizer.eos_token_id]] = 0.0  # far below the tokens that are sampled
        # What the first layer writes outweighs the later ones: else 28 random layers blow rounding errors up.
        for linear in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            linear.weight.mul_(FIRST_LAYER)
    return model


def save_adapters(model, folder: Path, rank: int, alpha: int) -> None:
    """Two LoRA adapters, each half as large as the weights that it is added to: with each, other tokens are likely."""
    import torch
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    adapted = [module for module in model.modules() if hasattr(module, "lora_B")]
    for seed, name in enumerate(ADAPTERS, start=1):
        torch.manual_seed(seed)
        with torch.no_grad():
            for module in adapted:
                weight, a, b = (
                    module.base_layer.weight,
                    module.lora_A["default"].weight,
                    module.lora_B["default"].weight,
                )
                torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))
                b.normal_(0, 0.5 * float(weight[:64].float().std()) * math.sqrt(3 * weight.shape[1] / rank))
        model.save_pretrained(folder / name)


def write_short_rows(folder: Path) -> None:
    """A data folder with the short prompts."""
    write_rows(folder, list(SHORT_PROMPTS))


def write_longest_rows(folder: Path, tokenizer, profile: Profile) -> int:
    """A data folder with two prompts that fill policy.max_prompt_tokens; returns how many tokens they have."""

    def tokens(words: int) -> int:
        (row,) = as_rows([" ".join(["answer"] * words)])
        text = render_prompt(tokenizer, row["prompt"], profile.rl.candidates)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    low, high = 1, profile.policy.max_prompt_tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(middle) <= profile.policy.max_prompt_tokens else (low, middle - 1)
    write_rows(folder, [" ".join(["answer"] * low)] * 2)
    return tokens(low)


def as_rows(questions: list[str]) -> list[dict]:
    return [{"prompt": [{"role": "user", "content": question}], "gold": GOLD} for question in questions]


def write_rows(folder: Path, questions: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        write_parquet(folder / f"{split}.parquet", as_rows(questions))


def rows_of(folder: Path) -> list[dict]:
    return get_task("toolrl").load(folder, "train")
