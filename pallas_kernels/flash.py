"""Flash attention on a TPU over two kinds of keys in one softmax: near ones, and extra ones that go with a query block.

Near keys are tokens: a query sees those of its document up to its own index whose SHOWN is not below its LOW; SHOWN is
their index or, for tokens that are never hidden, a great number. Extra keys are a few rows for each block of C queries,
with a bias each; a query sees those of its document. The first tokens of a document that come before all that a window
shows to a block, or the codes of a compressed past, are extra keys.

Grids, the last axis in order: forward and gradient of the queries (batch, query heads, query blocks, extra tiles + near
blocks); gradient of near keys (batch, key heads, key blocks, heads of a group × query blocks); gradient of extra keys
(batch, key heads, extra tiles, query blocks, heads of a group). Which near blocks meet is data and comes as prefetched
(first, count); steps beyond count do nothing and fetch nothing. A head of a group finds its keys by index map.

Blocks: [C, K] of q, k and their gradients, [C, V] of v, out, d_out and d_v, [X, K] and [X, V] of extra keys, eight rows
[8, C] of places and of what the backward pass knows (lse and d_lse − Σ out·d_out). With positions: qw [C, R], one block
[2C, R] of the table, and in the backward pass the gradient of a head's whole table [blocks, 2C, R].
VMEM with elements of e bytes: about 2e(2CK + 2CV + X(K + V)) + 4C(K + V) + 3072C + 4C² forward, with positions 2e·3CR
more; backward twice that, 12C² more and 8·blocks·2C·R. Scores, softmax and all sums are fp32; weights meet values in
the dtype of values.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import flash_kernels
from pallas_kernels.flash_kernels import ID, INDEX, LOW
from pallas_kernels.tiles import LANES, SUBLANES, eight_rows, launch

# Ids of places without a token: no query has the one of keys, and no key that of queries.
EMPTY_KEY, EMPTY_QUERY = -1, -2
FAR_BACK = -(2**30)  # a quarter of the range: differences cannot overflow

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a call is cut.

  tile: C, tokens of a block, which divides both lengths.
  steps: how many near key blocks a query block meets at most, and query blocks a key block.
  extra_tile: X, extra keys of a tile, which divides their number.
  key_reach: near keys get a gradient from queries at most so many tokens later; None is from all.
  boundary_name: under which rematerialisation policies know what is kept for the backward pass.
  """

  tile: int
  steps: int
  extra_tile: int = LANES
  key_reach: int | None = None
  interpret: object = False
  boundary_name: str = "memory_boundary"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(plan: Plan, floats: Arrays, fixed: Arrays) -> tuple[jax.Array, jax.Array]:
  """fp32 output [B, Q, T, V] and log-sum-exp [B, Q, T]; a query that sees nothing gets 0 and MASKED.

  Lengths are multiples of the tile, widths of 128. Scores are not scaled.

  Args:
    plan: static.
    floats: q [B, Q, T, K], k [B, H, T', K], v [B, H, T', V]; query head h·G + g reads key head h. Extra keys, if any:
      extra_key [B, H, N, E, K] or, when all query blocks share them, [B, H, 1, E, K]; extra_value [B, H, N, E, V].
      Positions, if any: qw [B, Q, T, R], table [H, blocks, 2C, R], see `position_blocks`; then key block n + b of
      query block n has block b of the table.
    fixed: places, int32: query [B, 8, T] rows INDEX, ID, LOW; key [B, 8, T'] rows INDEX, ID, SHOWN; extra_place
      [B, H, N, 8, E] rows BIAS, the bits of an fp32, and ID. Not differentiated.
  """
  return _forward(plan, floats, fixed)[0]


