"""trainer.py: advantages where Unsloth's loss looks for them, and what vLLM is sent."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_qwen3 import small_config
from transformers import Qwen3ForCausalLM

from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.train.gpu import left_packed, merged_weights
from vpo_lab.train.trainer import build_trainer, padded

PAD = 0


def test_rows_are_padded_at_the_right():
    rows = [np.array([1.0, 2.0]), np.array([]), np.array([3.0, 4.0, 5.0])]
    expected = [[1, 2, 0], [0, 0, 0], [3, 4, 5]]
    assert padded(rows, like=torch.zeros(3, 3, dtype=torch.long)).tolist() == expected


def packed_by_hand(prompt: list[int], completion: list[int], advantages: list[float], window: int) -> list[float]:
    """The padding of the prompt moved behind the completion, then the last `window` columns, token by token."""
    tokens = [(token, None) for token in prompt if token != PAD]
    tokens += list(zip(completion, advantages, strict=True))
    tokens += [(PAD, None)] * (len(prompt) + len(completion) - len(tokens))
    return [advantage or 0.0 for _, advantage in tokens[-window:]]


@pytest.mark.parametrize("scored", [False, True], ids=["no old probabilities", "those of the whole batch"])
def test_advantages_lie_where_the_left_packed_tokens_lie(scored):
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows, prompt_width, width = rng.integers(1, 5), rng.integers(1, 7), rng.integers(1, 6)
        padding_B = rng.integers(0, prompt_width, rows)
        prompts = [[PAD] * p + rng.integers(1, 9, prompt_width - p).tolist() for p in padding_B]
        completions = rng.integers(1, 9, (rows, width)).tolist()
        advantages = rng.normal(size=(rows, width)).astype(np.float32)
        # Old probabilities were computed for the whole batch, whose prompts may have had more padding.
        widest = int(rng.integers(padding_B.max(), prompt_width + 1)) if scored else int(padding_B.max())
        inputs = {"advantages": torch.tensor(advantages), "prompt_ids": torch.tensor(prompts)}
        if scored:
            inputs["old_per_token_logps"] = torch.zeros(rows, width + widest)
        expected = [
            packed_by_hand(prompt, completion, row.tolist(), width + widest)
            for prompt, completion, row in zip(prompts, completions, advantages, strict=True)
        ]
        assert torch.equal(left_packed(inputs, PAD), torch.tensor(expected))


def lora_model(dtype):
    """A small Qwen3 with an adapter on all linear maps that is not zero."""
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(small_config(vocab_size=50)).to(dtype)
    names = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model, names


class Generation:
    """What `merged_weights` needs of TRL's VLLMGeneration."""

    def __init__(self, model):
        self.model = model


def test_vllm_is_sent_the_weights_that_peft_would_merge():
    model, base = lora_model(torch.float32)
    sent = dict(merged_weights(Generation(model)))
    expected = dict(model.merge_and_unload().named_parameters())
    assert set(sent) == set(expected) == set(base)
    for name, weight in expected.items():
        torch.testing.assert_close(sent[name], weight.detach())
    assert sum(not torch.equal(sent[name], base[name]) for name in base) == 2 * 7


def test_sending_leaves_a_bfloat16_base_as_it_was():
    model, base = lora_model(torch.bfloat16)
    for _ in range(3):
        list(merged_weights(Generation(model)))
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.named_parameters()
        if "lora_" not in name
    }
    assert all(torch.equal(kept[name], base[name]) for name in base)


def test_a_trainer_that_unsloth_has_not_patched_is_refused():
    with pytest.raises(LabError, match="unsloth did not patch"):
        build_trainer(get_profile("qwen3-1.7b"), reward=None, tokenizer=None, seed=0)
