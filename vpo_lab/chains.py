"""Put M candidate answers into one completion, and read them out again, by numbered tags.

A chain is one rollout that holds several complete answers:

    <answer_1>
    ...
    </answer_1>
    <answer_2>
    ...

The numbers let a policy specialise by position, and a lost tag costs one answer only.
"""

from __future__ import annotations

import re
from itertools import zip_longest

from vpo_lab.errors import LabError

ONE_ANSWER = "Write one answer in the output format above."
MANY_ANSWERS = (
    "Write {m} different answers, each complete in the output format above: "
    "the first between <answer_1> and </answer_1>, and so on up to <answer_{m}> and </answer_{m}>."
)
GOAL = "What counts, in tenths: "
_OPENING = re.compile(r"<answer_([0-9]{1,4})>")


def answer_prompt(prompt: list[dict], m: int, goal: dict[str, int] | None = None) -> list[dict]:
    """Return the messages of `prompt` with a request for `m` answers at the end of the last one.

    `goal` adds preference weights in tenths, objective -> 0..10, for a policy that is steered by them.
    Raises LabError if m < 1. The messages that were passed in stay as they are.
    """
    _check(m)
    wording = ONE_ANSWER if m == 1 else MANY_ANSWERS.format(m=m)
    if goal is not None:
        wording = f"{GOAL}{', '.join(f'{name} {tenths}' for name, tenths in goal.items())}.\n{wording}"
    *earlier, last = prompt
    return [*earlier, {**last, "content": f"{last['content']}\n{wording}"}]


def join_chain(answers: list[str]) -> str:
    """Write answers as one completion: a single answer without tags, several in numbered tags.

    Raises LabError if there are none.
    """
    _check(len(answers))
    if len(answers) == 1:
        return answers[0]
    return "\n".join(f"<answer_{i}>\n{a}\n</answer_{i}>" for i, a in enumerate(answers, start=1))


def split_chain(text: str, m: int) -> list[str]:
    """Read the `m` answers of a completion, ordered by their numbers; "" stands for a missing one.

    Any text can be read. If a tag is repeated, its first answer counts. An answer without a closing tag
    ends at the next opening tag, or with the text. Numbers above `m` are ignored. With m = 1 the whole
    text is the answer, unless it opens an `<answer_1>`. Raises LabError if m < 1.
    """
    _check(m)
    answers, spans = [""] * m, _spans(text, m)
    for number, (start, end, _) in spans.items():
        answers[number - 1] = text[start:end].strip()
    if m == 1 and not spans:
        return [text.strip()]
    return answers


def tail_of(text: str, m: int) -> tuple[int, str | None]:
    """Return the number of the answer that comes last in a completion, and what follows its closing tag.

    Return (0, None) if there is no answer, and None as the second if the last answer is not closed.
    Any text can be read.
    """
    spans = _spans(text, m)
    if not spans:
        return 0, None
    number = max(spans, key=lambda known: spans[known][0])
    behind = spans[number][2]
    return number, None if behind is None else text[behind:]


def _spans(text: str, m: int) -> dict[int, tuple[int, int, int | None]]:
    """Return for each answer that counts its start, its end, and the end of its closing tag (None: not closed)."""
    spans: dict[int, tuple[int, int, int | None]] = {}
    openings = list(_OPENING.finditer(text))
    for opening, following in zip_longest(openings, openings[1:]):
        number = int(opening[1])
        if number in spans or not 1 <= number <= m:
            continue
        end = following.start() if following else len(text)
        tag = f"</answer_{opening[1]}>"
        close = text.find(tag, opening.end(), end)
        spans[number] = (opening.end(), close, close + len(tag)) if close >= 0 else (opening.end(), end, None)
    return spans


def answer_ends(text: str, m: int) -> list[int]:
    """Return the positions in a completion at which answers 1..m-1 are over: m - 1 ascending numbers.

    No text after position j can change the first j answers that `split_chain` reads. An answer is over
    after its closing tag, once all answers before it are over. One that never closes gets
    len(text) + 1, so that the end-of-text token still belongs to it. Raises LabError if m < 1.
    """
    _check(m)
    ends, position = [], 0
    for number in range(1, m):
        opening = text.find(f"<answer_{number}>", position)
        close = f"</answer_{number}>"
        found = text.find(close, opening) if opening >= 0 else -1
        position = found + len(close) if found >= 0 else len(text) + 1
        ends.append(position)
    return ends


def _check(m: int) -> None:
    if m < 1:
        raise LabError(f"M = {m} answers: at least 1 is needed (raise rl.candidates)")