def position_blocks(relative_HSR: jax.Array, window: int, tile: int) -> jax.Array:
  """Rows of distances 0 … W as one block for each place of a key block: row w of block b is that of distance
  W' − b·C + C − w, W' being W in whole tiles; zero where there is none."""
  reach = -(-window // tile) * tile
  padded = jnp.pad(relative_HSR, ((0, 0), (tile - 1, reach - window + tile), (0, 0)))[:, ::-1]
  starts = range(0, reach + tile, tile)
  return jnp.stack([padded[:, start:start + 2 * tile] for start in starts], axis=1)


def reach(tile, query_B8T, key_B8S):
  """(first, count) of the key blocks that each query block may see, and of the query blocks that may see each key
  block; int32 [B · blocks] each. Bounds by index and document are conservative, and symmetric."""
  is_query, is_key = query_B8T[:, ID] != EMPTY_QUERY, key_B8S[:, ID] != EMPTY_KEY

  def bound(values_BT, is_token_BT, reduce, empty):
    return reduce(jnp.where(is_token_BT, values_BT, empty).reshape(values_BT.shape[0], -1, tile), axis=-1)

  def of_queries(row, reduce, empty):
    return bound(query_B8T[:, row], is_query, reduce, empty)[:, :, None]

  def of_keys(row, reduce, empty):
    return bound(key_B8S[:, row], is_key, reduce, empty)[:, None, :]

  least, greatest = (jnp.min, -FAR_BACK), (jnp.max, FAR_BACK)
  meets_BNN = (of_queries(INDEX, *greatest) >= of_keys(INDEX, *least)) & (
    of_queries(LOW, *least) <= of_keys(INDEX, *greatest))
  meets_BNN &= (of_queries(ID, *least) <= of_keys(ID, *greatest)) & (
    of_keys(ID, *least) <= of_queries(ID, *greatest))

  def span(meets_BNN):
    first_BN = meets_BNN.argmax(-1)
    stop_BN = meets_BNN.shape[-1] - meets_BNN[..., ::-1].argmax(-1)
    count_BN = jnp.where(meets_BNN.any(-1), stop_BN - first_BN, 0)
    return tuple(x_BN.reshape(-1).astype(jnp.int32) for x_BN in (first_BN, count_BN))

  return span(meets_BNN), span(jnp.swapaxes(meets_BNN, 1, 2))


def _forward(plan, floats, fixed):
  queries, _ = reach(plan.tile, fixed["query"], fixed["key"])
  batch, heads, length, _ = floats["q"].shape
  tile, value_dim = plan.tile, floats["v"].shape[-1]
  grid, operands = _query_major(plan, floats, fixed)
  out = launch(
    functools.partial(flash_kernels.forward, extras=grid[3] - plan.steps), name="flash_forward", grid=grid, parallel=3,
    prefetch=queries, operands=operands,
    results={
      "out": _tokens(jax.ShapeDtypeStruct((batch, heads, length, value_dim), jnp.float32), tile, _outer_token),
      "lse": (jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32), (None, None, 1, tile),
              lambda b, h, n, s, *_: (b, h, 0, n)),
    },
    scratch={
      "place": ((3, tile, LANES), jnp.int32), **dict.fromkeys(("top", "total", "shrink"), ((tile, LANES), jnp.float32)),
      "sum": ((tile, value_dim), jnp.float32),
      "weight": ((tile, max(tile, plan.extra_tile)), floats["v"].dtype),
      **_position_scratch(floats, tile, "position")},
    flops=_flops(plan, grid, floats, 1), interpret=plan.interpret)
  result = checkpoint_name((out["out"], out["lse"][:, :, 0]), plan.boundary_name)
  return result, (floats, fixed, *result)


def _backward(plan, saved, cotangents):
  floats, fixed, out, lse = saved
  d_out, d_lse = cotangents
  # d score = weight · (d weight − Σ weight·d weight + d lse); the sum is out · d out.
  shift = d_lse - (out * d_out).sum(-1)
  stats = eight_rows(lse, shift)
  d_out = d_out.astype(floats["v"].dtype)
  queries, keys = reach(plan.tile, fixed["query"], fixed["key"])
  grads = _query_gradients(plan, floats, fixed, d_out, stats, queries)
  grads |= _near_key_gradients(plan, floats, fixed, d_out, stats, keys)
  if "extra_key" in floats:
    grads |= _extra_key_gradients(plan, floats, fixed, d_out, stats)
  return grads, None


attend.defvjp(_forward, _backward)


def _query_gradients(plan, floats, fixed, d_out, stats, spans):
  tile = plan.tile
  grid, operands = _query_major(plan, floats, fixed)
  operands |= {
    "d_out": _tokens(d_out, tile, _outer_token),
    "stats": _rows(stats, tile, lambda b, h, n, *_: (b, h, 0, n))}
  results = {"d_q": _tokens(like(floats["q"]), tile, _outer_token)}
  scratch = {
    "place": ((3, tile, LANES), jnp.int32), "known": ((2, tile, LANES), jnp.float32),
    "sum_q": ((tile, floats["q"].shape[-1]), jnp.float32),
    "d_weight": ((tile, max(tile, plan.extra_tile)), jnp.float32), **_position_scratch(floats, tile, "position")}
  if "table" in floats:
    batch, heads = floats["q"].shape[:2]
    table = floats["table"].shape[1:]
    results["d_qw"] = _tokens(like(floats["qw"]), tile, _outer_token)
    results["d_table"] = (jax.ShapeDtypeStruct((batch, heads, *table), jnp.float32), (None, None, *table),
                          lambda b, h, *_: (b, h, 0, 0, 0))
    scratch["sum_qw"] = ((tile, floats["qw"].shape[-1]), jnp.float32)
    scratch["slid"] = ((tile, tile + min(tile, LANES)), floats["qw"].dtype)
  grads = launch(
    functools.partial(flash_kernels.query_gradients, extras=grid[3] - plan.steps), name="flash_query_gradients",
    grid=grid, parallel=2, prefetch=spans, operands=operands, results=results, scratch=scratch,
    flops=_flops(plan, grid, floats, 2), interpret=plan.interpret)
  if "d_table" in grads:
    heads = floats["table"].shape[0]
    sums = grads["d_table"].sum(0)
    grads["d_table"] = sums.reshape(heads, -1, *sums.shape[1:]).sum(1).astype(floats["table"].dtype)
  return {name.removeprefix("d_"): grad for name, grad in grads.items()}


