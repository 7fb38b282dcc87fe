"""A cache policy as static data: what it keeps, how slots compete, what it has to record."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.cache.budget import kept_length, kept_of_partition, kept_window, most_slots
from lattice_jax.config import CacheConfig
from lattice_jax.config_memories import POLICIES
from lattice_jax.fields import check_fields

GLOBAL = ("h2o", "snapkv", "tova")


@dataclass(frozen=True)
class Policy:
  """What a config's cache does; made by `make_policy`.

  sinks: first tokens that always stay; 0 of "full".
  window: tokens a query sees beside the sinks, 0 = all.
  lag, keep: of a partition of `lag` tokens each head keeps `keep`, or, of an online budget, on average at most as many;
    0 where nothing is compressed.
  is_global: slots of all partitions compete for the places, whenever a partition falls due; else only those of one
    partition, once, and its picks stay for good.
  records_mass: whether the attention that each slot received is summed up.
  num_queries: last queries that are kept.
  """

  config: CacheConfig
  sinks: int = 0
  window: int = 0
  lag: int = 0
  keep: int = 0
  is_global: bool = False
  records_mass: bool = False
  num_queries: int = 0

  def sees(self, query: int, key: int) -> bool:
    """Whether the token at `query` may see the one at `key` while nothing is compressed."""
    return key <= query and (not self.window or key < self.sinks or query - key < self.window)

  @property
  def is_online(self) -> bool:
    """Whether the number kept of a partition is decided when it is compressed."""
    return self.config.budget != "fixed"

  def kept_length(self, num_tokens: int) -> int:
    """Slots in use after so many tokens of a document, however they arrived; of an online budget, at most.

    Of the layers that drop tokens.
    """
    if self.window:
      return min(num_tokens, self.sinks + self.window)
    if self.lag:
      return kept_length(num_tokens, sinks=self.sinks, lag=self.lag, keep=self.keep)
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
  if config.policy == "full":
    return Policy(
      config, records_mass="mass" in config.records, num_queries=config.observe if "queries" in config.records else 0)
  if config.policy == "window":
    return Policy(config, sinks=config.sinks, window=kept_window(config))
  return Policy(
    config, sinks=config.sinks, lag=config.lag, keep=kept_of_partition(config),
    is_global=config.policy in GLOBAL,
    records_mass=config.policy == "h2o",
    num_queries={"snapkv": config.observe, "tova": 1}[config.policy] if config.policy in ("snapkv", "tova") else 0)


def check_cache(config: CacheConfig) -> None:
  """Raises ValueError, in one sentence, where no policy can be made of the config."""
  check_fields(config, "model.cache.")
  if config.pool % 2 == 0:
    raise ValueError(f"model.cache.pool={config.pool} must be odd, so that a slot is in the middle; "
                     f"use {config.pool + 1}, or 1 for no pooling.")
  if config.skip_layers and config.policy in ("full", "window"):
    raise ValueError(
      f"model.cache.skip_layers={config.skip_layers} leaves layers out of compression, and model.cache.policy="
      f"{config.policy!r} compresses none; use {', '.join(POLICIES[2:])}, or model.cache.skip_layers=0.")
  _check_online(config)
  make_policy(config)


def _check_online(config: CacheConfig) -> None:
  if config.budget != "fixed" and config.policy in ("full", "window", *GLOBAL):
    able = [name for name in POLICIES if name not in ("full", "window", *GLOBAL)]
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
