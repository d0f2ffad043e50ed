"""Vector Policy Optimization in one file: sample, score, advantage, loss, step. No TRL, no configuration.

    OMP_NUM_THREADS=1 python examples/minimal_vpo.py                  # VPO
    OMP_NUM_THREADS=1 python examples/minimal_vpo.py --method grpo    # GRPO: one row of METHODS differs

A language model of half a million parameters answers requests with tool calls. A request does not say
everything that the user means, so three different answers are worth more than one answer three times.
Stages 1 to 5 below are one training step. A warmup on imperfect demonstrations comes before it.

Array names end in their axes: P prompts, G rollouts per prompt, B = P x G rollouts, M answers in a rollout,
D objectives, K preference weights, N sets of three answers, S and T tokens of a prompt and a completion.

It learns. 200 held-out requests, one set of three answers each, mean and range over training seeds 0, 1, 2:

|                | set reward        | best@1            | best@3            | pass@3            | distinct          |
|----------------|-------------------|-------------------|-------------------|-------------------|-------------------|
| after warmup   | .651 [.638, .660] | .443 [.432, .457] | .645 [.632, .654] | .072 [.070, .075] | .981 [.968, .988] |
| after VPO      | .805 [.789, .829] | .527 [.466, .604] | .802 [.785, .827] | .295 [.235, .355] | .916 [.903, .932] |
| after GRPO *   | .715              | .625              | .712              | .120              | .862              |
| at most        |                   | .772              | .971              | .839              |                   |

* One run, seed 0, which learns single answers in its warmup (.641 .476 .632 .035 .987 after it). GRPO's first
  answer is better than VPO's, its set of three is worse.

In every seed the 95% interval of VPO's gain in set reward (over requests) lies above +.09. A run takes about
two minutes on a free core: 143 s of CPU time, measured on a crowded machine. "At most" is the mean that no
policy can beat, as in `TinyTools.ceiling`. The longer training of notebook 04 comes nearer to it.

Left out, compared with the paper (arXiv 2605.22817): the KL penalty, and PPO's clip, which cannot act with one
update per batch. Added: the warmup. The loss is a mean over the batch's tokens, as in DAPO (arXiv 2503.14476).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

# The world, the tiny model and the text format come from the package. The method stands below.
from vpo_lab.chains import join_chain, split_chain
from vpo_lab.config import get_profile
from vpo_lab.tasks import get_task
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import render_prompt

SET = 3  # answers that are judged together
WEIGHTS = 128  # K
ANSWER_TOKENS = 15  # the longest answer
EPSILON = 1e-6


class Rollouts(NamedTuple):
    """Token ids of a batch: prompts (B, S) padded on the left, completions (B, T) padded on the right."""

    prompts_BS: torch.Tensor
    completions_BT: torch.Tensor


# --- Stage 1: sample. A rollout is one completion that holds M answers in numbered tags -----------


@torch.no_grad()
def sample(model, tokenizer, rows: list[dict], m: int) -> Rollouts:
    """Draw one rollout of M answers per row, at temperature 1 from the whole vocabulary."""
    prompts = [render_prompt(tokenizer, row["prompt"], m) for row in rows]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ids = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=ANSWER_TOKENS * m,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    width = inputs["input_ids"].shape[1]
    return Rollouts(ids[:, :width], ids[:, width:])


# --- Stage 2: score. Every answer gets a reward vector --------------------------------------------


def score(task, tokenizer, rollouts: Rollouts, rows: list[dict], m: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the reward vectors (B, M, D) and the texts (B, M) of all answers.

    A missing answer earns zeros. So does every answer of a rollout that was cut off before its end.
    """
    texts = tokenizer.batch_decode(rollouts.completions_BT, skip_special_tokens=True)
    answers_BM = np.array([split_chain(text, m) for text in texts], dtype=object)
    rewards_ND = task.score(answers_BM.ravel().tolist(), [row for row in rows for _ in range(m)])
    ended_B = (rollouts.completions_BT == tokenizer.eos_token_id).any(dim=1).numpy()
    counts_BM = (answers_BM != "") & ended_B[:, None]
    return rewards_ND.reshape(len(rows), m, -1) * counts_BM[:, :, None], answers_BM


# --- Stage 3: advantage. The first two functions are all that separates GRPO from VPO -------------


def mean_reward(rewards_PGMD: np.ndarray, weights_PKD: np.ndarray) -> np.ndarray:
    """Return what each rollout earns under GRPO: the plain mean of its rewards, (P, G)."""
    return rewards_PGMD.mean(axis=(2, 3))


