"""What both passes of Lattice's TPU kernels do to a strip of the slots of a group (lattice_layout.py).

Registers: 64 of 8 × 128. A loop over values takes a strip of slots at a time, few enough that what it needs of them in
every turn stays in registers; a sum over all slots is therefore a loop of its own, before those that use it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tiles import LANES

# Slots of a strip going back; of returning ones as many as leave registers for seven inner products of each.
ADJOINT_STRIP, RETURNING_STRIP = 32, 16
_UNROLL = 8, 4, 2, 1


def strips(layout, most):
  return [pl.ds(first, min(most, layout.slots - first)) for first in range(0, layout.slots, most)]


def loop(count, body, init):
  """Never whole in one piece, in which the compiler keeps more than there are registers."""
  unroll = next(turns for turns in _UNROLL if (count % turns == 0 and count > turns) or turns == 1)
  return jax.lax.fori_loop(0, count, body, init, unroll=unroll)


def code(ref, t, rows):
  return ref[0, t, rows].astype(jnp.float32)


def sum_strip(ref, j, rows, x_ML):
  """Adds the sum over a strip to a row, which the first strip begins."""
  x_1L = jnp.sum(x_ML, 0, keepdims=True)
  ref[pl.ds(j, 1)] = x_1L if rows.start == 0 else ref[pl.ds(j, 1)] + x_1L


def over_parts(layout, x):
  """In every lane the sum over the lanes that hold its row."""
  shift = layout.rows
  while shift < LANES:
    x = x + pltpu.roll(x, shift, 1)
    shift *= 2
  return x


def gate(objective, k_ML, rate_1L, along_ML, energy_1L):
  """(keep, write, b, 1 / length, code): a slot ŝ becomes keep·ŝ + write·h, which has length one."""
  code_ML = k_ML - along_ML if objective == "encoding" else k_ML
  b_ML = code_ML * rate_1L
  shrink_ML = jax.lax.rsqrt(1.0 + b_ML * b_ML * jnp.maximum(energy_1L - along_ML * along_ML, 0.0))
  return (1.0 - b_ML * along_ML) * shrink_ML, b_ML * shrink_ML, b_ML, shrink_ML, code_ML


def returning_gate(objective, k_ML, step_1L, rest_1L, along_ML):
  """(a, b, code): a slot ŝ becomes a·ŝ + b·h + rest·start, which is then put back to length one."""
  code_ML = k_ML - along_ML if objective == "encoding" else k_ML
  b_ML = code_ML * step_1L
  return (1.0 - rest_1L) - b_ML * along_ML, b_ML, code_ML
