"""Tasks of the verifiers library: their rewards as reward vectors, and task sets that VPO trains on.

Three ways in, for verifiers 0.4 (`verifiers.v1`):

* `reward_vectors(task, completions, m)`: what the answers in some completions earn, (B, M, D).
* `vpo_taskset(MyTaskset, candidates=3)`: the same task set, asking for three answers in a rollout and paying R(S).
  An engine that trains on verifiers task sets, such as prime-rl, then trains VPO without knowing it.
* `--set task=verifiers:NAME` or `get_task("verifiers:NAME")`: a task set as a task of the lab.

A reward of weight above 0 is an objective; `objectives` names others. Its weight is its scale in R(S) of a task set,
a task of the lab takes rewards as they are. verifiers is imported when it is needed.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.set_reward import (
    ask,
    best_of,
    check_candidates,
    run_all,
    set_reward_parts,
    split_answers,
    unask,
)
from vpo_lab.weights import dirichlet_weights

ROWS = 500  # that a task of the lab reads of an endless task set
TEST_EVERY = 5  # of its rows, one in so many is kept for the test
TAIL = 64  # as in SetReward: a rollout is void that goes on for longer after its last answer


def verifiers() -> Any:
    """Return the module `verifiers.v1`; LabError if it is not installed."""
    try:
        return importlib.import_module("verifiers.v1")
    except ModuleNotFoundError as error:
        raise LabError(
            f"a verifiers task set needs {error.name}, which is not installed: pip install 'verifiers>=0.4'"
        ) from error


# --- Reward vectors -------------------------------------------------------------------------------


def reward_vectors(
    task, completions: Sequence[str], m: int, objectives: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return the objectives, what every answer earns, (B, M, D), and which answers are there, (B, M).

    `task` is a verifiers task. It scores single answers, in the order of the completions, without a model and
    without a runtime: a reward that needs a runtime is missing. Do not read the rows of missing answers.
    """
    split = [split_answers(completion, m, TAIL) for completion in completions]
    answers = [answer for of_one, _ in split for answer in of_one]
    scored = run_all([_score(task, _trace(task, answer), None) for answer in answers])
    names, _ = _objectives(scored, objectives)
    rewards_BMD = _vectors(scored, names).reshape(len(completions), m, len(names))
    return names, rewards_BMD, np.array([present for _, present in split], dtype=bool).reshape(-1, m)


async def _score(task, trace, runtime) -> dict[str, Any]:
    """The rewards of a trace, {name: score and weight}, by the task's own scoring."""
    await task.score(trace, runtime)
    return {name: reward for name, reward in trace.rewards.items() if reward is not None}


def _trace(task, answer: str):
    """A trace of one turn: the task's prompt, and the answer as the model's reply."""
    vf = verifiers()
    prompt = task.data.prompt
    messages = [vf.UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt or [])
    if task.data.system_prompt:
        messages.insert(0, vf.SystemMessage(content=task.data.system_prompt))
    nodes = [vf.MessageNode(message=message, parent=i - 1 if i else None) for i, message in enumerate(messages)]
    reply = vf.MessageNode(message=vf.AssistantMessage(content=answer), sampled=True, parent=len(nodes) - 1)
    return vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data, hash=task.hash, key=task.key),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=[*nodes, reply],
    )


