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
compiler_of() { if [ "$1" = h100 ]; then echo h100; else echo tpu; fi; }

compile() {
  SECONDS=0
  ".venv-aot-$(compiler_of "$1")/bin/python" scripts/aot.py "$1" --out="$out"
  echo "$1 took $SECONDS s"
}

for what in "$@"; do compiler_venv "$(compiler_of "$what")"; done
jobs=()  # at once: a compiler keeps about one core busy
for what in "$@"; do
  compile "$what" &
  jobs+=("$!")
done
status=0
for job in "${jobs[@]}"; do wait "$job" || status=$?; done
exit "$status"
