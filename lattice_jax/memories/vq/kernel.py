"""Transformer-VQ attention by a Pallas kernel, given the caches before every tile of queries."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.dispatch import target_backend
from lattice_jax.memories.vq.block import read_block
from lattice_jax.memories.vq.state import VQState
from lattice_jax.memories.vq.summary import vq_memory
from lattice_jax.ops.documents import EMPTY, pad_time
from lattice_jax.ops.near_far import INPUT_SCAN, Far, Stream, far_before_blocks
from lattice_jax.types import MEMORY_BOUNDARY
from pallas_kernels import flash_backends, vq


def reasons_against(
  state: VQState, key_dim: int, codes: int, length: int, reduction: str, *, span: int
) -> dict[str, str | None]:
  """The arguments of `choose_impl` that say where and when no kernel runs. span: as of `attend_in_kernel`."""
  sizes = {"dtype": state.value_BWHV.dtype, "value_dim": state.value_BWHV.shape[-1]}
  backend = target_backend()
  pallas_reason = vq.supports_span(span, backend=backend) or vq.supports(
    key_dim=key_dim, codes=codes, window=state.id_BW.shape[1] + span, **sizes)
  if reduction == INPUT_SCAN:
    pallas_reason = f"its kernels read caches that are all made before, and reduction={INPUT_SCAN!r} has one at a time"
  return {
    "pallas_reason": pallas_reason,
    "backend_reason": flash_backends.supports_backend(backend, key_dim=state.key_BWHK.shape[-1], **sizes),
    "auto_reason": flash_backends.prefers_xla(backend, length)}


def attend_in_kernel(
  qu_BTHGK: jax.Array, qw_BTHGK: jax.Array, stream: Stream, far: Far, rows_HMK: jax.Array, relative_HSK: jax.Array,
  id_BT: jax.Array, *, reduction: str, use_cache: bool, span: int, interpret: bool,
) -> tuple[jax.Array, Far]:
  """Same result as `attend_quadratic`; the length of blocks is the kernel's own. interpret: runs the TPU's anywhere.

  span: tokens of the blocks that say which queries give a key its gradient; 0 = those at most W later.
  """
  backend = "tpu" if interpret else target_backend()
  (batch, length), tokens, num_codes = id_BT.shape, stream.tokens, rows_HMK.shape[1]
  tile = vq.choose_tile(
    length, qu_BTHGK.dtype, qw_BTHGK.shape[-1], tokens.value_BSHV.shape[-1], num_codes, stream.id_BS.shape[1] - length,
    span=span, backend=backend)
  caches = None
  if use_cache:
    chunk = span or tile
    far, before = far_before_blocks(
      vq_memory(num_codes, read_block), pad_time(stream, -length % chunk), far, (id_BT != EMPTY).sum(1),
      -(-length // chunk), chunk, reduction=reduction)
    caches = tuple(
      jnp.repeat(x, chunk // tile, axis=0)[:-(-length // tile)]
      for x in (before.summary.mean_BHMV, before.summary.count_BHM, before.document_B))
  out_BTQV = vq.vq_attention(
    *(x.reshape(batch, length, -1, x.shape[-1]) for x in (qu_BTHGK, qw_BTHGK)), tokens.key_BSHK, tokens.value_BSHV,
    rows_HMK, relative_HSK, id_BT, stream.id_BS, caches, tile=tile, span=span, backend=backend, interpret=interpret,
    boundary_name=MEMORY_BOUNDARY)
  return out_BTQV.reshape(*qu_BTHGK.shape[:-1], -1), far
