"""Evolve programs by a policy's answers: a short loop with OpenEvolve's rule for parents, many problems at once.

A candidate is one answer, put into a parent program by the task. A task says how in up to four methods, all optional:
`start(row)`, `child(parent, answer, row)`, `evaluate(programs, rows)` and `prompt(row, parent, rewards_D)`. Without
them an answer is itself the program (a rewrite), the search starts from nothing, and the task's `score` evaluates.

What OpenEvolve has and this loop leaves out: MAP-Elites cells, and other programs in the prompt.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.metrics import mean_reward
from vpo_lab.search.evolution import BUDGETS, Evolution, solved
from vpo_lab.tasks import Task

# Rows and the messages that ask for answers to them -> the answers to each, in the order in which they are tried:
# of one chain or of several. No answer ends a search.
Ask = Callable[[list[tuple[dict, list[dict]]]], list[list[str]]]


# --- What a task may say ----------------------------------------------------------------------


def start_of(task: Task, row: dict) -> str:
    """Return the program that a search starts from; "" where the task names none."""
    start = getattr(task, "start", None)
    return start(row) if start else ""


def child_of(task: Task, parent: str, answer: str, row: dict) -> str:
    """Return the program that an answer makes of a parent: the parent itself if the answer is not valid."""
    child = getattr(task, "child", None)
    return child(parent, answer, row) if child else answer or parent


def rewards_of(task: Task, programs: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
    """Return the reward vectors of programs: (n, D), NaN where not asked. They run in the task's sandbox only."""
    evaluate = getattr(task, "evaluate", task.score)
    return np.asarray(evaluate(programs, rows), dtype=float).reshape(len(programs), len(task.objectives))


def messages_of(task: Task, row: dict, parent: str | None, rewards_D: np.ndarray) -> list[dict]:
    """Return the messages that ask for an answer: the row's, or with a parent and the tests that it fails."""
    if parent is None:
        return row["prompt"]
    prompt = getattr(task, "prompt", None)
    if prompt is None:
        raise LabError(f"{task.name} has no method prompt(row, parent, rewards_D): search without the parent")
    return prompt(row, parent, rewards_D)


