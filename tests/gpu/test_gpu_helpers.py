"""What a CPU can check of the GPU tests: statistics on simulated samples, the record, the probe of the loss."""

import math

import numpy as np
import pytest
import torch
from gpu_measures import ENTRY, MACHINE, add_entry, card_here, complaints, decode_bytes, entry_of, planned_bytes
from gpu_model import FULL, build_tokenizer, profile_here
from gpu_statistics import as_sampled, distance, limit, lumped, tail_share
from gpu_watch import kept_rollouts, probe_advantages
from plan import CARDS, plan, weights
from toolrl_rows import ROWS

from vpo_lab.files import read_json
from vpo_lab.train.gpu import left_packed

PROMPTS, VOCABULARY = 4, 4000


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """(P, V) probabilities as peaked as the random model's."""
    logits = np.random.default_rng(0).normal(0, 5.3, (PROMPTS, VOCABULARY))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def draw(probabilities_PV: np.ndarray, size: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(len(p_V), size=size, p=p_V) for p_V in probabilities_PV]


# --- Statistics -------------------------------------------------------------------------------


def test_categories_are_the_frequent_tokens_and_the_rest():
    assert lumped(np.array([0.5, 0.004, 0.3, 0.006, 0.19])).tolist() == [0, 3, 1, 3, 2]


def test_distance_is_total_variation():
    p_PV = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert distance([np.array([0, 1]), np.array([0])], p_PV) == 0
    assert distance([np.array([0, 0]), np.array([1])], p_PV) == pytest.approx((0.5 + 1.0) / 2)


def test_samples_that_follow_are_seldom_called_wrong(exact):
    most = limit([256] * PROMPTS, exact, allowance=0.0)
    alarms = sum(distance(draw(exact, 256, seed), exact) > most for seed in range(400))
    assert alarms <= 4  # 0.4 are expected; more than 4 happen once in 10,000 times


@pytest.mark.parametrize("temperature, top_p", [(0.7, 1.0), (1.5, 1.0)])
def test_another_temperature_is_noticed_beyond_the_allowance(exact, temperature, top_p):
    wrong = draw(as_sampled(exact, temperature, top_p), 2000, seed=1)
    assert distance(wrong, exact) > limit([2000] * PROMPTS, exact, allowance=0.1)


def test_another_policy_is_far_away(exact):
    assert distance(draw(exact[::-1], 256, seed=1), exact) > 0.5


def test_equal_seeds_for_equal_prompts_are_noticed(exact):
    same = [np.full(256, ids[0]) for ids in draw(exact, 1, seed=3)]
    assert distance(same, exact) > limit([256] * PROMPTS, exact, allowance=0.1)


def test_a_nucleus_that_was_left_on_shows_in_the_tail(exact):
    found, expected = tail_share(draw(exact, 256, seed=2), exact)
    assert 0.02 < expected <= 0.05 and found == pytest.approx(expected, abs=0.02)
    assert tail_share(draw(as_sampled(exact, 1.0, 0.95), 256, seed=2), exact)[0] == 0


def test_sampling_settings_as_transformers_and_vllm_apply_them():
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    p_PV = np.random.default_rng(4).dirichlet(np.full(50, 0.3), size=3)
    logits = torch.tensor(np.log(p_PV))
    theirs = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(0.7)(None, logits)).softmax(dim=-1)
    np.testing.assert_allclose(as_sampled(p_PV, 0.7, 0.9), theirs.numpy(), atol=1e-9)


# --- The card and its limits ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, total, known",
    [
        ("NVIDIA L4", 23_675_000_000, "L4"),
        ("NVIDIA A10", 23_800_000_000, "A10"),
        ("NVIDIA GeForce RTX 3090", 25_300_000_000, "RTX 3090"),
        ("NVIDIA A100-SXM4-40GB", 42_400_000_000, "A100-40"),
        ("NVIDIA A100-SXM4-80GB", 85_100_000_000, "A100-80"),
        ("NVIDIA H100 80GB HBM3", 85_000_000_000, "H100"),
        ("NVIDIA H200", 150_700_000_000, "H200"),
    ],
)
def test_cards_are_known_by_the_names_that_torch_gives_them(name, total, known):
    assert card_here(name, total).name == known


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA L40S", "Tesla T4"])
def test_other_cards_have_no_speed(name):
    card = card_here(name, 85_000_000_000)
    assert (card.name, card.gb, card.bandwidth) == (name, 85, 0)


