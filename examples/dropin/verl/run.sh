#!/usr/bin/env bash
# VPO by verl, on the GPUs of this node: bash examples/dropin/verl/run.sh [FIELD=VALUE ...]
# On several nodes, first let them form a Ray cluster, with verl, vpo-lab and this folder on each:
#   on the first node:  ray start --head
#   on every other:     ray start --address=FIRST_NODE:6379
# and then, on the first node alone:  bash examples/dropin/verl/run.sh trainer.nnodes=2
# Under Slurm, nodes.sbatch does all of that.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export VPO_REWARDS=${VPO_REWARDS:-$here/my_rewards.py}  # the same path on every node
python3 -m verl.trainer.main_ppo --config-dir "$here" --config-name vpo "$@"
