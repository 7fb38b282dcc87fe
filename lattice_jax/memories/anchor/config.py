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


def check(config: AnchorConfig) -> None:
  """Raises ValueError where fields contradict one another."""
  if config.fanout == 1:
    raise ValueError(
      "model.anchor.fanout=1 would let every anchor take the place of all before it; use at least 2, or 0 for none.")
  if config.fanout and config.reach:
    raise ValueError(
      f"model.anchor.fanout={config.fanout} and model.anchor.reach={config.reach} are two bounds on the same anchors; "
      "set one of them and leave the other 0.")


def _smoke(config: Any) -> dict[str, Any]:
  return {"max_segment": min(64, config.max_segment), "reach": min(8, config.reach)}


SECTION = Section("anchor", AnchorConfig, "the memory \"anchor\"; its heads are those of model.attention", _smoke)
