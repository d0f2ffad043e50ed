"""plan.py: its formulas against numbers worked out by hand and against allocations measured on a CPU."""

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from plan import (
    CARDS,
    SHAPES,
    Card,
    Shape,
    Work,
    activations,
    card_of,
    decoding,
    kv_bytes_per_token,
    logits,
    longest_of,
    lora_parameters,
    memory,
    peak,
    plan,
    remedies,
    repeated_prompts,
    shape_of,
    trained,
    weights,
)
from plan import main as plan_main
from small_qwen3 import shape_config

from vpo_lab import cli
from vpo_lab.config import get_profile
from vpo_lab.errors import LabError

QWEN = next(shape for shape in SHAPES if shape.name == "Qwen3-1.7B")
L4 = card_of("L4")
# Wide enough that what does not grow with the tokens (adapters in bf16, positions) hardly counts.
SMALL = Shape("small", 128, 352, 4, 6, 2, 32, vocabulary=512)
RANK = 8


def qwen(**overrides):
    return get_profile("qwen3-1.7b", {name.replace("__", "."): value for name, value in overrides.items()})


# --- Worked out by hand -----------------------------------------------------------------------


def test_the_gpu_facts_of_the_17b_model():
    assert weights(QWEN) == 1_720_574_976  # 3.4 GB in bf16
    assert kv_bytes_per_token(QWEN) == 112 * 1024
    assert lora_parameters(QWEN, 32) == 34_865_152
    count, width = trained(qwen(), QWEN)
    assert 4 * count * width == pytest.approx(0.56e9, rel=0.01)  # weights, gradients, two moments
    # One fp32 copy of 8 x 1024 tokens is 5 GB; TRL has two of them at its peak.
    assert logits(QWEN, "vllm", 8, 1024) / 2 == pytest.approx(4.98e9, rel=0.01)


@pytest.mark.parametrize(
    "name, published", [("0.6B", 596_049_920), ("1.7B", 1_720_574_976), ("4B", 4_022_468_096), ("8B", 8_190_735_360)]
)
def test_the_models_have_their_published_numbers_of_parameters(name, published):
    assert weights(shape_of(qwen(policy__model=f"any/Qwen3-{name}"))) == published


def test_counts_of_a_shape_worked_out_on_paper():
    hand = Shape("hand", 4, 6, 2, heads=2, kv_heads=1, head_dim=3, vocabulary=10)  # h 4, i 6, q 6, kv 3
    # q 24, k 12, v 12, o 24, three of 24, norms 4 + 4 + 3 + 3: 158 a layer; embedding 40, last norm 4.
    assert weights(hand) == 2 * 158 + 44
    assert weights(replace(hand, tied=False)) == 2 * 158 + 84
    assert lora_parameters(hand, 5) == 5 * 2 * (10 + 7 + 7 + 10 + 10 + 10 + 10)
    assert kv_bytes_per_token(hand) == 2 * 2 * 3 * 2
    # 100 tokens, rank 5: a layer saves 72 + 84 + 12 + 48 + 70 + 200 = 486 bytes a token and works on 24 + 36.
    assert activations(hand, 5, 3, 100) == (300 * (2 * 2 * 4 + 16 + 100), 300 * (486 + 60))
    assert activations(hand, 0, 3, 100) == (300 * (2 * (64 + 84 + 18 + 48 + 200) + 116), 300 * 60)
    assert activations(hand, 5, 3, 100, width=4) == (2 * 300 * 132, 2 * 300 * 546)
    assert logits(hand, "transformers", 3, 100) == 8 * 3 * 101 * 10
    assert logits(hand, "unsloth", 3, 100) == 2 * 3 * 100 * 10 + 12 * 25 * 10


