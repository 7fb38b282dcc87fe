"""Arguments of scripts, read by argparse and checked by domains.

Errors are ValueError with one sentence; `run` puts the program's name before it and exits with status 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lattice_jax.commands.domains import COUNT, POSITIVE, Several
from lattice_jax.domains import SEED, Domain, Names, Number, Place, Text, did_you_mean, short


class Parser(argparse.ArgumentParser):
  """Parses a script's arguments, and raises ValueError where argparse would print its usage and exit."""

  def __init__(self, description: str | None, prog: str | None = None):
    super().__init__(
      prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

  def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
    # argparse would take a misspelt name for a stray argument, or complain of another one that is missing
    for argument in sys.argv[1:] if args is None else args:
      name = argument.partition("=")[0]
      if re.fullmatch(r"--[a-z]\w*", name) and name not in self._option_string_actions:
        raise ValueError(f"unknown flag {name}.{did_you_mean(name, self._option_string_actions)}")
    arguments, unknown = self.parse_known_args(args, namespace)
    if unknown:
      raise ValueError(f"unexpected argument {unknown[0]!r}; flags are written as --name=value.")
    return arguments

  def add_model(self, example: str | None = None) -> None:
    """--pretrained and --workdir, between which `check_model` chooses; with an example of a change also --set."""
    self.add_argument("--pretrained", type=place, help="smollm2, a folder of safetensors or a .gguf file")
    self.add_argument("--workdir", type=path, help="folder of a run, in the place of --pretrained")
    if example:
      self.add_argument("--set", type=of(Text()), action="append", default=[],
                        help=f"a change of the config, as in {example}")

  def check_model(self, arguments: argparse.Namespace) -> None:
    """Raises ValueError unless one model is given."""
    if (arguments.pretrained is None) == (arguments.workdir is None):
      self.error("give either the --workdir of a run or a --pretrained model, such as smollm2.")

  def error(self, message: str) -> NoReturn:
    sentence = re.sub(r"^argument (\S+): expected .*", r"\1 has no value; write \1=VALUE", message)
    sentence = re.sub(r"^argument (\S+): (=?)", r"\1\2", sentence) if "=" in sentence else sentence
    raise ValueError(sentence if sentence.endswith((".", "?")) else f"{sentence}.")


def of(domain: Domain) -> Callable[[str], Any]:
  """A domain as the `type` of a script's argument."""
  def parse(text: str) -> Any:
    try:
      return domain.parse(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(f"={short(text)} {error}") from error

  parse.domain = domain
  return parse


positive, count, seed = of(POSITIVE), of(COUNT), of(SEED)
positives = of(Several(POSITIVE))
positive_number = of(Number(float, 0, is_low_open=True))
place = of(Place())


def one_of(*allowed: str) -> Callable[[str], str]:
  return of(Text(allowed))


def some_of(*allowed: str) -> Callable[[str], tuple[str, ...]]:
  """Some of these names, separated by commas."""
  return of(Names(allowed, fewest=1))


def path(text: str) -> Path:
  """A file or folder of this machine."""
  return Path(place(text))


path.domain = place.domain
