"""Compiled programs neither copy nor transpose arrays of the size of scores, but where this file says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from lattice_jax.bench.vq import Shape, _empty, _inputs, _vq_step
from lattice_jax.cache.kv_cache import CacheView, empty_cache
from lattice_jax.cache.policy import make_policy
from lattice_jax.cache.step import read_and_append
from lattice_jax.config import CacheConfig
from lattice_jax.inspect.hlo import rearranged
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.ops.attention import Order, attend
from lattice_jax.types import whole_segment

LENGTH, QUERIES, HEADS, WIDTH, BLOCK = 1024, 6, 2, 16, 256
AT_LEAST = BLOCK * BLOCK * QUERIES // 2  # half of a block of scores, more than all queries
pytestmark = pytest.mark.usefixtures("optimized")


def shapes(function, *arguments):
  return [shape for shape, _ in rearranged(jax.jit(function).lower(*arguments).compile().as_text(), AT_LEAST)]


def token_arrays(length=LENGTH):
  return (jnp.ones((1, length, heads, WIDTH)) for heads in (QUERIES, HEADS, HEADS))


@pytest.mark.parametrize("has_gradient", [False, True])
def test_attention_of_a_sequence(has_gradient):
  order = Order(jnp.arange(LENGTH)[None], jnp.zeros((1, LENGTH), jnp.int32))

  def run(q, k, v):
    out, lse = attend(q, k, v, order, order, block=BLOCK, impl="xla")
    return out.sum() + lse.sum()

  assert shapes(jax.grad(run, argnums=(0, 1, 2)) if has_gradient else run, *token_arrays()) == []


def test_attention_of_a_chunk_to_a_cache():
  policy = make_policy(CacheConfig())
  attention = AttentionConfig(heads=QUERIES, kv_heads=HEADS, key_dim=WIDTH, value_dim=WIDTH)
  cache = empty_cache(attention, policy, 1, LENGTH, jnp.dtype("float32"))

  def run(cache, q, k, v):
    out, view = read_and_append(policy, q, k, v, CacheView.alone(cache), whole_segment(1, BLOCK), impl="xla")
    return out, view.stack

  assert shapes(run, cache, *token_arrays(BLOCK)) == []


def test_transformer_vq_of_one_head():
  shape = Shape(heads=1, kv_heads=1, key_dim=WIDTH, value_dim=WIDTH, codes=128, block=BLOCK)
  found = shapes(lambda *arrays: _vq_step(shape, "serial")(*arrays)[0], *_inputs(shape, 1, LENGTH), _empty(shape, 1))
  assert len(found) <= 2, found  # position scores, whose rows slide by one each: written, and cut again
