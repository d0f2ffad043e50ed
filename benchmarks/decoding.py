"""Compare our decoding on a GPU with transformers' `generate`: the same tokens, and how much faster.

    python benchmarks/decoding.py [OUT.json]

Random weights in the shape of Qwen2.5-Coder-0.5B with LoRA. One line of JSON a measurement.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from vpo_lab.train.decoding import Decoder

PROMPT, NEW, ROWS = 256, 256, (1, 16, 64, 256)


def model_of(layers: int, dtype):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.04,
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return model.eval()


def seconds_of(generate, rows: int, **settings) -> tuple[float, torch.Tensor]:
    ids = torch.randint(
        1000, 100_000, (rows, PROMPT), device="cuda", generator=torch.Generator("cuda").manual_seed(rows)
    )
    mask = torch.ones_like(ids)
    mask[: rows // 2, : PROMPT // 3] = 0
    torch.cuda.synchronize()
    start = time.perf_counter()
    out = generate(input_ids=ids, attention_mask=mask, pad_token_id=0, eos_token_id=151935, **settings)
    torch.cuda.synchronize()
    return time.perf_counter() - start, out


def main() -> None:
    lines = []
    model = model_of(2, torch.float32)
    same = [seconds_of(g, 8, max_new_tokens=96, do_sample=False)[1] for g in (model.generate, Decoder(model).generate)]
    lines.append(
        {"what": "equal greedy tokens, float32, 2 layers", "share": float((same[0] == same[1]).float().mean())}
    )
    model = model_of(24, torch.bfloat16)
    ours = Decoder(model).generate
    for rows in ROWS:
        settings = dict(max_new_tokens=NEW, do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
        for generate in (model.generate, ours):
            seconds_of(generate, rows, **{**settings, "max_new_tokens": 8})
        theirs, mine = seconds_of(model.generate, rows, **settings)[0], seconds_of(ours, rows, **settings)[0]
        nucleus = seconds_of(ours, rows, **{**settings, "top_p": 0.95, "temperature": 0.8})[0]
        lines.append(
            {
                "rows": rows,
                "transformers_ms_per_token": round(1e3 * theirs / NEW, 2),
                "ours_ms_per_token": round(1e3 * mine / NEW, 2),
                "ours_top_p_ms_per_token": round(1e3 * nucleus / NEW, 2),
                "ratio": round(theirs / mine, 1),
            }
        )
        print(json.dumps(lines[-1]), flush=True)
    machine = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__}
    lines.append({**machine, "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1)})
    print(json.dumps(lines[0]), json.dumps(lines[-1]))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text("\n".join(map(json.dumps, lines)) + "\n")


if __name__ == "__main__":
    main()