@pytest.mark.parametrize("backend", ["transformers", "vllm", "unsloth"])
def test_the_planned_peak_is_the_plans_own(tmp_path, backend):
    profile = profile_here(tmp_path, tmp_path, backend, {"policy.max_answer_tokens": 512})
    card = next(card for card in CARDS if card.name == "A100-80")
    expected = plan(profile, FULL, card)
    assert expected.micro > 0
    assert planned_bytes(profile, FULL, card, int(card.gb * 1e9), expected.micro) == pytest.approx(expected.total)


def test_decoding_reads_the_weights_once_a_step_and_every_cache():
    read = sum(100 + 2 * sum(p + t for p, c in ((10, 4), (20, 2)) if t < c) for t in range(4))
    assert decode_bytes(100, 2, [10, 20], [4, 2]) == pytest.approx(read, rel=0.05)
    assert decode_bytes(100, 2, [], []) == 0


# --- The record -------------------------------------------------------------------------------

STEP = {"seconds": 9.0, "decode_seconds": 4.0, "sync_seconds": 1.0, "prompts": [10, 30], "completions": [5, 5]}
SEEN = {
    "steps": [{}, {**STEP, "trained": 50}],
    "memory": {"allocated": 3, "device": 5, "peak": 4},
    "planned_bytes": 6.0,
}


def a_machine() -> dict:
    return dict.fromkeys(MACHINE) | {"device": "CPU", "versions": {"torch": "2"}, "shape": "small", "parameters": 7}


def test_an_entry_holds_speeds_of_the_last_step_and_the_distance_to_the_limit(tmp_path):
    profile, card = profile_here(tmp_path, tmp_path, "vllm"), next(card for card in CARDS if card.name == "L4")
    entry = entry_of(profile, FULL, card, "vllm", "grpo", SEEN)
    assert (entry["generated_tokens_per_second"], entry["trained_tokens_per_second"]) == (10 / 4, 50 / 4)
    assert (entry["train_seconds"], entry["peak_bytes"], entry["rollouts"]) == (4, 4, 2)
    # Five times the weights, in bfloat16, at 300 GB/s; the caches are small beside them.
    assert entry["decode_limit_seconds"] == pytest.approx(5 * 2 * weights(FULL) / 300e9, rel=0.01)
    assert entry["decode_over_limit"] == pytest.approx(4 / entry["decode_limit_seconds"])
    assert complaints({"format": 1, "machine": a_machine(), "entries": [entry]}) == []


def test_what_was_not_measured_is_null(tmp_path):
    nothing = {"steps": [], "memory": {"allocated": None, "device": None, "peak": None}}
    entry = entry_of(profile_here(tmp_path, tmp_path, "transformers"), FULL, None, "transformers", "sft", nothing)
    assert set(entry) == set(ENTRY) and {k for k, v in entry.items() if v is not None} == {"backend", "stage"}


def test_the_record_keeps_one_entry_of_a_stage_and_only_of_this_machine(tmp_path):
    path, profile = tmp_path / "a" / "record.json", profile_here(tmp_path, tmp_path, "vllm")
    for stage in ("grpo", "vpo", "grpo"):
        add_entry(path, a_machine(), entry_of(profile, FULL, None, "vllm", stage, SEEN))
    record = read_json(path)
    assert [entry["stage"] for entry in record["entries"]] == ["vpo", "grpo"] and complaints(record) == []
    other = a_machine() | {"device": "another"}
    add_entry(path, other, entry_of(profile, FULL, None, "vllm", "grpo", SEEN))
    assert [entry["stage"] for entry in read_json(path)["entries"]] == ["grpo"]


