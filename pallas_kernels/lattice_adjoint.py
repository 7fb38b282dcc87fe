"""The adjoint of one token of Lattice on a TPU: the equations of memories/lattice/README.md (exact scan)."""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.lattice_strips import (
  ADJOINT_STRIP,
  RETURNING_STRIP,
  code,
  gate,
  loop,
  over_parts,
  returning_gate,
  strips,
  sum_strip,
)


def token_adjoint(layout, objective, t, tokens, start_ref, before_ref, h_ref, measured, d_out_ref, d_slots, d_refs,
                  gate_ref):
  """Of retracted slots; their cotangent goes from after the token to before it."""
  (along_ref, energy_ref), (d_s_ref, _), (d_q_ref, d_k_ref, d_v_ref, (d_rate_ref,)) = measured, d_slots, d_refs
  q_ref, k_ref, (rate_ref,) = tokens.q, tokens.k, tokens.gates
  row = pl.ds(t, 1)
  h_d_1L = jnp.sum(h_ref[...] * d_out_ref[0, t], 0, keepdims=True)
  d_rate_ref[0, row] = own_1L = jnp.zeros_like(h_d_1L)
  # Parts of one row come as they are, whatever is the same in all of them in equal shares: they are summed outside.
  share = 1.0 / layout.parts
  for rows in strips(layout, ADJOINT_STRIP):
    x_s_ML, x_h_ML, s_d_ML = _dots(layout, code(q_ref, t, rows), before_ref, h_ref, d_out_ref.at[0, t], d_s_ref, rows)
    along_ML, rate_1L, energy_1L = along_ref[t, rows], rate_ref[0, row], energy_ref[row]
    keep_ML, write_ML, b_ML, shrink_ML, code_ML = gate(
      objective, code(k_ref, t, rows), rate_1L, along_ML, energy_1L)
    d_q_ref[0, t, rows] = keep_ML * s_d_ML + write_ML * h_d_1L
    radial_ML = keep_ML * x_s_ML + write_ML * x_h_ML
    d_a_ML = (x_s_ML - radial_ML * (keep_ML + write_ML * along_ML)) * shrink_ML
    d_b_ML = (x_h_ML - radial_ML * (keep_ML * along_ML + write_ML * energy_1L)) * shrink_ML
    d_b_ML = d_b_ML - d_a_ML * along_ML
    d_code_ML = d_b_ML * rate_1L
    d_along_ML = -d_a_ML * b_ML
    if objective == "encoding":
      d_along_ML = d_along_ML - d_code_ML
    d_rate_ref[0, row] += share * jnp.sum(d_b_ML * code_ML, 0, keepdims=True)
    d_k_ref[0, t, rows] = share * d_code_ML
    mixed_ML = d_along_ML - write_ML * radial_ML * keep_ML
    own_1L += jnp.sum(write_ML * write_ML * radial_ML, 0, keepdims=True)
    for i, x_ML in enumerate((keep_ML, keep_ML * keep_ML * radial_ML, mixed_ML)):
      gate_ref[i, rows] = x_ML

    def gather(j, _, rows=rows, write_ML=write_ML, mixed_ML=mixed_ML):
      sum_strip(d_v_ref.at[0, t], j, rows, write_ML * d_s_ref[0, j, rows] + mixed_ML * before_ref[j, rows])
      return 0

    loop(layout.values, gather, 0)

  d_v_ref[0, t] -= own_1L * h_ref[...]
  for rows in strips(layout, ADJOINT_STRIP):
    keep_ML, back_ML, mixed_ML = (gate_ref[i, rows] for i in range(3))
    k_ML = code(k_ref, t, rows)

    def spread(j, d_k_ML, rows=rows, k_ML=k_ML, keep_ML=keep_ML, back_ML=back_ML, mixed_ML=mixed_ML):
      s_ML, d_h_1L = before_ref[j, rows], d_v_ref[0, t, pl.ds(j, 1)]
      d_s_ML = keep_ML * d_s_ref[0, j, rows] - back_ML * s_ML + mixed_ML * h_ref[pl.ds(j, 1)]
      if objective == "decoding":
        d_s_ML, d_k_ML = d_s_ML - k_ML * d_h_1L, d_k_ML - s_ML * d_h_1L
      d_s_ref[0, j, rows] = d_s_ML
      return d_k_ML

    d_k_ref[0, t, rows] = loop(layout.values, spread, d_k_ref[0, t, rows])


