"""Fits the maps of one layer, so that sinks, window and features together give what full attention gives.

Every layer is fitted alone, on the queries, keys and values that it has where all layers attend to everything (LESS,
arXiv 2402.09398). Weights are written out for all pairs of a text, which gives the same sums as the fold.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lattice_jax.ops.attention import MASKED
from lattice_jax.ops.far_summary import FeatureMap, FeatureMaps, join

_EVERYTHING = 2**30  # a window that no document fills


@flax.struct.dataclass
class Near:
  """What heads keep as it is: the first `sinks` tokens, and the last window_H of each key/value head."""

  window_H: jax.Array
  sinks: jax.Array

  @staticmethod
  def of(windows: tuple[int, ...], sinks: int) -> Near:
    """With 0 as the window of a head that sees everything."""
    return Near(jnp.asarray([window or _EVERYTHING for window in windows], jnp.int32), jnp.asarray(sinks))

  def is_far(self, time_N: jax.Array, length: int) -> jax.Array:
    """[H, N, T]: whether a token has left the window of the query at that time."""
    token_T = jnp.arange(length)
    return (time_N[:, None] - token_T >= self.window_H[:, None, None]) & (token_T >= self.sinks)


@flax.struct.dataclass
class Sample:
  """One text in one layer, of which some queries are looked at.

  q_NQK, time_N: these queries, and where they stand. k_THK, v_THV: of all tokens. full_HGNV: full attention.
  near_HGNV, near_HGN: attention to what is near, and its log-sum-exp. far_HGN: that of what is far, MASKED for nothing.
  """

  q_NQK: jax.Array
  time_N: jax.Array
  k_THK: jax.Array
  v_THV: jax.Array
  full_HGNV: jax.Array
  near_HGNV: jax.Array
  near_HGN: jax.Array
  far_HGN: jax.Array


@functools.partial(jax.jit, static_argnames="stride")
def make_sample(q_TQK: jax.Array, k_THK: jax.Array, v_THV: jax.Array, near: Near, *, stride: int) -> Sample:
  """With the last of every `stride` queries."""
  length, heads, width = k_THK.shape
  time_N = jnp.arange(stride - 1, length, stride)
  q_NQK = q_TQK[time_N]
  q_NHGK = q_NQK.reshape(len(time_N), heads, -1, width)
  score_HGNT = jnp.einsum("NHGK,THK->HGNT", q_NHGK, k_THK, precision="highest") * width**-0.5

  def attend(sees_HNT: jax.Array) -> tuple[jax.Array, jax.Array]:
    masked_HGNT = jnp.where(sees_HNT[:, None], score_HGNT, MASKED)
    lse_HGN = jax.nn.logsumexp(masked_HGNT, axis=-1)
    weight_HGNT = jnp.exp(masked_HGNT - lse_HGN[..., None])
    return jnp.einsum("HGNT,THV->HGNV", weight_HGNT, v_THV, precision="highest"), lse_HGN

  sees_1NT, is_far_HNT = (jnp.arange(length) <= time_N[:, None])[None], near.is_far(time_N, length)
  full_HGNV, _ = attend(sees_1NT)
  _, far_HGN = attend(is_far_HNT)
  far_HGN = jnp.where(is_far_HNT.any(-1)[:, None], far_HGN, MASKED)
  return Sample(q_NQK, time_N, k_THK, v_THV, full_HGNV, *attend(sees_1NT & ~is_far_HNT), far_HGN)


@functools.partial(jax.jit, static_argnames=("hidden", "features"))
def start_maps(rng: jax.Array, samples: Sample, near: Near, *, hidden: int, features: int) -> FeatureMaps:
  """As a layer's maps start, but fitted in two respects, since queries and keys of a trained model have any length.

  The first weights take each head's queries or keys as of length √K. The last biases of a query head are such that its
  far log-sum-exps have the exact mean, over the first text. samples: texts in front of every array.
  """
  rngs = jax.random.split(rng, 4)

  def start(x_BTHK: jax.Array, in_rng: jax.Array, out_rng: jax.Array) -> FeatureMap:
    heads, width = x_BTHK.shape[2:]
    size_H = jnp.sqrt((x_BTHK**2).mean((0, 1, 3)))
    in_HKF = jax.random.normal(in_rng, (heads, width, hidden)) * width**-0.5 / size_H[:, None, None]
    out_HFR = jax.random.normal(out_rng, (heads, hidden, features)) * hidden**-0.5
    return FeatureMap(in_HKF, jnp.zeros((heads, hidden)), out_HFR, jnp.zeros((heads, features)))

  maps = FeatureMaps(query=start(samples.q_NQK, *rngs[:2]), key=start(samples.k_THK, *rngs[2:]))
  first = jax.tree.map(lambda x_B: x_B[0], samples)
  _, lse_HGN = attend_far(maps, first, near)
  has_HGN = first.far_HGN > MASKED / 2
  short_HG = jnp.where(has_HGN, first.far_HGN - lse_HGN, 0).sum(-1) / jnp.maximum(has_HGN.sum(-1), 1)
  return maps.replace(query=maps.query.replace(out_bias_HR=maps.query.out_bias_HR + short_HG.reshape(-1, 1)))


def attend_far(maps: FeatureMaps, sample: Sample, near: Near) -> tuple[jax.Array, jax.Array]:
  """(output [H, G, N, V], log-sum-exp [H, G, N]) of attention to what is far by its features; 0 and MASKED for none."""
  length, heads = sample.k_THK.shape[:2]
  phi_NQR, psi_THR = maps.query(sample.q_NQK[None])[0], maps.key(sample.k_THK[None])[0]
  phi_NHGR = phi_NQR.reshape(len(phi_NQR), heads, -1, phi_NQR.shape[-1])
  weight_HGNT = jnp.einsum("NHGR,THR->HGNT", phi_NHGR, psi_THR) * near.is_far(sample.time_N, length)[:, None]
  total_HGN = weight_HGNT.sum(-1)
  lse_HGN = jnp.log(jnp.where(total_HGN > 0, total_HGN, 1))
  out_HGNV = jnp.einsum("HGNT,THV->HGNV", weight_HGNT, sample.v_THV) * jnp.exp(-lse_HGN)[..., None]
  return out_HGNV, jnp.where(total_HGN > 0, lse_HGN, MASKED)


def relative_squares(maps: FeatureMaps | None, sample: Sample, near: Near, most_share: float) -> jax.Array:
  """Σ ‖o − ô‖² / Σ ‖o‖² of each query head, [H, G], over the queries from which something is far; 0 where none is.

  maps: None: of what is near alone.
  """
  out_HGNV = sample.near_HGNV
  if maps is not None:
    out_HGNV, _ = join(
      sample.near_HGNV, sample.near_HGN, *attend_far(maps, sample, near), most_share=most_share)
  counts_HGN = sample.far_HGN > MASKED / 2
  off_HG, whole_HG = (
    (counts_HGN * (x_HGNV**2).sum(-1)).sum(-1) for x_HGNV in (out_HGNV - sample.full_HGNV, sample.full_HGNV))
  return off_HG / jnp.where(whole_HG > 0, whole_HG, 1)


@functools.partial(jax.jit, static_argnames=("most_share", "steps", "rate"))
def fit_layer(
  maps: FeatureMaps, samples: Sample, near: Near, *, most_share: float, steps: int, rate: float) -> FeatureMaps:
  """The maps after so many steps of Adam, one text a step, on the mean of all query heads' relative squares.

  rate: the learning rate of the first step, which falls to 0 as half a cosine. samples: texts in front.
  """
  rule = optax.adam(optax.cosine_decay_schedule(rate, steps))
  num = samples.time_N.shape[0]

  def loss(maps: FeatureMaps, sample: Sample) -> jax.Array:
    return relative_squares(maps, sample, near, most_share).mean()

  def step(carry: tuple[FeatureMaps, Any], index: jax.Array) -> tuple[tuple[FeatureMaps, Any], None]:
    maps, memory = carry
    sample = jax.tree.map(lambda x_B: x_B[index % num], samples)
    changes, memory = rule.update(jax.grad(loss)(maps, sample), memory, maps)
    return (optax.apply_updates(maps, changes), memory), None

  (maps, _), _ = jax.lax.scan(step, (maps, rule.init(maps)), jnp.arange(steps))
  return maps


@functools.partial(jax.jit, static_argnames="most_share")
def layer_error(maps: FeatureMaps | None, samples: Sample, near: Near, *, most_share: float) -> jax.Array:
  """Relative error of attention's output, the mean over query heads and texts."""
  square_BHG = jax.lax.map(lambda sample: relative_squares(maps, sample, near, most_share), samples)
  return jnp.sqrt(square_BHG).mean()
