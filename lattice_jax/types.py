"""The shape letters of the project and the three records that pass between its parts.

Shape letters, the same in code, einsum, docstring and README:

    B batch   T tokens   D model width   H heads   K key width   V value width   M memory slots
    C chunk   N chunks   W window        F MLP     A vocabulary  L layers

`G` is the number of query heads that share one key/value head, `Q` = H·G that of query heads. `S` counts the tokens
that a token looks back at: slots of a cache, keys of an attention, or the tokens of its own chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# A metric or loss is (sum, count): exact over masks, micro-batches and devices.
SumCount = tuple[jax.Array, jax.Array]

# `jax.checkpoint_name` of what an op's backward pass needs and a forward pass would have to run again for;
# model.remat="boundary" keeps it and recomputes the rest.
MEMORY_BOUNDARY = "memory_boundary"

MARK_ANCHOR = 1
MARK_PROTECTED = 2


@flax.struct.dataclass
class Segment:
  """Where each token stands; all that a memory layer may know beside its input.

  positions_BT: int32, 0 at the start of a document or sequence.
  ids_BT: int32 ≥ 0, the document; a change of id is a reset, also against the state's document.
  valid_BT: bool; the valid tokens are a prefix of every row.
  marks_BT: int8 bit field (MARK_ANCHOR, MARK_PROTECTED), made by `make_marks` from token ids, which layers do not see.
  """

  positions_BT: Int[Array, "B T"]
  ids_BT: Int[Array, "B T"]
  valid_BT: Bool[Array, "B T"]
  marks_BT: Int[Array, "B T"]


@flax.struct.dataclass
class LayerOutput:
  """What a memory layer returns.

  y_BTD: same shape and dtype as the input.
  state: same structure, shapes and dtypes as the state that went in.
  losses: name → (sum, count), already multiplied by their configured weight; the step adds sum / count.
  metrics: name → (sum, count), for reports only.
  statistics: the tree of the layer's `buffers` collection; the input of its `update_buffers`.
  """

  y_BTD: Float[Array, "B T D"]
  state: Any
  losses: dict[str, SumCount]
  metrics: dict[str, SumCount]
  statistics: dict[str, Any]


@flax.struct.dataclass
class Batch:
  """One update's tokens on one process (numpy) or on all devices (jax.Array).

  tokens_BT: int32 inputs; the first input of a document or sequence is the tokenizer's eos id.
  targets_BT: int32, the token that follows each input.
  weights_BT: fp32, 1 where the target counts in the loss, else 0: padding, and all but the answers of a task.
  sequence: int32 scalar, the index of the sequence group; dropout keys that must hold for a whole sequence use it.
  """

  tokens_BT: Int[Array, "B T"]
  targets_BT: Int[Array, "B T"]
  weights_BT: Float[Array, "B T"]
  segment: Segment
  sequence: Int[Array, ""]


def make_segment(positions_BT: Any, *, ids_BT: Any = None, valid_BT: Any = None, marks_BT: Any = None) -> Segment:
  """Where tokens stand; without more words one document of valid tokens in every row, none of them marked.

  All arrays may be those of numpy, and then the result holds numpy's.
  """
  xnp = np if isinstance(positions_BT, np.ndarray) else jnp
  return Segment(
    positions_BT=positions_BT,
    ids_BT=xnp.zeros_like(positions_BT) if ids_BT is None else ids_BT,
    valid_BT=xnp.ones_like(positions_BT, bool) if valid_BT is None else valid_BT,
    marks_BT=xnp.zeros_like(positions_BT, xnp.int8) if marks_BT is None else marks_BT,
  )


def make_marks(tokens_BT: Any, *, anchors: Sequence[int] = (), protected: Sequence[int] = ()) -> Any:
  """int8 bit field of every token: whether its id is among `anchors`, and among `protected`."""
  xnp = np if isinstance(tokens_BT, np.ndarray) else jnp

  def mark(ids: Sequence[int], bit: int) -> Any:
    return xnp.isin(tokens_BT, xnp.asarray(ids, tokens_BT.dtype)).astype(xnp.int8) * bit

  return mark(anchors, MARK_ANCHOR) | mark(protected, MARK_PROTECTED)


def abstract_segment(rows: Callable[[Any], jax.ShapeDtypeStruct]) -> Segment:
  """The shapes of a segment. rows: dtype → shape of one of its fields."""
  return Segment(
    positions_BT=rows(jnp.int32), ids_BT=rows(jnp.int32), valid_BT=rows(jnp.bool_), marks_BT=rows(jnp.int8))


def whole_segment(batch: int, length: int, start: int = 0) -> Segment:
  """One document per row, all tokens valid, positions from `start`."""
  positions_T = start + jnp.arange(length, dtype=jnp.int32)
  return make_segment(jnp.broadcast_to(positions_T, (batch, length)))


def slice_time(segment: Segment, start: int, stop: int) -> Segment:
  """Tokens [start, stop) of every row."""
  return jax.tree.map(lambda field_BT: field_BT[:, start:stop], segment)
