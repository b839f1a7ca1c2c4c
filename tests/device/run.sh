#!/usr/bin/env bash
# Checks and times the first GPU, within 7 minutes and without a build or a network: the kernels alone, and, where pack.sh has put
# binaries into `packed`, the backend: the engine's tests on the GPU, and `offshoot bench` with the bundled models and with random
# ones in the shapes of Llama 3. Needs Python 3.10 and NVIDIA's driver, no toolkit; with PyTorch it also times cuBLAS. Arguments go to
# bench.py; a folder in $OUT gets the figures.
set -euo pipefail
cd "$(dirname "$0")"
if [ -z "${OFFSHOOT_DEVICE_LIMITED:-}" ]; then
    OFFSHOOT_DEVICE_LIMITED=1 exec timeout 420 ./run.sh "$@"
fi
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
python3 bench.py ${OUT:+--out "$OUT"} "$@"
if [ -d packed ]; then exec ./backend.sh; fi
echo "the backend was not checked: tests/device/pack.sh makes what that needs"
