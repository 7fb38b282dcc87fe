"""What a command line says, read by domains: flags of train.py and eval.py through absl, arguments of scripts.

Errors are ValueError, one sentence; `runtime` puts the program's name before it and ends with status 2.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

from lattice_jax.domains import Domain, Names, Number, Place, Switch, did_you_mean

POSITIVE, COUNT = Number(int, 1), Number(int, 0)


@dataclass(frozen=True)
class Several:
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
    arguments, unknown = self.parse_known_args(args, namespace)
    if unknown:
      name = unknown[0].split("=")[0]
      known = [option for action in self._actions for option in action.option_strings]
      raise ValueError(
        f"unknown {'flag' if name.startswith('-') else 'argument'} {name}.{did_you_mean(name, known)}")
    return arguments

  def error(self, message: str) -> NoReturn:
    raise ValueError(re.sub(r"^argument (\S+): =", r"\1=", message).rstrip(".") + (
      "" if message.endswith("?") else "."))


def of(domain: Domain) -> Callable[[str], Any]:
  """A domain as the type of a script's argument."""
  def parse(text: str) -> Any:
    try:
      return domain.parse(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(f"={text} {error}") from error

  return parse


positive = of(POSITIVE)
count = of(COUNT)


def some_of(*allowed: str) -> Callable[[str], tuple[str, ...]]:
  """Names out of these, separated by commas."""
  return of(Names(allowed, fewest=1))


def path(text: str) -> Path:
  """A file or folder of this machine, as the type of a script's argument; ~ is the home."""
  return local_path(of(Place())(text))


def local_path(text: str | Path) -> Path:
  """The place that a user names; ~ is the home."""
  return Path(text).expanduser()
