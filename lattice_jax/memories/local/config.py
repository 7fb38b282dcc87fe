"""Fields of local attention, `model.local`; its heads and rotary embedding are those of `model.attention`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import at_least, check_fields, choice, numbers, place, positive, section, switch, within
from lattice_jax.memories.section import Section

FAR = ("none", "mean", "moments", "matching", "features")


@dataclass(frozen=True)
class SummaryConfig:
  """Of what has left the windows; the rules are those of lattice_jax/ops/far_summary."""

  blocks: int = at_least(0, 0, "consecutive parts of what is far, each summarised by itself; 0 = 1, of matching 6")
  span: int = positive(64, "tokens of the shortest part, which matching fits at a time")
  cross: bool = switch(True, "moments: whether a query moves the value along the covariance of keys with values")
  curvature: float = within(0, 1, 0.5, "moments: share of half the variance of a part's scores that is added to them")
  most: float = at_least(0, 4.0, "moments: to which that is cut")
  slots: int = positive(16, "matching: slots of a part")
  stride: int = positive(4, "matching: tokens of which one leaves its queries on record; a divisor of span")
  ridge: float = positive(0.1, "matching: how much fitted values are drawn towards those of their tokens")
  features: int = positive(16, "features: of a key and of a query")
  hidden: int = positive(64, "features: hidden units of the maps that make them")
  most_share: float = within(
    0, 1, 1.0, "of a query's attention that what is far may have; 1 = no bound", is_low_open=True)


@dataclass(frozen=True)
class LocalConfig:
  """Which tokens a head sees: the first of the document and the last, as many as its window says."""

  sinks: int = at_least(0, 4, "first tokens of a document that every later token sees")
  rungs: tuple[int, ...] = numbers(
    (64, 128, 256, 512, 1024, 2048), "windows that heads may have, ascending; the whole document, 0, is one more",
    low=1)
  windows: tuple[int, ...] = numbers(
    (256,), "tokens a query sees beside the sinks, itself included: one number for all heads, one for each key/value "
    "head, or one for each of them in every layer, layer by layer; 0 = all", fewest=1)
  far: str = choice(
    "none", FAR, "what is left of tokens that leave a window; mean: their mean key and value, as of so many tokens; "
    "moments: as if keys and values were Gaussian; matching: a few slots that answer the queries of their time alike; "
    "features: sums over positive features of keys, by maps that are trained")
  summary: SummaryConfig = section(SummaryConfig, "how it is made")
  picks: int = at_least(
    0, 0, "tokens that each head keeps as they are of those that left its window, the best by LagKV's score")
  pick_lag: int = positive(
    32, "tokens of a partition, which picks are scored among and by the next one; windows have twice as many or more")
  maps: str = place("", "file of the maps of features that were fitted to a pretrained model, which has none")
  profile: str = place("", "file of sinks, rungs and windows, found by calibration, that takes the place of these")


def check(config: LocalConfig) -> None:
  """Raises ValueError where fields are out of range or contradict one another."""
  check_fields(config, "model.local.")
  for lower, higher in zip(config.rungs, config.rungs[1:], strict=False):
    if lower >= higher:
      raise ValueError(
        f"model.local.rungs={_listed(config.rungs)} must ascend, and {higher} follows {lower}; sort them and name each "
        "once.")
  for window in config.windows:
    if window and window not in config.rungs:
      raise ValueError(
        f"model.local.windows holds {window}, which is none of model.local.rungs={_listed(config.rungs)}; use one of "
        "them, or 0 for the whole document, or add it to the rungs.")
    if config.picks and window and window < 2 * config.pick_lag:
      raise ValueError(
        f"model.local.picks={config.picks} with model.local.pick_lag={config.pick_lag} needs windows of at least "
        f"{2 * config.pick_lag} tokens, for a token is scored by the partition after its own, and model.local.windows "
        f"holds {window}; use pick_lag={max(window // 2, 1)} or less, wider windows, or picks=0.")
  if config.maps and config.far != "features":
    raise ValueError(
      f"model.local.maps={config.maps} holds maps for model.local.far=features, and model.local.far={config.far}; give "
      "model.local.far=features as well, or leave the maps out.")
  if config.profile:
    raise ValueError(
      f"model.local.profile={config.profile} is read where a config is read, with the model that it is for; here give "
      "the windows themselves, as memories.local.profile.with_profile does.")


def window_rows(config: LocalConfig, layers: int, kv_heads: int) -> tuple[tuple[int, ...], ...]:
  """The window of each key/value head in each of so many layers.

  Raises ValueError if there are neither one, nor as many as heads, nor as many as heads of all layers.
  """
  windows = config.windows
  if len(windows) == 1:
    windows = windows * kv_heads
  if len(windows) == kv_heads:
    windows = windows * layers
  if len(windows) != layers * kv_heads:
    raise ValueError(
      f"model.local.windows holds {len(windows)} numbers, and the model has {layers} layers of {kv_heads} key/value "
      f"heads; give 1 for all heads, {kv_heads} for the heads of every layer alike, or {layers * kv_heads}.")
  return tuple(windows[n:n + kv_heads] for n in range(0, len(windows), kv_heads))


def flat(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
  """`LocalConfig.windows` for layers with these windows."""
  return tuple(window for row in rows for window in row)


def _listed(values: Sequence[int]) -> str:
  return ",".join(map(str, values))


def _smoke(config: Any) -> dict[str, Any]:
  return {
    "sinks": min(2, config.sinks), "rungs": (8, 16), "windows": (16,), "profile": "", "maps": "",
    "picks": min(4, config.picks), "pick_lag": 8,
    "summary": {"span": 8, "slots": 4, "stride": 4, "features": 4, "hidden": 8}}


SECTION = Section("local", LocalConfig, "the memory \"local\"; its heads are those of model.attention", _smoke)
