"""Transformer-VQ attention by a Pallas kernel, given the caches before every tile of queries as in linear.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.dispatch import target_backend
from lattice_jax.memories.vq.cache import Cache
from lattice_jax.memories.vq.linear import INPUT_SCAN, caches_before
from lattice_jax.memories.vq.state import Stream, VQState, close_state, pad_slots
from lattice_jax.ops.documents import EMPTY
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
  qu_BTHGK: jax.Array, qw_BTHGK: jax.Array, stream: Stream, state: VQState, rows_HMK: jax.Array,
  relative_HSK: jax.Array, id_BT: jax.Array, *, reduction: str, use_cache: bool, span: int, interpret: bool,
) -> tuple[jax.Array, VQState]:
  """Same result as `attend_quadratic`; the length of blocks is the kernel's own. interpret: runs the TPU's anywhere.

  span: tokens of the blocks that say which queries give a key its gradient; 0 = those at most W later.
  """
  backend = "tpu" if interpret else target_backend()
  (batch, length), window, num_codes = id_BT.shape, state.id_BW.shape[1], rows_HMK.shape[1]
  tile = vq.choose_tile(
    length, qu_BTHGK.dtype, qw_BTHGK.shape[-1], stream.value_BSHV.shape[-1], num_codes, window, span=span,
    backend=backend)
  num_valid_B = (id_BT != EMPTY).sum(1)
  cache, caches = Cache(state.count_BHM, state.mean_BHMV, state.document_B), None
  if use_cache:
    chunk = span or tile
    padded = jax.tree.map(lambda x_BS: pad_slots(x_BS, -length % chunk), stream)
    cache, before = caches_before(padded, cache, num_valid_B, -(-length // chunk), chunk, reduction=reduction)
    caches = tuple(
      jnp.repeat(x, chunk // tile, axis=0)[:-(-length // tile)]
      for x in (before.mean_BHMV, before.count_BHM, before.document_B))
  out_BTQV = vq.vq_attention(
    *(x.reshape(batch, length, -1, x.shape[-1]) for x in (qu_BTHGK, qw_BTHGK)), stream.key_BSHK, stream.value_BSHV,
    rows_HMK, relative_HSK, id_BT, stream.id_BS, caches, tile=tile, span=span, backend=backend, interpret=interpret,
    boundary_name=MEMORY_BOUNDARY)
  out_BTHGV = out_BTQV.reshape(*qu_BTHGK.shape[:-1], -1)
  return out_BTHGV, close_state(stream, window, num_valid_B, cache.count_BHM, cache.mean_BHMV, cache.document_B)
