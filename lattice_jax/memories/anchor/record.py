"""What the rest of the code knows of anchor attention."""

from __future__ import annotations

from lattice_jax.config import ModelConfig
from lattice_jax.memories.anchor.cases import make_cases
from lattice_jax.memories.anchor.config import AnchorConfig, check
from lattice_jax.memories.anchor.layer import AnchorAttention
from lattice_jax.memories.anchor.open_segment import compress_open
from lattice_jax.memories.anchor.state import AnchorCache, AnchorView, anchor_slots, clear
from lattice_jax.memories.attention_config import check as check_attention
from lattice_jax.memories.memory import Carried, Memory
from lattice_jax.memories.multiply_adds import attention_projections


def _make(model: ModelConfig, name: str | None = None) -> AnchorAttention:
  return AnchorAttention(model.attention, model.anchor, dtype=model.dtype, impl=model.impl, name=name)


def _check(model: ModelConfig) -> None:
  check_attention(model.attention)
  check(model.anchor)


def _multiply_adds(model: ModelConfig, length: int) -> float:
  """Of segments as long as they may be; shorter ones see fewer tokens and more anchors."""
  attention, segment = model.attention, min(model.anchor.max_segment, length)
  num_anchors = min(length / segment / 2, anchor_slots(model.anchor, length))
  reads = attention.heads * ((segment + 1) / 2 + num_anchors) * (attention.key_dim + attention.value_dim)
  return attention_projections(model.dim, attention) + reads


def _visible(model: ModelConfig, query: int, key: int) -> bool:
  """Where no token is marked: every anchor is a forced one, or the first token."""
  config = model.anchor
  if key > query:
    return False
  if config.keep_bos and key == 0:
    return query == 0 or config.anchors_see_anchors or not _is_forced(config, query)
  if _segment(config, key) == _segment(config, query):
    return True
  return _is_forced(config, key) and _sees_number(config, _segment(config, query), _segment(config, key), query)


def _segment(config: AnchorConfig, token: int) -> int:
  """The number that the anchor of a token's segment has."""
  return (token - config.keep_bos) // config.max_segment + 1


def _is_forced(config: AnchorConfig, token: int) -> bool:
  return (token - config.keep_bos + 1) % config.max_segment == 0


def _sees_number(config: AnchorConfig, own: int, number: int, query: int) -> bool:
  """Whether a token of segment `own` sees the anchor of the earlier segment `number`."""
  is_anchor = _is_forced(config, query) and not config.anchors_see_anchors
  if not config.fanout:
    return not is_anchor and (not config.reach or own - 1 - number < config.reach)
  size = config.fanout
  while number % size == 0:
    size *= config.fanout
  return number // size == (own - 1) // size and (not is_anchor or own % size == 0)


MEMORIES = {
  "anchor": Memory(
    make=_make,
    multiply_adds=_multiply_adds,
    cases=make_cases,
    check=_check,
    visible=_visible,
    needs_token_cache=True,
    is_attention=True,
    protects=lambda model: model.anchor.protected,
    marks_after=lambda model: model.anchor.max_segment,
    composes_kernels=True,
    exchange="anchors",
    carried=Carried(
      rides=lambda state: isinstance(state, AnchorCache) and state.num_slots > 0,
      enter=AnchorView,
      leave=lambda view: view.stack,
      finish=lambda model, stacks, length: compress_open(model.anchor, clear(stacks), length))),
}
