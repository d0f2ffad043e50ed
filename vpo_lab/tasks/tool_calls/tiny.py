"""A generated tool-calling world in ToolRL's format, small enough to learn on a CPU in minutes.

The generative model
--------------------
A request belongs to one of 16 *kinds*: 4 domains x 4 occasions ("a weekend in", "a conference
in" ...). Each domain has eight tools that share parameter names. The request names two things
(cities, people, rooms, articles), a day and a number, and says no more, so several answers are
plausible. What the user meant (the gold) is drawn from the kind's *hidden* distribution:

1. a plan: 2 to 4 plans per kind, each one call or two, or a question back in some kinds, with
   long-tailed probabilities proportional to 1/rank^s;
2. in half of the kinds, those with 3 plans at most, also which of the two named things is meant:
   the first with probability .6 to .85.

So 2 to 6 answers are plausible for a request and one of them is gold. Values are copied from the
request. No answer is right every time: an answer with both calls or a spare key earns something under
several golds, a precise answer earns everything under one. `ceiling` computes, from the hidden
distribution, what no policy can beat. WORLD_SEED fixes the distribution and the rows of every run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.metrics import pareto_optimal
from vpo_lab.tasks import check_generated, each
from vpo_lab.tasks.tool_calls.reward import OBJECTIVES, score
from vpo_lab.tasks.tool_calls.words import MEANINGS, short_answer, title_of

WORLD_SEED = 20260522
SPLIT_SIZES = {"train": 4096, "test": 200}
ANNOTATOR_SKILL = 0.3  # share of demonstrations that follow the hidden distribution
CORRUPTED = 0.1  # share of demonstrations with one more mistake
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@dataclass(frozen=True)
class Domain:
    """Hold eight tools for one kind of thing; tools: name -> (description, parameter names)."""

    thing: str
    things: tuple[str, ...]
    tools: dict[str, tuple[str, tuple[str, ...]]]
    occasions: tuple[str, ...]

    @property
    def numbers(self) -> tuple[str, ...]:
        """Return the parameters that take the number of a request."""
        keys = {key for _, keys in self.tools.values() for key in keys}
        return tuple(sorted(keys - {self.thing, "day"}))


DOMAINS = {
    "travel": Domain(
        thing="city",
        things=tuple("Oslo Lima Rome Paris Quito Delhi Cairo Tokyo Perth Porto".split()),
        tools={
            "get_weather": ("Weather forecast for a city.", ("city", "day")),
            "find_hotels": ("Hotels in a city.", ("city", "nights")),
            "find_trains": ("Trains to a city.", ("city", "day")),
            "book_table": ("A table in a restaurant.", ("city", "guests")),
            "city_guide": ("What to see in a city.", ("city",)),
            "rent_bike": ("Bikes for rent.", ("city", "day")),
            "buy_tickets": ("Tickets for a museum.", ("city", "guests")),
            "book_parking": ("A parking space.", ("city", "nights")),
        },
        occasions=("a weekend in", "a business trip to", "a concert in", "a conference in"),
    ),
    "office": Domain(
        thing="person",
        things=tuple("Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas".split()),
        tools={
            "send_note": ("Send a short note.", ("person",)),
            "book_meeting": ("Book a meeting.", ("person", "day")),
            "plan_lunch": ("Reserve a lunch.", ("person", "guests")),
            "share_report": ("Share the report.", ("person", "copies")),
            "ask_review": ("Ask for a review.", ("person", "day")),
            "call_back": ("Plan a telephone call.", ("person", "day")),
            "print_badges": ("Print visitor badges.", ("person", "copies")),
            "find_contact": ("Look up an address.", ("person",)),
        },
        occasions=("the budget with", "the launch with", "a farewell for", "an interview with"),
    ),
    "home": Domain(
        thing="room",
        things=tuple("Kitchen Attic Cellar Garage Office Studio Nursery Library Pantry Lounge".split()),
        tools={
            "set_heating": ("Set the heating.", ("room", "degrees")),
            "dim_lights": ("Dim the lights.", ("room", "level")),
            "play_music": ("Play music.", ("room", "level")),
            "start_cleaning": ("Start the cleaner.", ("room", "day")),
            "lock_windows": ("Lock the windows.", ("room",)),
            "open_blinds": ("Open the blinds.", ("room", "level")),
            "boil_water": ("Keep water warm.", ("room", "degrees")),
            "air_room": ("Let in fresh air.", ("room", "day")),
        },
        occasions=("a party in the", "guests in the", "a cold night in the", "a long absence from the"),
    ),
    "shop": Domain(
        thing="item",
        things=tuple("Apples Bread Candles Dates Eggs Flour Grapes Honey Ink Juice".split()),
        tools={
            "order_item": ("Order an article.", ("item", "quantity")),
            "track_price": ("Watch the price.", ("item", "day")),
            "compare_offers": ("Compare offers.", ("item",)),
            "reserve_item": ("Reserve in the shop.", ("item", "day")),
            "return_item": ("Send back an article.", ("item", "quantity")),
            "sell_item": ("Offer for sale.", ("item", "quantity")),
            "plan_delivery": ("Set a delivery day.", ("item", "day")),
            "rate_item": ("Leave a rating.", ("item", "stars")),
        },
        occasions=("a birthday needs", "the stock of", "a complaint about", "the cheapest"),
    ),
}  # fmt: skip

ASK = "ask"  # the plan that calls nothing and asks back
QUESTION = "Which one do you mean?"
THOUGHT = "I call what fits."


@dataclass(frozen=True)
class Kind:
    """Hold one kind of request and its hidden distribution: (plan, which thing) -> probability."""

    domain: str
    occasion: str
    outcomes: tuple[tuple[tuple[str, ...], int], ...]
    probabilities: tuple[float, ...]


@lru_cache
def kinds() -> tuple[Kind, ...]:
    """Return the 16 kinds of request, with the hidden distributions that a policy has to discover."""
    rng = np.random.default_rng(WORLD_SEED)
    result = []
    for name, domain in DOMAINS.items():
        for occasion in domain.occasions:
            first = rng.uniform(0.6, 0.85) if rng.random() < 0.5 else 1.0
            plans = _draw_plans(list(domain.tools), rng, most=4 if first == 1.0 else 3)
            weights = 1.0 / np.arange(1, len(plans) + 1) ** rng.uniform(0.7, 1.3)
            outcomes = {}
            for plan, weight in zip(plans, weights / weights.sum(), strict=True):
                for which, share in ((0, first), (1, 1 - first)):
                    # A question back names no thing: both readings are one outcome.
                    key = (plan, 0 if plan == (ASK,) else which)
                    outcomes[key] = outcomes.get(key, 0.0) + weight * share
            outcomes = {key: p for key, p in outcomes.items() if p > 0}
            result.append(Kind(name, occasion, tuple(outcomes), tuple(outcomes.values())))
    return tuple(result)


def _draw_plans(tools: list[str], rng: np.random.Generator, most: int) -> list[tuple[str, ...]]:
    plans = [(ASK,)] if rng.random() < 0.25 else []
    size = int(rng.integers(2, most + 1))
    while len(plans) < size:
        plan = _draw_tools(tools, rng)
        if plan not in plans:
            plans.append(plan)
    # A question back is never the likeliest plan: a policy could then answer everything with it.
    return plans[1:] + plans[:1] if plans[0] == (ASK,) else plans


@dataclass(frozen=True)
class _Request:
    """Hold the facts of a request; the values in a gold are copied from them."""

    kind: int
    things: tuple[str, str]
    day: str
    number: int

    def text(self) -> str:
        kind = kinds()[self.kind]
        return f"Help me with {kind.occasion} {self.things[0]} or {self.things[1]}, {self.day}, {self.number}."

    def call(self, tool: str, which: int) -> dict:
        domain = DOMAINS[kinds()[self.kind].domain]
        parameters = {key: self.value(key, which) for key in domain.tools[tool][1]}
        return {"name": tool, "parameters": parameters}

    def value(self, key: str, which: int) -> str | int:
        domain = DOMAINS[kinds()[self.kind].domain]
        return self.things[which] if key == domain.thing else self.day if key == "day" else self.number

    def calls(self, plan: tuple[str, ...], which: int) -> list[dict]:
        return [] if plan == (ASK,) else [self.call(tool, which) for tool in plan]


def render_answer(calls: list[dict]) -> str:
    """Return calls as an answer in ToolRL's format; the question back if there are none."""
    if not calls:
        return f"<think> {THOUGHT} </think>\n<response> {QUESTION} </response>"
    lines = "\n".join(json.dumps(call) for call in calls)
    return f"<think> {THOUGHT} </think>\n<tool_call>\n{lines}\n</tool_call>"