def _near_key_gradients(plan, floats, fixed, d_out, stats, spans):
  tile, steps = plan.tile, plan.steps
  batch, kv_heads, length, key_dim = floats["k"].shape
  group, num_blocks = floats["q"].shape[1] // kv_heads, length // tile

  def query_block(b, n, s, first, count):
    here = b * num_blocks + n
    return first[here] + jnp.minimum(jax.lax.rem(s, steps), jnp.maximum(count[here] - 1, 0))

  def query_token(b, h, n, s, *spans):
    return b, h * group + jax.lax.div(s, steps), query_block(b, n, s, *spans), 0

  def query_row(b, h, n, s, *spans):
    return b, h * group + jax.lax.div(s, steps), 0, query_block(b, n, s, *spans)

  operands = {
    "k": _tokens(floats["k"], tile, _outer_token), "v": _tokens(floats["v"], tile, _outer_token),
    "key": _rows(fixed["key"], tile, lambda b, h, n, *_: (b, 0, n)),
    "q": _tokens(floats["q"], tile, query_token), "d_out": _tokens(d_out, tile, query_token),
    "query": _rows(fixed["query"], tile, lambda b, h, n, s, *spans: (b, 0, query_block(b, n, s, *spans))),
    "stats": _rows(stats, tile, query_row)}
  if "table" in floats:
    operands["qw"] = _tokens(floats["qw"], tile, query_token)
    operands["table"] = _table_block(
      floats["table"], lambda b, h, n, s, *spans: (h, n - query_block(b, n, s, *spans)))
  grid = (batch, kv_heads, num_blocks, group * steps)
  grads = launch(
    functools.partial(flash_kernels.near_key_gradients, steps=steps, key_reach=plan.key_reach),
    name="flash_near_key_gradients", grid=grid, parallel=3, prefetch=spans, operands=operands,
    results={"d_k": _tokens(like(floats["k"]), tile, _outer_token),
             "d_v": _tokens(like(floats["v"]), tile, _outer_token)},
    scratch={"place": ((3, tile, LANES), jnp.int32), "sum_k": ((tile, key_dim), jnp.float32),
             "sum_v": ((tile, floats["v"].shape[-1]), jnp.float32),
             "d_weight": ((tile, tile), jnp.float32), "weight": ((tile, tile), d_out.dtype),
             **_position_scratch(floats, tile, "position", "flipped")},
    flops=_flops(plan, grid, floats, 2), interpret=plan.interpret)
  return {"k": grads["d_k"], "v": grads["d_v"]}


