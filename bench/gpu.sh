#!/usr/bin/env bash
# On a GPU machine: bash bench/gpu.sh OUT
# Builds without network, then runs the GPU tests, compute-sanitizer on small shapes and every
# bench; leaves log.txt and one JSON file per core in OUT. A part that fails or runs out of time
# does not stop the others; the exit code is 0 only if all passed. At most 9 minutes in all.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: bash bench/gpu.sh OUT" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The installed package is tested: from the checkout, Python would import its unbuilt folder.
cd "$scratch"
export PYTHONPATH="$scratch/site" PYTHONDONTWRITEBYTECODE=1
log="$out/log.txt"
deadline=520
summary=()
failed=0

if ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu.sh: torch sees no CUDA device here" | tee "$log" >&2
  exit 2
fi

# part NAME SECONDS COMMAND...: runs the command for at most SECONDS, and not past the deadline.
part() {
  local name=$1 limit=$2 code=0 began=$SECONDS
  shift 2
  ((limit > deadline - SECONDS)) && limit=$((deadline - SECONDS))
  echo "== $name" | tee -a "$log"
  if ((limit < 5)); then
    code=124
  else
    timeout --kill-after=5 "$limit" "$@" >> "$log" 2>&1 || code=$?
  fi
  local result=ok
  ((code == 124 || code == 137)) && result="out of time"
  ((code != 0)) && failed=1 && [ "$result" = ok ] && result="failed ($code)"
  summary+=("$(printf '%-22s %4ds  %s' "$name" $((SECONDS - began)) "$result")")
  return "$code"
}

: > "$log"
nvidia-smi >> "$log" 2>&1
if part build 240 python3 -m pip install --no-build-isolation --no-deps --target site "$root"; then
  part "GPU tests" 100 python3 -m pytest -q -m gpu -p no:cacheprovider \
    -c "$root/pyproject.toml" --rootdir "$root" "$root/tests"
  # Without torch's cache every tensor is an allocation of its own, with bounds to step over.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck; do
    part "$tool" 60 compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 \
      python3 "$root/bench/gpu_small.py"
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
  for core in lmul deltaproduct gaunt binary pc; do
    [ -f "$root/bench/$core.py" ] || continue
    part "bench $core" 120 python3 "$root/bench/$core.py" --quick --json "$out/$core.json"
  done
fi
printf '%s\n' "" "${summary[@]}" | tee -a "$log"
exit "$failed"