def test_memory_of_the_profile_on_24_gb_added_up_by_hand():
    result = plan(qwen(), QWEN, L4)
    assert result.micro == 4
    gb = {name: size / 1e9 for name, size in result.items.items()}
    assert gb == pytest.approx(
        {
            "weights": 3.441,
            "copy of the weights to sample with": 0,
            "vLLM's working memory": 1.5,
            "KV cache": 12 - 3.441 - 1.5,
            "LoRA parameters": 0.1395,
            "gradients": 0.1395,
            "optimizer state (AdamW)": 0.279,
            "activations kept": 22528 * (56 * 2048 + 4 * 2048 + 5632) / 1e9,
            "logits of a micro batch": 11 * 1536 * 151936 / 1e9,
            "backward pass of a layer": 22528 * (24 * 2048 + 14 * 2048 + 4 * 1024 + 14 * 6144 + 448 + 11264) / 1e9,
            "CUDA context, fragmentation": 2,
        },
        abs=2e-3,
    )
    # vLLM's half of the card, the adapter four times over, kept, the larger of logits 2.57 and layer 4.05, the rest.
    assert result.total / 1e9 == pytest.approx(12 + 0.558 + 2.896 + 4.047 + 2, abs=0.01)
    assert result.kv_tokens == pytest.approx(7.059e9 / 114_688, abs=5)
    assert result.work["chains of 3, longest"].at_once == 10
    assert result.work["singles, typical"].at_once == int(7.059e9 / (950 + 83) / 114_688) == 59  # the cache is full


def test_the_time_of_a_step_worked_out_by_hand():
    card = Card("round", 24, bandwidth=1000, tflops=100)  # 800 GB/s, 25 TFLOPS in training and 40 on prompts
    profile = qwen(rl__rollouts=16)
    work = plan(profile, QWEN, card).work["chains of 3, typical"]
    assert (work.rollouts, work.prompt, work.completion, work.at_once) == (16, 950, 3 * (83 + 12), 16)
    matrices, head, kv = 1_409_286_144, 311_164_928, 114_688
    assert longest_of(16, 285, 0.33) == pytest.approx(478, abs=1)
    token = 2 * (matrices + head) / 800e9 + 3e-3
    prefill = 2 * matrices * 950 * 2 / 40e12  # 16 rollouts are two groups
    caches = 285 * 16 * (950 + 142.5) * kv / 800e9
    assert work.decode_seconds == pytest.approx(longest_of(16, 285, 0.33) * token + caches + prefill)
    flops = 16 * (6 * matrices * 1235 + 6 * head * 285 + 4 * 2 * 28 * 2048 * 1235**2)
    assert work.train_seconds == pytest.approx(flops / 25e12)
    assert work.seconds == work.decode_seconds + work.train_seconds + 1
    # TRL scores the rollouts of vLLM once more: one forward pass.
    scored = plan(qwen(rl__rollouts=16, policy__backend="vllm"), QWEN, card).work["chains of 3, typical"].train_seconds
    assert scored - work.train_seconds == pytest.approx(flops / 25e12 / 3, rel=0.06)
    # Ten of sixteen fit the cache at their longest: vLLM takes the next when one has ended.
    longest = plan(profile, QWEN, card).work["chains of 3, longest"]
    caches = 1536 * 16 * (4096 + 768) * kv / 800e9
    assert longest.decode_seconds == pytest.approx(1.6 * 1536 * token + caches + 2 * matrices * 4096 * 2 / 40e12)


def test_only_an_engine_that_schedules_itself_fills_the_place_of_what_has_ended():
    work, card = Work(100, 950, 83, at_once=40), Card("round", 24, bandwidth=1000, tflops=100)
    seconds = {
        backend: decoding(qwen(policy__backend=backend), QWEN, card, work, 10, 0.5)
        for backend in ("unsloth", "vllm", "transformers")
    }
    token = 2 * (1_409_286_144 + 311_164_928) / 800e9 + 3e-3
    longest = longest_of(40, 83, 0.5)
    assert seconds["unsloth"] == seconds["vllm"]
    saved = 3 * longest - (1.5 * 83 + longest)
    assert seconds["transformers"] - seconds["vllm"] == pytest.approx(saved * token)


