"""Judges that need no model: plain functions, a lexicon, a small classifier, language identification.

They are poor stand-ins for people's taste, and each can be gamed by a word. They are here because they run everywhere,
and differ. The scales are the 5% and 95% quantiles of HH-RLHF's replies cut to 18 words (harmless-base, test), rounded;
judges of yes or no need none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from vpo_lab.errors import LabError
from vpo_lab.tasks.judges.judge import Judge, each_pair

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SHORT = 3  # letters: shorter words carry little, in English at least
# What English sentences are built with, whatever they are about.
_COMMON = frozenset(
    "about after again also been before being both but can could did does doing done down each even ever every for "
    "from get gets getting going had has have her here him his how i'd i'll i'm i've into isn't it's its just kind "
    "like make may might more most much must not now off one only other our out over own really same shall she should "
    "some such than that that's the their them then there these they they're thing things this those too under until "
    "upon very was way well were what when where which while who whom whose why will with would yes yet you you'd "
    "you'll you're you've your".split()
)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|i(?:['’]m| am) (?:not able|unable)|i (?:can['’]?t|cannot|won['’]?t|will not|"
    r"don['’]?t (?:think i|know|understand)))\b",
    re.IGNORECASE,
)


def _import(package: str, install: str, judge: str) -> Any:
    """Return a package, or raise LabError that says what to install."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise LabError(f"judge {judge!r} needs the package {install}: pip install {install}") from error


# --- Plain functions --------------------------------------------------------------------------


def words(answer: str) -> list[str]:
    """Return the words of a text in small letters; digits and signs are none."""
    return [word.lower() for word in _WORD.findall(answer)]


def brevity(prompt: str, answer: str) -> float:
    """Return minus the number of words; a text without a word counts as endless."""
    return -float(len(words(answer)) or 1e6)


def detail(prompt: str, answer: str) -> float:
    """Return how many different words of content an answer adds to the prompt: long ones that are not common."""
    return float(len({word for word in words(answer) if len(word) >= _SHORT} - _COMMON - set(words(prompt))))


def asks(prompt: str, answer: str) -> float:
    """Return 1 if an answer ends with a question of two words or more that is not the prompt's own, else 0."""
    last = re.split(r"[.!?…\n]\s*", answer.rstrip(" ?\"')»”’"))[-1]
    asked = " ".join(words(last))
    return float(
        answer.rstrip(" \"')»”’").endswith("?") and len(asked.split()) > 1 and asked not in " ".join(words(prompt))
    )


def complies(prompt: str, answer: str) -> float:
    """Return 0 if an answer says sorry, cannot or will not, else 1."""
    return float(not _REFUSAL.search(answer))


# --- Packages ---------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _vader() -> Any:
    module = _import("vaderSentiment.vaderSentiment", "vaderSentiment", "warm")
    return module.SentimentIntensityAnalyzer()


def sentiment(prompt: str, answer: str) -> float:
    """Return the feeling of an answer in [-1, 1] by the lexicon of vaderSentiment (MIT; Hutto and Gilbert 2014)."""
    return float(_vader().polarity_scores(answer)["compound"])


def cleanness(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Return how probably an answer holds no offensive words, by the linear model of alt-profanity-check (MIT)."""
    return 1 - _import("profanity_check", "alt-profanity-check", "clean").predict_prob(list(answers))


def in_language(code: str, name: str = "") -> Judge:
    """Return a judge of the language of an answer: the probability of an ISO 639-1 code, by py3langid (BSD), offline.

    A few words of a reply are seldom enough to be sure.
    """
    return Judge(name or f"in_{code}", _language(code), 0.0, 1.0, f"is written in the language {code!r}")


def _language(code: str) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    def probability(prompt: str, answer: str) -> float:
        return float(dict(_identifier().rank(answer))[code]) if words(answer) else 0.0

    return each_pair(probability)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    langid = _import("py3langid.langid", "py3langid", "in_language")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


# --- The judges -------------------------------------------------------------------------------

WARM = Judge("warm", each_pair(sentiment), -0.61, 0.7, "says friendly words (a lexicon's count)")
BRIEF = Judge("brief", each_pair(brevity), -18.0, -3.0, "is short: 3 words or fewer are worth 1, 18 are worth 0")
DETAILED = Judge("detailed", each_pair(detail), 1.0, 9.0, "adds words of content: 9 different ones are worth 1")
ASKS_BACK = Judge("asks_back", each_pair(asks), 0.0, 1.0, "ends with a question of its own")
CLEAN = Judge("clean", cleanness, 0.6, 1.0, "holds no offensive words (a linear classifier)")
NO_REFUSAL = Judge("no_refusal", each_pair(complies), 0.0, 1.0, "does not say sorry, cannot or will not")

SHORT_REPLIES = (WARM, BRIEF, DETAILED, ASKS_BACK)  # the default: small correlations, and one conflict
