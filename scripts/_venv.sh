# Sourced by the other scripts, which set pipefail: goes to the repository's root and makes .venv as the requirement files say.
# PYTHON=… picks the interpreter of a new .venv.

caller_dir=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1  # huge pages: faster on Linux CPUs, ignored elsewhere
venv_python=.venv/bin/python

# _python_path PYTHON MINOR: the absolute path of an interpreter, or failure where it is missing or older than 3.MINOR.
_python_path() {
  (cd "$caller_dir" && "$1" -c "import sys; print(sys.executable); sys.exit(sys.version_info < (3, $2))" 2>/dev/null)
}

# _find_python MINOR: on PATH, or where pyenv and uv keep theirs.
_find_python() {
  local minor=$1 candidate
  if [ -n "${PYTHON:-}" ]; then
    _python_path "$PYTHON" "$minor" && return
    echo "PYTHON=$PYTHON does not run as Python 3.$minor or newer; name one that does." >&2
    return 1
  fi
  for candidate in python3 python3.13 python3.12 python3.11 "$HOME"/.pyenv/versions/3.*/bin/python3 \
    "$HOME"/.local/share/uv/python/*/bin/python3; do
    if _python_path "$candidate" "$minor" >/dev/null; then _python_path "$candidate" "$minor"; return; fi
  done
  echo "No Python 3.$minor or newer was found, neither on PATH nor among those of pyenv and uv. Install one (without" \
    "root: pip install uv && uv python install 3.13), or set PYTHON=/path/to/python." >&2
  return 1
}

# make_venv FOLDER MINOR: an empty environment of Python 3.MINOR or newer.
make_venv() {
  local folder=$1 python
  python=$(_find_python "$2") || exit 1
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
  fi
  echo "Making $folder with $("$python" --version) …"
  "$python" -m venv --clear "$folder" || exit 1
}

# Of what pip says: every 20th package, downloads of 10 MB or more, and that it unpacks. Line by line, so that it is seen
# at once, on a terminal or not.
_large_steps() {
  local line size name count=0
  while IFS= read -r line; do
    case "$line" in
      Collecting\ *)
        count=$((count + 1))
        name=${line#Collecting }
        if [ $((count % 20)) -eq 0 ]; then echo "  $count packages found, up to ${name%% *}"; fi
        ;;
      *Downloading\ *\ MB\) | *"Using cached "*\ MB\))
        size=${line##*\(}
        name=${line%% \(*}
        name=${name##*[ /]}
        if [ "${size%%[. ]*}" -ge 10 ]; then echo "  ${name%%-*}, ${size%\)}"; fi
        ;;
      "Installing collected packages: "*)
        line=${line//[^,]/}
        echo "  unpacking $((${#line} + 1)) packages …"
        ;;
    esac
  done
}

# pip_install PYTHON WHAT ARGUMENT…: by pip, in few lines; WHAT is what they call it.
pip_install() {
  local python=$1 what=$2 started=$SECONDS
  shift 2
  echo "Installing $what, which takes minutes the first time …"
  if ! PYTHONUNBUFFERED=1 "$python" -m pip install --progress-bar=off --disable-pip-version-check "$@" | _large_steps; then
    echo "Installing $what failed; the lines above say why. Run the same command again to retry." >&2
    exit 1
  fi
  echo "  done in $((SECONDS - started)) s"
}

# install PYTHON FILE STAMP [OPTION …]: what the file lists, unless the stamp, a copy of it, says that it is there.
install() {
  local python=$1 file=$2 stamp=$3
  shift 3
  cmp -s "$file" "$stamp" && return
  pip_install "$python" "$file" "$@" -r "$file"
  cp "$file" "$stamp"
}

# ensure_venv FILE…: afterwards .venv holds what the requirement files list. Takes milliseconds when nothing changed.
ensure_venv() {
  local file
  [ -x "$venv_python" ] && [ -x .venv/bin/pip ] || make_venv .venv 11
  for file in "$@"; do
    install "$venv_python" "$file" ".venv/installed-$file"
  done
}
