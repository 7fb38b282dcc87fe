"""The largest update that fits a machine, found from a handful of compiled ones.

The peak of a chip is close to affine in the rows that it holds: what no row has a part in and the config's own rows
give a line, the line a number of rows, which gives a better line. What is answered has been compiled, with the
compiler's least effort: see `use_least_effort`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax

from lattice_jax.config import Config
from lattice_jax.config_checks import check_config
from lattice_jax.preflight.account import Account, take_account
from lattice_jax.preflight.machine import Machine, abstract_mesh
from lattice_jax.sharding import mesh_sizes
from lattice_jax.training.holdings import holdings

_TRIES = 4  # compiled at most to settle the number of rows
# Of a chip's usable memory, what is filled at most: a run, which compiles with more effort, was seen to need up to
# 0.8 % more than a search says.
FILLED = 0.98

Measure = Callable[[Config, Machine], Account]


@dataclass(frozen=True)
class Found:
  """The largest of its kind that fits. account: None if not one row a chip does. smallest: the fewest rows tried."""

  what: str
  account: Account | None
  smallest: Account

  def line(self) -> str:
    """The flags that turn the config into this one."""
    config = self.account.config
    return (
      f"--config.data.batch={config.data.batch} --config.data.update_len={config.data.update_len} "
      f"--config.data.seq_len={config.data.seq_len} --config.model.remat={config.model.remat}")


def use_least_effort() -> None:
  """From here on, this process compiles with less effort for the program's speed.

  For a model of a billion parameters libtpu takes two fifths of the time: most of it goes into the schedules of single
  fusions, which have no part in what is in memory. What goes to and from memory is more than in a run.
  """
  jax.config.update("jax_exec_time_optimization_effort", -1.0)


def search(config: Config, machine: Machine, measure: Measure = take_account) -> list[Found]:
  """With `model.remat` none and full the most rows of the config's own length, then the longest rows with full.

  Raises:
    ValueError: the mesh does not fit the machine.
  """
  abstract_mesh(with_rows(config, machine, 1), machine)
  first: Future[Account] = Future()
  with ThreadPoolExecutor(3) as pool:  # a compilation keeps about one core busy, and one of the three often waits
    none = pool.submit(_most_rows, config, machine, "none", measure)
    full = pool.submit(_most_rows, config, machine, "full", measure, first)
    full.add_done_callback(lambda done: first.set_exception(done.exception()) if not first.done() else None)
    longest = pool.submit(_longest, first, machine, measure)
  found = [none.result(), full.result(), longest.result()]
  return [one for one in found if one]


def with_rows(config: Config, machine: Machine, rows: int) -> Config:
  """The config with so many rows of a micro-batch on each slice of the mesh's `data` axis."""
  batch = rows * mesh_sizes(config.mesh, machine.chips)[0] * config.train.accumulate
  return dataclasses.replace(config, data=dataclasses.replace(config.data, batch=batch))


def _most_rows(
  config: Config, machine: Machine, remat: str, measure: Measure, first: Future[Account] | None = None) -> Found:
  """first: gets the account of the config's own rows."""
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
  limit, points = _limit(machine), {}

  def at(rows: int) -> Account:
    points[rows] = measure(with_rows(config, machine, rows), machine)
    return points[rows]

  def fitting() -> list[int]:
    return [rows for rows, account in points.items() if _fits(account, limit)]

  rows = _own_rows(config, machine)
  for _ in range(_TRIES):
    account = at(rows)
    if first and not first.done():
      first.set_result(account)
    rows = _next_rows(points, _row_free_bytes(config, machine), limit)
    if rows in points:
      break
  if not fitting() and 1 not in points:
    at(1)
  best = max(fitting(), default=None)
  return Found(f"most rows with remat={remat}", points[best] if best else None, points[min(points)])


def _next_rows(points: dict[int, Account], free_bytes: int, limit: int) -> int:
  """Where the line through the last two points meets the limit, or through the one and what no row has a part in."""
  *before, (rows, account) = points.items()
  begin, begin_bytes = (before[-1][0], before[-1][1].peak_bytes) if before else (0, free_bytes)
  slope = (account.peak_bytes - begin_bytes) / (rows - begin)
  wanted = int(rows + (limit - account.peak_bytes) / slope) if slope > 0 else 2 * rows
  # between the most that fit and the fewest that do not
  fits = [known for known, found in points.items() if _fits(found, limit)]
  refused = [known for known, found in points.items() if not _fits(found, limit)]
  return max(1, *fits, min([wanted, *(known - 1 for known in refused)]))


def _own_rows(config: Config, machine: Machine) -> int:
  """Rows of a slice that the config asks for, at least one: where the search begins."""
  return max(1, config.data.batch // with_rows(config, machine, 1).data.batch)


def _row_free_bytes(config: Config, machine: Machine) -> int:
  """Bytes of a chip that are there however many rows it has: parameters and optimizer."""
  mesh = abstract_mesh(with_rows(config, machine, 1), machine)
  return sum(one.device_bytes for one in holdings(with_rows(config, machine, 1), mesh)
             if not one.path.startswith("memory"))


def _longest(first: Future[Account], machine: Machine, measure: Measure) -> Found | None:
  """Rows as long as can be, a power of two times the length, one on each slice of `data`; None: its own length.

  first: of the config's own rows and length, from which the first length is guessed. A peak grows at most as the length
  does. A length that the config does not allow, such as one beyond `model.context_len`, counts as one that does not
  fit.
  """
  own, limit = first.result(), _limit(machine)
  config = with_rows(own.config, machine, 1)
  power, best, refused = _doublings(limit, own.peak_bytes / _own_rows(own.config, machine)), (0, None), 64
  for _ in range(_TRIES):
    power = min(power, refused - 1)
    if power <= best[0]:
      break
    account = _longer(config, power, machine, measure)
    if account and _fits(account, limit):
      best = power, account
      power += _doublings(limit, account.peak_bytes)
    else:
      refused = power
  return Found(f"longest rows with remat={config.model.remat}", best[1], best[1]) if best[1] else None


def _doublings(limit: int, size: float) -> int:
  """How often a size can be doubled below a limit."""
  return max(0, int(math.log2(limit / size)))


def _longer(config: Config, power: int, machine: Machine, measure: Measure) -> Account | None:
  """An update of rows 2 ** power times as long; None where the config allows no such length."""
  length = config.data.update_len << power
  longer = dataclasses.replace(config, data=dataclasses.replace(
    config.data, update_len=length, seq_len=max(config.data.seq_len, length)))
  try:
    check_config(longer)
  except ValueError:
    return None
  return measure(longer, machine)


def _limit(machine: Machine) -> int:
  return int(FILLED * machine.chip.usable_bytes)


def _fits(account: Account, limit: int) -> bool:
  return account.fits and account.peak_bytes <= limit