def _objectives(scored: list[dict], wanted: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the objectives, and the scale of each."""
    weights = {name: reward.weight for rewards in scored for name, reward in rewards.items()}
    names = tuple(wanted) if wanted else tuple(sorted(name for name, weight in weights.items() if weight > 0))
    if not names or (missing := [name for name in names if name not in weights]):
        known = ", ".join(f"{name} (weight {weight:g})" for name, weight in sorted(weights.items())) or "none"
        what = f"no reward {', '.join(missing)}" if names else "no reward of weight above 0"
        raise LabError(f"the task gave {what}; it has: {known}: name some of these as objectives")
    return names, np.array([weights[name] if weights[name] > 0 else 1.0 for name in names])


def _vectors(scored: list[dict], names: Sequence[str]) -> np.ndarray:
    """(N, D), NaN where the task gave no such reward."""
    return np.array([[rewards[name].score if name in rewards else np.nan for name in names] for rewards in scored])


# --- A task set that asks for several answers and pays the set -------------------------------------


def vpo_taskset(base: type, candidates: int = 3, objectives: Sequence[str] | None = None, alpha: float = 1.0) -> type:
    """Return `base`, a verifiers task set, with prompts that ask for several answers and R(S) as the one reward.

    Export it by `__all__` from a module of your own, and name that module as the task set's id. The answers of the
    last reply are scored one by one, by the task's own rewards, which meet the prompt without the request. What
    an objective earned at best stands in the metrics as `best/NAME`, the vectors in `trace.info["vpo"]`.
    """
    m = check_candidates(candidates)
    inner = base.task_type()
    weights: dict[int, np.ndarray] = {}

    class VPOTask(inner):
        async def score(self, trace, runtime=None):
            if self.scoring_deferred:
                return
            answers, present = split_answers(trace.last_reply, m, TAIL)
            plain = self.with_data(prompt=_messages(self.data.prompt, m, unask))
            plain.__class__ = inner
            # One after the other: they may share a runtime.
            scored = [await _score(plain, _with_reply(trace, answer, m), runtime) for answer in answers]
            names, scale_D = _objectives(scored, objectives)
            rewards_1MD, present_1M = _vectors(scored, names)[None], np.array([present])
            if len(names) not in weights:
                weights[len(names)] = dirichlet_weights(1024, len(names), alpha=alpha if m > 1 else np.inf, seed=0)
            parts_1D = set_reward_parts(rewards_1MD, present_1M, weights[len(names)], scale_D)
            trace.rewards.clear()
            trace.record_reward("set_reward", float(np.nansum(parts_1D * scale_D)))
            best_D = best_of(rewards_1MD, present_1M, 0.0)[0]
            metrics = {f"best/{name}": float(best) for name, best in zip(names, best_D, strict=True)}
            trace.record_metrics({"answers": float(sum(present)), **{k: v for k, v in metrics.items() if v == v}})
            vectors = np.where(np.isnan(rewards_1MD[0]), None, rewards_1MD[0]).tolist()
            trace.info["vpo"] = {"objectives": list(names), "rewards": vectors, "present": present}

    class VPOTaskset(base):
        @classmethod
        def task_type(cls):
            return VPOTask

        def load(self):
            for task in super().load():
                asked = task.with_data(prompt=_messages(task.data.prompt, m, ask))
                asked.__class__ = VPOTask
                yield asked

    VPOTask.__name__ = VPOTask.__qualname__ = f"VPO{inner.__name__}"
    VPOTaskset.__name__ = VPOTaskset.__qualname__ = f"VPO{base.__name__}"
    return VPOTaskset


def _messages(prompt, m: int, change: Callable):
    """A task's prompt, text or messages, after `ask` or `unask`."""
    if isinstance(prompt, str):
        return change(prompt, m)
    if not prompt:
        raise LabError("a task of this set has no prompt: a set whose user opens the chat cannot ask for answers")
    *earlier, last = prompt
    (changed,) = change([last.model_dump()], m)
    return [*earlier, type(last).model_validate(changed)]


def _with_reply(trace, answer: str, m: int):
    """A copy of a trace whose last reply is a single answer, to the prompt without the request for several."""
    nodes = list(trace.nodes)
    replies = [i for i, node in enumerate(nodes) if node.message.role == "assistant"]
    for i, node in enumerate(nodes):
        if replies and i == replies[-1]:
            message = node.message.model_copy(update={"content": answer})
        elif node.message.role == "user" and node.message.content:
            (message,) = _messages([node.message], m, unask)
        else:
            continue
        nodes[i] = node.model_copy(update={"message": message})
    alone = {"nodes": nodes, "rewards": {}, "metrics": {}, "info": copy.copy(trace.info)}
    return trace.model_copy(update=alone | ({} if trace.root_reply is None else {"root_reply": answer}))


# --- A task set as a task of the lab ----------------------------------------------------------------


class VerifiersTask:
    """Read a verifiers task set as a task of the lab: `verifiers:NAME`, or `verifiers:NAME:objective,objective`.

    For task sets of one turn that score without a runtime. One row in five is for the test; of an endless set the
    first 500 rows are read. There are no demonstrations unless the task's data has a text `answer`: a
    warmup imitates the model's own samples then. `config` holds fields of the task set's config.
    """

    def __init__(self, name: str, objectives: Sequence[str] = (), **config):
        self.name = ":".join(["verifiers", name, *([",".join(objectives)] if objectives else [])])
        loaders = importlib.import_module(f"{verifiers().__name__}.utils.loaders")
        try:
            self._set = loaders.load_taskset(loaders.taskset_config_type(name)(id=name, **config))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise LabError(f"verifiers task set {name!r}: {str(error)[:300]}") from error
        self._task = self._set.task_type()
        if self._task.NEEDS_CONTAINER or self._task.toolsets(self._set.config.task):
            raise LabError(
                f"verifiers task set {name!r} needs a container or tools: train it by prime-rl, docs/drop-in.md"
            )
        # Only scoring tells which rewards a task gives.
        scored = run_all([_score(task, _trace(task, ""), None) for task in self._set.take(1)])
        self.objectives, _ = _objectives(scored, objectives or None)

    def score(self, answers: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
        """Return the reward vectors of n answers to n rows: (n, D)."""
        tasks = [self._of(row["gold"]) for row in rows]
        waiting: list[Coroutine] = [
            _score(task, _trace(task, answer), None) for task, answer in zip(tasks, answers, strict=True)
        ]
        return _vectors(run_all(waiting), self.objectives).reshape(len(answers), len(self.objectives))

    def _of(self, gold: str):
        return self._task(self._task.data_type().model_validate_json(gold), self._set.config.task)

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return the rows of "train" or "test"; gold is the task's data."""
        if path or split not in ("train", "test"):
            raise LabError(f"{self.name} has splits 'train' and 'test' and reads no file: got {path or split!r}")
        return [row for i, row in enumerate(self._rows) if (i % TEST_EVERY == 0) == (split == "test")]

    @cached_property
    def _rows(self) -> list[dict]:
        rows = []
        for task in self._set if self._set.bounded else self._set.take(ROWS):
            data = task.data
            prompt = (
                [{"role": "user", "content": data.prompt}]
                if isinstance(data.prompt, str)
                else [{"role": message.role, "content": message.content} for message in data.prompt or []]
            )
            if data.system_prompt:
                prompt.insert(0, {"role": "system", "content": data.system_prompt})
            if not prompt or not all(isinstance(message["content"], str) for message in prompt):
                raise LabError(f"{self.name}: row {data.idx} has no prompt of texts: the lab trains on texts")
            rows.append({"id": str(data.idx), "prompt": prompt, "gold": data.model_dump_json()})
        return rows

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return the answer that the task's data holds, n times, or empty texts."""
        answer = json.loads(row["gold"]).get("answer")
        return [answer if isinstance(answer, str) else ""] * n


def lab_task(name: str) -> VerifiersTask:
    """Return the task of "NAME" or "NAME:objective,objective"."""
    taskset, _, objectives = name.partition(":")
    return VerifiersTask(taskset, tuple(part for part in objectives.split(",") if part))
