#!/usr/bin/env bash
# VPO by verl, on the GPUs of this node: bash examples/dropin/verl/run.sh [FIELD=VALUE ...]
# On several nodes, first let them form a Ray cluster, with verl, vpo-lab and this folder at the same paths on each:
#   on the first node:  ray start --head
#   on every other:     ray start --address=FIRST_NODE:6379
# and then, on the first node alone:  bash examples/dropin/verl/run.sh trainer.nnodes=2
# Newer Ray guards a cluster by a token: export RAY_AUTH_MODE=token, and the same ~/.ray/auth_token on every node.
# Under Slurm, nodes.sbatch does all of that.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# Paths go in as settings: a worker of Ray does not see the variables of this shell.
python3 -m verl.trainer.main_ppo --config-dir "$here" --config-name vpo \
  reward.custom_reward_function.path="$here/my_rewards.py" \
  data.train_files="$HOME/data/gsm8k/train.parquet" data.val_files="$HOME/data/gsm8k/test.parquet" "$@"
