#!/usr/bin/env bash
# Checks every command that the documentation shows, and builds its site into .cache/docs; a broken link or a warning fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv requirements.txt requirements-test.txt
docs_python=.venv-docs/bin/python
if ! [ -x "$docs_python" ]; then
  echo "Making .venv-docs …"
  "$venv_python" -m venv --clear .venv-docs
fi
install "$docs_python" requirements-docs.txt .venv-docs/installed-requirements-docs.txt

JAX_PLATFORMS=cpu "$venv_python" scripts/check_docs.py
NO_MKDOCS_2_WARNING=1 "$docs_python" -m mkdocs build --strict --quiet --config-file=docs/site/mkdocs.yml
echo "The site stands in .cache/docs; open .cache/docs/index.html."
