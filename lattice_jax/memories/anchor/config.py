"""Fields of anchor attention, `model.anchor`; its heads and rotary embedding are those of `model.attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import at_least, positive, switch
from lattice_jax.memories.section import Section


@dataclass(frozen=True)
class AnchorConfig:
  """Which tokens stand for those before them. Anchors themselves come with the tokens, as marks of the segment."""

  max_segment: int = positive(128, "tokens of a segment at most; one that reaches it ends with a forced anchor")
  keep_bos: bool = switch(
    True, "a document's first token is an anchor of its own, which every later token sees: the sink of attention")
  anchors_see_anchors: bool = switch(False, "whether anchors see earlier anchors, which in the paper they do not")
  reach: int = at_least(0, 0, "newest anchors that a token sees, and that a cache has room for; 0 = all")
  fanout: int = at_least(
    0, 0, "anchors of anchors: every so many anchors, the last one sees the others of its group and takes their place; "
    "0 = none")
  protected: int = at_least(
    0, 0, "tokens of a document that may be marked as protected, which never collapse; 0 = such marks mean nothing")
  open_lag: int = at_least(
    0, 0, "tokens of a partition by which LagKV compresses an open segment in the cache; 0 = all of its tokens stay")
  open_keep: int = at_least(0, 0, "tokens that stay of such a partition once the next one is complete")
  open_call_len: int = at_least(
    0, 0, "tokens of a call at most, which bounds the slots of a compressed open segment; 0 = any, and slots for "
    "max_segment tokens")


def check(config: AnchorConfig) -> None:
  """Raises ValueError where fields contradict one another."""
  if config.fanout == 1:
    raise ValueError(
      "model.anchor.fanout=1 would let every anchor take the place of all before it; use at least 2, or 0 for none.")
  if config.fanout and config.reach:
    raise ValueError(
      f"model.anchor.fanout={config.fanout} and model.anchor.reach={config.reach} are two bounds on the same anchors; "
      "set one of them and leave the other 0.")
  if config.open_lag and not 1 <= config.open_keep < config.open_lag:
    raise ValueError(
      f"model.anchor.open_keep={config.open_keep} of partitions of model.anchor.open_lag={config.open_lag} tokens does "
      f"not compress them; use an open_keep from 1 to {config.open_lag - 1}, or open_lag=0 to keep all tokens.")
  for name in ("open_keep", "open_call_len"):
    if getattr(config, name) and not config.open_lag:
      raise ValueError(
        f"model.anchor.{name}={getattr(config, name)} means nothing without model.anchor.open_lag; set that to the "
        f"tokens of a partition, or {name} to 0.")


def _smoke(config: Any) -> dict[str, Any]:
  return {"max_segment": min(64, config.max_segment), "reach": min(8, config.reach)}


SECTION = Section("anchor", AnchorConfig, "the memory \"anchor\"; its heads are those of model.attention", _smoke)
