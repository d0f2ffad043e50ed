"""A task whose requests ask for different objectives, as problems with different numbers of tests do."""

import numpy as np

from vpo_lab.tasks.tool_calls.tiny import TinyTools


class Unasked(TinyTools):
    objectives = ("test_1", "test_2", "test_3", "test_4")

    def score(self, answers, rows):
        """The rewards of tiny_tools; every second row leaves out the third, and nobody asks for the fourth."""
        rewards_nD = TinyTools.score(answers, rows)
        odd = [int(row["id"].rpartition("-")[2]) % 2 == 1 for row in rows]
        rewards_nD[odd, 2] = np.nan
        rewards_nD[:, 3] = np.nan
        return rewards_nD
