"""Transformer-VQ attention as a memory layer (arXiv 2309.16354): window, compressive cache, learned codebook."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.memories.entry import enter_layer
from lattice_jax.memories.vq.config import VQConfig, check
from lattice_jax.memories.vq.op import (
  COUNT_FLOOR,
  Quantized,
  VQState,
  code_statistics,
  codebook,
  dead_codes,
  empty_state,
  moving_average,
  quantize,
  revive,
  vq_attention,
)
from lattice_jax.memories.vq.split import split_vq_attention
from lattice_jax.modules import join_heads, offset, parameter, rms_normalize, sinusoids, split_heads, weight
from lattice_jax.ops.products import multiply
from lattice_jax.ops.sequence import each_alone
from lattice_jax.types import LayerOutput, Segment

_DEAD_BELOW = 0.01  # of the average use: what the metric codebook_dead calls dead


class VQAttention(nn.Module):
  """Softmax attention over quantised keys; one query head with gate is the paper's SHGA.

  Collection `buffers`: codebook_count [H, M] and codebook_sum [H, M, K], the moving averages whose quotient is the
  codebook. They change only through `update_codebook`, once per optimizer step.
  """

  config: VQConfig
  dtype: str = "float32"
  impl: str = "auto"

  def init_state(self, batch: int, max_len: int = 0) -> VQState:
    """An empty window and cache; the size does not depend on `max_len`."""
    del max_len
    vq = self.config
    return empty_state(
      batch, vq.reach, vq.kv_heads, vq.codes, vq.key_dim, vq.value_dim, jnp.dtype(self.dtype))

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, state: VQState | None = None, segment: Segment | None = None, *, train: bool = False,
  ) -> LayerOutput:
    """See `types.LayerOutput`. Losses: commit (weighted). Metrics: codebook_perplexity, _dead, quantization_error."""
    state, segment = enter_layer(self, x_BTD, state, segment)
    config, dtype, dim = self.config, jnp.dtype(self.dtype), x_BTD.shape[-1]
    check(config, dim)
    x_BTD = jnp.where(segment.valid_BT[..., None], x_BTD, 0).astype(dtype)
    scale = config.key_dim**-0.25
    joined = self._joined(x_BTD) if config.joined else {}

    def project(name, heads, width, axes):
      return joined[name] if name in joined else split_heads(self, name, x_BTD, heads, width, axes)

    q_BTQK = rms_normalize(project("query", config.heads, config.key_dim, ("heads", "key"))) * scale
    k_BTHK = rms_normalize(project("key", config.kv_heads, config.key_dim, ("kv_heads", "key"))) * scale
    v_BTHV = project("value", config.kv_heads, config.value_dim, ("kv_heads", "value"))
    if config.gated:
      v_BTHV = nn.silu(v_BTHV)
    count_HM, total_HMK = self._codebook_sums()
    rows_HMK = codebook(count_HM, total_HMK)
    key = each_alone(lambda rows_HMK, k_BTHK: quantize(k_BTHK, rows_HMK, impl=self.impl), rows_HMK, k_BTHK)
    bias_shape, bias_axes = (config.heads, config.key_dim), ("heads", "key")
    constants = (
      rows_HMK, self._relative(dim, train=train) * scale, offset(self, "content_bias", bias_shape, bias_axes) * scale,
      offset(self, "position_bias", bias_shape, bias_axes) * scale, self._near_bias())
    out_BTQV, state = split_vq_attention(
      self._attend, (q_BTQK, key, v_BTHV), constants, state, segment.ids_BT, segment.valid_BT,
      use_cache=config.cache)
    out_BTQV = out_BTQV.astype(dtype)
    if config.gated:
      out_BTQV *= nn.silu(project("gate", config.heads, config.value_dim, ("heads", "value")))
    return self._report(join_heads(self, out_BTQV, dim), state, key, k_BTHK, segment, count_HM)

  def _attend(self, q_BTQK, key, v_BTHV, rows, relative, content_bias, position_bias, near_bias, state, ids, valid):
    config = self.config
    return vq_attention(
      q_BTQK, key, v_BTHV, rows, relative, content_bias, position_bias, state, ids, valid, block_len=config.block_len,
      near_bias=near_bias, reduction=config.reduction, use_cache=config.cache, key_gradient=config.key_gradient,
      stale_rows=config.stale_rows, impl=self.impl)

  def _joined(self, x_BTD):
    """Keys, values and, where there is one, the gate of one projection, [B, T, heads, width] each."""
    config, dim = self.config, x_BTD.shape[-1]
    shapes = {"key": (config.kv_heads, config.key_dim), "value": (config.kv_heads, config.value_dim)}
    if config.gated:
      shapes["gate"] = config.heads, config.value_dim
    sizes = [heads * width for heads, width in shapes.values()]
    weight_DV = weight(self, "joined", (dim, sum(sizes)), ("embed", "value"), fan_in=dim)
    parts = jnp.split(multiply(x_BTD, weight_DV.astype(x_BTD.dtype)), np.cumsum(sizes)[:-1], axis=-1)
    return {
      name: part.reshape(*x_BTD.shape[:2], *shape)
      for (name, shape), part in zip(shapes.items(), parts, strict=True)}

  def _codebook_sums(self):
    config = self.config
    shape = (config.kv_heads, config.codes)
    # A start that weighs as little as the floor gives way to the keys of the first update.
    start = COUNT_FLOOR if config.data_start else 1.0
    spread = start * (config.kv_heads * config.codes) ** -0.5

    def random_sums():
      return spread * jax.random.normal(self.make_rng("params"), (*shape, config.key_dim), jnp.float32)

    def start_counts():
      return jnp.full(shape, start, jnp.float32)

    box = nn.with_logical_partitioning
    count = self.variable("buffers", "codebook_count", box(start_counts, ("kv_heads", "codes")))
    total = self.variable("buffers", "codebook_sum", box(random_sums, ("kv_heads", "codes", "key")))
    return count.value, total.value

  def _near_bias(self):
    heads, start = self.config.heads, self.config.near_start
    return parameter(self, "near_bias", nn.initializers.constant(start), (heads,), ("heads",)) if start else None

  def _relative(self, dim, *, train):
    """Embedding of the distances 0 … W, [H, W + 1, K]; its dropout key holds for a whole sequence."""
    config = self.config
    table_SD = sinusoids(jnp.arange(config.reach + 1), dim, max_wavelength=config.max_wavelength)
    dropout = nn.Dropout(config.sinusoid_dropout, rng_collection="sequence", deterministic=not train)
    weight_DHK = weight(
      self, "relative", (dim, config.kv_heads, config.key_dim), ("embed", "kv_heads", "key"), fan_in=dim)
    return jnp.einsum("SD,DHK->HSK", dropout(table_SD), weight_DHK)

  def _report(self, y_BTD, state, key: Quantized, k_BTHK, segment, moving_count_HM):
    config = self.config
    count_HM, sum_HMK = code_statistics(k_BTHK, key.code_BTH, segment.valid_BT, config.codes)
    num_tokens = segment.valid_BT.sum().astype(jnp.float32)
    error = (key.error_BTH * segment.valid_BT[..., None]).sum()
    share_HM = count_HM / jnp.maximum(num_tokens, 1.0)
    perplexity_H = jnp.exp(-(share_HM * jnp.log(jnp.maximum(share_HM, 1e-30))).sum(-1))
    # Keys have squared norm √K by construction, so this is the share of a key's energy that the codebook misses.
    error_scale = config.key_dim**0.5 * config.kv_heads
    return LayerOutput(
      y_BTD=y_BTD, state=state,
      losses={"commit": (config.commit_weight * error, num_tokens)},
      metrics={
        "codebook_perplexity": (perplexity_H.mean(), jnp.ones(())),
        "codebook_dead": (dead_codes(moving_count_HM, _DEAD_BELOW).mean(), jnp.ones(())),
        "quantization_error": (jax.lax.stop_gradient(error) / error_scale, num_tokens),
      },
      statistics={"codebook_count": count_HM, "codebook_sum": sum_HMK})


def update_codebook(config: VQConfig, buffers: dict, statistics: dict, rng: jax.Array) -> dict:
  """Moving average of the code counts and key sums of a whole update, over the global batch; then dead codes revive."""
  buffers = {name: moving_average(buffers[name], statistics[name], config.ema_rate) for name in buffers}
  if config.revive_below:
    count, total = revive(buffers["codebook_count"], buffers["codebook_sum"], config.revive_below, rng)
    buffers = {"codebook_count": count, "codebook_sum": total}
  return buffers
