"""What a command line says, read by domains: flags of train.py and eval.py through absl, arguments of scripts.

Errors are ValueError, one sentence; `runtime` puts the program's name before it and ends with status 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

from lattice_jax.domains import SEED, Domain, Names, Number, Place, Switch, Text, did_you_mean, short

POSITIVE, COUNT = Number(int, 1), Number(int, 0)


@dataclass(frozen=True)
class Several(Domain):
  """Values of one domain, separated by commas; at least one."""

  of: Domain
  kind: type = tuple

  def convert(self, value: Any) -> tuple[Any, ...]:
    return tuple(self.of.convert(item) for item in value)

  def parse(self, text: str) -> tuple[Any, ...]:
    try:
      return tuple(self.of.parse(part) for part in text.split(","))
    except ValueError as error:
      raise ValueError(f"must be values with commas between them, each of which {error}") from error

  def describe(self) -> str:
    return f"{self.of.describe()}, …"


class FlagParser(flags.ArgumentParser):
  """absl's side of a domain."""

  def __init__(self, domain: Domain):
    self.domain = domain

  def parse(self, argument: Any) -> Any:
    return self.domain.parse(argument) if isinstance(argument, str) else self.domain.convert(argument)

  def flag_type(self) -> str:
    return self.domain.describe()


def define(name: str, domain: Domain, default: Any, meaning: str) -> flags.FlagHolder:
  """A flag of a command; None as default is «not given»."""
  parser, serializer = FlagParser(domain), flags.ArgumentSerializer()
  if not isinstance(domain, Switch):
    return flags.DEFINE(parser, name, default, meaning, serializer=serializer)
  flag = flags.BooleanFlag(name, default, meaning)
  flag.parser = parser
  return flags.DEFINE_flag(flag)


def define_several(name: str, domain: Domain, meaning: str) -> flags.FlagHolder:
  """A flag that may be given several times; its value is a list."""
  return flags.DEFINE_multi(FlagParser(domain), flags.ArgumentSerializer(), name, [], meaning)


class Parser(argparse.ArgumentParser):
  """A script's arguments. Raises ValueError where argparse would print its usage and leave."""

  def __init__(self, description: str | None, prog: str | None = None):
    super().__init__(
      prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

  def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
    # looked for before argparse can miss what was meant by a misspelt name
    for argument in sys.argv[1:] if args is None else args:
      name = argument.partition("=")[0]
      if re.fullmatch(r"--[a-z]\w*", name) and name not in self._option_string_actions:
        raise ValueError(f"unknown flag {name}.{did_you_mean(name, self._option_string_actions)}")
    arguments, unknown = self.parse_known_args(args, namespace)
    if unknown:
      raise ValueError(f"unexpected argument {unknown[0]!r}; flags are written as --name=value.")
    return arguments

  def error(self, message: str) -> NoReturn:
    sentence = re.sub(r"^argument (\S+): expected .*", r"\1 has no value; write \1=VALUE", message)
    sentence = re.sub(r"^argument (\S+): (=?)", r"\1\2", sentence) if "=" in sentence else sentence
    raise ValueError(sentence if sentence.endswith((".", "?")) else f"{sentence}.")


def of(domain: Domain) -> Callable[[str], Any]:
  """A domain as the type of a script's argument."""
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
  """Names out of these, separated by commas."""
  return of(Names(allowed, fewest=1))


def path(text: str) -> Path:
  """A file or folder of this machine, as the type of a script's argument."""
  return Path(place(text))


path.domain = place.domain
