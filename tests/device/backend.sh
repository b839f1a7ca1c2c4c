#!/usr/bin/env bash
# The backend on the first GPU, from the binaries that pack.sh made: see run.sh.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD root=$(cd ../.. && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for packed in packed/*.xz; do
    xz -dc "$packed" >"$work/$(basename "$packed" .xz)"
done
chmod +x "$work"/*

echo "== the engine's tests on the GPU"
(cd "$root/engine" && OFFSHOOT_NEEDS_GPU=1 OFFSHOOT_TEST_MODELS=$root/models OFFSHOOT_TEST_PROMPTS=$root/tests/prompts \
    OFFSHOOT_TEST_GGUF=$root/tests/gguf \
    "$work/cuda-test" --test-threads=1 --nocapture)

bench() { "$work/offshoot" bench --devices cuda:0 --prompts "$work/prompts.jsonl" --start-timeout 100 --max-tokens 64 "$@"; }
awk 'NR % 12 == 1' "$root/tests/prompts/heldout.jsonl" >"$work/prompts.jsonl"
echo "== the bundled models: texts and real agreement"
bench --models "$root/models" --strategies ar,serial,serial-tree,auto --limit 4 --tune-prompts 1

for shape in 1B 3B 8B; do
    python3 checkpoint.py $shape "$work/$shape" &
done
wait
echo "== steps of the random models"
(cd "$root/engine" && OFFSHOOT_NEEDS_GPU=1 OFFSHOOT_TIME_MODELS="$work/8B:$work/3B:$work/1B" \
    "$work/cuda-test" --test-threads=1 --nocapture how_long)
# Kernels of several processes overlap only under NVIDIA's Multi-Process Service.
if command -v nvidia-cuda-mps-control >/dev/null; then
    export CUDA_MPS_PIPE_DIRECTORY=$work CUDA_MPS_LOG_DIRECTORY=$work
    nvidia-cuda-mps-control -d
    trap 'echo quit | nvidia-cuda-mps-control; rm -rf "$work"' EXIT
    echo "== under the Multi-Process Service from here on"
fi
over=(--overlay "$root/models/profiles/nano.json" --target "$work/8B" --draft "$work/1B" --limit 6)
echo "== steps of 8B with a draft of 1B; answers from a profile"
bench "${over[@]}" --no-qualifier --strategies ar,serial,serial-tree,auto --tune-prompts 1 --repeats 4
echo "== the same at T = 1, with knobs that a sweep has found"
bench "${over[@]}" --no-qualifier --strategies ar,serial:gamma=2,serial-tree:depth=3:rows=16:width=8,auto --tune-prompts 0 \
    --temperature 1 --repeats 4
echo "== steps of 8B with a qualifier of 3B and a draft of 1B; answers from a profile"
bench "${over[@]}" --qualifier "$work/3B" --strategies ar,serial-tree:depth=4:rows=16:width=4,pyramid,auto --tune-prompts 0 --repeats 2
