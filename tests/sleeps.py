"""A task whose reward falls asleep: for ever, but only the first so many times, in the folder VPO_LAB_SLEEPS."""

import os
import time
from pathlib import Path

from letters import Letters


class Sleeps(Letters):
    name = "sleeps"

    def score(self, answers, rows):
        """Sleep when VPO has logged two steps, over a whole batch of 16 chains, while there are naps left."""
        folder = Path(os.environ["VPO_LAB_SLEEPS"])
        log, naps = folder / "run" / "vpo" / "log.jsonl", sorted(folder.glob("nap-*"))
        if naps and len(answers) == 48 and log.exists() and len(log.read_text().splitlines()) >= 2:
            naps[0].unlink()
            time.sleep(10_000)
        return Letters.score(answers, rows)
