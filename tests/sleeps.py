"""A task whose reward or sampler falls asleep: for ever, but only the first so many times, in VPO_LAB_SLEEPS."""

import os
import time
from pathlib import Path

from letters import Letters

from vpo_lab.train import sampling


def folder() -> Path:
    return Path(os.environ["VPO_LAB_SLEEPS"])


def sleep_once(names: str) -> None:
    """Sleep for ever if there is a file of that name left, and take it away."""
    if naps := sorted(folder().glob(names)):
        naps[0].unlink()
        time.sleep(10_000)


def sleepy(*args, generate=sampling._generate, **settings):
    sleep_once("sampler-nap-*")
    return generate(*args, **settings)


sampling._generate = sleepy


class Sleeps(Letters):
    name = "sleeps"

    def score(self, answers, rows):
        """Sleep when VPO has logged two steps, over a whole batch of 16 chains."""
        log = folder() / "run" / "vpo" / "log.jsonl"
        if len(answers) == 48 and log.exists() and len(log.read_text().splitlines()) >= 2:
            sleep_once("nap-*")
        return Letters.score(answers, rows)