@lru_cache
def _system_prompt(domain_name: str) -> str:
    domain = DOMAINS[domain_name]
    blocks = []
    for number, (name, (description, keys)) in enumerate(domain.tools.items(), start=1):
        schema = {key: {"type": "string" if key in (domain.thing, "day") else "integer"} for key in keys}
        blocks.append(f"{number}. Name: {name}\nDescription: {description}\nParameters: {json.dumps(schema)}")
    tools = "\n".join(blocks)
    return (
        "You help with tools.\n\n**Available Tools**\n" + tools + "\n\n**Output Format**\n"
        "<think> Your thoughts </think>\n<tool_call>\n"
        '{"name": "Tool name", "parameters": {"Parameter name": "Parameter content"}}\n'
        "</tool_call>\n<response> AI's final response </response>"
    )


def _draw_request(rng: np.random.Generator) -> _Request:
    kind = int(rng.integers(len(kinds())))
    domain = DOMAINS[kinds()[kind].domain]
    first, second = rng.choice(domain.things, size=2, replace=False).tolist()
    return _Request(kind, (first, second), DAYS[rng.integers(7)], int(rng.integers(2, 10)))


@lru_cache
def _requests() -> dict[str, tuple[tuple[_Request, int], ...]]:
    """Return (request, index of the gold outcome) for the rows of every split; all requests are distinct."""
    rng = np.random.default_rng([WORLD_SEED, 1])
    seen: set[_Request] = set()
    splits = {}
    for split in ("test", "train"):  # test first, so that its rows stay when train grows
        rows = []
        while len(rows) < SPLIT_SIZES[split]:
            request = _draw_request(rng)
            if request not in seen:
                seen.add(request)
                kind = kinds()[request.kind]
                rows.append((request, int(rng.choice(len(kind.outcomes), p=kind.probabilities))))
        splits[split] = tuple(rows)
    return splits


