"""What Transformer-VQ attention remembers between calls: a window of tokens and one (count, mean) per code."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.memories.vq.summary import Summary
from lattice_jax.ops.documents import EMPTY
from lattice_jax.ops.near_far import Far, NearFarState, Stream


@flax.struct.dataclass
class Tokens:
  """code_BSH: int32. key_BSHK: its codebook row, with the gradient of the key. value_BSHV."""

  code_BSH: jax.Array
  key_BSHK: jax.Array
  value_BSHV: jax.Array


@flax.struct.dataclass
class VQState:
  """The last W tokens as they are, everything older summed per code; all of one document.

  code_BWH: int32 code of each window token. key_BWHK: its codebook row at the time, kept for the straight-through
  gradient across calls and where `stale_rows` asks for it; else scores use today's row of the same code. value_BWHV.
  id_BW: its document, EMPTY if none. count_BHM: fp32 tokens per code in the cache; mean_BHMV: fp32 mean of their
  values, not the sum, which would lose precision after many tokens. document_B: int32 document of window and cache,
  EMPTY before the first token.
  """

  code_BWH: jax.Array
  key_BWHK: jax.Array
  value_BWHV: jax.Array
  id_BW: jax.Array
  count_BHM: jax.Array
  mean_BHMV: jax.Array
  document_B: jax.Array

  @classmethod
  def of(cls, state: NearFarState) -> VQState:
    """The same as one flat record, whose names are those in checkpoints."""
    tokens, summary = state.near.tokens, state.far.summary
    return cls(
      code_BWH=tokens.code_BSH, key_BWHK=tokens.key_BSHK, value_BWHV=tokens.value_BSHV, id_BW=state.near.id_BS,
      count_BHM=summary.count_BHM, mean_BHMV=summary.mean_BHMV, document_B=state.far.document_B)

  @property
  def near_far(self) -> NearFarState:
    """Undoes `of`."""
    near = Stream(Tokens(self.code_BWH, self.key_BWHK, self.value_BWHV), self.id_BW)
    return NearFarState(near, Far(Summary(self.count_BHM, self.mean_BHMV), self.document_B))


def empty_state(
  batch: int, window: int, kv_heads: int, codes: int, key_dim: int, value_dim: int, dtype: jnp.dtype) -> VQState:
  """A state that has seen nothing; window keys and values in `dtype`, counts and means in fp32."""
  return VQState(
    code_BWH=jnp.zeros((batch, window, kv_heads), jnp.int32),
    key_BWHK=jnp.zeros((batch, window, kv_heads, key_dim), dtype),
    value_BWHV=jnp.zeros((batch, window, kv_heads, value_dim), dtype),
    id_BW=jnp.full((batch, window), EMPTY, jnp.int32),
    count_BHM=jnp.zeros((batch, kv_heads, codes), jnp.float32),
    mean_BHMV=jnp.zeros((batch, kv_heads, codes, value_dim), jnp.float32),
    document_B=jnp.full((batch,), EMPTY, jnp.int32),
  )


def with_rows(tokens: Tokens, codebook_HMK: jax.Array) -> Tokens:
  """Keys get the values of today's rows of the same codes, and keep their own gradient."""
  row_BSHK = rows_of(codebook_HMK, tokens.code_BSH).astype(tokens.key_BSHK.dtype)
  return tokens.replace(key_BSHK=row_BSHK + (tokens.key_BSHK - jax.lax.stop_gradient(tokens.key_BSHK)))


def rows_of(codebook_HMK: jax.Array, code_BTH: jax.Array) -> jax.Array:
  """The codebook row of every code, [B, T, H, K], without gradient."""
  heads_H = jnp.arange(codebook_HMK.shape[0])
  return jax.lax.stop_gradient(codebook_HMK)[heads_H, code_BTH]
