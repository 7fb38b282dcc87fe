"""Transformer-VQ attention as `self_check` runs it."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp

from lattice_jax.memories.cases import Case, Sizes, arrays, documents, normal
from lattice_jax.memories.vq import op as vq


def make_cases(sizes: Sizes) -> Iterator[Case]:
  q, k, v = normal(sizes, 3, sizes.width)
  block = max(1, sizes.tokens // 8)
  rows, relative = arrays(2, (sizes.heads, sizes.slots, sizes.width), (sizes.heads, block + 1, sizes.width))
  bias = jnp.zeros((sizes.heads, sizes.width))

  def run(inputs, impl):
    q, k, v, relative = inputs
    state = vq.empty_state(1, block, sizes.heads, sizes.slots, sizes.width, sizes.width, q.dtype)
    out, state = vq.vq_attention(
      q, vq.quantize(k, rows, impl=impl), v, rows, relative, bias, bias, state, *documents(sizes), block_len=block,
      impl=impl)
    return out, state.mean_BHMV

  def search(inputs, impl):
    found = vq.quantize(*inputs, rows, impl=impl)
    return found.key_BTHK, found.error_BTH

  scale = sizes.width**-0.5
  yield Case("vq", "serial", run, (q * scale, k * scale, v, relative * scale))
  yield Case("vq", "search", search, (k,))
