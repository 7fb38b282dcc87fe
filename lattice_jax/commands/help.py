"""Prints --help and docs/configuration.md, from the declarations of flags, experiments and fields.

python -m lattice_jax.commands.help > docs/configuration.md
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from lattice_jax.commands.flags import FlagParser
from lattice_jax.config import Config
from lattice_jax.fields import domain_of
from lattice_jax.markdown import markdown_table

WIDTH, _COLUMN = 100, 30


@dataclasses.dataclass(frozen=True)
class Entry:
  """A flag, an experiment or a field. detail: domain and default, or variants."""

  name: str
  meaning: str
  detail: str


def describe_command(description: str) -> str:
  """The description, the flags, and the experiments and fields of the config if the command takes them."""
  parts = [*map(_reflow, description.strip().split("\n\n")), _block("Flags", flag_entries())]
  if "config" in flags.FLAGS:
    parts.append(_block("Experiments: --config=configs/NAME.py or --config=configs/NAME.py:VARIANT,VARIANT",
                        experiments()))
  if "set" in flags.FLAGS:
    parts.append("Fields of the config: --config.FIELD=VALUE, or --set=FIELD=VALUE")
    parts += [_block(title, entries) for title, entries in sections()]
  return "\n\n".join(parts) + "\n"


def _reflow(paragraph: str) -> str:
  """Wraps prose to the width of the page; leaves commands as they are."""
  return paragraph if paragraph.startswith("python ") else textwrap.fill(" ".join(paragraph.split()), WIDTH)


def _block(title: str, entries: Iterable[Entry]) -> str:
  return "\n".join([title, *(line for entry in entries for line in _lines(entry))])


def _lines(entry: Entry) -> list[str]:
  """The name on the left, meaning and detail on the right, on one line if they fit."""
  name, room = f"  {entry.name}", WIDTH - _COLUMN
  text = f"{entry.meaning} [{entry.detail}]"
  texts = [text] if len(text) <= room else [
    *textwrap.wrap(entry.meaning, room), *textwrap.wrap(f"[{entry.detail}]", room)]
  first = [name] if len(name) > _COLUMN - 2 else [f"{name:{_COLUMN}}{texts.pop(0)}"]
  return [*first, *(" " * _COLUMN + text for text in texts)]


def flag_entries() -> list[Entry]:
  """The flags of this command by name, without those that its libraries define."""
  entries = []
  for name in sorted(flags.FLAGS):
    flag = flags.FLAGS[name]
    if isinstance(flag.parser, FlagParser):
      default = "" if flag.default in (None, []) else f"; default {_text(flag.default)}"
      spelt = f"--[no]{name}" if isinstance(flag, flags.BooleanFlag) else f"--{name}="
      # absl appends a note to flags that may be repeated
      entries.append(Entry(spelt, flag.help.split(";\n")[0], f"{flag.parser.domain.describe()}{default}"))
  return entries


def experiments() -> Iterator[Entry]:
  """Each file under configs/, with the first line of its docstring and its variants."""
  root = Path(__file__).parents[2]
  if str(root) not in sys.path:
    sys.path.insert(0, str(root))
  common = importlib.import_module("configs.common")
  for path in sorted((root / "configs").glob("*.py")):
    if path.stem != "common":
      module = importlib.import_module(f"configs.{path.stem}")
      first_line = inspect.getdoc(module).split("\n")[0]
      yield Entry(path.stem, first_line, f"variants: {', '.join(common.variants(module.get_config))}")


def sections() -> Iterator[tuple[str, list[Entry]]]:
  """(title, fields) of each section of the config."""
  yield from _sections(Config, "", "the experiment")


def _sections(cls: type, path: str, meaning: str) -> Iterator[tuple[str, list[Entry]]]:
  entries, inner = [], []
  for field in dataclasses.fields(cls):
    domain, meant = domain_of(field), field.metadata["doc"]
    if domain is None:
      inner.append((field.default_factory, path + field.name, meant))
    else:
      entries.append(Entry(path + field.name, meant, f"{domain.describe()}; default {_text(field.default)}"))
  yield f"{path.rstrip('.')}: {meaning}" if path else meaning, entries
  for part, name, meant in inner:
    yield from _sections(part, name + ".", meant)


def _text(value: Any) -> str:
  """A value as it is written on a command line."""
  if isinstance(value, float):
    return f"{value:g}"
  if isinstance(value, (tuple, list)):
    pairs = [":".join(item) if isinstance(item, tuple) else str(item) for item in value]
    return ",".join(pairs) or "none"
  return str(value) if value != "" else "none"


def markdown() -> str:
  """The page docs/configuration.md."""
  lines = [
    "# Configuration", "",
    "An experiment is a file under `configs/`, and each of its fields can be changed on the command line:",
    "`python train.py --config=configs/quickstart.py --workdir=runs/a --config.train.steps=100`. `eval.py` takes the",
    "same changes of a stored run (`--set=model.vq.cache=false`). Several fields of a section can be changed at once,",
    "`--config.model.vq=\"{'codes': 128, 'block_len': 64}\"`; those that are not named stay. A value outside its",
    "domain is refused before anything is done.", "",
    "This page is printed by `python -m lattice_jax.commands.help > docs/configuration.md`; `python train.py --help`",
    "says the same.", "", "## Experiments", "",
    markdown_table([("configs/NAME.py", "what it is", "variants, after a colon"), *(
      (f"`{entry.name}`", entry.meaning, entry.detail.removeprefix("variants: ")) for entry in experiments())], "lll")]
  for title, entries in sections():
    if entries:
      lines += ["", f"## {title[:1].upper() + title[1:] if ':' not in title else title}", "",
                markdown_table([("field", "meaning", "domain and default"), *(
                  (f"`{entry.name}`", entry.meaning, entry.detail) for entry in entries)], "lll")]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  sys.stdout.write(markdown())
