"""One completion <-> M candidate answers, in numbered tags.

A chain is one rollout that holds several complete answers:

    <answer_1>
    ...
    </answer_1>
    <answer_2>
    ...

Numbers matter: with them a policy can specialise by position, and a lost tag loses one answer.
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
    """The messages of `prompt` with the request for `m` answers at the end of the last turn.

    `goal` states weights in tenths, objective -> 0..10, for a policy that is to be steered by them.
    """
    _check(m)
    wording = ONE_ANSWER if m == 1 else MANY_ANSWERS.format(m=m)
    if goal is not None:
        wording = f"{GOAL}{', '.join(f'{name} {tenths}' for name, tenths in goal.items())}.\n{wording}"
    *earlier, last = prompt
    return [*earlier, {**last, "content": f"{last['content']}\n{wording}"}]


def join_chain(answers: list[str]) -> str:
    """The completion that holds these answers: one answer stands bare, several in numbered tags."""
    _check(len(answers))
    if len(answers) == 1:
        return answers[0]
    return "\n".join(f"<answer_{i}>\n{a}\n</answer_{i}>" for i, a in enumerate(answers, start=1))


def split_chain(text: str, m: int) -> list[str]:
    """The `m` answers of a completion, in the order of their numbers; "" where one is missing.

    Never raises on any text. Of repeated tags the first counts; an answer that is not closed ends
    at the next opening tag or at the end; numbers beyond `m` are ignored. With m = 1 the whole
    text is the answer, unless it opens an `<answer_1>`.
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

    (0, None) without any answer; the second is None if the last answer is not closed. Never raises.
    """
    spans = _spans(text, m)
    if not spans:
        return 0, None
    number = max(spans, key=lambda known: spans[known][0])
    behind = spans[number][2]
    return number, None if behind is None else text[behind:]


def _spans(text: str, m: int) -> dict[int, tuple[int, int, int | None]]:
    """Where the answers that count start and end, and where their closing tags end (None: not closed)."""
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
    """Where the answers 1..m-1 of a completion are over: m - 1 ascending positions.

    From there on nothing can change the first j answers that `split_chain` reads. An answer is over
    behind its closing tag, if all before it are; one that never is ends at len(text) + 1, so that even
    the end-of-text token still belongs to it.
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
