#!/usr/bin/env bash
# What one NVIDIA GPU is asked, in ten minutes and without a network:
#   make gpu [WHEELS=folder]        or: benchmarks/gpu.sh [folder]
# 1. the tests marked gpu; 2. the fast path at the shape of Qwen2.5-1.5B in bfloat16; 3. the ladder of SmolLM2-135M in its
# fast form, if the model and its data are on this machine. Each gets what the ones before have left of LIMIT seconds; what
# was not run, or not to its end, is said. WHEELS is needed where .venv is not there yet.
# Ends with 0 if nothing failed; what found no time has not failed.
set -uo pipefail
cd "$(dirname "$0")/.."
LIMIT=${LIMIT:-570}
wheels=${1:-}
failed=0
summary=()

if [ ! -x .venv/bin/python ]; then
  [ -n "$wheels" ] || { echo "there is no .venv; give the folder of wheels: make gpu WHEELS=folder" >&2; exit 2; }
  "${PYTHON:-python3}" -m venv .venv || exit 2
  .venv/bin/pip install --quiet --no-index --find-links "$wheels" --constraint constraints.txt --editable '.[test]' || exit 2
fi
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCH_EXTENSIONS_DIR="$PWD/.venv/torch_extensions"

# part NAME SECONDS COMMAND...: runs it for as long as there is time, at most SECONDS
part() {
  local name=$1 most=$2 left status
  shift 2
  left=$((LIMIT - SECONDS))
  if [ "$left" -lt 20 ]; then
    summary+=("$name: not run, no time was left")
    return
  fi
  echo "== $name"
  timeout --kill-after=10 $((left < most ? left : most)) "$@"
  status=$?
  case $status in
    0) summary+=("$name: done") ;;
    124 | 137) summary+=("$name: not run to its end, its time was over") ;;
    *) summary+=("$name: FAILED with status $status"); failed=1 ;;
  esac
}

device=cuda shape=qwen2.5-1.5b
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "torch finds no GPU here" >&2
  exit 2
fi
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null
python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
part "tests marked gpu" 240 python -m pytest -m gpu tests/test_gpu.py
part "benchmarks/fast_path.py" 240 python benchmarks/fast_path.py --shape "$shape" --device "$device" --rounds 3 \
  --workload prefix_rl heavy_tail --rows 8 32
part "benchmarks/plan_memory.py" 200 python benchmarks/plan_memory.py
ladder=recipes/smollm2-135m/ladder.yaml
if prefix-rl check recipes/smollm2-135m/dr_grpo.yaml >/dev/null 2>&1; then
  part "$ladder --fast" "$LIMIT" prefix-rl ladder "$ladder" --fast
else
  summary+=("$ladder --fast: not run, its model or data/gsm8k.jsonl is not on this machine (see its header)")
fi
printf '\n== in %d seconds\n' "$SECONDS"
printf '%s\n' "${summary[@]}"
exit "$failed"