def _extra_key_gradients(plan, floats, fixed, d_out, stats):
  tile, extra_tile = plan.tile, plan.extra_tile
  batch, kv_heads, num_shared, num_extra, key_dim = floats["extra_key"].shape
  num_blocks, value_dim = floats["extra_value"].shape[2], floats["extra_value"].shape[-1]
  group = floats["q"].shape[1] // kv_heads

  def query_token(b, h, x, n, g):
    return b, h * group + g, n, 0

  def key_rows(b, h, x, n, g):
    return b, h, n if num_shared > 1 else 0, x, 0

  def value_rows(b, h, x, n, g):
    return b, h, n, x, 0

  key_block, value_block = (None, None, None, extra_tile, key_dim), (None, None, None, extra_tile, value_dim)
  grid = (batch, kv_heads, num_extra // extra_tile, num_blocks, group)
  grads = launch(
    functools.partial(flash_kernels.extra_key_gradients, is_shared=num_shared == 1), name="flash_extra_key_gradients",
    grid=grid, parallel=3, prefetch=(),
    operands={
      "k": (floats["extra_key"], key_block, key_rows), "v": (floats["extra_value"], value_block, value_rows),
      "extra_place": (fixed["extra_place"], (None, None, None, SUBLANES, extra_tile),
                      lambda b, h, x, n, g: (b, h, n, 0, x)),
      "q": _tokens(floats["q"], tile, query_token), "d_out": _tokens(d_out, tile, query_token),
      "query": _rows(fixed["query"], tile, lambda b, h, x, n, g: (b, 0, n)),
      "stats": _rows(stats, tile, lambda b, h, x, n, g: (b, h * group + g, 0, n))},
    results={"d_k": (like(floats["extra_key"]), key_block, key_rows),
             "d_v": (like(floats["extra_value"]), value_block, value_rows)},
    scratch={"place": ((2, extra_tile, LANES), jnp.int32), "sum_k": ((extra_tile, key_dim), jnp.float32),
             "sum_v": ((extra_tile, value_dim), jnp.float32),
             "d_weight": ((extra_tile, tile), jnp.float32), "weight": ((extra_tile, tile), d_out.dtype)},
    flops=_flops(plan, grid, floats, 2), interpret=plan.interpret)
  return {"extra_key": grads["d_k"], "extra_value": grads["d_v"]}


def _query_major(plan, floats, fixed):
  """Grid and operands of the kernels that keep a block of queries and go through its keys."""
  tile, extra_tile, steps = plan.tile, plan.extra_tile, plan.steps
  batch, heads, length, _ = floats["q"].shape
  group, num_blocks = heads // floats["k"].shape[1], length // tile
  extras = floats["extra_key"].shape[3] // extra_tile if "extra_key" in floats else 0

  def key_block(b, n, s, first, count):
    here = b * num_blocks + n
    return first[here] + jnp.clip(s - extras, 0, jnp.maximum(count[here] - 1, 0))

  def key_token(b, h, n, s, *spans):
    return b, jax.lax.div(h, group), key_block(b, n, s, *spans), 0

  operands = {
    "q": _tokens(floats["q"], tile, _outer_token),
    "query": _rows(fixed["query"], tile, lambda b, h, n, s, *_: (b, 0, n)),
    "k": _tokens(floats["k"], tile, key_token), "v": _tokens(floats["v"], tile, key_token),
    "key": _rows(fixed["key"], tile, lambda b, h, n, s, *spans: (b, 0, key_block(b, n, s, *spans)))}
  if extras:
    is_shared = floats["extra_key"].shape[2] == 1

    def extra_rows(shared):
      return lambda b, h, n, s, *_: (b, jax.lax.div(h, group), 0 if shared else n, jnp.minimum(s, extras - 1), 0)

    for name, shared in (("extra_key", is_shared), ("extra_value", False)):
      block = (None, None, None, extra_tile, floats[name].shape[-1])
      operands[name] = (floats[name], block, extra_rows(shared))
    operands["extra_place"] = (
      fixed["extra_place"], (None, None, None, SUBLANES, extra_tile),
      lambda b, h, n, s, *_: (b, jax.lax.div(h, group), n, 0, jnp.minimum(s, extras - 1)))
  if "table" in floats:
    operands["qw"] = _tokens(floats["qw"], tile, _outer_token)
    operands["table"] = _table_block(
      floats["table"], lambda b, h, n, s, *spans: (jax.lax.div(h, group), key_block(b, n, s, *spans) - n))
  return (batch, heads, num_blocks, extras + steps), operands


def _outer_token(b, h, n, *_):
  return b, h, n, 0


def _tokens(array, tile, index_map):
  """Operand or result [B, heads, T, width] in blocks of a tile of tokens."""
  return array, (None, None, tile, array.shape[-1]), index_map


def _rows(array, tile, index_map):
  """Operand [B, 8, T] or [B, heads, 8, T] in blocks of a tile of tokens."""
  return array, (*(None,) * (array.ndim - 2), SUBLANES, tile), index_map


def _table_block(table, head_and_block):
  def index_map(*ids):
    head, block = head_and_block(*ids)
    return head, jnp.clip(block, 0, table.shape[1] - 1), 0, 0

  return table, (None, None, *table.shape[2:]), index_map


def _position_scratch(floats, tile, *names):
  """Tiles of scores of positions, if there are any."""
  return dict.fromkeys(names, ((tile, tile), jnp.float32)) if "table" in floats else {}


def like(array):
  return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _flops(plan, grid, floats, times):
  """Of scores and reads at every step of the grid, `times` as many matrix products as the forward pass has."""
  return 2 * times * math.prod(grid) * plan.tile**2 * (floats["k"].shape[-1] + floats["v"].shape[-1])
