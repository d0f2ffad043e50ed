"""VPO Lab: learn, run and trust Vector Policy Optimization. Importing this needs only numpy."""

import os

# TRL reports every trainer that is built to the model hub unless it is told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
