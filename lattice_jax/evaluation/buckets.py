"""Loss by position: which bucket a position falls in, and sums over them that keep fp32 exact enough."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lattice_jax.config import ModelConfig

# Tokens of one fp32 partial sum; the partial sums are added on the host in float64. Summing a whole chunk of 100k
# tokens in fp32 would already differ by 1e-6 between batch sizes.
_TOKENS_PER_SUM = 128
_DEFAULT_UNIT = 64


@dataclass(frozen=True)
class Bucket:
  """Targets whose input stands at a position in [start, stop) of its document or window.

  bits_per_byte takes the whole split's bytes per token, so that the buckets average to the total; None when empty.
  """

  start: int
  stop: int
  tokens: int
  bits_per_byte: float | None


def bucket_starts(model: ModelConfig, longest: int) -> np.ndarray:
  """First positions of the buckets 0, L/2, L, 2L, 4L … below `longest`; L is the VQ block, or 64 without VQ."""
  unit = model.vq.block_len if "vq" in model.pattern else _DEFAULT_UNIT
  starts, edge = [0], max(unit // 2, 1)
  while edge < longest:
    starts.append(edge)
    edge *= 2
  return np.asarray(starts, np.int32)


def bucket_sums(
  values: Float[Array, "B T"], weights: Float[Array, "B T"], positions: Int[Array, "B T"], starts: Int[Array, "E"]
) -> Float[Array, "B N E"]:
  """Σ value·weight by bucket, per row and per run of at most 128 tokens (N runs), in fp32."""
  num_tokens, num_buckets = values.shape[1], starts.shape[0]
  num_runs = -(-num_tokens // _TOKENS_PER_SUM)
  bucket_BT = jnp.searchsorted(starts, positions, side="right") - 1
  run_T = jnp.arange(num_tokens) // _TOKENS_PER_SUM
  segment_BT = run_T * num_buckets + bucket_BT
  # a weight of 0 must hide whatever the model said there, NaN included
  value_BT = jnp.where(weights > 0, values.astype(jnp.float32) * weights, 0.0)
  sum_rows = jax.vmap(lambda value_T, segment_T: jax.ops.segment_sum(value_T, segment_T, num_runs * num_buckets))
  return sum_rows(value_BT, segment_BT).reshape(values.shape[0], num_runs, num_buckets)


def make_buckets(
  starts: np.ndarray, longest: int, nats: np.ndarray, tokens: np.ndarray, bytes_per_token: float
) -> tuple[Bucket, ...]:
  """The table of the buckets from the float64 sums of nats and tokens."""
  stops = [*starts[1:].tolist(), max(longest, int(starts[-1]) + 1)]
  return tuple(
    Bucket(
      start=int(start), stop=int(stop), tokens=round(count),
      bits_per_byte=nat / count / np.log(2).item() / bytes_per_token if count else None)
    for start, stop, nat, count in zip(starts, stops, nats.tolist(), tokens.tolist(), strict=True))
