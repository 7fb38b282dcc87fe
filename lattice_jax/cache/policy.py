"""A cache policy with its budget as static data: what it keeps, how slots compete, what it records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lattice_jax.cache.budget import compressed_length, keep_of_partition, most_slots, window_size
from lattice_jax.cache.config import CacheConfig
from lattice_jax.cache.policies.record import PolicyRecord
from lattice_jax.cache.policies.registry import COMPRESSING, NAMES, POLICIES
from lattice_jax.fields import check_fields

if TYPE_CHECKING:
  from lattice_jax.ops.attention.fold import Fold


@dataclass(frozen=True)
class Policy:
  """What a config's cache does; made by `make_policy`.

  sinks: first tokens that always stay; 0 of "full".
  window: tokens a query sees beside the sinks, 0 = all.
  lag, keep: each head keeps `keep` of a partition of `lag` tokens, or with an online budget at most as many on average;
    0 where nothing is compressed.
  records_mass: whether the attention that each slot received is summed up.
  num_queries: last queries that are kept.
  records_marks: whether the marks of each token are kept.
  fold: takes what leaves the cache; None where nothing does.
  """

  config: CacheConfig
  sinks: int = 0
  window: int = 0
  lag: int = 0
  keep: int = 0
  records_mass: bool = False
  num_queries: int = 0
  records_marks: bool = False
  fold: Fold | None = None

  @property
  def record(self) -> PolicyRecord:
    return POLICIES[self.config.policy]

  @property
  def is_global(self) -> bool:
    """Whether slots of all partitions compete, and not only those of one."""
    return self.record.chooses == "all"

  @property
  def is_online(self) -> bool:
    """Whether the number kept of a partition is decided when it is compressed."""
    return self.config.budget != "fixed"

  @property
  def drops(self) -> bool:
    """Whether any token ever leaves."""
    return bool(self.window or self.lag)

  def sees(self, query: int, key: int) -> bool:
    """Whether the token at `query` may see the one at `key` while nothing is compressed."""
    return key <= query and (not self.window or key < self.sinks or query - key < self.window)

  def length_after(self, num_tokens: int) -> int:
    """Slots in use after so many tokens of a document, however they arrived, in layers that are not skipped.

    An online budget may use fewer.
    """
    if self.window:
      return min(num_tokens, self.sinks + self.window)
    if self.lag:
      return compressed_length(num_tokens, sinks=self.sinks, lag=self.lag, keep=self.keep)
    return num_tokens

  def num_slots(self, max_len: int) -> int:
    """Slots of a cache for documents of at most `max_len` tokens; 0 tokens need none."""
    if self.window:
      return min(max_len, self.sinks + self.window)
    # layers are one array, and those that are skipped hold every token
    if self.lag and self.config.call_len and not self.config.skip_layers:
      return most_slots(
        max_len, sinks=self.sinks, lag=self.lag, keep=self.keep, call_len=self.config.call_len)
    return max_len


def make_policy(config: CacheConfig) -> Policy:
  """The policy of a config.

  Raises:
    ValueError: its budget is missing, given twice, or cannot be kept; the message says what to change.
  """
  record = POLICIES[config.policy]
  noted = record.records(config.own)
  records = {"records_mass": noted.mass, "num_queries": noted.queries, "records_marks": noted.marks}
  if record.chooses == "nothing":
    return Policy(config, **records)
  size = {"window": window_size(config)} if record.chooses == "recent" else {
    "lag": config.lag, "keep": keep_of_partition(config)}
  return Policy(config, sinks=config.sinks, **records, **size)


def check_cache(config: CacheConfig) -> None:
  """Raises ValueError, in one sentence, where no policy can be made of the config."""
  check_fields(config, "model.cache.")
  for name, record in POLICIES.items():
    record.check(getattr(config, name, None))
  if config.skip_layers and not POLICIES[config.policy].compresses:
    raise ValueError(
      f"model.cache.skip_layers={config.skip_layers} leaves layers out of compression, and model.cache.policy="
      f"{config.policy!r} compresses none; use {', '.join(COMPRESSING)}, or model.cache.skip_layers=0.")
  _check_online(config)
  make_policy(config)


def _check_online(config: CacheConfig) -> None:
  if config.budget != "fixed" and POLICIES[config.policy].chooses != "partition":
    able = [name for name in NAMES if POLICIES[name].chooses == "partition"]
    raise ValueError(
      f"model.cache.budget={config.budget!r} decides how many tokens of a partition stay, and model.cache.policy="
      f"{config.policy!r} does not choose within partitions; use {', '.join(able)}, or model.cache.budget='fixed'.")
  if config.budget == "drift" and not config.drift:
    raise ValueError(
      f"model.cache.budget='drift' needs its target as model.cache.drift between 0 and 1, not {config.drift}: with 0.4 "
      "the tokens that are dropped make up at most 40 % of a partition's deviation.")
  if config.budget != "drift" and config.drift:
    raise ValueError(
      f"model.cache.drift={config.drift} is a target of model.cache.budget='drift', and the budget is "
      f"{config.budget!r}; set model.cache.budget='drift', or leave model.cache.drift 0.")
