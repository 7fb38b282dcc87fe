"""Checks every command line that README.md, docs/ and the docstrings of configs/ show, without doing its work.

python scripts/check_docs.py [PAGE …]

Each Python program is started with the documented arguments in a process of its own, and stopped where it has
accepted them: train.py once its config is read and checked, eval.py once its flags, --set and --cache are, a script
once its arguments are. Shell scripts, tests and pinned packages that are named must exist, and so must each flag and
each path in running text.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from lattice_jax import runtime
from lattice_jax.commands import arguments
from lattice_jax.config import Config, ModelConfig
from lattice_jax.config_text import apply_overrides
from lattice_jax.evaluation.caches import parse_cache
from lattice_jax.fields import find
from lattice_jax.memories.registry import FOLDERS, find_memory

ROOT = Path(__file__).resolve().parents[1]
_ACCEPTED = 77  # exit status of a program that was stopped behind its door
_PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ +)*(python|bash|pip|source|tensorboard|wandb)\s|[A-Z]+=")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_SHORT = re.compile(r"(train|eval|sweep|bench|plot|audit|prepare_data)\.py --")


def commands_of(text: str) -> Iterator[str]:
  """Command lines of a Markdown text: in code blocks, with their continuations, and in running text.

  Those of a block that is called console are of another tree, such as that of an exercise.
  """
  block, language, waiting = False, "", ""
  for line in text.splitlines():
    if line.lstrip().startswith("```"):
      block, language = not block, line.strip("` ")
      continue
    is_code = (block and language in ("", "bash")) or (not block and line.startswith("    "))
    if is_code and (waiting or _PROGRAM.match(line.strip())):
      waiting += line.strip()
      if waiting.endswith("\\"):
        waiting = waiting[:-1]
        continue
      yield waiting
      waiting = ""
    elif is_code and language == "bash" and line.strip() and not line.lstrip().startswith("#"):
      yield line.strip()
    elif not is_code and not block:
      for span in _SPAN.findall(line):
        if _SHORT.match(span):
          name = span.split()[0]
          yield f"python {name if name in ('train.py', 'eval.py') else f'scripts/{name}'}{span[len(name):]}"
        elif _PROGRAM.match(span) and "=" not in span.split()[0]:
          yield span


def flags_of(text: str) -> Iterator[str]:
  """--name and --config.FIELD in running text."""
  text = re.sub(r"(?ms)^```.*?^```", "", text)
  for span in _SPAN.findall(re.sub(r"(?m)^    .*$", "", text)):
    if not span.startswith(("pip ", "tensorboard ")):
      yield from re.findall(r"(?<![\w-])--([a-z]\w*(?:\.\w+)*)", span)


def paths_of(text: str) -> Iterator[str]:
  """Files and folders of this repository that running text names."""
  for span in _SPAN.findall(re.sub(r"(?ms)^```.*?^```", "", text)):
    if re.fullmatch(r"(configs|docs|lattice_jax|pallas_kernels|scripts|tests)/[\w/.*-]*", span):
      yield span


def known_flags() -> set[str]:
  """Names of the flags of all commands, from where they are defined."""
  names = set()
  for path in [*ROOT.glob("*.py"), *ROOT.glob("scripts/**/*"), *ROOT.glob("lattice_jax/**/*.py")]:
    if path.is_file():
      names |= set(re.findall(
        r"""(?:define(?:_several)?\(\s*|add_argument\(\s*|\[ "\$\{?1[^"]*" = |^ +(?=--\w+(?:=\*)?\) ))"""
        r"""["']?-{0,2}(\w+)""", path.read_text(), re.MULTILINE))
  return names | {"help", "xla_jf_dump_to"}


def words_of(line: str, variables: dict[str, str]) -> list[str]:
  """The words of a command; an assignment alone is noted in `variables`. What a shell would compute becomes a word."""
  line = re.sub(r"\$\([^)]*\)", "computed", line)
  line = re.sub(r"\$(\w+)", lambda match: variables[match[1]] if match[1] in variables else match[0], line)
  words = shlex.split(line.split(" > ")[0], comments=True)
  assigned = [words.pop(0).split("=", 1) for _ in range(len(words)) if re.match(r"[A-Z_]+=", words[0])]
  if not words:
    variables.update(assigned)
  return words


def refuse(words: list[str]) -> str:
  """Why the command cannot be run as it stands, or ""."""
  program, rest = words[0], words[1:]
  if program == "python":
    return refuse_python(rest)
  if program == "pip":
    pins = [word for word in rest if "==" in word]
    sources = "".join(path.read_text() for path in [
      *ROOT.glob("requirements*.txt"), ROOT / "lattice_jax" / "formats" / "locate.py"])
    missing = [pin for pin in pins if pin not in sources]
    return f"{missing[0]} is pinned nowhere" if missing else ""
  if program == "bash":
    paths = [word.split("::")[0] for word in rest if "/" in word and not word.startswith("-")]
    return "".join(f"there is no {path}" for path in paths if not (ROOT / path).exists())
  if program in ("tensorboard", "wandb"):
    return "" if (ROOT / ".venv" / "bin" / program).exists() else f"the environment has no {program}"
  return "" if words == ["source", ".venv/bin/activate"] else f"{program} is no command of this project"


def refuse_python(words: list[str]) -> str:
  """Starts the program in a process of its own; "" where it accepts its arguments."""
  files = [word.partition("=")[2] or word for word in words[1:]]
  lost = [name for name in files if re.fullmatch(r"(configs|tests|lattice_jax)/\S+\.(py|yaml)", name)
          and not (ROOT / name).exists()]
  if lost or (words[0] != "-m" and not (ROOT / words[0]).exists()):
    return f"there is no {(lost or words)[0]}"
  with tempfile.TemporaryFile() as said:
    child = os.fork()
    if child == 0:
      try:
        _start(words, said.fileno())
      finally:
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
  return "" if status in (0, _ACCEPTED) else f"status {status}: {lines[-1] if lines else ''}"


def _start(words: list[str], said: int) -> None:
  """The program, from its first line to where it has accepted its arguments."""
  os.dup2(said, 1)
  os.dup2(said, 2)
  sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
  os.chdir(ROOT)
  parse = arguments.Parser.parse_args

  def parse_and_stop(self, args=None, namespace=None):
    parse(self, args, namespace)
    os._exit(_ACCEPTED)

  arguments.Parser.parse_args = parse_and_stop
  runtime.enable_compilation_cache = _accept
  sys.argv = words[1:] if words[0] == "-m" else words
  try:
    if words[0] == "-m":
      runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
      runpy.run_path(words[0], run_name="__main__")
    os._exit(0)
  except SystemExit as end:
    os._exit(end.code if isinstance(end.code, int) else bool(end.code))


def _accept(*_: object) -> None:
  """Where train.py and eval.py have checked what they were given; what eval.py looks at later is looked at here."""
  given = {name: flags.FLAGS[name].value for name in flags.FLAGS}
  try:
    if "config" not in given:
      apply_overrides(Config(model=ModelConfig(pattern=("attention",))), given["set"])
      for text in given["cache"]:
        parse_cache(text)
  except ValueError as error:
    print(error, flush=True)
    os._exit(2)
  os._exit(_ACCEPTED)


def pages() -> Iterator[tuple[Path, str]]:
  """(file, text) of all that shows commands."""
  files = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "README.md", "docs/*.md", "lattice_jax/*.md"],
    cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
  for name in files:
    yield Path(name), (ROOT / name).read_text(encoding="utf-8")
  for path in ROOT.glob("configs/*.py"):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    yield path.relative_to(ROOT), re.sub(r"(?m)^(?=python )", "    ", docstring)


