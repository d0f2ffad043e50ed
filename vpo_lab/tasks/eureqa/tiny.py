"""Chains of five names through a small world that the warmup teaches: the world `tiny_chain`.

The generative model
--------------------
Thirty people, places and things, and four relations. Under each relation every name has three neighbours: a person,
a place and a thing. A request states a first name and five steps, each a relation and what is looked for:
"Near a Person, Above a Thing, Near Something ...". The answer is the five names, each a neighbour of the one before.
The table of neighbours is in no prompt: a policy has to know it, as with EUREQA's entities.

Where a step says "Something" it may be any of three; two of the five steps do. Which one is meant is drawn from a
hidden distribution over person, place and thing, one for each relation, that only rewards tell. So nine chains fit a
request, and a wrong guess leads all later names astray.

As in EUREQA there is an objective per name, entity_A to entity_E, and A is the last one of the chain, which hangs on
all others. Unlike there an answer that does not name five earns 0 in all: it would not be clear which are which.

The warmup sees chains with guesses at random: it teaches the table and nothing of what is meant.

WORLD_SEED fixes table, distribution and rows, so every run has the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from vpo_lab.show.explorer import one_line
from vpo_lab.tasks import check_generated, each
from vpo_lab.tasks.cover import best_cover, subsets, top_share

WORLD_SEED = 20261128
ROWS = {"test": 200, "train": 4096}
STEPS = 5
OPEN = 2  # steps of a request that do not say what is looked for

# One code point per name, so that a name is one token.
KINDS = {"Person": "👧👦👵👴👮👷💂👸🤴🧙", "Place": "🏠🏰🏥🏫🏭🏦🏪🗼🏯🏟", "Thing": "🔑🎈🎁🔔📕🎻🧭🧲🧵🎲"}
NAMES = "".join(KINDS.values())
RELATIONS = ("Near", "Above", "Behind", "Beside")
ANY = "Something"
SHARES = (0.6, 0.28, 0.12)  # of what is meant by ANY, in an order that differs by relation
MEANINGS = {
    "entity_A": "the last name of the chain",
    "entity_B": "the fourth name",
    "entity_C": "the third name",
    "entity_D": "the second name",
    "entity_E": "the first name, next to the one that is given",
}


@lru_cache
def table() -> dict[tuple[str, str, str], str]:
    """Return the world: (name, relation, kind) -> neighbour. Every name of a kind is the neighbour of three others."""
    rng = np.random.default_rng(WORLD_SEED)
    found = {}
    for relation, (kind, names) in product(RELATIONS, KINDS.items()):
        found |= {
            (name, relation, kind): near
            for name, near in zip(NAMES, rng.permutation(list(names * len(KINDS))).tolist(), strict=True)
        }
    return found


@lru_cache
def shares() -> dict[str, dict[str, float]]:
    """Return the hidden distribution: relation -> how likely each kind is meant by ANY."""
    rng = np.random.default_rng([WORLD_SEED, 1])
    return {r: dict(zip(rng.permutation(list(KINDS)).tolist(), SHARES, strict=True)) for r in RELATIONS}


@dataclass(frozen=True)
class Request:
    """Hold a request: the first name and its steps as (relation, kind or ANY)."""

    start: str
    steps: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """Return what a prompt shows."""
        return f"{self.start}: {', '.join(f'{relation} {kind}' for relation, kind in self.steps)}"

    def chains(self) -> dict[str, float]:
        """Return the nine chains that fit: the names in a row -> the probability that they are meant."""
        found = {}
        options = [[kind] if kind != ANY else list(KINDS) for _, kind in self.steps]
        for kinds in product(*options):
            name, chain, chance = self.start, "", 1.0
            for (relation, wanted), kind in zip(self.steps, kinds, strict=True):
                name = table()[name, relation, kind]
                chain += name
                chance *= shares()[relation][kind] if wanted == ANY else 1.0
            found[chain] = chance
        return found


def draw_request(rng: np.random.Generator) -> Request:
    """Draw a request with OPEN steps that do not say what is looked for."""
    kinds = rng.choice(list(KINDS), size=STEPS).tolist()
    for step in rng.choice(STEPS, size=OPEN, replace=False):
        kinds[step] = ANY
    start, relations = NAMES[rng.integers(len(NAMES))], rng.choice(RELATIONS, STEPS).tolist()
    return Request(start, tuple(zip(relations, kinds, strict=True)))


@lru_cache
def requests(split: str) -> tuple[tuple[Request, str], ...]:
    """Return (request, chain that is meant) of a split; all requests are distinct."""
    rng = np.random.default_rng([WORLD_SEED, 2])
    seen, found = set(), {}
    for name, count in ROWS.items():
        found[name] = []
        while len(found[name]) < count:
            request = draw_request(rng)
            if request not in seen:
                seen.add(request)
                chains = request.chains()
                found[name].append((request, str(rng.choice(list(chains), p=list(chains.values())))))
    return tuple(found[split])


def score(answer: str, gold: str) -> np.ndarray:
    """Return (5,): which names of the chain are right, the last one first; all 0 unless five names are given.

    `gold` is the chain that is meant, five names in a row.
    """
    named = answer.strip()
    if len(named) != STEPS or not set(named) <= set(NAMES):
        return np.zeros(STEPS)
    return np.array([float(a == b) for a, b in zip(reversed(named), reversed(gold), strict=True)])


@lru_cache
def ceiling(k: int) -> dict[str, float]:
    """Return what no set of k answers can beat, as means over the test requests, in [0, 1].

    Known are the table and the hidden distribution, not what was meant. "best": the mean of the objectives; "pass":
    all five are right; "covered": the share of the names that one of the k answers has. Exact, over all answers.
    LabError for k < 1.
    """
    chains_NG = [request.chains() for request, _ in requests("test")]
    probabilities_NG = np.array([list(chains.values()) for chains in chains_NG])
    sets_SG = subsets(probabilities_NG.shape[1])
    worth_NS, covered_N = np.zeros((len(chains_NG), len(sets_SG))), np.zeros(len(chains_NG))
    for step in range(STEPS):
        # An answer may have any name at any step, right or astray.
        names_NG = np.array([[ord(chain[step]) for chain in chains] for chains in chains_NG])
        same_NGG = names_NG[:, :, None] == names_NG[:, None]
        likely_NSG = sets_SG * probabilities_NG[:, None] @ same_NGG
        worth_NS += likely_NSG.max(axis=2) / STEPS
        first_NG = same_NGG.argmax(axis=2) == np.arange(names_NG.shape[1])  # each name once
        covered_N += top_share(np.where(first_NG, likely_NSG[:, -1], 0.0), k) / STEPS
    return {
        "best": float(best_cover(worth_NS, k).mean()),
        "pass": float(top_share(probabilities_NG, k).mean()),
        "covered": float(covered_N.mean()),
    }


class TinyChain:
    """Offer the requests as a task. A row's gold is the chain that is meant, five names in a row."""

    name = "tiny_chain"
    objectives = tuple(MEANINGS)
    meanings = MEANINGS
    about = "Two of five steps do not say what is looked for. One guess is one chain, and all later names hang on it."
    ceiling = staticmethod(ceiling)
    score = staticmethod(each(score))

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return 4,096 train or 200 test rows, the same on every machine. LabError for a path or another split."""
        check_generated(self.name, path, split)
        return [
            {
                "id": f"{self.name}-{split}-{number}",
                "prompt": [{"role": "user", "content": request.text()}],
                "gold": chain,
            }
            for number, (request, chain) in enumerate(requests(split))
        ]

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` chains with guesses at random, distinct up to nine, in a fixed order."""
        split, number = row["id"].split("-")[1:]
        request, _ = requests(split)[int(number)]
        chains = list(request.chains())
        order = rng.permutation(len(chains)).tolist()
        return [chains[chain] for chain in sorted((order * n)[:n])]

    def title(self, row: dict) -> str:
        """Return the request of a row and the chain that is meant, in one line."""
        return one_line(f"{row['prompt'][0]['content']} (meant: {row['gold']})")
