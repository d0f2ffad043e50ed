"""Sample, score and keep the candidates of a policy on held-out requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpo_lab.chains import split_chain
from vpo_lab.config import Profile
from vpo_lab.errors import LabError
from vpo_lab.files import read_json, write_json
from vpo_lab.methods import METHODS
from vpo_lab.metrics import mean_reward, solved
from vpo_lab.runs import Run, Stage
from vpo_lab.tasks import Task, get_task, score_chains
from vpo_lab.train.policy import load_policy
from vpo_lab.train.prompts import answers_per_rollout, evaluation_rows, render_prompt, sample_goal
from vpo_lab.train.sampling import sample, shown


@dataclass(frozen=True)
class Pool:
    """Hold the candidates of one policy. Axes: N requests, C chains, M candidates, D objectives."""

    name: str  # "sft", "sft_chain" or a method
    task: str
    objectives: tuple[str, ...]
    ids: tuple[str, ...]  # (N,) row ids
    answers: list[list[list[str]]]  # (N, C, M) texts
    rewards_NCMD: np.ndarray
    tokens_NC: np.ndarray  # completion tokens of each chain

    @property
    def m(self) -> int:
        return self.rewards_NCMD.shape[2]

    @property
    def scalar_NCM(self) -> np.ndarray:
        """Return the mean of the asked objectives: what GRPO trains on and best@k is measured in."""
        return mean_reward(self.rewards_NCMD)

    @property
    def solved_NCM(self) -> np.ndarray:
        """Return 1.0 where every asked objective is 1, else 0.0."""
        return solved(self.rewards_NCMD).astype(float)

    def first(self, request: int, n: int) -> tuple[list[str], np.ndarray]:
        """Return the first n candidates of a request, chain by chain: their texts, and their rewards (n, D)."""
        answers = [answer for chain in self.answers[request] for answer in chain]
        return answers[:n], self.rewards_NCMD[request].reshape(-1, len(self.objectives))[:n]

    def save(self, path: Path) -> None:
        """Write the pool as gzipped JSON, atomically."""
        rewards = np.round(self.rewards_NCMD, 6)
        write_json(
            path,
            {
                "name": self.name,
                "task": self.task,
                "objectives": self.objectives,
                "ids": self.ids,
                "answers": self.answers,
                # null in the file, NaN here: an objective that the request does not ask for
                "rewards": np.where(np.isnan(rewards), None, rewards).tolist(),
                "tokens": self.tokens_NC.tolist(),
            },
        )

    @classmethod
    def load(cls, path: Path) -> Pool:
        """Read a saved pool; LabError if it is missing or damaged."""
        data = read_json(path)
        try:
            pool = cls(
                name=data["name"],
                task=data["task"],
                objectives=tuple(data["objectives"]),
                ids=tuple(data["ids"]),
                answers=data["answers"],
                rewards_NCMD=np.array(data["rewards"], dtype=float),
                tokens_NC=np.array(data["tokens"], dtype=int),
            )
            axes = (len(pool.ids), len(pool.answers[0]), len(pool.answers[0][0]), len(pool.objectives))
            fits = pool.rewards_NCMD.shape == axes and pool.tokens_NC.shape == axes[:2]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise LabError(f"{path} is not a candidate pool ({error}): delete it and run again") from error
        if not fits:
            raise LabError(f"{path} is not a candidate pool (its axes do not match): delete it and run again")
        return pool


def pool_names(profile: Profile) -> list[str]:
    """Name the pools of a run: the SFT start with one answer and with chains, then every method."""
    return ["sft", "sft_chain", *profile.methods]


def evaluate(profile: Profile, name: str, run: Run, seed: int, *, method: str = "", suffix: str = "") -> Pool:
    """Return the pool of one policy on the rows of the evaluation: sampled and saved, or loaded if it is there.

    `name` "sft" asks the SFT policy for one answer at a time, "sft_chain" for M, "vpo_single" VPO's for one; else it
    is the folder of a trained policy, and `method` how it was trained (its name, if empty). `suffix` tells
    pools of one policy apart.
    """
    path = run.pool(name + suffix)
    if path.exists():
        return Pool.load(path)
    task, stage, m, states_goal = asked_for(profile, name, method)
    model, tokenizer = load_policy(profile, task, run.stage(stage).policy, seed)
    rows = evaluation_rows(profile, task, tokenizer)
    pool = sample_pool(
        profile, task, model, tokenizer, rows, name + suffix, m, seed, Stage(path.parent), states_goal=states_goal
    )
    pool.save(path)
    return pool


def asked_for(profile: Profile, name: str, method: str = "") -> tuple[Task, str, int, bool]:
    """Return (task, folder of the policy, answers per rollout, does the prompt state a goal) of a pool's name."""
    stage = {"sft_chain": "sft", "vpo_single": "vpo"}.get(name, name)
    method = method or name
    if name in ("sft", "vpo_single"):
        m = 1
    else:
        m = profile.rl.candidates if name == "sft_chain" else answers_per_rollout(profile, method)
    return get_task(profile.task), stage, m, method in METHODS and METHODS[method].states_goal


def sample_pool(
    profile: Profile,
    task: Task,
    model,
    tokenizer,
    rows: list[dict],
    name: str,
    m: int,
    seed: int,
    folder: Stage,
    states_goal: bool = False,
) -> Pool:
    """Sample `evaluation.candidates` candidates per row, ceil(n / m) chains of m, and score them.

    A sign of life is left in `folder` meanwhile. `states_goal`: every chain is asked for under a random weighting of
    its own.
    """
    settings = profile.evaluation
    chains = math.ceil(settings.candidates / m)
    rng = np.random.default_rng([seed, 4])
    prompts = [
        render_prompt(tokenizer, row["prompt"], m, sample_goal(task, rng) if states_goal else None)
        for row in rows
        for _ in range(chains)
    ]
    with shown(f"candidates of {name}", len(prompts), folder) as tell:
        texts, tokens = sample(
            model,
            tokenizer,
            prompts,
            max_new_tokens=profile.policy.max_answer_tokens * m,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=seed + 1_000_003,  # not the seed of a training
            batch=settings.batch,
            on_progress=tell,
        )
    rewards_BMD = score_chains(task, texts, [row for row in rows for _ in range(chains)], m)
    answers = [split_chain(text, m) for text in texts]
    return Pool(
        name=name,
        task=task.name,
        objectives=task.objectives,
        ids=tuple(row["id"] for row in rows),
        answers=[answers[i : i + chains] for i in range(0, len(answers), chains)],
        rewards_NCMD=rewards_BMD.reshape(len(rows), chains, m, -1),
        tokens_NC=np.array(tokens).reshape(len(rows), chains),
    )


def sample_sets(pools: dict[str, Pool], request: int) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return one set of M answers per pool for a request, with its reward vectors: what the explorer shows.

    M is the largest of the pools; single answers are taken as M independent samples.
    """
    m = max(pool.m for pool in pools.values())
    return {name: pool.first(request, m) for name, pool in pools.items()}