def main() -> int:
  """Prints what was checked; the number of mistakes, at most 1, is the exit status."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("pages", nargs="*", type=arguments.path, help="Markdown files; by default all")
  chosen = [(path, path.read_text(encoding="utf-8")) for path in parser.parse_args().pages]
  warnings.filterwarnings("ignore", message=r"os\.fork")  # nothing runs in this process but this
  for name in FOLDERS:
    find_memory(name)  # JAX and Flax are imported here, once, and not by every command
  known, done, mistakes = known_flags(), {}, []
  for path, text in chosen or pages():
    variables: dict[str, str] = {}
    for line in commands_of(text):
      words = words_of(line, variables)
      if words:
        key = tuple(words)
        done[key] = done[key] if key in done else refuse(words)
        if done[key]:
          mistakes.append(f"{path}: {line}\n    {done[key]}")
    for name in flags_of(text):
      if name.startswith("config."):
        try:
          find(Config, name.removeprefix("config."))
        except ValueError as error:
          mistakes.append(f"{path}: --{name}\n    {error}")
      elif name not in known:
        mistakes.append(f"{path}: no command has a flag --{name}")
    mistakes += [
      f"{path}: there is no {name}" for name in paths_of(text)
      if not any(ROOT.glob(name.rstrip("/").replace("NAME", "*")))]
  kinds = Counter(words[0] for words in done)
  print("\n".join([*mistakes, (
    f"{len(done)} different command lines ({', '.join(f'{number} of {name}' for name, number in kinds.items())}): "
    "those of Python were started with their arguments, of the others files and packages exist. "
    f"{len(mistakes)} mistakes.")]))
  return min(1, len(mistakes))


if __name__ == "__main__":
  sys.exit(main())
