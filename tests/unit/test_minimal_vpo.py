"""examples/minimal_vpo.py: its method is the library's, its loss has the right gradient, and it trains."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vpo_lab.chains import join_chain
from vpo_lab.config import get_profile
from vpo_lab.methods import METHODS, Batch
from vpo_lab.tasks import each, get_task
from vpo_lab.train.prompts import render_prompt
from vpo_lab.train.tiny_model import build_model, train_tokenizer

minimal = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "examples" / "minimal_vpo.py")))
TASK = get_task("tiny_tools")
ROWS = TASK.load(split="train")[:40]


@pytest.fixture(scope="module")
def tokenizer():
    template, rng = train_tokenizer([]), np.random.default_rng(0)
    texts = [render_prompt(template, row["prompt"], m) for row in ROWS for m in (1, 3)]
    return train_tokenizer([*texts, *(join_chain(TASK.demonstrations(row, 3, rng)) for row in ROWS)])


@pytest.fixture
def model(tokenizer):
    policy = replace(get_profile("tiny").policy, hidden_size=16, intermediate_size=32, layers=1, heads=2)
    return build_model(policy, tokenizer, seed=0)


def rollouts_of(tokenizer, rows, m, seed=0):
    """Demonstrations as rollouts: prompts and completions of different lengths."""
    rng = np.random.default_rng(seed)
    prompts = [render_prompt(tokenizer, row["prompt"], 1 + i % m) for i, row in enumerate(rows)]
    texts = [join_chain(TASK.demonstrations(row, m, rng)) + tokenizer.eos_token for row in rows]
    encoding = dict(return_tensors="pt", padding=True, add_special_tokens=False)
    return minimal.Rollouts(
        tokenizer(prompts, padding_side="left", **encoding)["input_ids"],
        tokenizer(texts, padding_side="right", **encoding)["input_ids"],
    )


# --- Stages 2 and 3 ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vpo", "grpo"])
def test_advantages_equal_the_library(name):
    groups, (m, group_size, earn) = 6, minimal.METHODS[name]
    rewards_BMD = np.random.default_rng(0).random((groups * group_size, m, 4)).round(1)
    rewards_BMD[:group_size] = 0.5  # a group in which all earn the same
    weights_PKD = Batch(rewards_BMD, group_size).draw_weights(minimal.WEIGHTS, 1.0, np.random.default_rng(1))
    earned_PG = earn(rewards_BMD.reshape(groups, group_size, m, 4), weights_PKD)
    library_B = METHODS[name].advantages(rewards_BMD, group_size, np.random.default_rng(1))
    assert minimal.WEIGHTS == 128 and not library_B[:group_size].any() and library_B[group_size:].any()
    np.testing.assert_allclose(minimal.group_advantages(earned_PG).ravel(), library_B, atol=1e-12)


def test_set_reward_is_its_definition():
    rng = np.random.default_rng(0)
    rewards_PGMD, weights_PKD = rng.random((2, 3, 4, 5)), rng.dirichlet(np.ones(5), size=(2, 7))
    for p, g in np.ndindex(2, 3):
        by_hand = np.mean([max(w @ r for r in rewards_PGMD[p, g]) for w in weights_PKD[p]])
        assert minimal.set_reward(rewards_PGMD, weights_PKD)[p, g] == pytest.approx(by_hand)


def test_missing_answers_and_cut_rollouts_earn_zeros(tokenizer):
    gold = ROWS[0]["gold"]
    texts = [join_chain([gold] * 3) + tokenizer.eos_token, join_chain([gold] * 3), f"<answer_2>\n{gold}"]
    texts[2] += tokenizer.eos_token
    ids = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    rollouts = minimal.Rollouts(ids["input_ids"][:, :0], ids["input_ids"])
    rewards_BMD, answers_BM = minimal.score(TASK, tokenizer, rollouts, [ROWS[0]] * 3, 3)
    assert (rewards_BMD[0] == 1).all() and not rewards_BMD[1].any()
    assert rewards_BMD[2].all(axis=1).tolist() == [False, True, False] and answers_BM[2].tolist() == ["", gold, ""]


def test_measures_of_a_known_batch():
    rewards = np.array([[[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 1.0], [1, 1, 1, 0], [0, 0, 0, 0]]])
    answers = np.array([["a", "b", "b"], ["a", "b", ""]], dtype=object)
    measured = dict(zip(minimal.MEASURES, minimal.measure(rewards, answers), strict=True))
    assert measured["set reward"][0] == pytest.approx(1) and 0.75 < measured["set reward"][1] < 1
    assert measured["best@1"].tolist() == [1, 0.25] and measured["best@3"].tolist() == [1, 0.75]
    assert measured["pass@3"].tolist() == [1, 0] and np.allclose(measured["distinct"], 2 / 3)


# --- Stages 4 and 5 ---------------------------------------------------------------------------


def test_gradient_of_the_loss_is_that_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    tokens = torch.randint(5, (3, 4), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    advantages = torch.tensor([1.5, -2.0, 0.5], dtype=torch.float64)

    def loss(logits):
        return minimal.policy_loss(logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0], advantages, mask)

    assert torch.autograd.gradcheck(loss, logits.clone().requires_grad_())  # against finite differences
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    # On paper: d log p(token) / d logits = onehot(token) - p.
    onehot = torch.nn.functional.one_hot(tokens, 5)
    on_paper = -advantages[:, None, None] * (onehot - logits.softmax(-1)) * mask[..., None] / mask.sum()
    torch.testing.assert_close(gradient, on_paper.detach())
    # PPO's clipped loss at ratio 1 has the same gradient.
    log_probs = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    ratio = (log_probs - log_probs.detach()).exp()
    clipped = torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None])
    (of_ppo,) = torch.autograd.grad(-(clipped * mask).sum() / mask.sum(), logits)
    torch.testing.assert_close(of_ppo, gradient)


def test_log_probs_of_a_padded_batch_are_those_of_each_rollout_alone(model, tokenizer):
    pad, rollouts = tokenizer.pad_token_id, rollouts_of(tokenizer, ROWS[:4], 3)
    batch_BT = minimal.token_log_probs(model, rollouts, pad)
    assert (rollouts.completions_BT == pad).any()
    for b, (prompt, completion) in enumerate(zip(*rollouts, strict=True)):
        prompt, completion = prompt[prompt != pad], completion[completion != pad]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0]
        alone = logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(completion)), completion]
        torch.testing.assert_close(batch_BT[b, : len(completion)], alone, atol=1e-5, rtol=1e-4)


def test_a_step_makes_good_rollouts_likelier_and_bad_ones_less_likely(model, tokenizer):
    pad, rollouts, signs_B = tokenizer.pad_token_id, rollouts_of(tokenizer, ROWS[:4], 3), np.array([1.0, -1, 1, -1])

    def log_prob_B():
        with torch.no_grad():
            per_token = minimal.token_log_probs(model, rollouts, pad)
        return (per_token * (rollouts.completions_BT != pad)).sum(dim=1).numpy()

    before_B, step = log_prob_B(), minimal.make_step(model, pad, learning_rate=1e-2, steps=10)
    for _ in range(10):
        step(rollouts, signs_B)
    assert (np.sign(log_prob_B() - before_B) == signs_B).all()


def test_warm_up_teaches_what_it_is_shown(model, tokenizer):
    rollouts, pad = rollouts_of(tokenizer, ROWS[:16], 3, seed=9), tokenizer.pad_token_id

    def loss():
        with torch.no_grad():
            return minimal.policy_loss(
                minimal.token_log_probs(model, rollouts, pad), torch.ones(16), rollouts.completions_BT != pad
            )

    before = loss()
    minimal.warm_up(model, tokenizer, TASK, ROWS, 3, steps=20, rng=np.random.default_rng(0), learning_rate=1e-2)
    assert loss() < before - 1  # nats per token


@pytest.mark.parametrize("name", ["vpo", "grpo"])
def test_training_runs_and_repeats_itself(name, model, tokenizer, capsys):
    """An untrained policy earns nothing in the real task: this one pays for lengths, so that rollouts differ."""
    task = SimpleNamespace(score=each(lambda answer, gold: np.array([len(answer) % 2, len(answer) % 3 == 0, 0, 0])))
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def trained():
        model.load_state_dict(start)
        torch.manual_seed(0)
        minimal.train(model, tokenizer, task, ROWS, name, steps=10, prompts=2, rng=np.random.default_rng(0))
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    first = trained()
    assert capsys.readouterr().out.count("set reward") == 1
    torch.testing.assert_close(first, trained(), rtol=0, atol=0)


def test_the_script_reports_held_out_requests_before_and_after(model, tokenizer, tmp_path, capsys):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    minimal.main(["--start", str(tmp_path), "--steps", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "best@3" in line]
    assert [line.split()[0] for line in lines] == ["before", "after", "difference", "95%"]