def test_steps_that_share_a_generation_wait_once_and_score_once_more():
    card, settings = card_of("H100"), {"rl__steps": 240, "rl__checkpoint_every": 8}
    one, four = (
        plan(qwen(**settings, rl__steps_per_generation=n), QWEN, card).work["chains of 3, typical"] for n in (1, 4)
    )
    assert 0.25 * one.decode_seconds < four.decode_seconds < one.decode_seconds
    assert four.train_seconds == pytest.approx(one.train_seconds * 4 / 3, rel=0.06)
    parts = plan(qwen(**settings, rl__steps_per_generation=4), QWEN, card).parts
    assert parts["vpo, 240 steps"] == pytest.approx(four.seconds * 240 / 3600)


def test_the_prompts_that_are_read_again_are_told_for_each_method():
    said = repeated_prompts(qwen())
    assert "grpo 192 x 950 = 182,400, 92% of its tokens, for 192 answers" in said
    assert "vpo 64 x 950 = 60,800, 77% of its tokens, for 192 answers" in said and "rl.equal=rollouts" in said
    equal = qwen(rl__equal="rollouts")
    assert "grpo 64 x 950 = 60,800, 92% of its tokens, for 64 answers" in repeated_prompts(equal)
    work = plan(equal, QWEN, card_of("H100")).work
    assert work["singles, typical"].rollouts == work["chains of 3, typical"].rollouts == 64
    full, fewer = (plan(profile, QWEN, card_of("H100")).parts for profile in (qwen(), equal))
    assert fewer["grpo, 250 steps"] < 0.5 * full["grpo, 250 steps"]
    assert fewer["vpo, 250 steps"] == full["vpo, 250 steps"]


def test_the_longest_of_many_is_what_a_simulation_finds():
    rng, sigma = np.random.default_rng(0), np.sqrt(np.log(1 + 0.5**2))
    for n in (1, 4, 48, 192):
        drawn = rng.lognormal(np.log(88) - sigma**2 / 2, sigma, (4000, n)).max(axis=1).mean()
        # It is the length of a typical longest one; the mean of the longest is a little larger.
        assert longest_of(n, 88, 0.5) == pytest.approx(drawn, rel=0.12 if n == 1 else 0.05)


# Seconds of a step of VPO and of GRPO by an independent calculation: reference for 16 and for 64 rollouts.
REVIEWED = {
    "L4": (18, 26, 55, 92),
    "RTX 4090": (9, 13, 28, 50),
    "A100-80": (6.3, 7.8, 14, 25),
    "H100": (4.1, 4.3, 8, 12),
}


@pytest.mark.parametrize("name", REVIEWED)
def test_the_steps_are_those_of_an_independent_calculation(name):
    found = []
    for rollouts in (16, 64):
        work = plan(qwen(rl__rollouts=rollouts), QWEN, card_of(name)).work
        found += [work["chains of 3, typical"].seconds, work["singles, typical"].seconds]
    assert found == pytest.approx(REVIEWED[name], rel=0.2)


@pytest.mark.parametrize("name, hours", [("L4", 13.5), ("RTX 4090", 6.8), ("A100-80", 4.4), ("H100", 2.8)])
def test_the_template_takes_as_long_as_an_independent_calculation_says(name, hours):
    template = get_profile("qwen3-1.7b-template", {"evaluation.requests": 80})  # as it was calculated
    parts = plan(template, QWEN, card_of(name)).parts
    assert sum(parts.values()) == pytest.approx(hours, rel=0.2)
    assert {"warmup", "pools", "looks of vpo", "grpo, 1,000 steps"} <= set(parts)
    recipe = plan(qwen(), QWEN, card_of(name)).parts
    assert recipe["vpo, 250 steps"] < parts["vpo, 1,000 steps"]  # the same rollouts
    assert "which rows are solved" in recipe and "which rows are solved" not in parts


# --- Measured on a CPU ------------------------------------------------------------------------


