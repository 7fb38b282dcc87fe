"""What Hopper kernels that multiply matrices share: matrices in shared memory, products on tensor cores, the ring.

A block has some warpgroups that compute and a last one that fetches. What is fetched goes through a ring of places in
shared memory. A place has two barriers: `full`, at which every copy into it arrives when its bytes are there, and
`free`, at which every computing warpgroup arrives when it has read them; the last uses of a place, which nobody waits
for, do not arrive. So a copy into a place begins after all have read it, and reading begins after all of it has come.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 64  # of a matrix that one warpgroup multiplies
MATRIX = plgpu.Layout.WGMMA
ROW, COLUMN = MATRIX.reduce(1), MATRIX.reduce(0)  # one number a row of a matrix, and one a column
# A thread at a time, with layouts and transforms as they are written here: from JAX 0.11 on the compiler would choose.
SEMANTICS = plgpu.LoweringSemantics.Lane
PARAMS = plgpu.CompilerParams(approx_math=True, lowering_semantics=SEMANTICS)
WARPGROUP = "warpgroup"
CAPABILITY = "9.0"
Carry = tuple[jax.Array, ...]
# How tensor cores read matrices.
TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
# Before JAX 0.11 the index of a load is an argument, and from then on a part of the reference.
_INDEX_IS_APART = jax.__version_info__ < (0, 11)
# From JAX 0.12 on an assignment is refused where threads would wait for each other's banks of shared memory.
_ASSIGNMENT_IS_PICKY = jax.__version_info__ >= (0, 12)
# Registers of a thread where three warpgroups begin with 168 each.
_COMPUTES, _FETCHES = 240, 24


def reason_against_device() -> str | None:
  """Why kernels for Hopper do not run on this machine's GPU, if it has one; None if they do."""
  capability = jax.devices()[0].compute_capability if jax.default_backend() == "gpu" else CAPABILITY
  if capability == CAPABILITY:
    return None
  return f"its GPU kernel is for Hopper, compute capability {CAPABILITY}, not {capability}"


def launch(
  body: Callable[[dict[str, jax.Ref]], None], name: str, grid: dict[str, int], operands: dict[str, jax.Array],
  results: dict[str, jax.ShapeDtypeStruct], room: dict[str, object], *, computing: int, interpret: object,
) -> tuple[jax.Array, ...]:
  """Results of `body`, which sees arrays and room in shared memory by name, in `computing` warpgroups and one more."""
  names = (*operands, *results)

  def run(*refs, **room):
    body(dict(zip(names, refs, strict=True)) | room)

  run.__name__ = name
  return plgpu.kernel(
    run, out_type=tuple(results.values()), grid=tuple(grid.values()), grid_names=tuple(grid),
    num_threads=computing + 1, thread_name=WARPGROUP, compiler_params=PARAMS, interpret=interpret,
    scratch_types=room)(*operands.values())


def ring(places: int, copies: int, computing: int) -> dict[str, plgpu.Barrier]:
  """The barriers of so many places, into each of which so many copies go."""
  return {
    "full": plgpu.Barrier(num_arrivals=copies, num_barriers=places),
    "free": plgpu.Barrier(num_arrivals=computing, num_barriers=places)}


def matrices(num: int, width: int, dtype: jnp.dtype) -> plgpu.SMEM:
  """Room for `num` matrices of `ROWS` rows, stored as tensor cores read them."""
  return plgpu.SMEM((num, ROWS, width), dtype, transforms=TRANSFORMS)


def product(a: jax.Array | jax.Ref, b: jax.Ref) -> jax.Array:
  """a · bᵀ in fp32; b, and perhaps a, in shared memory."""
  return products((a, b))


def products(*pairs: tuple[jax.Array | jax.Ref, jax.Ref]) -> jax.Array:
  """Σ a · bᵀ over pairs, in their order."""
  def run(sum_ref):
    for a, b in pairs:
      plgpu.wgmma(sum_ref, a, b.transpose((1, 0)))
    return sum_ref[...]

  (a, b), *_ = pairs
  return pl.run_scoped(run, plgpu.ACC((a.shape[0], b.shape[0]), jnp.float32))


def add_product(total: jax.Array, a: jax.Array, b: jax.Ref) -> jax.Array:
  """total + a · b in fp32, a in registers and b in shared memory."""
  def run(sum_ref):
    plgpu.wgmma(sum_ref, a, b)

  return pl.run_state(run)(plgpu.ACC.init(total))


def zeros(*shape: int) -> jax.Array:
  """A matrix in registers."""
  return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), MATRIX)


def row_numbers(value: float) -> jax.Array:
  """The same number for each row."""
  return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), ROW)


