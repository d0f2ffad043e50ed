"""Describe tool calls to a reader: an answer in one line, a request's title, the meaning of the objectives."""

from __future__ import annotations

from vpo_lab.show.explorer import one_line
from vpo_lab.tasks.tool_calls.reward import parse_answer

MEANINGS = {
    "format": "a program can read it",
    "tool_name": "the right tools",
    "param_name": "the right parameters",
    "param_value": "the right values",
}


def short_answer(text: str) -> str:
    """Return an answer in one line: its calls as `name(key=value)`, else its response, else its text."""
    parsed = parse_answer(text)
    if parsed.calls:
        calls = [(call.name, [f"{key}={value}" for key, value in call.parameters.items()]) for call in parsed.calls]
        return one_line("; ".join(f"{name}({', '.join(values)})" for name, values in calls))
    return one_line(f"says: {parsed.response}" if parsed.response else text)


def title_of(row: dict) -> str:
    """Return what the user of a row asked last and the answer that was meant, in one line."""
    asked = row["prompt"][-1]["content"].rpartition("<user>")[2].partition("</user>")[0]
    return f"{one_line(asked)} (meant: {short_answer(row['gold'])})"
