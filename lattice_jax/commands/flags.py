"""Flags of train.py and eval.py: how one is defined, and how a command line is read. Needs no JAX.

Errors are ValueError with one sentence; `run` puts the program's name before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from lattice_jax.config import Config
from lattice_jax.domains import Domain, Place, Switch, Text, did_you_mean, short
from lattice_jax.fields import find


class FlagParser(flags.ArgumentParser):
  """A domain as absl wants it."""

  def __init__(self, domain: Domain):
    self.domain = domain

  def parse(self, argument: Any) -> Any:
    return self.domain.parse(argument) if isinstance(argument, str) else self.domain.convert(argument)


def define(name: str, domain: Domain, default: Any, meaning: str) -> flags.FlagHolder:
  """A flag of a command; its value is None where it was not given and has no default."""
  parser, serializer = FlagParser(domain), flags.ArgumentSerializer()
  if not isinstance(domain, Switch):
    return flags.DEFINE(parser, name, default, meaning, serializer=serializer)
  flag = flags.BooleanFlag(name, default, meaning)
  flag.parser = parser
  return flags.DEFINE_flag(flag)


def define_several(name: str, domain: Domain, meaning: str) -> flags.FlagHolder:
  """A flag that may be given several times; its value is a list."""
  return flags.DEFINE_multi(FlagParser(domain), flags.ArgumentSerializer(), name, [], meaning)


def define_config() -> flags.FlagHolder:
  return define("config", Place(), None, "Experiment: FILE[:VARIANT,…], as in configs/vq_enwik8.py:sample.")


def define_set() -> flags.FlagHolder:
  return define_several(
    "set", Text(), "Change of the config: --set=SECTION.FIELD=VALUE; --config.SECTION.FIELD=VALUE is the same.")


def given_flags() -> list[str]:
  """The names of the flags that stand on the command line."""
  return [name for name in flags.FLAGS if not flags.FLAGS[name].using_default_value]


def parse_flags(argv: Sequence[str]) -> None:
  """Sets every flag. Raises ValueError for one that is unknown or out of its domain, and for what is no flag."""
  try:
    argv = [*argv[:1], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
    rest = flags.FLAGS(expand_config_fields(argv) if "set" in flags.FLAGS else argv)[1:]
  except flags.CantOpenFlagFileError as error:
    reason = str(error).rpartition("] ")[2]
    raise ValueError(f"--flagfile cannot be read ({reason}).") from error
  except flags.UnrecognizedFlagError as error:
    hint = did_you_mean(error.flagname, list(flags.FLAGS), quote="--{}".format)
    raise ValueError(f"unknown flag --{error.flagname}.{hint}") from error
  except flags.Error as error:
    text = re.sub(r"^flag (--\w+=.*): (must|is|names) ", lambda said: f"{short(said[1])} {said[2]} ",
                  " ".join(str(error).split()))
    missing = re.fullmatch(r"Missing value for flag (--\w+)", text)
    raise ValueError(f"{missing[1]} has no value; write {missing[1]}=VALUE." if missing else text) from error
  if rest:
    raise ValueError(f"unexpected argument {rest[0]!r}; flags are written as --name=value.")


def expand_config_fields(argv: Sequence[str]) -> list[str]:
  """The command line with each --config.PATH=VALUE spelt --set=PATH=VALUE.

  Raises:
    ValueError: a path names no field, or a value is missing.
  """
  result, waiting = [], list(argv)
  while waiting:
    argument = waiting.pop(0)
    match = re.match(r"--?(no)?config\.([^=]+)(=.*)?$", argument, re.DOTALL)
    if argument == "--":
      return [*result, argument, *waiting]
    if not match:
      result.append(argument)
      continue
    negated, path, value = match.groups()
    domain = find(Config, path)
    is_switch = domain is not None and domain.kind is bool
    if negated and not (is_switch and value is None):
      raise ValueError(f"{argument} is written --config.{path}=VALUE; only fields that are true or false have --no….")
    if value is None and is_switch:
      value = f"={not negated}"
    if value is None:
      if not waiting:
        raise ValueError(f"--config.{path} has no value; write --config.{path}=VALUE.")
      value = f"={waiting.pop(0)}"
    result.append(f"--set={path}{value}")
  return result
