"""What a window would lose of each key/value head, on what a layer hands to its attention while it reads a text."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.memories.local.far import find_fold
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.far_summary import FarSummary, FeatureMaps, join
from lattice_jax.ops.local import ALL

_MASKED = -1e30


@flax.struct.dataclass
class HeadErrors:
  """Means over the queries that were looked at, [R, H]; R: the rungs, in their order.

  mass_RH: attention weight on the sinks and the window. relative_RH: ‖o − ô‖ / ‖o‖, of the output of each query head.
  square_RH: ‖(o − ô) W‖², what the layer's output is off by, squared, if this head alone has the window.
  whole: ‖y‖², of the layer's whole output.
  """

  mass_RH: jax.Array
  relative_RH: jax.Array
  square_RH: jax.Array
  whole: jax.Array


@functools.partial(jax.jit, static_argnums=0, static_argnames=("first", "stride"))
def head_errors(
  config: LocalConfig, q_BTQK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, out_QVD: jax.Array,
  maps: FeatureMaps | None = None, *, first: int, stride: int,
) -> HeadErrors:
  """Compares every rung of `config`, with its sinks and its summary of what is far, with full attention.

  maps: what makes features of queries and keys, of a summary that takes these.
  Queries and keys hold their positions. Of the queries those at `first`, `first` + `stride` … are looked at.
  """
  length, heads = k_BTHK.shape[1:3]
  time_N = jnp.arange(first, length, stride)
  group = q_BTQK.shape[2] // heads
  q_BNHGK = q_BTQK[:, time_N].reshape(len(q_BTQK), len(time_N), heads, group, -1).astype(jnp.float32)
  score_BNHGT = jnp.einsum("BNHGK,BTHK->BNHGT", q_BNHGK, k_BTHK, precision="highest") * q_BTQK.shape[-1] ** -0.5
  back_NT = time_N[:, None] - jnp.arange(length)
  fold, far_q_BNHGK, far_k_BTHK = find_fold(config, group), q_BNHGK, k_BTHK
  if maps is not None:
    far_k_BTHK = maps.key(k_BTHK)
    far_q_BNHGK = maps.query(q_BTQK[:, time_N]).reshape(*q_BNHGK.shape[:-1], -1)

  def attend(sees_NT: jax.Array) -> tuple[jax.Array, jax.Array]:
    masked_BNHGT = jnp.where(sees_NT[:, None, None], score_BNHGT, _MASKED)
    lse_BNHG = jax.nn.logsumexp(masked_BNHGT, axis=-1)
    weight_BNHGT = jnp.exp(masked_BNHGT - lse_BNHG[..., None])
    return jnp.einsum("BNHGT,BTHV->BNHGV", weight_BNHGT, v_BTHV, precision="highest"), lse_BNHG

  full_BNHGV, full_BNHG = attend(back_NT >= 0)
  out_HGVD = out_QVD.reshape(heads, group, *out_QVD.shape[1:])

  def lost(window: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    near = attend((back_NT >= 0) & ((back_NT < window) | (jnp.arange(length) < config.sinks)))
    out_BNHGV, lse_BNHG = near
    if fold is not None:
      far = _read_far(fold, config.sinks, window, far_q_BNHGK, far_k_BTHK, v_BTHV, first=first, stride=stride)
      out_BNHGV, _ = join(*near, *far, most_share=config.summary.most_share)
    off_BNHGV = full_BNHGV - out_BNHGV
    off_BNHD = jnp.einsum("BNHGV,HGVD->BNHD", off_BNHGV, out_HGVD, precision="highest")
    relative_BNHG = jnp.linalg.norm(off_BNHGV, axis=-1) / jnp.linalg.norm(full_BNHGV, axis=-1)
    return (
      jnp.exp(lse_BNHG - full_BNHG).mean((0, 1, 3)), relative_BNHG.mean((0, 1, 3)), (off_BNHD**2).sum(-1).mean((0, 1)))

  y_BND = jnp.einsum("BNHGV,HGVD->BND", full_BNHGV, out_HGVD, precision="highest")
  by_rung = [lost(window) for window in config.rungs]
  return HeadErrors(*map(jnp.stack, zip(*by_rung, strict=True)), whole=(y_BND**2).sum(-1).mean())


def with_everything(error_RH: np.ndarray) -> np.ndarray:
  """The errors with those of the last rung, the whole document, which are zeros."""
  return np.concatenate([error_RH, np.zeros_like(error_RH[:1])])


def rungs_of(config: LocalConfig, length: int) -> tuple[int, ...]:
  """The rungs that hide something of a text of that length, and the whole document as the last."""
  return *(rung for rung in config.rungs if config.sinks + rung < length), ALL


def _read_far(
  fold: FarSummary, sinks: int, window: int, q_BNHGK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, *, first: int,
  stride: int,
) -> tuple[jax.Array, jax.Array]:
  """(output [B, N, H, G, V], log-sum-exp [B, N, H, G]) of each query in the summary of what it does not see."""
  batch, number, heads, group, width = q_BNHGK.shape
  key_BHTK, value_BHTV = (jnp.moveaxis(x, 1, 2) for x in (k_BTHK, v_BTHV))

  def evicted(start: jax.Array | int, count: int, low: jax.Array | int, high: jax.Array | int) -> Evicted:
    """Tokens [low, high) of the `count` from `start` on."""
    index_S = start + jnp.arange(count)
    shape = batch, heads, count
    take_S = jnp.clip(index_S, 0, key_BHTK.shape[2] - 1)
    return Evicted(
      key_BHTK[:, :, take_S], value_BHTV[:, :, take_S], jnp.broadcast_to(index_S, shape),
      jnp.broadcast_to((index_S >= jnp.maximum(low, sinks)) & (index_S < high), shape))

  # what the first query does not see, then what leaves its window up to each next one
  start = fold.add(
    fold.init_summary(batch, heads, width, value_BHTV.shape[-1]),
    evicted(0, max(1, first - stride - window + 1), 0, first - stride - window + 1))

  def read(summary, query):
    q_BHGK, time = query
    end = time - window + 1
    summary = fold.add(summary, evicted(end - stride, stride, end - stride, end))
    return summary, fold.read(q_BHGK.reshape(batch, 1, heads * group, width), summary)

  time_N = first + stride * jnp.arange(number)
  _, (out_NB1QV, lse_NB1Q) = jax.lax.scan(read, start, (jnp.moveaxis(q_BNHGK, 1, 0), time_N))
  out_BNQV, lse_BNQ = (jnp.moveaxis(x[:, :, 0], 0, 1) for x in (out_NB1QV, lse_NB1Q))
  return out_BNQV.reshape(batch, number, heads, group, -1), lse_BNQ.reshape(batch, number, heads, group)
