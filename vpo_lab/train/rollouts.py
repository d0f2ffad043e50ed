"""What rollouts earned: completions to reward vectors, reward vectors to the method's advantages.

TRL calls `VectorReward` once per optimizer step with all completions of a process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from vpo_lab.chains import split_chain
from vpo_lab.methods import Method
from vpo_lab.processes import gather
from vpo_lab.tasks import Task
from vpo_lab.train.trl import answer_of_tokens
from vpo_lab.weights import dirichlet_weights, set_reward


def score_rollouts(task: Task, completions: list[str], golds: list[str], m: int) -> np.ndarray:
    """Completions to reward vectors: (B,) texts -> (B, M, D). A missing answer is a zero vector."""
    rewards_BMD = np.zeros((len(completions), m, len(task.objectives)))
    known: dict[tuple[str, str], np.ndarray] = {}  # a small policy repeats itself: score once
    for b, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
        for j, answer in enumerate(split_chain(completion, m)):
            if answer:
                if (answer, gold) not in known:
                    known[answer, gold] = task.score(answer, gold)
                rewards_BMD[b, j] = known[answer, gold]
    return rewards_BMD


class VectorReward:
    """A TRL reward function that returns the method's advantages.

    With `scale_rewards="none"` TRL only subtracts the group mean, which is zero already, so what a
    method computes reaches the loss unchanged. Credit per answer has no number for a whole rollout:
    `token_advantages` then holds, after each call, one advantage per token for the trainer.
    """

    __name__ = "advantage"

    def __init__(self, task: Task, method: Method, m: int, group_size: int, seed: int, tokenizer=None):
        self.task, self.method, self.m, self.group_size, self.seed = task, method, m, group_size, seed
        self.tokenizer = tokenizer
        self.token_advantages: list[np.ndarray] | None = None
        self.token_lengths: dict[int, int] = {}
        self.latest: tuple[str, np.ndarray] | None = None  # a completion of the last call, and what it earned
        self.reference_KD = dirichlet_weights(128, len(task.objectives), seed=0)

    def __call__(
        self, prompts, completions, gold, trainer_state, log_metric, completion_ids=None, goal=None, **_
    ) -> list[float]:
        start = time.perf_counter()
        rewards_BMD = score_rollouts(self.task, completions, gold, self.m)
        # A rollout that never ends earns nothing. Nothing reads what follows the last answer, so
        # without this a policy drifts into endless text, whose many tokens then rule the gradient.
        unended_B = np.zeros(len(completions), dtype=bool)
        if self.tokenizer is not None:
            end = self.tokenizer.eos_token_id
            unended_B = np.array([not ids or ids[-1] != end for ids in completion_ids])
        # A group may lie across processes, and credit per answer looks at all groups: each process
        # computes the advantages of the whole batch and keeps those of its own rollouts.
        goals = [None] * len(completions) if goal is None else goal
        everyone, mine = gather(list(zip(rewards_BMD, unended_B, completions, goals, strict=True)))
        rewards, unended, texts, goals = zip(*everyone, strict=True)
        rewards_BMD, unended_B = np.array(rewards), np.array(unended)
        # From seed and step, not from process state: every process, and a resumed run, draws the same weights.
        rng = np.random.default_rng([self.seed, trainer_state.global_step])
        method, earned_BMD = self.method, np.where(unended_B[:, None, None], 0.0, rewards_BMD)
        if "void_B" in method.option_names:  # credit per answer needs what the first answers earned
            method = method.with_options(void_B=unended_B)
        else:
            rewards_BMD = earned_BMD
        if goal is not None:
            goals_PD = [[tenths / 10 for tenths in stated.values()] for stated in goals[:: self.group_size]]
            method = method.with_options(goals_PD=np.array(goals_PD))
        advantages = method.advantages(rewards_BMD, self.group_size, rng)
        advantages = advantages[mine]
        if advantages.ndim == 2:
            self.token_advantages = [
                row_M[answer_of_tokens(self.tokenizer, ids, text, self.m, self.token_lengths)]
                for row_M, ids, text in zip(advantages, completion_ids, completions, strict=True)
            ]
            advantages = advantages.mean(axis=1)  # for TRL's log only
        self.latest = completions[0], earned_BMD[mine][0]
        log_metric("reward_seconds", time.perf_counter() - start)
        log_metric("unended_rollouts", float(unended_B.mean()))
        for name, value in self.measure(earned_BMD, texts).items():
            log_metric(name, value)
        return advantages.tolist()

    def example(self) -> str:
        """The answers of a rollout of the last step, each with its reward vector."""
        if self.latest is None:
            return ""
        completion, rewards_MD = self.latest
        lines = [f"one rollout of the last step; rewards: {', '.join(self.task.objectives)}"]
        for answer, rewards_D in zip(split_chain(completion, self.m), rewards_MD, strict=True):
            lines.append(f"[{' '.join(f'{reward:.2f}' for reward in rewards_D)}]  {' '.join(answer.split())[:160]}")
        return "\n".join(lines)

    def measure(self, rewards_BMD: np.ndarray, completions: Sequence[str]) -> dict[str, float]:
        """What is worth a look at every step, the same for every method."""
        scalar_BM = rewards_BMD.mean(axis=2)
        groups_PG = [completions[i : i + self.group_size] for i in range(0, len(completions), self.group_size)]
        rewards_PGMD = rewards_BMD.reshape(len(groups_PG), self.group_size, *rewards_BMD.shape[1:])
        return {
            "set_reward": float(set_reward(rewards_BMD, self.reference_KD).mean()),
            "mean_reward": float(scalar_BM.mean()),
            "best_of_rollout": float(scalar_BM.max(axis=1).mean()),
            "best_of_group": float(scalar_BM.reshape(len(groups_PG), -1).max(axis=1).mean()),
            "distinct_rollouts": float(np.mean([len(set(group)) / len(group) for group in groups_PG])),
            # Groups in which every rollout earned the same teach nothing.
            "silent_groups": float((np.ptp(rewards_PGMD, axis=1) < 1e-9).all(axis=(1, 2)).mean()),
            **{f"objective/{name}": float(rewards_BMD[:, :, d].mean()) for d, name in enumerate(self.task.objectives)},
        }