def build(shape: Shape, rank: int = 0, **config):
    import torch
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(shape_config(shape, pad_token_id=0, **config)).to(torch.bfloat16)
    if rank:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        # As TRL sets a LoRA run up.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def batch(rows: int, tokens: int):
    """Random ids and a mask with padding at the left of the first row."""
    import torch

    ids = torch.randint(1, SMALL.vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, : tokens // 4] = 0
    return ids, mask


def owned(tensors) -> int:
    """Bytes of tensors, shared storages once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


class Live:
    """How many bytes of new tensors live, now and at most, while it is entered; parameters do not count."""

    def __init__(self, model):
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_iter

        sizes = {t.untyped_storage()._cdata: 0 for t in [*model.parameters(), *model.buffers()]}

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(mode, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                for storage in (t.untyped_storage() for t in tree_iter(result) if hasattr(t, "untyped_storage")):
                    if storage._cdata not in sizes:
                        sizes[storage._cdata] = storage.nbytes()
                        self.now += storage.nbytes()
                        self.most = max(self.most, self.now)
                        weakref.finalize(storage, self.free, storage._cdata)
                return result

        self.now = self.most = 0
        self.sizes, self.mode = sizes, Mode()

    def free(self, key):
        self.now -= self.sizes.pop(key)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_a_real_model(tied):
    shape = replace(SMALL, tied=tied)
    assert owned(build(shape).parameters()) == 2 * weights(shape)


def test_adapters_gradients_and_moments_are_those_of_a_real_step():
    import torch

    model = build(SMALL, RANK)
    adapters = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in adapters} == {torch.float32}  # of a bf16 base
    assert sum(p.numel() for p in adapters) == lora_parameters(SMALL, RANK)
    count, width = trained(qwen(policy__lora_rank=RANK), SMALL)
    check_adamw(model, adapters, count * width)


def test_without_lora_gradients_and_moments_have_the_dtype_of_the_weights():
    model = build(SMALL).float()
    count, width = trained(qwen(policy__lora_rank=0, policy__dtype="float32", policy__backend="vllm"), SMALL)
    assert (count, width) == (weights(SMALL), 4)
    check_adamw(model, list(model.parameters()), 4 * count)


def check_adamw(model, parameters, size):
    import torch

    optimizer = torch.optim.AdamW(parameters)
    ids, mask = batch(1, 16)
    model(input_ids=ids, attention_mask=mask).logits.float().logsumexp(-1).sum().backward()
    optimizer.step()
    assert owned(parameters) == size
    assert owned(p.grad for p in parameters) == size
    state = [t for values in optimizer.state.values() for t in values.values() if t.numel() > 1]
    assert owned(state) == 2 * size


def test_keys_and_values_are_those_of_a_real_cache():
    import torch

    ids, _ = batch(3, 40)
    with torch.no_grad():
        cache = build(SMALL)(input_ids=ids, use_cache=True).past_key_values
    assert owned(t for layer in cache.layers for t in (layer.keys, layer.values)) == 3 * 40 * kv_bytes_per_token(SMALL)


def saved_and_most(rank: int, rows: int, tokens: int) -> tuple[int, int]:
    """(bytes that autograd saves for the backward pass of the layers, the most bytes of new tensors during it)."""
    import torch

    model = build(SMALL, rank)
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    ids, mask = batch(rows, tokens)
    saved, live = {}, Live(model)

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with live.mode:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            inner = model.base_model.model if rank else model
            loss = inner.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.sum()
        loss.backward()
    return sum(saved.values()), live.most


@pytest.mark.parametrize("tokens", [256, 512])
def test_activations_with_gradient_checkpointing_are_those_of_a_real_backward_pass(tokens):
    kept, layer = activations(SMALL, RANK, 3, tokens)
    saved, most = saved_and_most(RANK, 3, tokens)
    assert saved == pytest.approx(kept - 3 * tokens**2, rel=0.01)  # the mask is an argument, not saved
    assert most == pytest.approx(kept + layer, rel=0.02)


@pytest.mark.parametrize("tokens", [256, 512])
def test_activations_without_lora_are_those_of_a_real_backward_pass(tokens):
    kept, layer = activations(SMALL, 0, 3, tokens)
    saved, most = saved_and_most(0, 3, tokens)
    assert saved == pytest.approx(kept, rel=0.02)
    assert most == pytest.approx(kept + layer, rel=0.02)


def test_logits_of_trl_are_those_of_its_own_loss(monkeypatch):
    """TRL's code on a CPU, with a stand-in for its CUDA kernel that allocates what the kernel does."""
    import torch
    from accelerate.utils import convert_outputs_to_fp32
    from trl.trainer import utils
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, index):
            ctx.save_for_backward(logits)
            return (torch.zeros(index.shape), torch.zeros(index.shape))

        @staticmethod
        def backward(ctx, *gradients):
            return torch.zeros_like(ctx.saved_tensors[0], memory_format=torch.contiguous_format), None

    monkeypatch.setattr(utils, "_supports_trl_loss_kernel", lambda *args: True)
    monkeypatch.setattr(utils, "_fused_logprob_entropy", lambda logits, index, **_: Kernel.apply(logits, index))
    wide = replace(SMALL, layers=1, vocabulary=50_000)
    model, (ids, mask) = build(wide, RANK), batch(2, 96)
    trainer = SimpleNamespace(model_kwarg_keys={"logits_to_keep"}, temperature=1.0, _entropy_bonus_enabled=False)
    forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    live = Live(model)
    with live.mode:
        scores, *_ = GRPOTrainer._full_logits_logps(trainer, forward, ids, mask, 64, compute_entropy=True)
        kept = live.now
        scores.sum().backward()
    assert live.most == pytest.approx(logits(wide, "vllm", 2, 64), rel=0.08)
    assert kept == pytest.approx(logits(wide, "vllm", 2, 64) / 2, rel=0.08)


