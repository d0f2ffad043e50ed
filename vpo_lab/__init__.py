"""VPO Lab: learn, run and trust Vector Policy Optimization. Importing this needs only numpy."""

import os
from importlib import import_module

# TRL reports every trainer that is built to the model hub unless it is told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

# The one door: name -> module. Looked up when it is asked for, since most modules need more than numpy.
_DOOR = {
    "METHODS": "vpo_lab.methods",
    "SetReward": "vpo_lab.set_reward",
    "VPOConfig": "vpo_lab.train.trl",
    "VPOTrainer": "vpo_lab.train.trl",
    "ask": "vpo_lab.set_reward",
    "unask": "vpo_lab.set_reward",
}


def __getattr__(name: str):
    """Return a public name from the module that holds it. AttributeError if there is none."""
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_DOOR[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOOR])
