#!/usr/bin/env bash
# Check the project on a GPU machine that has Python 3.12, torch and transformers, but no package index and ten minutes.
#
#   benchmarks/gpu_check.sh install          wheels of .whl into $SITE; what the machine is
#   benchmarks/gpu_check.sh decoding OUT     our decoding against transformers', side by side
#   benchmarks/gpu_check.sh tests OUT        tests/gpu: Qwen3-1.7B's shape with random weights, the record of speeds
#   benchmarks/gpu_check.sh judges OUT       SmolLM2-135M on judges: warmup, three methods at once, pools
#   benchmarks/gpu_check.sh code OUT         Qwen2.5-Coder-0.5B on tests: warmup, VPO, GRPO, pools
#   benchmarks/gpu_check.sh pack OUT FOLDER  policies in bfloat16, pools and logs, cut into files of 15 MB
#
# SITE, MODELS and DATA (HumanEval, MBPP+, HH-RLHF) name folders. TINY=1 takes two steps of everything, on a CPU too.
set -euo pipefail
cd "$(dirname "$0")/.."
SITE=${SITE:-/tmp/site} MODELS=${MODELS:-/tmp/models} DATA=${DATA:-$PWD/.gpu/data} PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD:$SITE OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export VPO_LAB_CACHE=${VPO_LAB_CACHE:-$PWD/.gpu/cache}
real="$PYTHON benchmarks/real_model.py"
less=()
case ${1:-} in
install)
    $PYTHON -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$SITE" .whl/*.whl
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
    $PYTHON -c "import torch, transformers, trl, peft, accelerate as a; print('torch', torch.__version__, 'transformers', \
transformers.__version__, 'trl', trl.__version__, 'peft', peft.__version__, 'accelerate', a.__version__)"
    $PYTHON -c "from vpo_lab.tasks.code.sandbox import open_sandbox; s = open_sandbox(); \
print('sandbox', type(s).__name__, s.call('def f(a): return a + 1', 'f', ['[1]']))"
    ;;
decoding)
    $PYTHON benchmarks/decoding.py "$2/decoding.jsonl"
    ;;
tests)
    $PYTHON -m pytest -p no:cacheprovider -q --durations 12 --toolrl "${TOOLRL:-../shared/toolrl}" tests/gpu tests/unit/test_decoding.py || true
    cp -r runs/gpu "$2/" || true
    ;;
judges)
    [ -z "${TINY:-}" ] || less=(sft.steps=2 rl.steps=2 evaluation.requests=2)
    settings=(--data "$DATA" --set "policy.model=$MODELS/smollm2-135m" sft.micro_rows=8 rl.micro_rollouts=16
        evaluation.batch=720 "${less[@]}")
    $real smollm2-135m "$2/judges" --stages sft "${settings[@]}"
    for method in vpo grpo best_of_set; do # a run folder trains one thing at a time
        cp -r "$2/judges" "$2/judges-$method"
        $real smollm2-135m "$2/judges-$method" --stages $method pool:$method "${settings[@]}" >"$2/judges-$method.txt" 2>&1 &
    done
    $real smollm2-135m "$2/judges" --stages pool:sft pool:sft_chain "${settings[@]}"
    wait
    ;;
code)
    [ -z "${TINY:-}" ] || less=(sft.train_rows=4 sft.own_samples=3 sft.steps=2 sft.batch_rows=4 sft.micro_rows=2 policy.max_answer_tokens=24
        evaluation.requests=3 evaluation.candidates=3 'evaluation.budgets=[1,3]' rl.rollouts=4 rl.group_size=2
        rl.micro_rollouts=2) MICRO=2
    $real qwen2.5-coder-0.5b "$2/code" --data "$DATA" --minutes "vpo=${VPO_MINUTES:-4}" "grpo=${GRPO_MINUTES:-3}" \
        --micro "vpo=${MICRO:-16}" "grpo=${MICRO:-32}" --set "policy.model=$MODELS/qwen2.5-coder-0.5b" sft.micro_rows=8 \
        evaluation.batch=512 "${less[@]}" --stages sft pool:sft pool:sft_chain vpo grpo pool:vpo pool:grpo summary
    ;;
pack)
    $PYTHON - "$3" <<'PY'
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
for path in Path(sys.argv[1]).rglob("policy/adapter_model.safetensors"):
    save_file({name: weight.bfloat16() for name, weight in load_file(path).items()}, path)
PY
    tar -C "$3" --exclude 'checkpoint*' --exclude 'tokenizer*' -czf - . | split -b 15m - "$2/pack-"
    ls -l "$2"
    ;;
*)
    sed -n '2,/^set/p' "$0" | grep '^#'
    exit 2
    ;;
esac