# --- What the plan chooses --------------------------------------------------------------------


def test_the_profile_fits_24_gb_in_the_shape_it_states():
    profile = qwen()
    result = plan(profile, QWEN, L4)
    assert result.micro >= profile.rl.micro_rollouts and result.total < 24e9


@pytest.mark.parametrize("backend", ["unsloth", "vllm", "transformers"])
@pytest.mark.parametrize("rollouts", [16, 24, 40])
def test_a_larger_card_never_gets_a_smaller_micro_batch_and_each_divides_the_rollouts(backend, rollouts):
    profile, before = qwen(policy__backend=backend, rl__rollouts=rollouts), 0
    for gb in range(8, 160, 4):
        result = plan(profile, QWEN, Card("", gb))
        assert result.micro >= before
        assert result.micro == 0 or (rollouts % result.micro == 0 and result.total <= gb * 1e9)
        before = result.micro
    assert before > 1


@pytest.mark.parametrize("field", ["policy.max_prompt_tokens", "policy.max_answer_tokens", "policy.lora_rank"])
def test_more_of_it_never_needs_less_memory(field):
    small = qwen(policy__gpu_share=0.3)
    sizes, micros = [], []
    for factor in (0.25, 0.5, 1, 2, 4):
        group, name = field.split(".")
        value = int(factor * getattr(getattr(small, group), name))
        profile = small.with_overrides({field: value})
        sizes.append(peak(profile, memory(profile, QWEN, 1e9, 2)))
        micros.append(plan(profile, QWEN, card_of("40")).micro)
    assert sizes == sorted(sizes) and micros == sorted(micros, reverse=True)


def test_where_the_weights_and_the_cache_lie():
    def items(**overrides):
        return plan(qwen(**overrides), QWEN, card_of("80")).items

    own, copy, work, cache = list(items())[:4]
    assert (items()[copy], items()[work]) == (0, 1.5e9)
    beside = items(policy__backend="vllm")
    assert beside[copy] == beside[own] == pytest.approx(3.44e9, rel=1e-3) and beside[cache] == items()[cache]
    served = items(policy__backend="vllm", policy__vllm_server="http://there:8000")
    assert (served[copy], served[work], served[cache]) == (0, 0, 0)
    generated = items(policy__backend="transformers")
    assert (generated[copy], generated[work]) == (generated[own], 0)
    assert generated[cache] == 192 * (4096 + 512) * 114_688  # single answers have the most prompts


