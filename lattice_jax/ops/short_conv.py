"""Short causal depthwise convolution that stops where a document begins, and remembers its last inputs."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lattice_jax.ops.documents import EMPTY, keep_only, last_slots


def short_conv(
  x_BTHK: Float[Array, "B T H K"], tap_WHK: Float[Array, "W H K"], tail_BWHK: Float[Array, "B R H K"],
  run_BT: Int[Array, "B T"],
) -> tuple[Float[Array, "B T H K"], Float[Array, "B R H K"]]:
  """Σ tap[w]·x[t − w] over tokens of t's document, in fp32 at least, and the tail after the call.

  tail: the last W − 1 inputs of the state's document, zero where it has fewer. run: `document_runs` of the call. No
  valid token and no tail reads an invalid one, whose own outputs mean nothing: ops replace them at their door. Invalid
  inputs must be finite, or the gradient of the taps is not.
  """
  reach, length = tail_BWHK.shape[1], x_BTHK.shape[1]
  x_BSHK = jnp.concatenate([tail_BWHK, x_BTHK], 1)
  run_BS = jnp.pad(run_BT, ((0, 0), (reach, 0)))  # run 0 goes on with the state's document
  wide = jnp.promote_types(x_BTHK.dtype, jnp.float32)
  y_BTHK = jnp.zeros(x_BTHK.shape, wide)
  for back in range(reach + 1):
    there = slice(reach - back, reach - back + length)
    is_same_BT = run_BS[:, there] == run_BT
    y_BTHK += jnp.where(is_same_BT[..., None, None], x_BSHK[:, there].astype(wide) * tap_WHK[back], 0)
  run_BW, tail_BWHK = last_slots((run_BS, x_BSHK), (run_BT != EMPTY).sum(1), reach)
  return y_BTHK, keep_only(run_BW == run_BW[:, -1:], tail_BWHK)
