#!/usr/bin/env bash
# Lint and the tests, but for further cases of what others hold (marked `thorough`). Arguments go to pytest, and what
# they name runs whole:  bash scripts/test.sh -k vq
# With --all, every test runs.
# With --aot instead, kernels and a training step are compiled for TPUs and an H100 that are not there (scripts/aot.sh).
# With --newest instead, .venv-newest gets the newest versions that pyproject.toml allows, on Python 3.12 or newer, which
# the newest JAX needs, and the tests of ops, memories, laws, models and library run there, or those that are named.
set -euo pipefail
if [ "${1:-}" = --aot ]; then
  exec bash "$(dirname "${BASH_SOURCE[0]}")/aot.sh" "${@:2}"
fi
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
export JAX_PLATFORMS=cpu
if [ "${1:-}" = --newest ]; then
  shift
  venv_python=.venv-newest/bin/python
  [ -x .venv-newest/bin/pip ] || make_venv .venv-newest 12
  pip_install "$venv_python" "the newest versions" --upgrade --upgrade-strategy=eager --editable ".[dev]"
  "$venv_python" -c 'import flax, jax, platform
print(f"jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}", flush=True)'
  [ "$#" -gt 0 ] || set -- tests/ops tests/memories tests/contract/test_laws.py tests/models tests/test_library.py
else
  ensure_venv requirements.txt requirements-test.txt
  "$venv_python" -m ruff check .
  without=()  # kinds of tests that do not run
  if [ "$#" -eq 0 ]; then
    without+=("not thorough")
  elif [ "$1" = --all ]; then
    shift
  fi
  if [ "$#" -eq 0 ] && [ -z "${CI:-}" ] && ! "$venv_python" -m tests.browser; then
    without+=("not browser")
  fi
  if [ "${#without[@]}" -gt 0 ]; then
    kinds=$(printf " and %s" "${without[@]}")
    set -- -m "${kinds# and }" "$@"
  fi
fi
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
"$venv_python" -m pytest -n "$((cores < 4 ? cores : 4))" --dist loadgroup "$@"