def test_a_cache_of_generate_is_gone_before_training():
    profile = qwen(policy__backend="transformers")
    small, large = (peak(profile, memory(profile, QWEN, cache, 1)) for cache in (0.0, 1e12))
    assert peak(profile, memory(profile, QWEN, 1e9, 1)) == small and large > 1e12
    shared = qwen()
    assert peak(shared, memory(shared, QWEN, 1e9, 1)) - peak(shared, memory(shared, QWEN, 0.0, 1)) == 1e9


@pytest.mark.parametrize("backend", ["unsloth", "vllm"])
@pytest.mark.parametrize("gb", [20, 24, 40, 80])
def test_the_suggested_share_fits_and_caches_all_rollouts_or_as_many_as_training_leaves(backend, gb):
    card, profile = card_of(str(gb)), qwen(policy__backend=backend)
    first = plan(profile, QWEN, card)
    if not first.gpu_share:
        pytest.skip("nothing to suggest")
    second = plan(profile.with_overrides({"policy.gpu_share": first.gpu_share}), QWEN, card)
    assert second.micro >= first.micro >= 1 and second.total <= gb * 1e9
    assert second.work["chains of 3, longest"].at_once == 64 or second.total > (gb - 0.011 * gb) * 1e9


def test_several_gpus_share_the_rollouts():
    profile = qwen(policy__backend="vllm")
    one, four = (plan(profile, QWEN, L4, gpus).work["chains of 3, typical"] for gpus in (1, 4))
    assert (one.rollouts, four.rollouts) == (64, 16) and four.train_seconds == pytest.approx(one.train_seconds / 4)
    with pytest.raises(LabError, match=r"--gpus 3: rl.rollouts = 64 cannot be split"):
        plan(profile, QWEN, L4, 3)
    with pytest.raises(LabError, match="unsloth trains on one GPU"):
        plan(qwen(), QWEN, L4, 2)


def test_remedies_start_with_what_helps_most_and_keep_their_word():
    profile, card = qwen(policy__backend="vllm"), Card("", 14)
    assert plan(profile, QWEN, card).micro == 0
    lines = remedies(profile, QWEN, card)
    fits = [line.endswith("fits") for line in lines]
    assert any(fits) and fits == sorted(fits, reverse=True)
    sizes = [float(line.split(": ")[-1].split(" GB")[0]) for line in lines if line.endswith("fits")]
    assert sizes == sorted(sizes)
    for line, kept in zip(lines, fits, strict=True):
        field, value = line.removeprefix("--set ").rsplit(": ", 1)[0].split("=")
        changed = cli.assignments([f"{field}={value}"], "--set")
        changed = profile.with_overrides(changed)
        assert bool(plan(changed, shape_of(changed), card).micro) == kept


def test_too_small_a_share_is_a_reason_not_to_fit_and_raising_it_a_remedy():
    profile = qwen(policy__gpu_share=0.2)
    assert plan(profile, QWEN, L4).micro == 0  # 4.8 GB hold no cache
    assert any(line.startswith("--set policy.gpu_share=0.24") for line in remedies(profile, QWEN, L4))


# --- Cards, models, errors --------------------------------------------------------------------


def test_cards_by_name_and_by_gb():
    for card in CARDS:
        assert card_of(card.name) == card_of(f"NVIDIA {card.name.lower()} {card.gb}GB") == card
    assert card_of("4090").name == "RTX 4090" and card_of("h100-80").gb == 80
    assert (card_of("24").gb, card_of("24").bandwidth) == (24, 300)  # the slowest of that size
    assert (card_of("48 GB").gb, card_of("48").bandwidth) == (48, 0)
    work = plan(qwen(), QWEN, card_of("48")).work["chains of 3, typical"]
    assert work.train_seconds != work.train_seconds  # unknown


