"""MuSiQue's and EUREQA's rewards once more, from their description alone, in exact fractions and without regexes."""

from fractions import Fraction
from itertools import groupby, islice


def between(text: str, tag: str, fold=str) -> str:
    """What the first closed tag holds; "" without one."""
    _, opened, rest = partition(text, f"<{tag}>", fold)
    inside, closed, _ = partition(rest, f"</{tag}>", fold)
    return inside.strip() if opened and closed else ""


def partition(text: str, mark: str, fold) -> tuple[str, bool, str]:
    """Cut a text at the first mark, letter by letter alike after `fold`."""
    for start in range(len(text) - len(mark) + 1):
        if [fold(c) for c in text[start : start + len(mark)]] == [fold(c) for c in mark]:
            return text[:start], True, text[start + len(mark) :]
    return text, False, ""


def words(text: str) -> list[str]:
    """Lower case; whole words a, an, the become spaces; then ASCII punctuation goes; then cut at whitespace."""
    runs = ["".join(run) for _, run in groupby(text.lower(), key=lambda c: c.isalnum() or c == "_")]
    kept = "".join(" " if run in ("a", "an", "the") else run for run in runs)
    punctuation = {chr(c) for c in range(33, 127) if not chr(c).isalnum()}
    return "".join(c for c in kept if c not in punctuation).split()


def f1(answer: str, wanted: str) -> Fraction:
    given, gold = words(answer), words(wanted)
    if not given or not gold:
        return Fraction(given == gold)
    shared = 0
    left = list(gold)
    for word in given:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return Fraction(0)
    precision, recall = Fraction(shared, len(given)), Fraction(shared, len(gold))
    return 2 * precision * recall / (precision + recall)


def musique(text: str, support: list[int], answers: list[str]) -> list[Fraction] | None:
    """The authors' five numbers, hops that the question lacks counted 1; None for an answer that is missing."""
    answer = between(text, "answer")
    if not answer:
        return None
    numbers = [item.strip() for item in between(text, "support").split(",")]
    numbers = [int(item) for item in numbers if item and all("0" <= c <= "9" for c in item)]
    first = set(islice(dict.fromkeys(numbers), 4))
    hops = [Fraction(i >= len(support) or support[i] in first) for i in range(4)]
    return [*hops, max(f1(answer, gold) for gold in answers)]


def eureqa(text: str, names: list[str]) -> list[int]:
    """One number per masked entity, A first."""
    said = [between(text, f"entity_{letter}", str.lower) for letter in "ABCDE"[: len(names)]]
    pairs = zip(said, names, strict=True)
    return [int(bool(a and b) and words(a.replace("_", " ")) == words(b.replace("_", " "))) for a, b in pairs]
