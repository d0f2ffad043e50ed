"""Compare short answers as question answering does: normalised text, exact match and the F1 of its words."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_tag(text: str, name: str, *, any_case: bool = False) -> str | None:
    """Return what stands in the first `<name>...</name>`, trimmed; None if there is none. Linear in the text.

    A tag that is never closed is none. Later tags do not count.
    """
    flags = re.IGNORECASE if any_case else 0
    opening = re.compile(f"<{name}>", flags).search(text)
    closing = opening and re.compile(f"</{name}>", flags).search(text, opening.end())
    return text[opening.end() : closing.start()].strip() if opening and closing else None


def normalize(text: str) -> str:
    """Return a text in lower case without articles, ASCII punctuation and spare whitespace.

    Articles go before punctuation, as in the VPO authors' code. SQuAD's own script has the other order: of "a-b" it
    keeps "ab", this one "b".
    """
    return " ".join(_ARTICLE.sub(" ", text.lower()).translate(_NO_PUNCTUATION).split())


def word_f1(answer: str, wanted: str) -> float:
    """Return the F1 of two texts' normalised words as multisets, in [0, 1]; 1 if neither has a word."""
    given, gold = Counter(normalize(answer).split()), Counter(normalize(wanted).split())
    if not given and not gold:
        return 1.0
    return 2 * (given & gold).total() / (given.total() + gold.total())


def best_f1(answer: str, wanted: Iterable[str]) -> float:
    """Return the best `word_f1` with any of the wanted texts; 0 if there are none."""
    return max((word_f1(answer, text) for text in wanted), default=0.0)