@pytest.mark.parametrize("name", ["T4", "Tesla T4", "v100", "V100 32GB"])
def test_cards_without_bf16_are_refused(name):
    with pytest.raises(LabError, match=r"below 8\.0, and no bf16; use one of L4"):
        card_of(name)


@pytest.mark.parametrize("name", ["A100", "banana", "", "0", "-24", "nan", "inf", "4096"])
def test_an_unknown_card_is_refused(name):
    with pytest.raises(LabError, match=r"not a known card; pass its memory in GB or one of L4"):
        card_of(name)


def test_the_shape_of_a_local_folder_and_of_the_scratch_model(tmp_path):
    from transformers import Qwen3Config

    Qwen3Config(
        vocab_size=99, hidden_size=48, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True
    ).save_pretrained(tmp_path)
    shape = shape_of(qwen(policy__model=str(tmp_path)))
    assert (shape.hidden, shape.kv_heads, shape.head_dim, shape.vocabulary, shape.tied) == (48, 2, 16, 99, True)
    shape = shape_of(get_profile("maze"))
    assert (shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (96, 3, 4, 4, 24)


@pytest.mark.parametrize(
    "text, hint",
    [
        (None, "No such file"),
        ("{", "not a causal language model's"),
        ("[]", "not a causal language model's"),
        ("{}", "no 'hidden_size'"),
        (json.dumps({**dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers"), 8),
                     "num_attention_heads": 2, "vocab_size": 9, "num_experts": 4}), "mixture of experts"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_no_dense_model_is_refused(tmp_path, text, hint):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(LabError, match=hint) as caught:
        shape_of(qwen(policy__model=str(tmp_path)))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_models_and_backends_are_refused():
    with pytest.raises(LabError, match="'x/Llama-7B': shape unknown; pass a local folder"):
        shape_of(qwen(policy__model="x/Llama-7B"))
    with pytest.raises(LabError, match="no plan for it"):
        plan(qwen(policy__backend="keras"), QWEN, L4)
    with pytest.raises(LabError, match="no plan for it"):
        plan(qwen(policy__dtype="int8"), QWEN, L4)


# --- The command ------------------------------------------------------------------------------


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    try:
        plan_main()
    except SystemExit as end:
        if isinstance(end.code, str):  # what Python prints of it
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def test_the_command_names_every_item_and_calls_the_numbers_estimates(monkeypatch, capsys):
    assert run(monkeypatch, "--gpu", "24", "--gpu", "RTX 4090", "--gpu", "H200") == 0
    printed = capsys.readouterr().out
    names = [*plan(qwen(), QWEN, L4).items, "rl.micro_rollouts", "policy.gpu_share", "tokens in the KV cache", "fits"]
    names += ["RTX 4090", "H200", "Estimated memory", "Estimated time", "estimates", "guesses", "at once"]
    names += ["60,800 + 18,240 a step", "64 x (4,096 + 1,536)", "192 x (950 + 83)", "pools", "price", "(0.45 an hour)"]
    assert [name for name in names if name not in printed] == []
    assert "…" not in printed  # nothing is cut off at 80 columns


def test_the_command_says_what_to_change_where_nothing_fits(monkeypatch, capsys):
    assert run(monkeypatch, "--profile", "qwen3-1.7b", "--gpu", "12", "--set", "policy.backend=vllm") == 0
    printed = capsys.readouterr().out
    assert "12 GB: not one rollout fits" in printed and "--set policy.backend=unsloth: 10.4 GB, fits" in printed


@pytest.mark.parametrize(
    "arguments", [["--gpu", "T4"], ["--gpus", "5"], ["--set", "policy.model=x/y"], ["--profile", "z"]]
)
def test_the_command_refuses_in_one_line(monkeypatch, capsys, arguments):
    assert run(monkeypatch, *arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1


def test_importing_the_plan_loads_nothing_heavy():
    code = "import sys; sys.path.append('tools'); import plan; print({'torch', 'rich'} & set(sys.modules))"
    root = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
