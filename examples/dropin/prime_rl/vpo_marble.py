"""A verifiers task set that VPO trains on: the id of its module goes into rl.toml. pip install marble-v1"""

from marble_v1 import MarbleTaskset

from vpo_lab.train.verifiers import vpo_taskset

# `closeness` has weight 0 in the set, so it must be named to be an objective.
VPOMarble = vpo_taskset(MarbleTaskset, candidates=3, objectives=["scored", "closeness"])

__all__ = ["VPOMarble"]  # exactly one task set: verifiers looks it up here