@pytest.mark.parametrize("change", [{"step_seconds": "1"}, {"peak_bytes": math.nan}, {"more": 1}, {"backend": 3}])
def test_a_wrong_entry_is_complained_of(tmp_path, change):
    entry = entry_of(profile_here(tmp_path, tmp_path, "vllm"), FULL, None, "vllm", "grpo", SEEN) | change
    (name,) = change
    (complaint,) = complaints({"format": 1, "machine": a_machine(), "entries": [entry]})
    assert name in complaint
    assert complaints({"entries": []})


# --- What the worker does ---------------------------------------------------------------------

PAD = 0


def a_batch() -> dict:
    prompts = torch.tensor([[0, 0, 5], [6, 7, 8], [0, 9, 9], [3, 3, 3]])
    completions = torch.arange(1, 29).reshape(4, 7)
    mask = torch.ones_like(completions)
    return {
        "prompt_ids": prompts,
        "prompt_mask": (prompts != 0).long(),
        "completion_ids": completions,
        "completion_mask": mask,
    }


def as_columns(advantages, width: int):
    return advantages[:, None].expand(-1, width) if advantages.dim() == 1 else advantages


def plain_loss(inputs: dict):
    mask = inputs["completion_mask"].float()
    return -(as_columns(inputs["advantages"], mask.shape[1]) * mask).sum() / 100


def packed_loss(inputs: dict):
    """As Unsloth computes: padding of the prompts moved behind, the mask made from token ids."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    padding = (inputs["prompt_ids"] == PAD).sum(dim=1)
    width = inputs["completion_ids"].shape[1] + int(padding.max())
    rows = torch.stack([row.roll(-int(p)) for row, p in zip(ids, padding, strict=True)])[:, -width:]
    starts = int(padding.max()) - padding
    mask = (rows != PAD) & (torch.arange(width) >= starts[:, None])
    return -(as_columns(inputs["advantages"], width) * mask).sum() / 100


def test_the_probe_agrees_with_a_loss_that_is_right_and_not_with_one_that_is_off():
    right = probe_advantages(plain_loss, a_batch(), PAD)
    assert right["got"] == pytest.approx(right["expected"]) and right["paddings"] == [2, 0, 1, 0]

    def repacked(inputs):
        if inputs["advantages"].dim() == 2:
            inputs = {**inputs, "advantages": left_packed(inputs, PAD)}
        return packed_loss(inputs)

    assert probe_advantages(repacked, a_batch(), PAD)["got"] == pytest.approx(right["expected"])

    def shifted(inputs):
        if inputs["advantages"].dim() == 2:
            inputs = {**inputs, "advantages": torch.nn.functional.pad(inputs["advantages"], (0, 2))}
        return packed_loss(inputs)

    assert abs(probe_advantages(shifted, a_batch(), PAD)["got"] / right["expected"] - 1) > 0.01


def test_first_tokens_are_kept_by_prompt():
    kept = kept_rollouts("one", [[1, 2], [1, 2], [3]], [[7, 8], [9, 9], [5]], [[-1.0, -2.0], [-3.0, -4.0], [-5.0]])
    assert kept["first"] == [[[1, 2], [7, 9]], [[3], [5]]]
    assert kept["logged"][0] == {"prompt": [1, 2], "completion": [7, 8], "logps": [-1.0, -2.0]}


def test_the_tokenizer_fills_the_vocabulary_and_writes_every_id():
    tokenizer = build_tokenizer(ROWS, 3000)
    assert len(tokenizer) == 3000
    words = [tokenizer.decode([i]) for i in range(2990, 3000)]
    assert len(set(words)) == 10 and all(word.strip().isalpha() for word in words)
    assert (
        tokenizer.decode(tokenizer("Ferries to Amrum.", add_special_tokens=False)["input_ids"]) == "Ferries to Amrum."
    )