def set_reward(rewards_PGMD: np.ndarray, weights_PKD: np.ndarray) -> np.ndarray:
    """Return what each rollout earns under VPO: its best answer under each weight, on average, (P, G)."""
    utility_PGMK = rewards_PGMD @ weights_PKD[:, None].swapaxes(-1, -2)
    return utility_PGMK.max(axis=2).mean(axis=2)


def group_advantages(earned_PG: np.ndarray) -> np.ndarray:
    """Compare each rollout with its group: (reward - mean) / std, 0 where all earned the same; (P, G)."""
    centered_PG = earned_PG - earned_PG.mean(axis=1, keepdims=True)
    std_P1 = earned_PG.std(axis=1, keepdims=True)
    return np.where(std_P1 < EPSILON, 0.0, centered_PG / (std_P1 + EPSILON))


METHODS = {  # name: (M answers in a rollout, G rollouts per prompt, what a rollout earns); 12 answers per prompt
    "grpo": (1, 12, mean_reward),
    "vpo": (SET, 4, set_reward),
}


# --- Stage 4: loss. Tokens of good rollouts become likelier, tokens of bad ones less likely ------


def token_log_probs(model, rollouts: Rollouts, pad: int) -> torch.Tensor:
    """Return log p(token | all tokens before it) for the completions: (B, T)."""
    ids = torch.cat(rollouts, dim=1)
    targets_BT = rollouts.completions_BT
    logits = model(input_ids=ids, attention_mask=(ids != pad).long(), logits_to_keep=targets_BT.shape[1] + 1).logits
    return logits[:, :-1].log_softmax(dim=-1).gather(2, targets_BT[:, :, None])[:, :, 0]


def policy_loss(log_probs_BT: torch.Tensor, advantages_B: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return minus the mean of advantage x log-probability over all tokens of the batch: a scalar.

    Every batch is used for one step, so the policy that is trained is the one that sampled. PPO's ratio
    is 1 there and its clipping never acts: the gradient is the same.
    """
    return -(advantages_B[:, None] * log_probs_BT * mask_BT).sum() / mask_BT.sum()


# --- Stage 5: step. Clip the gradient, move the weights -------------------------------------------


def make_step(model, pad: int, learning_rate: float, steps: int) -> Callable[[Rollouts, np.ndarray], None]:
    """Return a function that takes one step; the learning rate rises for a tenth of the steps, then falls."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / (0.1 * steps), 0.5 + 0.5 * math.cos(math.pi * n / steps))
    )

    def step(rollouts: Rollouts, advantages_B: np.ndarray) -> None:
        advantages_B = torch.tensor(advantages_B, dtype=torch.float32)
        loss = policy_loss(token_log_probs(model, rollouts, pad), advantages_B, rollouts.completions_BT != pad)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return step


# --- The two trainings ----------------------------------------------------------------------------


def warm_up(model, tokenizer, task, rows, m, *, steps, rng, batch=16, learning_rate=4e-3) -> None:
    """Imitate demonstrations, so that sampling finds the format: the same loss, every advantage is 1."""
    step, clock = make_step(model, tokenizer.pad_token_id, learning_rate, steps), time.time()
    for number in range(1, steps + 1):
        some = [rows[i] for i in rng.integers(len(rows), size=batch)]
        prompts = [render_prompt(tokenizer, row["prompt"], m) for row in some]
        texts = [join_chain(task.demonstrations(row, m, rng)) + tokenizer.eos_token for row in some]
        encoding = dict(return_tensors="pt", padding=True, add_special_tokens=False)
        prompts_BS = tokenizer(prompts, padding_side="left", **encoding)["input_ids"]
        completions_BT = tokenizer(texts, padding_side="right", **encoding)["input_ids"]
        step(Rollouts(prompts_BS, completions_BT), np.ones(batch))
        if number % 50 == 0:
            print(f"warmup {number:4}/{steps}  {time_left(clock, number, steps)}", flush=True)


