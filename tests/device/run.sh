#!/usr/bin/env bash
# Checks the CUDA kernels on the first GPU and times them, within 7 minutes. Needs Python 3.10 and NVIDIA's driver: no toolkit,
# no build, no network. With PyTorch installed, times cuBLAS too. Arguments go to bench.py; a folder in $OUT gets the figures.
set -euo pipefail
cd "$(dirname "$0")"
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
exec python3 bench.py ${OUT:+--out "$OUT"} "$@"
