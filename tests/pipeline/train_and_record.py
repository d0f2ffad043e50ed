"""Run by torchrun: `vpo-lab train` with every call of the reward function written down, one file a process.

Usage: train_and_record.py FOLDER ARGUMENTS-OF-VPO-LAB...
"""

import pickle
import sys
from pathlib import Path

from vpo_lab import cli
from vpo_lab.processes import rank
from vpo_lab.train.rollouts import VectorReward

folder = Path(sys.argv.pop(1))
calls = []
compute = VectorReward.__call__


def recorded(self, prompts, completions, gold, trainer_state, log_metric, completion_ids=None, **columns):
    logged = {}

    def log(name, value):
        logged[name] = value
        log_metric(name, value)

    given = (prompts, completions, gold, trainer_state, log, completion_ids)
    advantages = compute(self, *given, **columns)
    calls.append(
        {
            "step": trainer_state.global_step,
            "completions": completions,
            "gold": gold,
            "completion_ids": completion_ids,
            "advantages": advantages,
            "token_advantages": self.token_advantages,
            "logged": logged,
        }
    )
    (folder / f"calls-{rank()}.pickle").write_bytes(pickle.dumps(calls))
    return advantages


VectorReward.__call__ = recorded
cli.main()
