#!/usr/bin/env bash
# Compiles kernels and a training step for TPUs and an H100 without having them; called by scripts/test.sh --aot.
# Arguments: some of tpu, h100, step, by default these three; and large, which takes longer than all of them and is meant
# for the night. Results go to docs/results/aot, or to the folder AOT_OUT.
#   bash scripts/aot.sh environment tpu      # or h100: only makes the environment, for scripts/preflight.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv requirements.txt

# An environment that adds a compiler to the packages of .venv, so that only the compiler is downloaded.
compiler_venv() {
  local folder=.venv-aot-$1 file=requirements-aot-$1.txt site
  local stamp=$folder/installed-$file
  if ! [ -x "$folder/bin/python" ] || ! cmp -s "$file" "$stamp"; then
    echo "Making $folder …"
    "$venv_python" -m venv --clear "$folder"
    site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$venv_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/beside.pth"
    install "$folder/bin/python" "$file" "$stamp" --no-deps
  fi
}

if [ "${1:-}" = environment ]; then
  case ${2:-} in
    tpu | h100) compiler_venv "$2" ;;
    *) echo "environment is for tpu or h100, not ${2:-nothing}." >&2; exit 2 ;;
  esac
  exit
fi

out=${AOT_OUT:-docs/results/aot}
[ "$#" -gt 0 ] || set -- tpu h100 step
for what in "$@"; do
  case $what in
    tpu | h100 | step | large) ;;
    *) echo "--aot compiles tpu, h100, step or large, not $what." >&2; exit 2 ;;
  esac
done
for what in "$@"; do
  compiler=tpu
  [ "$what" = h100 ] && compiler=h100
  compiler_venv "$compiler"
  SECONDS=0
  ".venv-aot-$compiler/bin/python" scripts/aot.py "$what" --out="$out"
  echo "$what took $SECONDS s"
done
