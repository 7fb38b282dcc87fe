#!/usr/bin/env bash
# Lint and all tests. Arguments go to pytest:  bash scripts/test.sh -k vq
# With --aot instead, kernels and a training step are compiled for TPUs and an H100 that are not there (scripts/aot.sh).
set -euo pipefail
if [ "${1:-}" = --aot ]; then
  exec bash "$(dirname "${BASH_SOURCE[0]}")/aot.sh" "${@:2}"
fi
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv requirements.txt requirements-test.txt

cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export JAX_PLATFORMS=cpu
"$venv_python" -m ruff check .
"$venv_python" -m pytest -n "$((cores < 4 ? cores : 4))" --dist loadgroup "$@"
