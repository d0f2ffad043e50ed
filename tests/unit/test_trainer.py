"""What the course's trainer logs and shows; advantages where Unsloth's loss looks for them, and what vLLM is sent."""

from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_qwen3 import small_config
from transformers import Qwen3ForCausalLM

from vpo_lab.chains import join_chain
from vpo_lab.errors import LabError
from vpo_lab.train.decoding import merged_weights
from vpo_lab.train.gpu import GENERATES_WITH_ADAPTER, check_engine, check_plain_engine, left_packed
from vpo_lab.train.trainer import course_metrics, describe_rollout, earned
from vpo_lab.weights import dirichlet_weights, set_reward

PAD = 0
WHEELS = sorted((Path(__file__).parents[2] / "build" / "unsloth").glob("unsloth-*.whl"))


# --- The log ----------------------------------------------------------------------------------


def test_metrics_are_of_what_was_asked_and_the_same_for_every_method():
    rewards_BMD = np.random.default_rng(0).random((8, 3, 4))
    rewards_BMD[4:, :, 3] = np.nan  # the second prompt does not ask for it
    weights_KD = dirichlet_weights(128, 4, seed=0)
    texts = ["a"] * 4 + ["a", "b", "c", "c"]
    found = course_metrics(rewards_BMD, np.arange(8) < 2, texts, 4, weights_KD)
    means_BM = np.nanmean(rewards_BMD, axis=2)
    assert found["mean_reward"] == pytest.approx(means_BM.mean())
    assert found["best_of_rollout"] == pytest.approx(means_BM.max(axis=1).mean())
    assert found["best_of_group"] == pytest.approx(means_BM.reshape(2, -1).max(axis=1).mean())
    assert found["set_reward"] == pytest.approx(set_reward(rewards_BMD, weights_KD).mean())
    assert found["mean_reward"] < found["best_of_rollout"] < found["set_reward"] < 1
    assert (found["distinct_rollouts"], found["truncated"]) == ((1 / 4 + 3 / 4) / 2, 2 / 8)


def test_missing_answers_and_truncated_rollouts_earned_nothing():
    rewards_BMD = np.full((3, 2, 2), 0.5)
    rewards_BMD[2, :, 1] = np.nan
    present_BM, truncated_B = np.array([[1, 0], [1, 1], [1, 0]], dtype=bool), np.array([False, True, False])
    found = earned(SimpleNamespace(rewards_BMD=rewards_BMD, present_BM=present_BM, truncated_B=truncated_B))
    expected = [[[0.5, 0.5], [0, 0]], [[0, 0], [0, 0]], [[0.5, np.nan], [0, np.nan]]]
    assert np.array_equal(found, expected, equal_nan=True)


def test_the_example_is_a_rollout_with_what_its_answers_earned():
    head, *answers = describe_rollout(join_chain(["x  y", "z"]), np.array([[0.25, 1], [0, 0]]), ("a", "b")).splitlines()
    assert head.endswith("a, b")
    assert [line.split() for line in answers] == [["[0.25", "1.00]", "x", "y"], ["[0.00", "0.00]", "z"]]


# --- For Unsloth and vLLM ---------------------------------------------------------------------


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


def test_vllm_is_sent_the_weights_that_peft_would_merge():
    model, base = lora_model(torch.float32)
    sent = dict(merged_weights(model))
    expected = dict(model.merge_and_unload().named_parameters())
    assert set(sent) == set(expected) == set(base)
    for name, weight in expected.items():
        torch.testing.assert_close(sent[name], weight.detach())
    assert sum(not torch.equal(sent[name], base[name]) for name in base) == 2 * 7


def test_sending_leaves_a_bfloat16_base_as_it_was():
    model, base = lora_model(torch.bfloat16)
    for _ in range(3):
        list(merged_weights(model))
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.named_parameters()
        if "lora_" not in name
    }
    assert all(torch.equal(kept[name], base[name]) for name in base)


