"""The largest update that fits a machine, found from a handful of compiled ones.

The peak of a chip is close to affine in the rows that it holds: two points give a line, the line a number of rows, and
what is answered has been compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from lattice_jax.config import Config
from lattice_jax.config_checks import check_config
from lattice_jax.preflight.account import Account, take_account
from lattice_jax.preflight.machine import Machine, abstract_mesh
from lattice_jax.sharding import mesh_sizes

REMATS = ("none", "full")
_TRIES = 3  # compiled to settle the number of rows, after the two points of the line

Measure = Callable[[Config, Machine], Account]


@dataclass(frozen=True)
class Found:
  """The largest of its kind that fits. account: None if not even one row a chip does; then `smallest` is that one."""

  what: str
  account: Account | None
  smallest: Account

  def line(self) -> str:
    """The flags that turn the config into this one."""
    config = self.account.config
    return (
      f"--config.data.batch={config.data.batch} --config.data.update_len={config.data.update_len} "
      f"--config.data.seq_len={config.data.seq_len} --config.model.remat={config.model.remat}")


def search(config: Config, machine: Machine, measure: Measure = take_account) -> list[Found]:
  """For each of `REMATS` the most rows of the config's own length, then the longest rows, one on each slice of `data`.

  Raises:
    ValueError: the mesh does not fit the machine.
  """
  abstract_mesh(with_rows(config, machine, 1), machine)
  found = [_most_rows(config, machine, remat, measure) for remat in REMATS]
  fitting = [one for one in found if one.account]
  longest = _longest(max(fitting, key=lambda one: one.account.work.tokens), machine, measure) if fitting else None
  return found + ([longest] if longest else [])


def with_rows(config: Config, machine: Machine, rows: int) -> Config:
  """The config with so many rows of a micro-batch on each slice of the mesh's `data` axis."""
  batch = rows * mesh_sizes(config.mesh, machine.chips)[0] * config.train.accumulate
  return dataclasses.replace(config, data=dataclasses.replace(config.data, batch=batch))


def _most_rows(config: Config, machine: Machine, remat: str, measure: Measure) -> Found:
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
  limit = machine.chip.usable_bytes
  what = f"most rows with remat={remat}"

  def at(rows: int) -> Account:
    return measure(with_rows(config, machine, rows), machine)

  one = at(1)
  if not _fits(one, limit):
    return Found(what, None, one)
  best_rows, best = 1, one
  other_rows, other = 2, at(2)
  for _ in range(_TRIES):
    if _fits(other, limit) and other_rows > best_rows:
      best_rows, best = other_rows, other
    slope = (other.peak_bytes - one.peak_bytes) / (other_rows - 1)
    rows = int((limit - one.peak_bytes) / slope) + 1 if slope > 0 else 2 * other_rows
    if not _fits(other, limit):
      rows = min(rows, other_rows - 1)
    if rows <= best_rows:
      break
    other_rows, other = rows, at(rows)
  if _fits(other, limit) and other_rows > best_rows:
    best = other
  return Found(what, best, one)


def _longest(found: Found, machine: Machine, measure: Measure) -> Found | None:
  """Rows as long as can be, a power of two times the length, from what the most rows hold down; None: its own length.

  A length that the config does not allow, such as one beyond `model.context_len`, counts as one that does not fit.
  """
  config = with_rows(found.account.config, machine, 1)
  times = found.account.config.data.batch // config.data.batch
  for power in reversed(range(1, times.bit_length())):
    length = config.data.update_len << power
    longer = dataclasses.replace(config, data=dataclasses.replace(
      config.data, update_len=length, seq_len=max(config.data.seq_len, length)))
    try:
      check_config(longer)
    except ValueError:
      continue
    account = measure(longer, machine)
    if _fits(account, machine.chip.usable_bytes):
      return Found(f"longest rows with remat={config.model.remat}", account, account)
  return None


def _fits(account: Account, limit: int) -> bool:
  return account.fits and account.peak_bytes <= limit
