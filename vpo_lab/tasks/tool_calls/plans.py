"""Read the plan of an answer in the tiny world of tool calls: which kind was asked, which tools, which thing."""

from __future__ import annotations

from vpo_lab.tasks.tool_calls.reward import parse_answer
from vpo_lab.tasks.tool_calls.tiny import ASK, Kind, kinds

Plan = tuple[str, ...]


def kind_of(row: dict) -> Kind:
    """Return the kind of request that a row of `tiny_tools` belongs to."""
    text = row["prompt"][-1]["content"]
    return next(kind for kind in kinds() if f"with {kind.occasion} " in text)


def plan_of(answer: str) -> Plan:
    """Return the sorted names of the tools that an answer calls, ("ask",) for a question, () for neither."""
    parsed = parse_answer(answer)
    return tuple(sorted(call.name for call in parsed.calls)) or ((ASK,) if parsed.response else ())


def ranked_plans(kind: Kind) -> dict[Plan, float]:
    """Return the plans of a kind with the share of its users that mean each, the likeliest first."""
    likely: dict[Plan, float] = {}
    for (plan, _), share in zip(kind.outcomes, kind.probabilities, strict=True):
        name = tuple(sorted(plan))
        likely[name] = likely.get(name, 0.0) + share
    return dict(sorted(likely.items(), key=lambda item: -item[1]))


def thing_of(answer: str, row: dict) -> int | None:
    """Return 0 or 1 if an answer names only the first or only the second thing of the request, else None."""
    text = row["prompt"][-1]["content"].partition(f"with {kind_of(row).occasion} ")[2]
    values = {str(value) for call in parse_answer(answer).calls for value in call.parameters.values()}
    named = [thing in values for thing in text.partition(",")[0].split(" or ")]
    return named.index(True) if sum(named) == 1 else None


def means_second(kind: Kind) -> float:
    """Return the share of a kind's users that mean the second thing of their request."""
    return sum(share for (_, which), share in zip(kind.outcomes, kind.probabilities, strict=True) if which)