def _dots(layout, q_ML, before_ref, h_ref, d_out_ref, d_s_ref, rows):
  """Adds what the read gives to d_s_ref; inner products of that with slots and direction, and of slots with d_out."""

  def dots(j, sums):
    x_s_ML, x_h_ML, s_d_ML = sums
    s_ML, h_1L, d_1L = before_ref[j, rows], h_ref[pl.ds(j, 1)], d_out_ref[pl.ds(j, 1)]
    x_ML = d_s_ref[0, j, rows] + q_ML * d_1L
    d_s_ref[0, j, rows] = x_ML
    return x_s_ML + x_ML * s_ML, x_h_ML + x_ML * h_1L, s_d_ML + s_ML * d_1L

  x_s_ML, x_h_ML, s_d_ML = loop(layout.values, dots, (jnp.zeros_like(q_ML),) * 3)
  return over_parts(layout, x_s_ML), over_parts(layout, x_h_ML), s_d_ML


def returning_adjoint(layout, objective, t, tokens, start_ref, before_ref, h_ref, measured, d_out_ref, d_slots, d_refs,
                      gate_ref):
  """Of returning slots; adds the cotangent of what they get of their start to d_slots[1]."""
  along_ref, energy_ref, shrink_ref = measured
  d_q_ref, d_k_ref, d_v_ref, (d_step_ref, d_rest_ref) = d_refs
  row = pl.ds(t, 1)
  h_d_1L = jnp.sum(h_ref[...] * d_out_ref[0, t], 0, keepdims=True)
  d_step_ref[0, row] = d_rest_ref[0, row] = jnp.zeros_like(h_d_1L)
  share = 1.0 / layout.parts  # as in `token_adjoint`
  for rows in strips(layout, RETURNING_STRIP):
    (x_s_ML, x_h_ML, x_start_ML, s_start_ML, h_start_ML), (s_d_ML, start_d_ML) = _returning_dots(
      layout, code(tokens.q, t, rows), start_ref, before_ref, h_ref, d_out_ref.at[0, t], d_slots[0], rows)
    # Loaded for every strip, so that no register holds them through the loops.
    energy_1L, step_1L, rest_1L = energy_ref[row], *(ref[0, row] for ref in tokens.gates)
    along_ML, shrink_ML = along_ref[t, rows], shrink_ref[t, rows]
    a_ML, b_ML, code_ML = returning_gate(objective, code(tokens.k, t, rows), step_1L, rest_1L, along_ML)
    keep_ML, write_ML, back_ML = a_ML * shrink_ML, b_ML * shrink_ML, rest_1L * shrink_ML
    d_q_ref[0, t, rows] = keep_ML * s_d_ML + write_ML * h_d_1L + back_ML * start_d_ML
    radial_ML = keep_ML * x_s_ML + write_ML * x_h_ML + back_ML * x_start_ML
    d_a_ML = (x_s_ML - radial_ML * (keep_ML + write_ML * along_ML + back_ML * s_start_ML)) * shrink_ML
    d_b_ML = (x_h_ML - radial_ML * (keep_ML * along_ML + write_ML * energy_1L + back_ML * h_start_ML)) * shrink_ML
    d_rest_ML = (x_start_ML - radial_ML * (keep_ML * s_start_ML + write_ML * h_start_ML + back_ML)) * shrink_ML
    d_b_ML = d_b_ML - d_a_ML * along_ML
    d_code_ML = d_b_ML * step_1L
    d_along_ML = -d_a_ML * b_ML
    if objective == "encoding":
      d_along_ML = d_along_ML - d_code_ML
    d_step_ref[0, row] += share * jnp.sum(d_b_ML * code_ML, 0, keepdims=True)
    d_rest_ref[0, row] += share * jnp.sum(d_rest_ML - d_a_ML, 0, keepdims=True)
    d_k_ref[0, t, rows] = share * d_code_ML
    for i, x_ML in enumerate((keep_ML, back_ML, d_along_ML)):
      gate_ref[i, rows] = x_ML
    _take_radial(
      layout, start_ref, before_ref, h_ref, (keep_ML, write_ML, back_ML), radial_ML, d_along_ML, d_slots[0],
      d_v_ref.at[0, t], rows)

  for rows in strips(layout, ADJOINT_STRIP):
    _spread(
      layout, objective, code(tokens.k, t, rows), before_ref, h_ref, (gate_ref[i, rows] for i in range(3)), d_slots,
      d_k_ref.at[0, t], d_v_ref.at[0, t], rows)


