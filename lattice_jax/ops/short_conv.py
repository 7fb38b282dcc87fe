"""Short causal depthwise convolution that stops where a document begins, and remembers its last inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY


def short_conv(
  x_BTHK: jax.Array, tap_WHK: jax.Array, tail_BWHK: jax.Array, run_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Σ tap[w]·x[t − w] over tokens of t's document, in fp32, and the tail after the call.

  tail: the last W − 1 inputs of the state's document, zero where it has fewer. run: `document_runs` of the call.
  """
  reach, length = tail_BWHK.shape[1], x_BTHK.shape[1]
  x_BSHK = jnp.concatenate([tail_BWHK, x_BTHK], 1)
  run_BS = jnp.pad(run_BT, ((0, 0), (reach, 0)))  # run 0 goes on with the state's document
  y_BTHK = jnp.zeros(x_BTHK.shape, jnp.float32)
  for back in range(reach + 1):
    there = slice(reach - back, reach - back + length)
    is_same_BT = run_BS[:, there] == run_BT
    y_BTHK += jnp.where(is_same_BT[..., None, None], x_BSHK[:, there].astype(jnp.float32) * tap_WHK[back], 0)
  return y_BTHK, _last_inputs(x_BSHK, run_BS, reach, (run_BT != EMPTY).sum(1))


def _last_inputs(x_BSHK: jax.Array, run_BS: jax.Array, reach: int, num_valid_B: jax.Array) -> jax.Array:
  """The inputs of the last `reach` valid tokens, zero where they are of another document than the last one."""
  index_BW = num_valid_B[:, None] + jnp.arange(reach)
  run_BW = jnp.take_along_axis(run_BS, index_BW, 1)
  last_B1 = jnp.take_along_axis(run_BS, num_valid_B[:, None] + reach - 1, 1)
  tail_BWHK = jnp.take_along_axis(x_BSHK, index_BW[..., None, None], 1)
  return jnp.where((run_BW == last_B1)[..., None, None], tail_BWHK, 0)