def train(model, tokenizer, task, rows, method: str, *, steps, rng, prompts=16, learning_rate=6e-4) -> None:
    """Train by GRPO or VPO, and print every 10 steps what the rollouts of these steps earned."""
    m, group_size, earn = METHODS[method]
    step, clock = make_step(model, tokenizer.pad_token_id, learning_rate, steps), time.time()
    order, recent = rng.permutation(len(rows)), []
    for number in range(1, steps + 1):
        chosen = np.take(order, range((number - 1) * prompts, number * prompts), mode="wrap")
        group_rows = [rows[i] for i in chosen for _ in range(group_size)]
        rollouts = sample(model, tokenizer, group_rows, m)  # Stage 1
        rewards_BMD, answers_BM = score(task, tokenizer, rollouts, group_rows, m)  # Stage 2
        objectives = rewards_BMD.shape[-1]
        weights_PKD = rng.dirichlet(np.ones(objectives), size=(prompts, WEIGHTS))  # new ones in every step
        earned_PG = earn(rewards_BMD.reshape(prompts, group_size, m, objectives), weights_PKD)
        advantages_PG = group_advantages(earned_PG)  # Stage 3
        step(rollouts, advantages_PG.ravel())  # Stages 4 and 5
        recent.append(measure(rewards_BMD, answers_BM))
        if number % 10 == 0:
            left = time_left(clock, number, steps)
            print(f"{method} {number:4}/{steps}  {line(np.hstack(recent))}  {left}", flush=True)
            recent = []


# --- What is printed ------------------------------------------------------------------------------

MEASURES = ("set reward", "best@1", "best@3", "pass@3", "distinct")
USERS_KD = np.random.default_rng(0).dirichlet(np.ones(4), size=1024)  # the same weights for all that is printed


def measure(rewards_BMD: np.ndarray, answers_BM: np.ndarray) -> np.ndarray:
    """Return the five measures of every set of three answers: (5, N). GRPO's sets are three rollouts."""
    rewards_NMD = rewards_BMD.reshape(-1, SET, rewards_BMD.shape[-1])
    scalar_NM = rewards_NMD.mean(axis=2)
    covered_N = (rewards_NMD @ USERS_KD.T).max(axis=1).mean(axis=1)
    solved_N = (rewards_NMD.min(axis=2) == 1).any(axis=1)
    distinct_N = [len({*answers} - {""}) / SET for answers in answers_BM.reshape(-1, SET)]
    return np.array([covered_N, scalar_NM[:, 0], scalar_NM.max(axis=1), solved_N, distinct_N])


def evaluate(model, tokenizer, task, rows, m: int) -> np.ndarray:
    """Return the five measures of one set of three answers per row: (5, N)."""
    repeated = [row for row in rows for _ in range(SET // m)]
    return measure(*score(task, tokenizer, sample(model, tokenizer, repeated, m), repeated, m))


def line(values_XN: np.ndarray, sign: str = "") -> str:
    return "  ".join(f"{name} {mean:{sign}.3f}" for name, mean in zip(MEASURES, values_XN.mean(axis=1), strict=True))


def time_left(start: float, done: int, steps: int) -> str:
    return f"{(time.time() - start) / done * (steps - done):.0f} s left"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, default="vpo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup", type=int, default=200, help="SFT steps")
    parser.add_argument("--steps", type=int, default=100, help="GRPO or VPO steps")
    parser.add_argument("--start", help="a trained policy instead of the warmup, such as runs/tiny/sft/policy")
    args = parser.parse_args(arguments)

    m, rng = METHODS[args.method][0], np.random.default_rng(args.seed)
    task = get_task("tiny_tools")
    # One of the world's four domains, or two minutes would not be enough. A policy from --start may have met its
    # held-out requests in the warmup, with demonstrations, but not with what the user meant.
    rows = [row for split in ("train", "test") for row in task.load(split=split) if "get_weather" in str(row["prompt"])]
    train_rows, test_rows = rows[:-200], rows[-200:]
    model, tokenizer = load_policy(get_profile("tiny"), task, Path(args.start) if args.start else None, args.seed)
    torch.manual_seed(args.seed)
    if not args.start:
        warm_up(model, tokenizer, task, train_rows, m, steps=args.warmup, rng=rng)
    before = evaluate(model, tokenizer, task, test_rows, m)
    train(model, tokenizer, task, train_rows, args.method, steps=args.steps, rng=rng)
    after = evaluate(model, tokenizer, task, test_rows, m)

    error = 1.96 * (after - before).std(axis=1) / len(test_rows) ** 0.5
    print(f"\n{len(test_rows)} held-out requests, three answers to each")
    print(f"before      {line(before)}\nafter       {line(after)}\ndifference  {line(after - before, '+')}")
    print("95% (±)     " + "  ".join(f"{name}  {e:.3f}" for name, e in zip(MEASURES, error, strict=True)))


if __name__ == "__main__":
    main()