def generation(**changes) -> SimpleNamespace:
    """What a trainer has when Unsloth has done its work, but for `changes`."""

    class Generation:
        def generate(self): ...

    if changes.pop("wrapped", True):
        setattr(Generation.generate, GENERATES_WITH_ADAPTER, True)
    made, engine = Generation(), SimpleNamespace(shared_weights=changes.pop("shared", True))
    made.llm, made._unsloth_load_lora = engine, changes.pop("lora", print)
    if changes.pop("own", False):
        engine = SimpleNamespace(shared_weights=True)
    return SimpleNamespace(vllm_generation=made, model=SimpleNamespace(vllm_engine=engine))


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"own": True}, "not by the vLLM of the model"),
        ({"shared": False}, "weights of its own"),
        ({"wrapped": False}, "without the adapter"),
        ({"lora": None}, "without the adapter"),
    ],
)
def test_an_engine_that_unsloth_did_not_take_over_is_refused(changes, line):
    check_engine(generation())
    with pytest.raises(LabError, match=line):
        check_engine(generation(**changes))


def plain_trainer(mode: str = "colocate", **changes) -> SimpleNamespace:
    """What a trainer of plain TRL has that samples by vLLM, but for `changes`."""
    model, engine = object(), type(changes.pop("engine", "LLM" if mode == "colocate" else "VLLMClient"), (), {})()
    kind = type(changes.pop("kind", "VLLMGeneration"), (), {"generate": lambda self: None})
    if changes.pop("unsloth", False):
        setattr(kind.generate, GENERATES_WITH_ADAPTER, True)
    made = kind()
    made.model = changes.pop("other", model)
    if changes.pop("sends", True):
        made._iter_named_params = lambda: ()
    setattr(made, "llm" if mode == "colocate" else "vllm_client", engine)
    use_vllm = changes.pop("use_vllm", True)
    assert not changes
    return SimpleNamespace(use_vllm=use_vllm, vllm_generation=made, model=model, args=SimpleNamespace(vllm_mode=mode))


@pytest.mark.parametrize("mode", ["colocate", "server"])
@pytest.mark.parametrize(
    "changes, line",
    [
        ({"use_vllm": False}, "not by vLLM"),
        ({"kind": "Generation"}, "not by vLLM"),
        ({"engine": "AsyncLLM"}, "another engine"),
        ({"unsloth": True}, "Unsloth has changed"),
        ({"other": object()}, "other weights"),
        ({"sends": False}, "other weights"),
    ],
)
def test_an_engine_that_is_not_trls_own_vllm_is_refused(mode, changes, line):
    check_plain_engine(plain_trainer(mode))
    with pytest.raises(LabError, match=line):
        check_plain_engine(plain_trainer(mode, **changes))


def test_trl_has_what_the_check_of_its_vllm_goes_by():
    from inspect import getsource

    from trl.generation import vllm_generation

    kind = vllm_generation.VLLMGeneration
    assert "import LLM" in getsource(vllm_generation) and "self.llm = LLM(" in getsource(kind._init_vllm)
    assert "self.vllm_client = VLLMClient(" in getsource(kind._init_vllm)
    assert "self._iter_named_params()" in getsource(kind.sync_weights)  # what is replaced for LoRA is what is sent


@pytest.mark.skipif(not WHEELS, reason="Unsloth's wheels are not in build/unsloth: make unsloth")
def test_unsloth_marks_the_wrapper_and_the_engine_by_these_names():
    with ZipFile(WHEELS[0]) as wheel:
        source = {name: wheel.read(f"unsloth/models/{name}.py").decode() for name in ("rl_replacements", "llama")}
    assert f'= "{GENERATES_WITH_ADAPTER}"' in source["rl_replacements"]
    assert "self._unsloth_load_lora = model.load_lora" in source["rl_replacements"]
    assert "model.vllm_engine = llm" in source["llama"] and "llm.shared_weights = True" in source["llama"]
