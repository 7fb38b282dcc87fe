"""The shape letters of the project and the three records that pass between its parts.

Shape letters, the same in code, einsum, docstring and README:

    B batch   T tokens   D model width   H heads   K key width   V value width   M memory slots
    C chunk   N chunks   W window        F MLP     A vocabulary  L layers

`G` is the number of query heads that share one key/value head, `S` the length of a token cache.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
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
  marks_BT: int8 bit field (MARK_ANCHOR, MARK_PROTECTED), made from token ids, which layers do not see.
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


def whole_segment(batch: int, length: int, start: int = 0) -> Segment:
  """One document per row, all tokens valid, positions from `start`."""
  positions_T = start + jnp.arange(length, dtype=jnp.int32)
  return Segment(
    positions_BT=jnp.broadcast_to(positions_T, (batch, length)),
    ids_BT=jnp.zeros((batch, length), jnp.int32),
    valid_BT=jnp.ones((batch, length), bool),
    marks_BT=jnp.zeros((batch, length), jnp.int8),
  )


def slice_time(segment: Segment, start: int, stop: int) -> Segment:
  """Tokens [start, stop) of every row."""
  return jax.tree.map(lambda field_BT: field_BT[:, start:stop], segment)
