"""--config and --set, by which a command takes a config and changes of single fields; needs no JAX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags

from lattice_jax.arguments import define, define_several
from lattice_jax.config import Config
from lattice_jax.domains import Place, Text
from lattice_jax.fields import find


def define_config() -> flags.FlagHolder:
  return define("config", Place(), None, "Experiment: FILE[:VARIANT,…], as in configs/vq_enwik8.py:sample.")


def define_set() -> flags.FlagHolder:
  return define_several(
    "set", Text(), "Change of the config: --set=SECTION.FIELD=VALUE; --config.SECTION.FIELD=VALUE is the same.")


def as_flags(argv: Sequence[str]) -> list[str]:
  """The command line with each --config.PATH=VALUE as --set=PATH=VALUE, which it is another spelling of.

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
