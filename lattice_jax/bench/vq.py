"""Transformer-VQ attention in all its reductions against softmax attention: whole rows, or one token after T."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.bench.harness import BenchCase
from lattice_jax.memories.vq.op import FORMS, VQState, empty_state, quantize, vq_attention
from lattice_jax.ops.attention.blockwise import attend_blockwise
from lattice_jax.ops.attention.keys import Order

QUADRATIC, BLOCKWISE, LIBRARY = "softmax T×T", "softmax blockwise", "jax.nn.dot_product_attention"
TOKEN_CACHE = "softmax token cache"
BASELINES = (QUADRATIC, BLOCKWISE, LIBRARY, TOKEN_CACHE)
MODES = ("fwd", "fwd+bwd", "decode")
_SOFTMAX_BLOCK = 512
_PREFILL = 4096  # tokens per call


@dataclass(frozen=True)
class Shape:
  """One layer: heads of queries, heads of keys and values, widths per head; block and window have `block` tokens."""

  heads: int
  kv_heads: int
  key_dim: int
  value_dim: int
  codes: int = 512
  block: int = 512
  dtype: str = "float32"


# The widths of the enwik8 model by head type.
SHAPES = {
  "shga": Shape(heads=1, kv_heads=1, key_dim=128, value_dim=1536),
  "mqa": Shape(heads=6, kv_heads=1, key_dim=128, value_dim=128),
  "mha": Shape(heads=6, kv_heads=6, key_dim=128, value_dim=128),
}


def cases(head: str, length: int, mode: str, batch: int) -> Iterator[BenchCase]:
  """All cases of a group; "fwd+bwd" adds gradients of queries, keys, values; "decode" runs the token after `length`."""
  shape = SHAPES[head]
  group = {"op": "vq", "head": head, "T": length, "B": batch, "mode": mode, "dtype": shape.dtype}
  if mode == "decode":
    yield from _decode_cases(shape, group, length, batch)
    return
  arguments = _inputs(shape, batch, length)
  forms: dict[str, Callable[..., Any]] = {f"vq {form}": _vq(shape, form) for form in FORMS}
  forms |= {QUADRATIC: _quadratic, BLOCKWISE: blockwise}
  if shape.key_dim == shape.value_dim:
    forms[LIBRARY] = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
  for name, attend in forms.items():
    yield BenchCase(name, group, attend if mode == "fwd" else _with_gradients(attend), arguments, batch * length)


def _decode_cases(shape: Shape, group: dict[str, Any], length: int, batch: int) -> Iterator[BenchCase]:
  """One token against the memory of `length` earlier ones: a state of constant size, or a cache of all of them."""
  token = _inputs(shape, batch, 1)
  step, prefill = _vq_step(shape), jax.jit(_vq_step(shape))
  state = _empty(shape, batch)
  for start in range(0, length, _PREFILL):
    _, state = prefill(*_inputs(shape, batch, min(_PREFILL, length - start), seed=start + 1), state)
  yield BenchCase("vq", group, step, (*token, state), batch)
  yield BenchCase(TOKEN_CACHE, group, _read_cache, (token[0], *_inputs(shape, batch, length, seed=1)[1:]), batch)


def _inputs(shape: Shape, batch: int, length: int, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
  keys = jax.random.split(jax.random.key(seed), 3)

  def normal(key, heads, width):
    return jax.random.normal(key, (batch, length, heads, width), jnp.dtype(shape.dtype))

  # as in the layer, queries and keys have norm K^(1/4)
  scale = shape.key_dim**-0.25
  return (
    normal(keys[0], shape.heads, shape.key_dim) * scale, normal(keys[1], shape.kv_heads, shape.key_dim) * scale,
    normal(keys[2], shape.kv_heads, shape.value_dim))


def _vq(shape: Shape, form: str) -> Callable[..., Any]:
  step = _vq_step(shape, form)
  return lambda q, k, v: step(q, k, v, _empty(shape, q.shape[0]))[0]


def _empty(shape: Shape, batch: int) -> VQState:
  return empty_state(
    batch, shape.block, shape.kv_heads, shape.codes, shape.key_dim, shape.value_dim, jnp.dtype(shape.dtype))


def _vq_step(shape: Shape, form: str = "auto") -> Callable[..., Any]:
  """(q, k, v, state) → (output, state)."""
  rows = jax.random.normal(jax.random.key(1), (shape.kv_heads, shape.codes, shape.key_dim)) * shape.key_dim**-0.25
  relative = 0.1 * jax.random.normal(jax.random.key(2), (shape.kv_heads, shape.block + 1, shape.key_dim))
  bias = jnp.zeros((shape.heads, shape.key_dim))

  def attend(q, k, v, state):
    return vq_attention(
      q, quantize(k, rows), v, rows, relative, bias, bias, state, jnp.zeros(q.shape[:2], jnp.int32),
      jnp.ones(q.shape[:2], bool), block_len=shape.block, reduction=form, impl="xla")

  return attend


def _quadratic(q, k, v):
  """All scores at once, with the future masked and not skipped: the baseline of the paper."""
  q_BTHGK = _grouped(q, k)
  score = jnp.einsum("BTHGK,BSHK->BHGTS", q_BTHGK, k, preferred_element_type=jnp.float32) * k.shape[-1]**-0.5
  is_past = jnp.tril(jnp.ones(score.shape[-2:], bool))
  weight = jax.nn.softmax(jnp.where(is_past, score, -1e30), axis=-1)
  return jnp.einsum("BHGTS,BSHV->BTHGV", weight.astype(v.dtype), v)


def _read_cache(q, k, v):
  """Reads keys and values that are already in the cache; writing one slot costs nothing beside reading all."""
  score = jnp.einsum("BTHGK,BSHK->BHGTS", _grouped(q, k), k)
  return jnp.einsum("BHGTS,BSHV->BTHGV", jax.nn.softmax(score * k.shape[-1]**-0.5, axis=-1), v)


def blockwise(q, k, v):
  """Causal softmax that skips blocks of keys after the query; heads of q may share heads of k and v."""
  batch, length = q.shape[:2]
  order = Order(
    index_BT=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length)),
    id_BT=jnp.zeros((batch, length), jnp.int32))
  return attend_blockwise(_grouped(q, k), k, v, order, order, window=0, block=_SOFTMAX_BLOCK)[0]


def _grouped(q, k):
  return q.reshape(*q.shape[:2], k.shape[2], q.shape[2] // k.shape[2], q.shape[3])


def _with_gradients(attend: Callable[..., Any]) -> Callable[..., Any]:
  def loss(q, k, v):
    return (attend(q, k, v).astype(jnp.float32) ** 2).sum()

  return jax.value_and_grad(loss, argnums=(0, 1, 2))
