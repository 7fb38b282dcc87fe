"""Compiled programs neither copy, transpose nor cut out large arrays, but where this file says so."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from lattice_jax.bench import lattice
from lattice_jax.bench.gradients import with_gradients
from lattice_jax.bench.vq import Shape, _empty, _inputs, _vq_step
from lattice_jax.cache.kv_cache import CacheView, empty_cache
from lattice_jax.cache.policy import make_policy
from lattice_jax.cache.step import read_and_append
from lattice_jax.config import CacheConfig
from lattice_jax.inference.session import read_chunk, read_token, start_state
from lattice_jax.inspect.hlo import moved, rearranged
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.pretrained import open_pretrained
from lattice_jax.ops.attention import Order, attend
from lattice_jax.types import abstract_segment, whole_segment
from tests.models.tiny_files import LLAMA, make_tensors, write_folder

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


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """(model, shapes of its variables) of a decoder whose weights lie as its file has them."""
  sizes = LLAMA | {
    "hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 2048}
  pretrained = open_pretrained(write_folder(tmp_path_factory.mktemp("model"), sizes, make_tensors(sizes)))
  return pretrained.model, jax.eval_shape(lambda: {"params": pretrained.params(stored=True), "buffers": {}})


WEIGHT = 128 * 512  # elements of a matrix of the decoder's MLP, and of the keys of a layer's cache
IN_ATTENTION, IN_COMPACTION = "Decoder/groups/block_0/memory (forward)", "Decoder (forward)"


def decoder_moves(step, stored, at_least, *given):
  """Modules in which so many elements or more are moved, one after another."""
  model, variables = stored
  state = jax.eval_shape(functools.partial(start_state, model, 1, LENGTH, None))
  program = jax.jit(functools.partial(step, model), donate_argnums=4).lower(variables, None, *given, state).compile()
  return sorted(module for _, module in moved(program.as_text(), at_least))


def test_a_decode_step_moves_no_weights(stored):
  found = decoder_moves(
    read_token, stored, WEIGHT // 2, jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.bool_))
  # attention cuts a block of keys and one of values out of the stack of caches, as the library's products take whole
  # arrays; the others are in the branch in which a cache drops tokens, which a full one never takes
  assert found == [IN_COMPACTION] * 2 + [IN_ATTENTION] * 2


def test_reading_a_chunk_moves_a_layers_weights_once(stored):
  def rows(dtype):
    return jax.ShapeDtypeStruct((1, BLOCK), dtype)

  found = decoder_moves(read_chunk, stored, WEIGHT, rows(jnp.int32), abstract_segment(rows))
  # a chunk's products take whole arrays, so the layer's three matrices of the MLP are cut out of their stacks, once for
  # all tokens of the chunk; two more are in the branch that a full cache never takes
  assert found == [IN_COMPACTION] * 5


@pytest.mark.parametrize(("has_gradient", "most"), [(False, 4), (True, 10)])
def test_lattice_cuts_its_inputs_into_chunks_and_no_more(has_gradient, most):
  """Forward: queries, keys, values and outputs; backward: these and their gradients, and the slots at boundaries."""
  arguments = lattice.make_inputs(lattice.Shape(heads=4, slots=16, value_dim=32), 1, 512)
  run = lattice._run(lattice.FORMS["scan"])
  text = jax.jit(with_gradients(run) if has_gradient else run).lower(*arguments).compile().as_text()
  assert len(moved(text, arguments[0].size // 2)) <= most