def load(ref: jax.Ref, index: tuple[int | jax.Array, ...], layout: object) -> jax.Array:
  """What is at `index` in any memory, in registers."""
  if _INDEX_IS_APART:
    return plgpu.load(ref, index, layout=layout, optimized=False)
  return plgpu.load(ref.at[index], layout=layout, optimized=False)


def store(ref: jax.Ref, index: tuple[int | jax.Array, ...], value: jax.Array) -> None:
  """Registers of any layout to `index` in any memory."""
  if _ASSIGNMENT_IS_PICKY:
    plgpu.store(ref.at[index], value, optimized=False)
  else:
    ref[index] = value


def by_row(x: jax.Array, width: int) -> jax.Array:
  """[R] → [R, width]."""
  return jax.lax.broadcast_in_dim(x, (x.shape[0], width), (0,))


def by_column(x: jax.Array) -> jax.Array:
  """[C] → [`ROWS`, C]."""
  return jax.lax.broadcast_in_dim(x, (ROWS, x.shape[0]), (1,))


def feed(total: jax.Array, places: int, free: jax.Ref, fetch: Callable[[jax.Array, jax.Array], None]) -> None:
  """What the last warpgroup does: `fetch(step, place)` as soon as the place is free."""
  def one(step, _):
    place = jax.lax.rem(step, places)

    @pl.when(step >= places)
    def _():
      plgpu.barrier_wait(free.at[place])

    fetch(step, place)

  jax.lax.fori_loop(0, total, one, None)


def go_through(
  begin: jax.Array, end: jax.Array, total: jax.Array, places: int, full: jax.Ref, free: jax.Ref,
  work: Callable[[jax.Array, jax.Array, Carry], Carry], carry: Carry,
) -> Carry:
  """What the others do: `carry = work(step, place, carry)` for steps from `begin` to `end` of `total`."""
  def one(step, carry):
    place = jax.lax.rem(step, places)
    plgpu.barrier_wait(full.at[place])
    carry = work(step, place, carry)

    @pl.when(step + places < total)
    def _():
      plgpu.commit_smem()  # the copy that follows is no sooner than reads by threads, which go another way than copies
      plgpu.barrier_arrive(free.at[place])

    return carry

  return jax.lax.fori_loop(begin, end, one, carry)


def divide_work(num_computing: int, compute: Callable[[], None], fetch: Callable[[], None]) -> None:
  """Runs `compute` in all warpgroups but the last, which runs `fetch`."""
  warpgroup = jax.lax.axis_index(WARPGROUP)
  gives = num_computing == 2  # one that computes has as many registers as a thread can have

  @pl.when(warpgroup < num_computing)
  def _():
    if gives:
      plgpu.set_max_registers(_COMPUTES, action="increase")
    compute()

  @pl.when(warpgroup == num_computing)
  def _():
    if gives:
      plgpu.set_max_registers(_FETCHES, action="decrease")
    fetch()


def send(*copies: tuple[jax.Array, jax.Ref, jax.Ref]) -> None:
  """Numbers by way of shared memory to where they stay: (numbers, on the way, at last)."""
  for numbers, way, _ in copies:
    way[...] = numbers.astype(way.dtype)
  plgpu.commit_smem()
  for _, way, target in copies:
    plgpu.copy_smem_to_gmem(way, target)
  plgpu.wait_smem_to_gmem(0)


def bring(source: jax.Ref, target: jax.Ref, barrier: jax.Ref) -> None:
  """Copies to shared memory, and waits until all is there."""
  plgpu.copy_gmem_to_smem(source, target, barrier)
  plgpu.barrier_wait(barrier)


def take_away(source: jax.Ref, target: jax.Ref) -> None:
  """Copies out of shared memory, and waits until all is gone."""
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(source, target)
  plgpu.wait_smem_to_gmem(0)


def token_specs(
  tile: int, wide: int, deep: int, numbers: int, order: Callable[[jax.Array], jax.Array]
) -> tuple[plgpu.BlockSpec, ...]:
  """Blocks of step n of a pipeline over tiles of tokens: keys, values, numbers of a tile's tokens, and a state.

  wide, deep: of a key and a value, so of the state. order: step → tile.
  """
  return (
    plgpu.BlockSpec((tile, wide), lambda n: (order(n), 0)), plgpu.BlockSpec((tile, deep), lambda n: (order(n), 0)),
    plgpu.BlockSpec((1, numbers), lambda n: (order(n), 0)),
    plgpu.BlockSpec((1, wide, deep), lambda n: (order(n), 0, 0)))


def over_values(x: jax.Array, like: jax.Array) -> jax.Array:
  """A number for each row, in every column of a matrix like that."""
  return jax.lax.broadcast_in_dim(x, like.shape, (0,))


def over_keys(x: jax.Array, like: jax.Array) -> jax.Array:
  """A number for each column, in every row of a matrix like that."""
  return jax.lax.broadcast_in_dim(x, like.shape, (1,))
