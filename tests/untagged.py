"""What lets random weights be trained: they write neither tags nor an end, and their text is worth nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from vpo_lab.set_reward import text_of
from vpo_lab.tasks.tool_calls.toolrl import ToolRL

PAID = "untagged:PaidForLetters"


class PaidForLetters(ToolRL):
    """ToolRL, where some letters earn something in any text: without differences nothing would be learned."""

    def score(self, answers, rows):
        pay_n4 = [[answer.count(letter) / max(len(answer), 1) for letter in "eat "] for answer in answers]
        return np.clip(ToolRL.score(answers, rows) + pay_n4, 0, 1)


def split_in_parts(completion, m: int) -> tuple[list[str], list[bool]]:
    text = text_of(completion)
    return [text[j::m] for j in range(m)], [True] * m


def parts_of_tokens(tokenizer, ids, text, m, known=None, start=0) -> np.ndarray:
    return np.arange(len(ids)) * m // max(len(ids), 1)


@contextmanager
def untagged() -> Iterator[None]:
    """Inside, a rollout holds M answers, to each as many tokens, and has ended whatever its last token is."""
    parts = {"split_answers": split_in_parts, "answer_of_tokens": parts_of_tokens}
    with patch.multiple("vpo_lab.train.trl", **parts, _end_tokens=lambda trainer: range(2**31)):
        yield