def _returning_dots(layout, q_ML, start_ref, before_ref, h_ref, d_out_ref, d_s_ref, rows):
  """As `_dots`, and the inner products with the start; those that need no d_out, then those with d_out."""

  def dots(j, sums):
    x_s_ML, x_h_ML, x_start_ML, s_start_ML, h_start_ML, s_d_ML, start_d_ML = sums
    s_ML, start_ML, h_1L, d_1L = before_ref[j, rows], start_ref[0, j, rows], h_ref[pl.ds(j, 1)], d_out_ref[pl.ds(j, 1)]
    x_ML = d_s_ref[0, j, rows] + q_ML * d_1L
    d_s_ref[0, j, rows] = x_ML
    return (
      x_s_ML + x_ML * s_ML, x_h_ML + x_ML * h_1L, x_start_ML + x_ML * start_ML, s_start_ML + s_ML * start_ML,
      h_start_ML + start_ML * h_1L, s_d_ML + s_ML * d_1L, start_d_ML + start_ML * d_1L)

  sums = loop(layout.values, dots, (jnp.zeros_like(q_ML),) * 7)
  return [over_parts(layout, x_ML) for x_ML in sums[:5]], sums[5:]


def _take_radial(layout, start_ref, before_ref, h_ref, shares, radial_ML, d_along_ML, d_s_ref, d_h_ref, rows):
  """Takes from the cotangent of a strip what lies along the new slots; the direction's, from that and from ŝ·h."""
  write_ML = shares[1]
  radial_keep_ML, radial_write_ML, radial_back_ML = (radial_ML * share_ML for share_ML in shares)

  def take(j, _):
    s_ML = before_ref[j, rows]
    x_ML = d_s_ref[0, j, rows] - radial_keep_ML * s_ML - radial_write_ML * h_ref[pl.ds(j, 1)]
    x_ML = x_ML - radial_back_ML * start_ref[0, j, rows]
    d_s_ref[0, j, rows] = x_ML
    sum_strip(d_h_ref, j, rows, write_ML * x_ML + d_along_ML * s_ML)
    return 0

  loop(layout.values, take, 0)


def _spread(layout, objective, k_ML, before_ref, h_ref, shares, d_slots, d_k_ref, d_h_ref, rows):
  """From the cotangent that `_take_radial` left to those of the slots before the token, of their start, and of k."""
  keep_ML, back_ML, d_along_ML = shares
  d_s_ref, d_start_ref = d_slots

  def spread(j, d_k_ML):
    x_ML = d_s_ref[0, j, rows]
    d_start_ref[0, j, rows] += back_ML * x_ML
    d_s_ML = keep_ML * x_ML + d_along_ML * h_ref[pl.ds(j, 1)]
    if objective == "decoding":
      d_h_1L = d_h_ref[pl.ds(j, 1)]
      d_s_ML, d_k_ML = d_s_ML - k_ML * d_h_1L, d_k_ML - before_ref[j, rows] * d_h_1L
    d_s_ref[0, j, rows] = d_s_ML
    return d_k_ML

  d_k_ref[rows] = loop(layout.values, spread, d_k_ref[rows])
