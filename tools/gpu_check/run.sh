#!/usr/bin/env bash
# Runs the check from the folder that `make gpu-check` made, on a machine without network: ./run.sh [OPTIONS]
#
# PYTHON is the interpreter that has PyTorch, OUT takes records and logs, GPU_CHECK_WORK lasts from one run to the next.
set -euo pipefail
mkdir -p "${OUT:=gpu-check-out}"
out=$(cd "$OUT" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
work=${GPU_CHECK_WORK:-/tmp/gpu-check-work}
mkdir -p "$work"

export PYTHONPATH="$work/site:$here/model:$here/tree"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY
export TORCHINDUCTOR_CACHE_DIR="$work/inductor" XDG_CACHE_HOME="$work/cache"
[ -e "$here/workload.jsonl" ] && export GPU_CHECK_WORKLOAD="$here/workload.jsonl"

cd "$here/tree"
"$python" -m tools.gpu_check.install "$here/wheels" "$work/site"
if [ -d "$here/model" ]; then
  # It takes some ten seconds of one core, which the first parts can spare.
  nice "$python" -c 'from langchain_specdec.models.embedded import model_path; model_path()' &
fi
status=0
"$python" -m tools.gpu_check --out "$out" "$@" &
check=$!
# What ends this script ends the check too, and with it the part that runs.
trap 'kill "$check" 2>/dev/null || true' HUP INT TERM
wait "$check" || status=$?
wait
exit "$status"
