#!/usr/bin/env bash
# Everything that only a machine with a CUDA device can show, in one run: exactness and precisions (tests), speed and
# memory against timm's module, and the quickstart on the device. Fills the GPU column of docs/verified.md.
#
#   benchmarks/gpu.sh [PYTHON]        PYTHON: the interpreter with the package and its test extra (.venv/bin/python)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-.venv/bin/python}
failed=0

step() { # step NAME COMMAND...: runs it, says how it ended, goes on
    echo "== $1"
    shift
    "$@" || { echo "== failed ($?): $*"; failed=1; }
}

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "no CUDA device here"; exit 1; }
"$python" -c 'import torch; p = torch.cuda.get_device_properties(0); print(p.name, f"{p.total_memory / 2**30:.0f} GiB, torch", torch.__version__, "CUDA", torch.version.cuda)'
step "precisions, exact resume, agreement with the CPU" "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py
step "speed and memory against timm's module" "$python" benchmarks/gpu.py --output "${GPU_JSON:-gpu.json}"
exit $failed
