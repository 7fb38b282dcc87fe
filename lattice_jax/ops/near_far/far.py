"""Summaries of older tokens, and three ways to have the one before every block ready.

A summary belongs to one document. Merging that of earlier tokens with that of later ones is associative, and one of no
tokens changes nothing, so the summaries before all blocks are a prefix sum of the blocks' own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY, keep_only, to_chunks
from lattice_jax.ops.near_far.state import Far, Stream


@dataclass(frozen=True)
class FarMemory:
  """What a memory does with tokens that have left the window, all of them of one document.

  summarize: (tokens [B, C, …], is_added [B, C]) → the summary of the tokens that are added, arrays [B, …]; all zeros
    where none is.
  merge: (earlier, later) → the summary of both. Associative; summaries of all zeros change nothing.
  read: (queries [B, C, …], near tokens [B, W + C, …], is_seen [B, C, W + C], summary or None, sees_far [B, C] or None)
    → output [B, C, …]. Query c stands at slot W + c. The summary is one for the block, [B, …], if it is lossless; else
    one for each query, [B, C, …]. None where only summaries are asked for.
  is_lossless: whether attention to a summary is attention to its tokens, as in Transformer-VQ. Otherwise a block costs
    C summaries of up to C tokens, so blocks should be short or summaries small.
  merge_all: (weight [R, N, B], summaries [N, B, …]) → [R, B, …], each the merger of those of weight one; the others
    have weight zero. None: the memory has no reduction "matmul".
  """

  summarize: Callable[[Any, jax.Array], Any]
  merge: Callable[[Any, Any], Any]
  read: Callable[..., Any] | None
  is_lossless: bool = False
  merge_all: Callable[[jax.Array, Any], Any] | None = None


def summarize(memory: FarMemory, slots: Stream) -> Far:
  """The summary of some slots alone: those of their newest document, EMPTY ones left out."""
  newest_B = _last_document(slots.id_BS)
  is_added_BC = (slots.id_BS == newest_B[:, None]) & (slots.id_BS != EMPTY)
  return Far(memory.summarize(slots.tokens, is_added_BC), newest_B)


def merge(memory: FarMemory, earlier: Far, later: Far) -> Far:
  """The summary of both; of `later` alone where it holds another document."""
  is_later_empty_B = later.document_B == EMPTY
  is_kept_B = is_later_empty_B | (later.document_B == earlier.document_B)
  summary = memory.merge(keep_only(is_kept_B, earlier.summary), later.summary)
  return Far(summary, jnp.where(is_later_empty_B, earlier.document_B, later.document_B))


def far_before_blocks(
  memory: FarMemory, stream: Stream, far: Far, num_valid_B: jax.Array, num: int, chunk: int, *, reduction: str,
) -> tuple[Far, Far]:
  """The summary after the first `num` blocks of `chunk` slots of a stream, and those before each, stacked."""
  slots = to_chunks(jax.tree.map(lambda x_BS: x_BS[:, :num * chunk], stream), chunk)
  slots = slots.replace(id_BS=foldable(slots.id_BS, num_valid_B, jnp.arange(num)))
  summaries = jax.vmap(lambda block: summarize(memory, block))(slots)
  return REDUCTIONS[reduction](memory, far, summaries)


def fold_by_token(memory: FarMemory, stream: Stream, far: Far, num_valid_B: jax.Array, length: int) -> Far:
  """By definition: the oldest slot of the window is folded in once per valid token of a call of that length."""

  def one_token(far: Far, slot: jax.Array) -> tuple[Far, None]:
    oldest = jax.tree.map(lambda x_BS: x_BS[:, slot][:, None], stream)
    oldest = oldest.replace(id_BS=jnp.where(slot < num_valid_B[:, None], oldest.id_BS, EMPTY))
    return merge(memory, far, summarize(memory, oldest)), None

  return jax.lax.scan(one_token, far, jnp.arange(length))[0]


def foldable(id_NBC: jax.Array, num_valid_B: jax.Array, number_N: jax.Array) -> jax.Array:
  """EMPTY where a slot stays in the window: after v valid tokens the first v slots of the stream have left it."""
  chunk = id_NBC.shape[-1]
  slot_NC = number_N[:, None] * chunk + jnp.arange(chunk)
  return jnp.where(slot_NC[:, None] < num_valid_B[:, None], id_NBC, EMPTY)


def _serial(memory: FarMemory, start: Far, blocks: Far) -> tuple[Far, Far]:
  """One scan that carries the summary and emits it before every block."""
  return jax.lax.scan(lambda far, block: (merge(memory, far, block), far), start, blocks)


def _associative(memory: FarMemory, start: Far, blocks: Far) -> tuple[Far, Far]:
  """A prefix sum of logarithmic depth."""
  sums = jax.lax.associative_scan(
    jax.vmap(lambda earlier, later: merge(memory, earlier, later)), _joined(start, blocks))
  return _last_and_before(sums)


def _matmul(memory: FarMemory, start: Far, blocks: Far) -> tuple[Far, Far]:
  """Every summary as one weighted sum over the blocks before: quadratic in the number of blocks, all in one product."""
  if memory.merge_all is None:
    raise ValueError(f"reduction='matmul' needs a memory with merge_all; use one of {', '.join(_WITHOUT_MATMUL)}.")
  joined = _joined(start, blocks)
  place_N = jnp.arange(joined.document_B.shape[0])[:, None]
  newest_NB = jax.lax.cummax(jnp.where(joined.document_B != EMPTY, place_N, 0), axis=0)
  document_NB = jnp.take_along_axis(joined.document_B, newest_NB, axis=0)
  is_before_RN = place_N >= place_N.T
  is_same_RNB = document_NB[:, None] == joined.document_B[None]
  weight_RNB = (is_before_RN[..., None] & is_same_RNB).astype(jnp.float32)
  return _last_and_before(Far(memory.merge_all(weight_RNB, joined.summary), document_NB))


# (memory, summary before the first block, those of the blocks stacked) → (summary after the last, those before each)
REDUCTIONS: dict[str, Callable[[FarMemory, Far, Far], tuple[Far, Far]]] = {
  "serial": _serial,
  "matmul": _matmul,
  "associative": _associative,
}
_WITHOUT_MATMUL = ("serial", "associative", "input_scan")


def _joined(start: Far, blocks: Far) -> Far:
  return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, blocks)


def _last_and_before(sums: Far) -> tuple[Far, Far]:
  return jax.tree.map(lambda x: x[-1], sums), jax.tree.map(lambda x: x[:-1], sums)


def _last_document(id_BC: jax.Array) -> jax.Array:
  """The document of the last slot that holds a token, EMPTY where none does."""
  last_B = jnp.where(id_BC != EMPTY, jnp.arange(1, id_BC.shape[1] + 1), 0).max(1)
  newest_B = jnp.take_along_axis(id_BC, jnp.maximum(last_B - 1, 0)[:, None], 1)[:, 0]
  return jnp.where(last_B > 0, newest_B, EMPTY)