def _draw_tools(tools: list[str], rng: np.random.Generator) -> tuple[str, ...]:
    """Return one tool (6 times in 10) or two."""
    return tuple(sorted(rng.choice(tools, size=1 if rng.random() < 0.6 else 2, replace=False).tolist()))


def _annotate(request: _Request, rng: np.random.Generator) -> list[dict]:
    kind = kinds()[request.kind]
    if rng.random() < ANNOTATOR_SKILL:
        plan, which = kind.outcomes[rng.choice(len(kind.outcomes), p=kind.probabilities)]
    elif rng.random() < 0.05:
        plan, which = (ASK,), 0
    else:
        plan, which = _draw_tools(list(DOMAINS[kind.domain].tools), rng), int(rng.integers(2))
    calls = request.calls(plan, which)
    if calls and rng.random() < CORRUPTED:
        _corrupt(calls[rng.integers(len(calls))], request, rng)
    return calls


def _corrupt(call: dict, request: _Request, rng: np.random.Generator) -> None:
    domain = DOMAINS[kinds()[request.kind].domain]
    parameters = call["parameters"]
    key = list(parameters)[rng.integers(len(parameters))]
    spare = [k for k in (domain.thing, "day", *domain.numbers) if k not in parameters]
    mistake = rng.integers(3)
    if mistake == 0:
        del parameters[key]
    elif mistake == 1:
        new = spare[rng.integers(len(spare))]
        parameters[new] = request.value(new, 0)
    else:
        wrong = [request.things[0], request.things[1], request.day, request.number]
        wrong.remove(parameters[key])
        parameters[key] = wrong[rng.integers(len(wrong))]


# --- What no policy can beat ------------------------------------------------------------------


@lru_cache
def ceiling(k: int) -> dict[str, float]:
    """Return the highest expected best@k and pass@k of any policy: {"best": .., "pass": ..} in [0, 1].

    A policy that knew the hidden distribution would choose the k answers whose best is, on
    average over the golds, as good as possible; "good" is the mean of the four objectives. Considered
    are the question back and all answers of one or two calls with a tool of the domain, any of its
    parameter names and the request's own values. Three calls or more score less under every gold.
    best@k is the optimum of a facility-location problem per kind, solved exactly (scipy's MILP).
    LabError for k < 1.
    """
    if k < 1:
        raise LabError(f"k = {k}: at least 1 is needed")
    best = [_best_coverage(number, k) for number in range(len(kinds()))]
    passed = [sum(sorted(kind.probabilities, reverse=True)[:k]) for kind in kinds()]
    return {"best": float(np.mean(best)), "pass": float(np.mean(passed))}


def golds_of(kind: Kind) -> list[str]:
    """Return the answers that users of a kind may mean, in the order of its outcomes, for one request of it."""
    request = _example(kind)
    return [render_answer(request.calls(*outcome)) for outcome in kind.outcomes]


def _example(kind: Kind) -> _Request:
    """One request of a kind; no reward depends on which values it names."""
    return _Request(kinds().index(kind), DOMAINS[kind.domain].things[:2], DAYS[0], 7)


