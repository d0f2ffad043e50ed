"""Reward functions for verl, each an objective. They meet single answers as texts, and verl's columns.

The data is that of verl's own example: examples/data_preprocess/gsm8k.py in its repository writes it.
"""

import re

from vpo_lab import SetReward


def correct(completions, ground_truth, **_):
    """Compare the number after the last #### with the gold one."""
    found = [re.findall(r"#### *(-?[\d.,]*\d)", completion) for completion in completions]
    return [
        float(bool(numbers) and numbers[-1].replace(",", "") == gold)
        for numbers, gold in zip(found, ground_truth, strict=True)
    ]


def brief(completions, **_):
    return [1 / (1 + len(completion) / 500) for completion in completions]


compute_score = SetReward([correct, brief], candidates=3).verl
