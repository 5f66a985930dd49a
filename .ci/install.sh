#!/usr/bin/env bash
# Create a virtual environment and install orchestrate with the pinned versions.
# usage: [PYTHON=python3.11] install.sh VENV [EXTRA]
set -euo pipefail
venv=$1 extra=${2:-}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."

"$python" - <<'PY' || { echo "orchestrate needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 3; }
import sys
sys.exit(sys.version_info < (3, 11))
PY

if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  bash .ci/apt.sh python3-venv
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

torch=$(sed -n 's/^torch==//p' constraints.txt)
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  if [ -e /dev/nvidia0 ] || command -v nvidia-smi >/dev/null 2>&1; then
    pip install "torch==$torch"
  # Without a GPU the CPU build is enough and saves gigabytes. A local build is taken if pip is
  # configured to see one; otherwise uv knows where PyTorch keeps its CPU builds.
  elif ! pip install "torch==$torch+cpu" 2>/dev/null; then
    pip install uv
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu "torch==$torch" \
      || pip install "torch==$torch"
  fi
fi
# DeepSpeed's build looks at the installed torch and needs no compiler when no kernel is prebuilt.
pip install setuptools wheel numpy -c constraints.txt
DS_BUILD_OPS=0 pip install deepspeed --no-build-isolation -c constraints.txt
pip install -e ".${extra:+[$extra]}" -c constraints.txt
