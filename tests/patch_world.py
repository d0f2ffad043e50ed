"""A world of patches without a sandbox: six steps of eight variants, an answer sets at most three, eight tests.

A step is a line such as "c = 5". Four scripted policies for a search: `answers_of`.
"""

import os
import random
import re
import time

import numpy as np

STEPS, VARIANTS, LIMIT = "abcdef", 8, 3
NEEDS = (*STEPS, "ab", "cd")  # the steps that each test depends on
LINE = re.compile(r"(([a-f]) = [0-7])")


def write(variants: dict[str, str]) -> str:
    """Return the lines that set steps to variants."""
    return "\n".join(f"{step} = {variants[step]}" for step in STEPS if step in variants)


class PatchWorld:
    name = "patch_world"
    objectives = tuple(f"test_{need}" for need in NEEDS)

    def load(self, path=None, split="train"):
        """Return 40 rows; gold is the wanted variant of each step, as six digits."""
        rng = random.Random(split)
        golds = ["".join(str(rng.randrange(VARIANTS)) for _ in STEPS) for _ in range(40)]
        return [
            {"id": f"{split}/{n}", "prompt": [{"role": "user", "content": f"Secret {n}."}], "gold": gold}
            for n, gold in enumerate(golds)
        ]

    def demonstrations(self, row, n, rng):
        return [write({"a": "0"})] * n

    def score(self, answers, rows):
        return self.evaluate([self.child("", answer, row) for answer, row in zip(answers, rows, strict=True)], rows)

    # For a search.

    def start(self, row):
        return ""

    def child(self, parent, answer, row):
        patch = self.patch(answer)
        return parent if patch is None else "\n".join(line for _, line in sorted((self.lines(parent) | patch).items()))

    def evaluate(self, programs, rows):
        rewards = []
        for program, row in zip(programs, rows, strict=True):
            lines, wanted = self.lines(program), self.wanted(row)
            rewards.append([float(all(lines.get(s) == f"{s} = {wanted[s]}" for s in need)) for need in NEEDS])
        return np.array(rewards).reshape(-1, len(NEEDS))

    def prompt(self, row, parent, rewards_D):
        failing = [name for name, reward in zip(self.objectives, rewards_D, strict=True) if not reward]
        content = f"{row['prompt'][0]['content']}\n{parent}\nFails: {' '.join(failing)}"
        return [{"role": "user", "content": content}]

    # For the closure.

    def patch(self, answer):
        found = [LINE.fullmatch(line.strip()) for line in answer.splitlines()]
        return {m[2]: m[1] for m in found if m} if found and all(found) and len(found) <= LIMIT else None

    def lines(self, program):
        return {step: line for line, step in LINE.findall(program)}

    def solution(self, row):
        return write(self.wanted(row))

    @staticmethod
    def wanted(row):
        return dict(zip(STEPS, row["gold"], strict=True))


def answers_of(kind: str, row: dict, n: int, seed: int = 0, right: float = 0.15) -> list[str]:
    """Return n answers of a policy: collapsed, spread (chains of three), one that mostly guesses, or always wrong."""
    wanted = PatchWorld.wanted(row)
    sets = {"collapsed": ["abc"], "spread": ["abc", "def", "bce"]}
    if kind in sets:
        return [write({s: wanted[s] for s in sets[kind][i % len(sets[kind])]}) for i in range(n)]
    rng = random.Random(f"{seed} {row['id']}")
    guess = lambda s: wanted[s] if rng.random() < right else str(rng.randrange(VARIANTS))  # noqa: E731
    if kind == "wrong":
        guess = lambda s: str((int(wanted[s]) + rng.randrange(1, VARIANTS)) % VARIANTS)  # noqa: E731
    return [write({s: guess(s) for s in rng.sample(STEPS, LIMIT)}) for _ in range(n)]


# --- Worlds that misbehave -------------------------------------------------------------------


class Dies(PatchWorld):
    """The worker of a search ends without a word, as when memory is short."""

    def child(self, parent, answer, row):
        if parent:
            os._exit(0)
        return super().child(parent, answer, row)


class Fails(PatchWorld):
    def child(self, parent, answer, row):
        raise ValueError("no such step")


class Fenced(PatchWorld):
    """Programs that hold fences, as answers with a docstring in Markdown do, and that begin with a space."""

    def start(self, row):
        return " ```python\nnothing\n```\n"

    def child(self, parent, answer, row):
        return f" ```\n{super().child(parent, answer, row)}\n```\n"


class Slow(PatchWorld):
    def evaluate(self, programs, rows):
        time.sleep(0.01 * len(programs))
        return super().evaluate(programs, rows)
