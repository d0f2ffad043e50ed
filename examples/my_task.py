"""A task of your own: a lunch of three foods. What is cheap is not tasty, what is tasty is not healthy."""

from itertools import combinations

import numpy as np

from vpo_lab.tasks import each

FOODS = {  # how cheap, tasty and healthy, out of 10
    "🍞": (10, 2, 1), "🍚": (10, 1, 2), "🥔": (9, 3, 2), "🍜": (10, 3, 0), "🥕": (8, 1, 6), "🍲": (5, 6, 5),
    "🍕": (3, 9, 1), "🍰": (2, 10, 0), "🥓": (3, 9, 0), "🍟": (4, 9, 0), "🧀": (3, 8, 2),
    "🍣": (0, 8, 8), "🍓": (0, 6, 9), "🥗": (2, 2, 9), "🥦": (3, 1, 10), "🥬": (3, 0, 10),
}  # fmt: skip
SPLITS = {"test": slice(0, 200), "train": slice(200, 2200)}  # of all kitchens, shuffled: none is in both
REQUEST = "In the kitchen: {}\nChoose three of them for lunch. Answer with their three symbols."


def score_lunch(answer, gold):
    """Score any text: (3,), each in [0, 1]. What is not in the kitchen counts nothing."""
    lunch = answer.strip()
    if len(lunch) != 3 or len(set(lunch)) != 3 or not set(lunch) <= set(FOODS):
        return np.zeros(3)  # not three foods
    return np.mean([FOODS[food] if food in gold else (0, 0, 0) for food in lunch], axis=0) / 10


class MyTask:
    name = "my_task"
    objectives = ("cheap", "tasty", "healthy")

    score = staticmethod(each(score_lunch))  # a batch of answers and rows -> (n, 3)

    def load(self, path=None, split="train"):
        """The rows, the same every time. Gold is what `score` must know of a request: here the kitchen."""
        kitchens = np.random.default_rng(0).permutation([*combinations(FOODS, 8)])[SPLITS[split]]
        golds = ["".join(kitchen) for kitchen in kitchens]
        prompts = [[{"role": "user", "content": REQUEST.format(gold)}] for gold in golds]
        return [{"id": g, "prompt": p, "gold": g} for g, p in zip(golds, prompts, strict=True)]

    def demonstrations(self, row, n, rng):
        """n answers to imitate at the start, in the order of FOODS: any lunch, and no hint which is good."""
        lunches = ["".join(three) for three in combinations(row["gold"], 3)]
        return [lunches[i] for i in sorted(rng.choice(len(lunches), size=n, replace=n > len(lunches)))]
