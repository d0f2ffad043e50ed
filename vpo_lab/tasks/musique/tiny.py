"""Questions over eight facts that the prompt shows, with words that can be read in two ways: the world `tiny_hops`.

The generative model
--------------------
A prompt holds eight facts about people and places, each with a number before the name that it leads to, and a question:
where to start and two or three words, each a step to the next name. Most words have two readings ("Place": works at, or
lives at), a few have one. In every question two words have two readings, so four paths through the facts are possible,
and all of them are in the prompt. Which one is meant is drawn from a hidden distribution: a probability for each asker
("a Doctor", "a Tourist" ...) and word. A policy can learn it from rewards only.

An answer quotes the facts of a path in one sentence, "Jonas works at ⑥ Market was built by ② David": so it says what it
cites, and every next token can be looked up by the two before it. It is scored as MuSiQue is: hop i is 1 if the fact of
that step is cited, in any order, and the last name has to be right. A question with two hops does not ask for the third
(NaN). An answer may cite as many facts as the question has hops, so a path is the usual best; to cite both readings of
one step and none of another is allowed, too, and `ceiling` reckons with it.

The warmup sees whole paths with readings at random: it teaches how to look up facts and nothing about askers. Half of
its questions are short, over two to four facts: a small model learns to look up among few, and then among many. Only
long ones are trained by RL and tested.

WORLD_SEED fixes the distribution and the rows, so every run has the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import numpy as np

from vpo_lab.show.explorer import one_line
from vpo_lab.tasks import check_generated, each
from vpo_lab.tasks.cover import best_cover, subsets, top_share

WORLD_SEED = 20261127
ROWS = {"test": 200, "train": 4096}
LABELS = "①②③④⑤⑥⑦⑧"  # of the facts: one token each
FACTS = len(LABELS)
HOPS = 3  # of a question, at most
LONG_ROWS = 2048  # of the train rows; they come first, so that `rl.train_rows` can choose them
LONG = ((2, 2), (2, 2), (1, 2, 2), (2, 1, 2))  # readings of each word, in questions over all eight facts
SHORT = ((2,), (2, 1), (2, 1))  # in questions over the facts of their paths alone
MEANINGS = {
    "hop_1": "cites the fact of the first step",
    "hop_2": "cites the fact of the second step",
    "hop_3": "cites the fact of the third step, if there is one",
    "answer": "ends with the right name",
}

PEOPLE = tuple("Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karin Lukas".split())
PLACES = tuple("Mill Dock Barn Tower Bridge Market Harbour Castle Library Station Garden Chapel".split())
ASKERS = tuple("Doctor Tourist Postman Lawyer".split())
# word -> its readings; the first group leads from a person to a place, the second from a place to a person
WORDS = (
    {"Place": ("works at", "lives at"), "Haunt": ("eats at", "sings at"), "Origin": ("was born at",)},
    {"Head": ("is owned by", "is run by"), "Guest": ("is praised by", "is painted by"), "Founder": ("was built by",)},
)
_PATH = re.compile(f"[A-Z][a-z]+(?: [a-z ]+ [{LABELS}] [A-Z][a-z]+){{1,{HOPS}}}")
_LONGEST = 200  # characters of a path


@dataclass(frozen=True)
class Question:
    """Hold a question: its facts as {number: (name, relation, name)}, and the paths of its readings."""

    asker: str
    start: str
    words: tuple[str, ...]
    facts: dict[int, tuple[str, str, str]]  # in the order of the prompt
    paths: tuple[tuple[int, ...], ...]  # facts, one per hop
    probabilities: tuple[float, ...]  # of the paths

    def text(self) -> str:
        """Return what a prompt shows."""
        facts = "".join(f"\n{fact[0]}{self.quote(number)}" for number, fact in self.facts.items())
        return f"A {self.asker} asks: {self.start}, {', '.join(self.words)}{facts}"

    def quote(self, fact: int) -> str:
        """Return a fact without the name that it begins with."""
        _, relation, name = self.facts[fact]
        return f" {relation} {LABELS[fact]} {name}"

    def answer(self, path: Sequence[int]) -> str:
        """Return a path as an answer, from where the question starts."""
        return self.start + "".join(map(self.quote, path))


@lru_cache
def readings() -> dict[tuple[str, str], tuple[float, ...]]:
    """Return the hidden distribution: (asker, word) -> the probability of each reading."""
    rng = np.random.default_rng(WORLD_SEED)
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for asker, words in product(ASKERS, WORDS):
        for word, ways in words.items():
            usual = float(rng.uniform(0.6, 0.85))
            pair = (usual, 1 - usual)[:: int(rng.choice([1, -1]))]
            found[asker, word] = pair if len(ways) == 2 else (1.0,)
    return found


def draw_question(rng: np.random.Generator, shape: tuple[int, ...], facts: int) -> Question:
    """Draw a question with so many readings of each word, over so many facts."""
    first, hops = int(rng.integers(2)), len(shape)  # first: whether the start is a person or a place
    names = [list(rng.permutation(PEOPLE)), list(rng.permutation(PLACES))]
    words = [
        str(rng.choice([word for word, ways in WORDS[(first + hop) % 2].items() if len(ways) == shape[hop]]))
        for hop in range(hops)
    ]
    start = str(names[first].pop())
    found: list[tuple[str, str, str]] = []
    paths: dict[tuple[int, ...], str] = {(): start}  # facts so far -> where they lead
    for hop, word in enumerate(words):
        longer = {}
        for path, name in paths.items():
            for way in WORDS[(first + hop) % 2][word]:
                found.append((name, way, str(names[(first + hop + 1) % 2].pop())))
                longer[*path, len(found) - 1] = found[-1][2]
        paths = longer
    while len(found) < facts:  # beside the paths: of the same names, with words that are not asked
        name = str(rng.choice([start, *(fact[2] for fact in found[:2])]))
        side = int(name in PLACES)
        way = str(rng.choice([way for word, ways in WORDS[side].items() if word not in words for way in ways]))
        if all((name, way) != fact[:2] for fact in found):
            found.append((name, way, str(names[1 - side].pop())))
    asker = str(rng.choice(ASKERS))
    shares = [readings()[asker, word] for word in words]
    order = rng.permutation(facts).tolist()  # which fact stands where
    labels = np.sort(rng.choice(len(LABELS), size=facts, replace=False)).tolist()
    number = {fact: label for fact, label in zip(order, labels, strict=True)}
    return Question(
        asker,
        start,
        tuple(words),
        {number[fact]: found[fact] for fact in order},
        tuple(tuple(number[fact] for fact in path) for path in paths),
        tuple(float(np.prod(chosen)) for chosen in product(*shares)),
    )


@lru_cache
def questions(split: str) -> tuple[tuple[Question, int], ...]:
    """Return (question, which path is meant) of a split; all texts are distinct."""
    rng = np.random.default_rng([WORLD_SEED, 1])
    seen, found = set(), {}
    for name, count in ROWS.items():
        found[name] = []
        while len(found[name]) < count:
            shapes = SHORT if name == "train" and len(found[name]) >= LONG_ROWS else LONG
            shape = shapes[rng.integers(len(shapes))]
            question = draw_question(rng, shape, FACTS if shapes is LONG else int(np.cumprod(shape).sum()))
            if question.text() not in seen:
                seen.add(question.text())
                meant = int(rng.choice(len(question.paths), p=question.probabilities))
                found[name].append((question, meant))
    return tuple(found[split])


def parse_path(answer: str) -> tuple[list[int], str] | None:
    """Return the facts that an answer cites and its last name; None if it is no sentence of one to three facts."""
    text = answer.strip()
    if len(text) > _LONGEST or not _PATH.fullmatch(text):
        return None
    return [LABELS.index(letter) for letter in text if letter in LABELS], text.rpartition(" ")[2]


def score(answer: str, gold: str) -> np.ndarray:
    """Return (4,): for each hop whether its fact is cited, NaN for a hop that is not asked; is the last name right.

    An answer with more steps than the question has hops, or that is no path, earns 0.
    """
    wanted = json.loads(gold)
    hops = wanted["hops"]
    rewards_D = np.full(HOPS + 1, np.nan)
    rewards_D[: len(hops)] = rewards_D[-1] = 0.0
    parsed = parse_path(answer)
    if parsed is None or len(parsed[0]) > len(hops):
        return rewards_D
    cited, name = parsed
    rewards_D[: len(hops)] = [fact in cited for fact in hops]
    rewards_D[-1] = name == wanted["answer"]
    return rewards_D


@lru_cache
def ceiling(k: int) -> dict[str, float]:
    """Return what no set of k answers can beat, as means over the test questions, in [0, 1].

    Known is the hidden distribution, not what was meant. "best": the mean of the asked objectives; "pass": all of them
    are 1; "covered": the share of them that one of the k answers earns. Exact, over all answers. LabError for k < 1.
    """
    values = np.array([_ceiling(question, k) for question, _ in questions("test")])
    return dict(zip(("best", "pass", "covered"), values.mean(axis=0).tolist(), strict=True))


def _ceiling(question: Question, k: int) -> tuple[float, float, float]:
    hops, probabilities_G = len(question.words), np.array(question.probabilities)
    sets_SG = subsets(len(question.paths)) * probabilities_G
    paths_GH = np.array(question.paths)
    # What is cited and the last name are chosen apart. Names that end no path are worth nothing.
    cited_CG = np.array(
        [np.isin(paths_GH, cited).sum(axis=1) for cited in combinations(range(FACTS), min(hops, FACTS))]
    )
    ends = [question.facts[path[-1]][2] for path in question.paths]
    named_EG = np.array([[end == name for end in ends] for name in dict.fromkeys(ends)])
    worth_S = (sets_SG @ cited_CG.T).max(axis=1) + (sets_SG @ named_EG.T).max(axis=1)
    best = float(best_cover(worth_S[None], k)[0])
    together = combinations(range(FACTS), min(hops * k, FACTS))
    covered = max(float(np.isin(paths_GH, cited).sum(axis=1) @ probabilities_G) for cited in together)
    names = top_share((named_EG @ probabilities_G)[None], k)[0]
    asked = hops + 1
    return best / asked, float(top_share(probabilities_G[None], k)[0]), float(covered + names) / asked


class TinyHops:
    """Offer the questions as a task. A row's gold is JSON: {"hops": [facts], "answer": name}; `answer`, the path."""

    name = "tiny_hops"
    objectives = tuple(MEANINGS)
    meanings = MEANINGS
    about = "Words have two readings, and who asks decides which is meant. One path is one reading."
    ceiling = staticmethod(ceiling)
    score = staticmethod(each(score))

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return 4,096 train or 200 test rows, the same on every machine. LabError for a path or another split."""
        check_generated(self.name, path, split)
        rows = []
        for number, (question, meant) in enumerate(questions(split)):
            path = question.paths[meant]
            gold = {"hops": path, "answer": question.facts[path[-1]][2]}
            rows.append({"id": f"{self.name}-{split}-{number}", "gold": json.dumps(gold)})
            rows[-1]["prompt"] = [{"role": "user", "content": question.text()}]
            rows[-1]["answer"] = question.answer(path)
        return rows

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` paths of readings at random, distinct up to four, in the order of their facts."""
        split, number = row["id"].split("-")[1:]
        question, _ = questions(split)[int(number)]
        order = rng.permutation(len(question.paths)).tolist()
        chosen = sorted((order * n)[:n], key=lambda path: question.paths[path])
        return [question.answer(question.paths[path]) for path in chosen]

    def title(self, row: dict) -> str:
        """Return the question of a row and the path that is meant, in one line."""
        return one_line(f"{row['prompt'][0]['content'].splitlines()[0]} (meant: {row['answer']})")
