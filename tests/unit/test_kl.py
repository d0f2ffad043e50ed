"""`rl.kl`: the reference of the KL term is the warmup, whichever way the policy is trained."""

import shutil
from pathlib import Path

import pytest
import torch
from small_qwen3 import chat_tokenizer, small_config, trained_backend

from vpo_lab.config import get_profile
from vpo_lab.errors import LabError
from vpo_lab.runs import Run
from vpo_lab.tasks import get_task
from vpo_lab.train import rl as training
from vpo_lab.train.policy import load_policy
from vpo_lab.train.rl import train_rl
from vpo_lab.train.sft import train_sft

LETTERS = f"{Path(__file__).parents[1] / 'letters.py'}:Letters"
SMALL = {
    "task": LETTERS,
    "sft.steps": 30,
    "sft.batch_rows": 32,
    "sft.learning_rate": 1e-2,
    "rl.kl": 0.1,
    "rl.learning_rate": 1e-2,
    "rl.steps": 3,
}


def scratch(folder: Path):
    return get_profile("smoke", {**SMALL, "policy.hidden_size": 32, "policy.intermediate_size": 64})


def adapter(folder: Path):
    """A profile that trains an adapter on a small Qwen3 with random weights."""
    from transformers import Qwen3ForCausalLM

    tokenizer = chat_tokenizer(trained_backend(get_task(LETTERS).load(None, "train")))
    torch.manual_seed(0)
    ids = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    Qwen3ForCausalLM(small_config(vocab_size=len(tokenizer), **ids)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    model = {"policy.backend": "transformers", "policy.model": str(folder / "model"), "policy.lora_rank": 4}
    return get_profile("smoke", {**SMALL, **model, "policy.max_answer_tokens": 8})


@pytest.mark.parametrize("made", [scratch, adapter])
def test_the_reference_is_the_warmup(made, tmp_path, monkeypatch):
    profile, run = made(tmp_path), Run(tmp_path / "run")
    run.folder.mkdir()
    start = train_sft(profile, run, seed=0)
    trainers = []

    def keep(trainer, *arguments):
        trainers.append(trainer)
        return real(trainer, *arguments)

    real = training.run_stage
    monkeypatch.setattr(training, "run_stage", keep)
    policy = train_rl(profile, "grpo", run, seed=0)
    (trainer,) = trainers
    warmup, tokenizer = load_policy(profile, get_task(LETTERS), start, seed=0)
    ids = tokenizer("Draft a patch", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = warmup(input_ids=ids).logits
        if trainer.ref_model is not None:
            reference = trainer.ref_model(input_ids=ids).logits
        else:
            model = trainer.accelerator.unwrap_model(trainer.model)
            model.set_adapter("ref")
            reference = model(input_ids=ids).logits
            model.set_adapter("default")
            with model.disable_adapter():
                assert not torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-4)  # the base is not the warmup
        trained = trainer.model(input_ids=ids).logits
    assert torch.allclose(reference, wanted, atol=1e-5)
    assert not torch.allclose(trained, wanted, atol=1e-4)
    kls = [entry["kl"] for entry in run.stage("grpo").log()]
    assert kls[0] == pytest.approx(0, abs=1e-4) and kls[-1] > max(1e-3, 10 * abs(kls[0]))
    for entry in run.stage("grpo").log():
        assert entry["kl_answer"] == pytest.approx(entry["kl"] * entry["completions/mean_length"], abs=1e-5)
    again, _ = load_policy(profile, get_task(LETTERS), policy, seed=0)  # what was published is the trained policy
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, trained, atol=1e-5)


def test_the_kl_of_a_chain_is_told_for_each_answer(tmp_path):
    profile, run = scratch(tmp_path), Run(tmp_path / "run")
    run.folder.mkdir()
    train_sft(profile, run, seed=0)
    train_rl(profile, "vpo", run, seed=0)
    log = run.stage("vpo").log()
    assert log[0]["kl_answer"] == pytest.approx(0, abs=1e-4) and log[-1]["kl_answer"] > 1e-3
    for entry in log:
        tokens = entry["completions/mean_length"] / profile.rl.candidates
        assert entry["kl_answer"] == pytest.approx(entry["kl"] * tokens, abs=1e-5)


def test_a_negative_price_is_refused():
    with pytest.raises(LabError, match=r"rl\.kl"):
        get_profile("tiny", {"rl.kl": -1.0})


def test_without_a_price_there_is_no_reference(tmp_path):
    profile, run = scratch(tmp_path).with_overrides({"rl.kl": 0.0}), Run(tmp_path / "run")
    run.folder.mkdir()
    train_sft(profile, run, seed=0)
    train_rl(profile, "grpo", run, seed=0)
    assert not any("kl" in entry for entry in run.stage("grpo").log())
    shutil.rmtree(run.folder)
