"""The ops that are checked, at sizes of choice, each as a function of float arrays alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.memories.delta import op as delta
from lattice_jax.memories.gated_linear import op as gated_linear
from lattice_jax.memories.gated_slots import op as gated_slots
from lattice_jax.memories.lattice import op as lattice
from lattice_jax.memories.ttt import op as ttt
from lattice_jax.memories.vq import op as vq
from lattice_jax.ops.attention import Order, attend

_FEW = 16  # slots, and tokens of a chunk, of the baselines


@dataclass(frozen=True)
class Sizes:
  """One row of `tokens`, in two documents; `width` of keys and values, as many slots or codes as `slots`."""

  tokens: int = 256
  heads: int = 4
  width: int = 64
  slots: int = 64
  dtype: str = "float32"


@dataclass(frozen=True)
class Case:
  """run: (inputs, impl) → arrays, in which the state after the call is. inputs: what gradients are taken of."""

  op: str
  form: str
  run: Callable[[tuple[jax.Array, ...], str], Any]
  inputs: tuple[jax.Array, ...]


def make_cases(sizes: Sizes) -> Iterator[Case]:
  """Every op, in the forms in which it is trained and decoded."""
  yield from _attention(sizes)
  yield from _vq(sizes)
  yield from _lattice(sizes)
  yield from _baselines(sizes)


def _attention(sizes: Sizes) -> Iterator[Case]:
  token = _normal(sizes, 3, sizes.width)

  def run(window, inputs, impl):
    ids = _ids(sizes)[0]
    order = Order(jnp.arange(sizes.tokens, dtype=jnp.int32)[None], ids)
    return attend(*inputs, order, order, window=window, impl=impl)[0]

  for form, window in (("full", 0), ("window", max(1, sizes.tokens // 3))):
    yield Case("attention", form, functools.partial(run, window), token)


def _vq(sizes: Sizes) -> Iterator[Case]:
  q, k, v = _normal(sizes, 3, sizes.width)
  block = max(1, sizes.tokens // 8)
  rows, relative = _keys(2, (sizes.heads, sizes.slots, sizes.width), (sizes.heads, block + 1, sizes.width))
  bias = jnp.zeros((sizes.heads, sizes.width))

  def run(inputs, impl):
    q, k, v, relative = inputs
    state = vq.empty_state(1, block, sizes.heads, sizes.slots, sizes.width, sizes.width, q.dtype)
    out, state = vq.vq_attention(
      q, vq.quantize(k, rows, impl=impl), v, rows, relative, bias, bias, state, *_ids(sizes), block_len=block,
      impl=impl)
    return out, state.mean_BHMV

  def search(inputs, impl):
    found = vq.quantize(*inputs, rows, impl=impl)
    return found.key_BTHK, found.error_BTH

  scale = sizes.width**-0.5
  yield Case("vq", "serial", run, (q * scale, k * scale, v, relative * scale))
  yield Case("vq", "search", search, (k,))


def _lattice(sizes: Sizes) -> Iterator[Case]:
  q, k = (_unit(x) for x in _normal(sizes, 2, sizes.slots))
  v = _unit(_normal(sizes, 1, sizes.width)[0])
  (start,) = _keys(1, (sizes.heads, sizes.slots, sizes.width))

  def run(rule, form, ids, valid, inputs, impl):
    state = lattice.empty_state(1, sizes.heads, sizes.slots, sizes.width, rule=rule, form=form)
    q, k, v, step, start = inputs
    out, state = lattice.lattice(q, k, v, step, None, start, state, ids, valid, rule=rule, form=form, impl=impl)
    return out, state.slots.unit_BHMV

  inputs = q, k, v, _gate(sizes), start
  ids, valid = _ids(sizes)
  for objective in lattice.OBJECTIVES:
    yield Case("lattice", f"scan, {objective}", functools.partial(
      run, lattice.Rule(objective), lattice.Form(), ids, valid), inputs)
  for name in lattice.FORMS[1:]:
    form = lattice.Form(name, chunk_len=8, rounds=8)
    yield Case("lattice", name, functools.partial(run, lattice.Rule(), form, ids, valid), inputs)
  yield Case(
    "lattice", "one token", functools.partial(run, lattice.Rule(), lattice.Form(), ids[:, :1], valid[:, :1]),
    (*(x[:, :1] for x in inputs[:4]), start))


def _baselines(sizes: Sizes) -> Iterator[Case]:
  q, k = (_unit(x) for x in _normal(sizes, 2, sizes.width))
  (v,) = _normal(sizes, 1, sizes.width)
  step, decay = _gate(sizes), _gate(sizes)[..., None]

  def linear(inputs, impl):
    q, k, v, decay = inputs
    state = gated_linear.empty_state(1, sizes.heads, sizes.width, sizes.width)
    out, state = gated_linear.gated_linear(q, k, v, decay, state, *_ids(sizes), chunk_len=_FEW, impl=impl)
    return out, state.memory_BHKV

  def gated_delta(inputs, impl):
    q, k, v, step, decay = inputs
    state = gated_linear.empty_state(1, sizes.heads, sizes.width, sizes.width)
    out, state = delta.delta(q, k, v, step, decay, state, *_ids(sizes), chunk_len=_FEW, impl=impl)
    return out, state.memory_BHKV

  def slots(inputs, impl):
    q, k, v, decay = inputs
    state = gated_slots.empty_state(1, sizes.heads, _FEW, sizes.width, sizes.width)
    decay = jnp.broadcast_to(decay, (*decay.shape[:3], _FEW))
    out, state = gated_slots.gated_slots(
      q, k, v, 1 - decay, decay, state, *_ids(sizes), chunk_len=_FEW, impl=impl)
    return out, state.value_BHMV

  def inner(inputs, impl):
    q, k, v, step, weight = inputs
    state = ttt.empty_state(1, sizes.heads, sizes.width)
    row = jnp.zeros((sizes.heads, sizes.width))
    learner = ttt.Learner(weight, row, row + 1, row, 1 / jnp.arange(1.0, _FEW + 1))
    out, state = ttt.ttt(q, k, v, step / sizes.width, learner, state, *_ids(sizes), impl=impl)
    return out, state.weight_BHKV

  (weight,) = _keys(1, (sizes.heads, sizes.width, sizes.width))
  yield Case("gated_linear", "chunks", linear, (q, k, v, decay))
  yield Case("delta", "chunks", gated_delta, (q, k, v, step, decay))
  yield Case("gated_slots", "chunks", slots, (q, k, v, decay))
  yield Case("ttt", "dual", inner, (q, k, v, step, weight * sizes.width**-0.5))


def _normal(sizes: Sizes, count: int, width: int) -> tuple[jax.Array, ...]:
  """[1, T, H, width], in the dtype of activations."""
  arrays = _keys(count, *[(1, sizes.tokens, sizes.heads, width)] * count)
  return tuple(x.astype(sizes.dtype) for x in arrays)


def _keys(seed: int, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
  """One array of normal numbers for each shape."""
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def _gate(sizes: Sizes) -> jax.Array:
  """[1, T, H] between 0 and 1."""
  return jax.nn.sigmoid(_keys(7, (1, sizes.tokens, sizes.heads))[0])


def _ids(sizes: Sizes) -> tuple[jax.Array, jax.Array]:
  """A document that ends after two thirds, and one after it; all tokens are valid."""
  ids = (jnp.arange(sizes.tokens) * 3 >= 2 * sizes.tokens).astype(jnp.int32)[None]
  return ids, jnp.ones(ids.shape, bool)


def _unit(x: jax.Array) -> jax.Array:
  return (x / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)).astype(x.dtype)
