"""What the rest of the code knows of Transformer-VQ attention."""

from __future__ import annotations

from lattice_jax.config import ModelConfig
from lattice_jax.memories.memory import Memory, maker
from lattice_jax.memories.multiply_adds import attention_projections
from lattice_jax.memories.vq.cases import make_cases
from lattice_jax.memories.vq.config import check
from lattice_jax.memories.vq.layer import VQAttention, update_codebook


def _multiply_adds(model: ModelConfig, length: int) -> float:
  del length
  vq = model.vq
  seen = vq.block_len + vq.reach + (vq.codes if vq.cache else 0)
  bias = vq.heads * vq.key_dim * (vq.reach + 1)
  codebook = vq.kv_heads * vq.codes * (2 * vq.key_dim + vq.value_dim)  # search, statistics, fold into the cache
  return attention_projections(model.dim, vq) + vq.heads * seen * (vq.key_dim + vq.value_dim) + bias + codebook


MEMORIES = {
  "vq": Memory(
    make=maker(VQAttention, "vq"),
    multiply_adds=_multiply_adds,
    cases=make_cases,
    check=lambda model: check(model.vq, model.dim),
    visible=lambda model, query, key: key <= query and (model.vq.cache or query - key <= model.vq.reach),
    update_buffers=lambda model, buffers, statistics, rng: update_codebook(model.vq, buffers, statistics, rng),
    exchange="sums",
    reach=lambda model: model.vq.reach,
    block_field="model.vq.block_len",
    position_unit=lambda model: model.vq.reach),
}
