"""VPO Lab: learn, run and trust Vector Policy Optimization. Importing this needs only numpy."""

__version__ = "0.1.0"
