"""A task whose reward falls asleep: for ever, but only the first so many times, in the folder VPO_LAB_SLEEPS."""

import os
import time
from pathlib import Path

from letters import Letters


class Sleeps(Letters):
    name = "sleeps"

    def score(self, answers, rows):
        """Sleep at the third call of a process, while there are naps left."""
        self.calls = getattr(self, "calls", 0) + 1
        folder = Path(os.environ["VPO_LAB_SLEEPS"])
        if self.calls == 3 and (naps := sorted(folder.glob("nap-*"))):
            naps[0].unlink()
            time.sleep(10_000)
        return Letters.score(answers, rows)