# --- The population and its rule --------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """Set how parents are chosen; the names and shares are OpenEvolve's.

    Islands are served in turn, and so are the answers of a chain: with as many islands as answers, each island would
    see one place of every chain only. Choose a number of islands that has no common factor with M.
    """

    islands: int = 1  # populations apart, served in turn
    exploration: float = 0.2  # a parent is any program of the island,
    exploitation: float = 0.7  # or one of the elites there; else programs are drawn in proportion to their score
    elites: int = 10  # of all islands together ("archive_size")
    population: int = 60  # programs of all islands together; beyond that the worst leave ("population_size")
    migrate_every: int = 50  # programs of an island, after which its best tenth is copied to both neighbours


class Population:
    """Hold the programs of one problem, and choose parents among them."""

    def __init__(self, start: str, rewards_D: np.ndarray, rules: Rules, seed: str):
        self.rules, self.rng = rules, random.Random(seed)
        self.texts, self.parents, self.found, self.rewards, self.scores = [], [], [], [], []
        self.islands: list[list[int]] = [[] for _ in range(rules.islands)]
        self.home: list[int] = []  # the island of each program
        self.elites: list[int] = []
        self.solved = False
        self.add(start, -1, rewards_D, 0, 0)

    def choose(self, island: int) -> int:
        """Return the number of a parent for the next candidate of an island."""
        here = self.islands[island] or range(len(self.texts))  # an empty island is settled from the others
        draw, rules = self.rng.random(), self.rules
        if draw < rules.exploration:
            return self.rng.choice(here)
        if draw < rules.exploration + rules.exploitation:
            return self.rng.choice([p for p in self.elites if self.home[p] == island] or self.elites)
        return self.rng.choices(here, [max(self.scores[p], 0.001) for p in here])[0]

    def add(self, text: str, parent: int, rewards_D: np.ndarray, found: int, island: int) -> None:
        """Accept a program. A full set of elites takes it in the place of the worst, if it is better."""
        new, score = len(self.texts), float(mean_reward(rewards_D))
        columns = (self.texts, self.parents, self.found, self.rewards, self.scores, self.home)
        for column, value in zip(columns, (text, parent, found, rewards_D, score, island), strict=True):
            column.append(value)
        self.islands[island].append(new)
        self.solved |= solved(rewards_D)
        worst = min(self.elites, key=self.scores.__getitem__, default=new)
        if len(self.elites) < self.rules.elites:
            self.elites.append(new)
        elif score > self.scores[worst]:
            self.elites[self.elites.index(worst)] = new
        if sum(map(len, self.islands)) > self.rules.population:
            crowd = max(self.islands, key=len)
            crowd.remove(min((p for p in crowd if p != new), key=self.scores.__getitem__))
        if len(self.islands) > 1 and self.home.count(island) % self.rules.migrate_every == 0:
            best = sorted(self.islands[island], key=self.scores.__getitem__, reverse=True)
            for neighbour in {(island + 1) % len(self.islands), (island - 1) % len(self.islands)} - {island}:
                there = self.islands[neighbour]
                there += [p for p in best[: max(1, len(best) // 10)] if p not in there]

    def evolution(self, row: dict, objectives: tuple[str, ...], candidates: int) -> Evolution:
        """Return what has been found so far."""
        lists = tuple(self.texts), tuple(self.parents), tuple(self.found)
        return Evolution(row["id"], objectives, candidates, *lists, np.array(self.rewards))


@dataclass
class Queue:
    """Turn chains into one candidate at a time, so that an iteration is one candidate, whatever M is."""

    sees_parent: bool  # answers are for the parent that their prompt showed; else for any
    waiting: deque[tuple[str, int]] = field(default_factory=deque)  # (answer, the parent that it was written for)

    def put(self, answers: Iterable[str], parent: int) -> None:
        """Add the answers to one prompt."""
        self.waiting.extend((answer, parent) for answer in answers)

    def get(self, choose: Callable[[], int]) -> tuple[str, int]:
        """Return the next answer and its parent: the one that it was written for, or one that is chosen now."""
        answer, parent = self.waiting.popleft()
        return answer, parent if self.sees_parent else choose()


# --- The loop ---------------------------------------------------------------------------------


def evolve(
    task: Task,
    rows: Sequence[dict],
    ask: Ask,
    candidates: int = BUDGETS[-1],
    *,
    sees_parent: bool = False,
    rules: Rules | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> list[Evolution]:
    """Search a program for every row, until all are solved or have had so many candidates each.

    The problems go side by side: a step is one candidate for each, so a policy and a sandbox get batches.
    `sees_parent`: the prompt shows a parent and the tests that it fails; all answers to it become children of that
    parent. Else the prompt is the row's own, and every answer gets a parent of its own. `on_step` is told how many
    steps are done. The same seed and answers give the same evolutions.
    """
    rules = rules or Rules()
    starts = [start_of(task, row) for row in rows]
    rewards_ND = rewards_of(task, starts, rows)
    populations = [
        Population(start, rewards_D, rules, f"{seed} {row['id']}")
        for start, rewards_D, row in zip(starts, rewards_ND, rows, strict=True)
    ]
    queues, used = [Queue(sees_parent) for _ in rows], [0] * len(rows)
    going = [n for n, population in enumerate(populations) if not population.solved]
    for step in range(candidates):
        island = step % rules.islands
        _fill(task, rows, ask, [n for n in going if not queues[n].waiting], populations, queues, sees_parent, island)
        going = [n for n in going if queues[n].waiting]
        born: list[tuple[int, int, str]] = []
        for n in going:
            used[n] += 1
            answer, parent = queues[n].get(partial(populations[n].choose, island))
            before = populations[n].texts[parent]
            if (text := child_of(task, before, answer, rows[n])) != before:
                born.append((n, parent, text))
        rewards_ND = rewards_of(task, [text for *_, text in born], [rows[n] for n, *_ in born])
        for (n, parent, text), rewards_D in zip(born, rewards_ND, strict=True):
            populations[n].add(text, parent, rewards_D, step + 1, island)
        going = [n for n in going if not populations[n].solved]
        if on_step:
            on_step(step + 1 if going else candidates)
        if not going:
            break
    return [p.evolution(row, task.objectives, n) for p, row, n in zip(populations, rows, used, strict=True)]


def _fill(task, rows, ask: Ask, empty: list[int], populations, queues, sees_parent: bool, island: int) -> None:
    """Ask for more answers where a queue is empty."""
    if not empty:
        return
    parents = [populations[n].choose(island) if sees_parent else 0 for n in empty]
    requests = []
    for n, parent in zip(empty, parents, strict=True):
        shown = populations[n].texts[parent] if sees_parent else None
        requests.append((rows[n], messages_of(task, rows[n], shown, populations[n].rewards[parent])))
    for n, parent, answers in zip(empty, parents, ask(requests), strict=True):
        queues[n].put(answers, parent)


def best_of_n(task: Task, rows: Sequence[dict], answers: Sequence[Sequence[str]]) -> list[Evolution]:
    """Return the same without evolution, as a control: every answer becomes a child of the start."""
    evolutions = []
    for row, own in zip(rows, answers, strict=True):
        start = start_of(task, row)
        texts = [child_of(task, start, answer, row) for answer in own]
        kept = [0, *(n for n, text in enumerate(texts, start=1) if text != start)]
        programs = tuple([start, *texts][n] for n in kept)
        rewards_PD = rewards_of(task, programs, [row] * len(kept))
        parents = (-1, *[0] * (len(kept) - 1))
        evolutions.append(Evolution(row["id"], task.objectives, len(own), programs, parents, tuple(kept), rewards_PD))
    return evolutions


def sampled(answers: Sequence[Sequence[str]], rows: Sequence[dict]) -> Ask:
    """Return an `Ask` that gives each row the answers that were sampled for it before, once."""
    left = {row["id"]: list(own) for row, own in zip(rows, answers, strict=True)}
    return lambda requests: [left.pop(row["id"], []) for row, _ in requests]
