"""Search of the nearest code on a Hopper GPU: products of keys and codes, and a running least distance, in registers.

Grid: batch, heads, blocks of two tiles of 64 keys, one for each of two warpgroups. A warpgroup keeps its keys in
registers and goes through all tiles of 64 codes, which a third one fetches into a ring of four places (hopper.py). Of a
tile it keeps, for each key, the least distance so far and its code. No distance leaves the chip.

A number of fp32 is the sum of three of bf16, high, middle and low: exactly, but for what is smaller than bf16 can be.
Keys are taken apart in registers, codes by XLA beforehand. Of the nine products of their parts the six largest are
summed in fp32, small ones first, as a TPU does where the highest precision is asked for. The other three are together
at most 2⁻²³ of a product, about what rounding it to fp32 and adding it loses. So where two distances are as near to
each other as fp32 rounds them, the code may be another than that of other fp32 sums; of codes that are equal it is
always the lowest. How tensor cores round their sums is not documented.

Shared memory: 4·384·K bytes of codes, K filled up to a multiple of 64, and a KiB. Registers of a thread: 3K / 4 of
keys, 32 of products, and about sixty more.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import hopper
from pallas_kernels.hopper import COLUMN, MATRIX, ROWS, WARPGROUP, by_column, by_row, load
from pallas_kernels.tiles import pad_to, round_up

UNIT = 64  # of widths
# Numbers of a key up to which this kernel was compiled for an H100 without spilling a register.
MOST_WIDTH = 128
PARTS = 3
# Parts of a key and of a code whose products are summed, small ones first.
PRODUCTS = ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0))
COMPUTING, PLACES = 2, 4


def supports(*, key_dim: int) -> str | None:
  """Why this kernel does not take such keys; None if it does."""
  if key_dim > MOST_WIDTH:
    return f"its Hopper kernel keeps keys in registers, of at most {MOST_WIDTH} numbers, not {key_dim}"
  return hopper.reason_against_device()


def nearest(k_BTHK: jax.Array, rows_HMK: jax.Array, *, interpret: object) -> jax.Array:
  """Int32 [B, T, H], as `vq.nearest_code`, on one device."""
  (batch, length, heads, key_dim), num_codes = k_BTHK.shape, rows_HMK.shape[1]
  padded, width = round_up(length, COMPUTING * ROWS), round_up(key_dim, UNIT)
  num_rows = round_up(num_codes, ROWS)
  k = pad_to(k_BTHK, {1: padded, 3: width}).reshape(batch, -1, ROWS, heads, width)
  rows = jnp.stack(in_parts(pad_to(rows_HMK, {1: num_rows, 2: width})), 1).reshape(heads, PARTS, -1, ROWS, width)
  # nothing is as far as what fills the last tile
  norm = pad_to((rows_HMK * rows_HMK).sum(-1), {1: num_rows}, jnp.inf).reshape(heads, -1, ROWS)
  tiles = k.shape[1]
  (code,) = hopper.launch(
    functools.partial(_search, num_tiles=norm.shape[1]), "nearest_code",
    {"batch": batch, "head": heads, "block": tiles // COMPUTING}, {"k": k, "rows": rows, "norm": norm},
    {"code": jax.ShapeDtypeStruct((batch, heads, tiles, ROWS), jnp.int32)},
    {"row_tile": hopper.matrices(PLACES * PARTS, width, rows.dtype),
     "norm_tile": plgpu.SMEM((PLACES, ROWS), jnp.float32)} | hopper.ring(PLACES, PARTS + 1, COMPUTING),
    computing=COMPUTING, interpret=interpret)
  return jnp.swapaxes(code.reshape(batch, heads, -1)[:, :, :length], 1, 2)


def _search(refs, *, num_tiles):
  """code [ROWS] of each tile of a block of keys."""
  batch, head, block = (jax.lax.axis_index(name) for name in ("batch", "head", "block"))

  def fetch(step, place):
    for part in range(PARTS):
      plgpu.copy_gmem_to_smem(
        refs["rows"].at[head, part, step], refs["row_tile"].at[place * PARTS + part], refs["full"].at[place])
    plgpu.copy_gmem_to_smem(refs["norm"].at[head, step], refs["norm_tile"].at[place], refs["full"].at[place])

  def compute():
    tile = block * COMPUTING + jax.lax.axis_index(WARPGROUP)
    keys = in_parts(load(refs["k"], (batch, tile, slice(None), head), MATRIX))
    number = plgpu.layout_cast(jax.lax.broadcasted_iota(jnp.int32, (ROWS, ROWS), 1), MATRIX)

    def read(step, place, carry):
      least_R, code_R = carry
      dot = hopper.products(*(
        (keys[of_key], refs["row_tile"].at[place * PARTS + of_row]) for of_key, of_row in PRODUCTS))
      distance = by_column(load(refs["norm_tile"], (place,), COLUMN)) - 2.0 * dot
      here_R = distance.min(axis=1)
      first_R = jnp.where(distance == by_row(here_R, ROWS), number, ROWS - 1).min(axis=1)
      is_nearer_R = here_R < least_R
      return jnp.where(is_nearer_R, here_R, least_R), jnp.where(is_nearer_R, first_R + step * ROWS, code_R)

    begin = hopper.row_numbers(jnp.inf), hopper.row_numbers(0.0).astype(jnp.int32)
    _, code_R = hopper.go_through(0, num_tiles, num_tiles, PLACES, refs["full"], refs["free"], read, begin)
    refs["code"][batch, head, tile] = code_R

  hopper.divide_work(COMPUTING, compute, lambda: hopper.feed(num_tiles, PLACES, refs["free"], fetch))


def in_parts(x: jax.Array) -> tuple[jax.Array, ...]:
  """Of fp32 the high, middle and low part, bf16; their sum is x."""
  high = _leading(x)
  middle = _leading(x - high)
  return tuple(part.astype(jnp.bfloat16) for part in (high, middle, x - high - middle))


def _leading(x):
  """x rounded to the eight leading bits of bf16, in fp32.

  By bits, for a compiler may leave out a conversion to bf16 and back.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return jax.lax.bitcast_convert_type((bits + 0x8000) & ~0xFFFF, jnp.float32)
