"""Short replies that differ in kind, for a warmup to imitate: brief, detailed, warm, asking back.

What a data set's own reply says comes first; where it is too short for a kind, or says nothing of it, phrases help that
fit any request, a harmful one too: they neither agree nor refuse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

WORDS = 18  # of a reply; with its tags in a chain it stays below 40 tokens
BRIEF_WORDS = 5

_BRIEF = (
    "It depends.",
    "I'm not sure.",
    "Hard to say.",
    "Maybe.",
    "Not that I know.",
    "Perhaps not.",
    "Good question.",
)
_WARM = (
    "Thank you for telling me, my friend!",
    "I care about you, so please stay safe.",
    "I'm glad that you trust me with this!",
    "I hope you have a wonderful day!",
    "You are kind to ask, thank you!",
    "I wish you good luck and much joy!",
    "It is lovely to talk with you!",
    "Take good care of yourself, dear friend.",
    "I really appreciate that you are so honest!",
    "Be gentle with yourself, you deserve happiness.",
)
_ASKS = (
    "Why do you ask?",
    "Can you tell me more about it?",
    "What have you tried so far?",
    "What do you hope will happen?",
    "How do you feel about this?",
    "Who else knows about it?",
    "When did this start?",
    "What made you think of that?",
    "Is there something behind this question?",
    "What would you do next?",
)
_DETAILED = (
    "Look at both sides first, check two reliable sources, and think about people who could get hurt.",
    "Laws differ between countries, so ask a lawyer or another expert before deciding anything important.",
    "Write down your reasons, sleep a night, then discuss your plan with somebody older and calmer.",
    "Start with small steps, compare several options, and keep notes about costs, risks and results.",
    "A library, a teacher or an official website explains background, rules and common mistakes best.",
    "Different people answer this differently, because experience, culture, money and age shape opinions.",
)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, in one line each, with plain apostrophes."""
    line = " ".join(text.replace("’", "'").split())
    return [part for part in re.split(r"(?<=[.!?])\s+", line) if part]


def shortened(text: str, words: int) -> str:
    """Return whole sentences of at most `words` words; where the first is longer, its beginning."""
    return cut(text, words) or " ".join(text.split()[:words])


def cut(text: str, words: int) -> str:
    """Return the first sentences of a text that have at most `words` words together; "" if the first has more."""
    kept: list[str] = []
    for sentence in sentences(text):
        if len(" ".join([*kept, sentence]).split()) > words:
            break
        kept.append(sentence)
    return " ".join(kept)


def short_replies(replies: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return `n` short replies of different kinds in random order; beyond the four kinds they repeat in kind.

    replies: a data set's own replies to the request, the best first, or none.
    """
    kinds = (_brief, _detailed, _warm, _asking)
    chosen = [kinds[i % len(kinds)] for i in rng.permutation(max(n, len(kinds)))[:n]]
    return [kind(replies, rng) for kind in chosen]


def _pick(phrases: Sequence[str], rng: np.random.Generator) -> str:
    return phrases[rng.integers(len(phrases))]


def _brief(replies: Sequence[str], rng: np.random.Generator) -> str:
    own = [found for reply in replies if (found := cut(reply, BRIEF_WORDS)) and "?" not in found]
    return own[0] if own else _pick(_BRIEF, rng)


def _detailed(replies: Sequence[str], rng: np.random.Generator) -> str:
    """Return the longest statement of the data set's replies that fits, where one has half of the words."""
    statements = [part for reply in replies for part in sentences(reply) if part[-1] in ".!"]
    fitting = [part for part in statements if WORDS // 2 <= len(part.split()) <= WORDS]
    return max(fitting, key=lambda part: len(part.split())) if fitting else _pick(_DETAILED, rng)


def _warm(replies: Sequence[str], rng: np.random.Generator) -> str:
    """Return a warm phrase, behind what the data set's own reply says first where both fit."""
    phrase = _pick(_WARM, rng)
    own = [found for reply in replies if (found := cut(reply, WORDS - len(phrase.split()))) and "?" not in found]
    return f"{own[0]} {phrase}" if own else phrase


def _asking(replies: Sequence[str], rng: np.random.Generator) -> str:
    own = [part for reply in replies for part in sentences(reply) if part[-1] == "?" and 2 < len(part.split()) <= WORDS]
    return own[0] if own else _pick(_ASKS, rng)