def _best_coverage(kind_number: int, k: int) -> float:
    """Return the maximum over sets of k answers of the expected best mean reward, for one kind of request."""
    from scipy.optimize import LinearConstraint, milp

    scores_AG = _candidate_scores(kind_number)
    n_answers, n_golds = scores_AG.shape
    probabilities = np.array(kinds()[kind_number].probabilities)
    if k >= n_golds:
        return float(probabilities @ scores_AG.max(axis=0))
    # x_a: answer a is in the set; y_ag: gold g is served by answer a. Only x must be integer.
    gain = np.concatenate([np.zeros(n_answers), (scores_AG * probabilities).ravel()])
    serve_once = np.hstack([np.zeros((n_golds, n_answers)), np.tile(np.eye(n_golds), n_answers)])
    only_chosen = np.hstack([-np.repeat(np.eye(n_answers), n_golds, axis=0), np.eye(n_answers * n_golds)])
    set_size = np.concatenate([np.ones(n_answers), np.zeros(n_answers * n_golds)])
    solution = milp(
        -gain,
        constraints=[
            LinearConstraint(serve_once, ub=1),
            LinearConstraint(only_chosen, ub=0),
            LinearConstraint(set_size, ub=k),
        ],
        integrality=np.concatenate([np.ones(n_answers), np.zeros(n_answers * n_golds)]),
        bounds=(0, 1),
    )
    return float(-solution.fun)


@lru_cache
def _candidate_scores(kind_number: int, prune: bool = True) -> np.ndarray:
    """Return the mean reward of every sensible answer under every gold of the kind: (answers, golds).

    `prune` drops calls that another call of the same name beats against every gold call, and
    answers that another answer beats under every gold; the tests compare it with the full search.
    """
    kind = kinds()[kind_number]
    domain = DOMAINS[kind.domain]
    request, golds = _example(kind), golds_of(kind)
    gold_calls = [call for outcome in kind.outcomes for call in request.calls(*outcome)]
    keys = sorted({key for call in gold_calls for key in call["parameters"]})
    calls = []
    for name in sorted({call["name"] for call in gold_calls}):
        options = [
            {"name": name, "parameters": {key: request.value(key, which) for key in subset}}
            for size in range(len(keys) + 1)
            for subset in combinations(keys, size)
            for which in ((0, 1) if domain.thing in subset else (0,))
        ]
        if prune:
            against = [
                np.concatenate([score(render_answer([o]), render_answer([g]))[2:] for g in gold_calls]) for o in options
            ]
            options = [options[i] for i in _undominated(np.array(against))]
        calls += options
    answers = [[], *([call] for call in calls), *(list(pair) for pair in combinations(calls, 2))]
    scores_AG = np.array([[score(render_answer(a), gold).mean() for gold in golds] for a in answers])
    return scores_AG[_undominated(scores_AG)] if prune else scores_AG


def _undominated(points: np.ndarray) -> list[int]:
    """Return the indices of the distinct rows that no other row beats or equals in every column."""
    _, first = np.unique(points, axis=0, return_index=True)
    return first[pareto_optimal(points[first])].tolist()


# --- The task ---------------------------------------------------------------------------------


class TinyTools:
    """Offer the generated world as a task, scored by the rules of ToolRL's real rows."""

    name = "tiny_tools"
    objectives = OBJECTIVES
    ceiling = staticmethod(ceiling)
    about = "The request says too little. No policy was told what was meant. Often one answer is best in everything."
    meanings, short, title = MEANINGS, staticmethod(short_answer), staticmethod(title_of)

    score = staticmethod(each(score))

    def load(self, path: str | None = None, split: str = "train") -> list[dict]:
        """Return 4,096 train or 200 test rows, the same on every machine. LabError for a path or another split."""
        check_generated(self.name, path, split)
        rows = []
        for number, (request, outcome) in enumerate(_requests()[split]):
            kind = kinds()[request.kind]
            system, user = _system_prompt(kind.domain), f"**Dialogue Records History**\n<user> {request.text()} </user>"
            prompt = [{"role": "system", "content": system}, {"role": "user", "content": user}]
            gold = render_answer(request.calls(*kind.outcomes[outcome]))
            rows.append({"id": f"tiny_tools-{split}-{number}", "prompt": prompt, "gold": gold})
        return rows

    def demonstrations(self, row: dict, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` distinct answers of a mediocre annotator, so that the warmup does not give the solution away.

        With probability ANNOTATOR_SKILL the annotator follows the hidden distribution, else takes any tools of the
        domain. Then a share CORRUPTED of the answers get a key too few, a key too many or a wrong value. Answers are
        sorted by tool. A fixed order lets the model see which tools it has already used, so it learns not to repeat
        itself.
        """
        split, number = row["id"].split("-")[1:]
        request, _ = _requests()[split][int(number)]
        tools = [*DOMAINS[kinds()[request.kind].domain].tools]
        answers: dict[str, list[int]] = {}  # -> the places of its tools
        while len(answers) < n:
            calls = _annotate(request, rng)
            answers[render_answer(calls)] = [tools.index(call["name"]) for call in calls]
        return sorted(answers, key=answers.get)
