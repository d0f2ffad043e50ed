"""Run by torchrun: `vpo-lab train` with what every step scored written down, one file a process.

Usage: train_and_record.py FOLDER ARGUMENTS-OF-VPO-LAB...
"""

import pickle
import sys
from pathlib import Path

from vpo_lab import cli
from vpo_lab.processes import rank
from vpo_lab.train.trl import VPOMixin

folder = Path(sys.argv.pop(1))
steps = []
measure = VPOMixin.measure


def recorded(trainer, scored):
    steps.append(scored)
    (folder / f"steps-{rank()}.pickle").write_bytes(pickle.dumps(steps))
    return measure(trainer, scored)


VPOMixin.measure = recorded
cli.main()
