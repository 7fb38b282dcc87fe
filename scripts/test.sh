#!/usr/bin/env bash
# Lint and all tests. Arguments go to pytest:  bash scripts/test.sh -k vq
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv requirements.txt requirements-test.txt

cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export JAX_PLATFORMS=cpu
"$venv_python" -m ruff check .
"$venv_python" -m pytest -n "$((cores < 4 ? cores : 4))" --dist loadgroup "$@"
