"""The two compiled programs of generation: a chunk of prompt, and a few tokens of text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lattice_jax.cache.convert import compress, uncompressed
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.inference.placed import Abstract, with_shardings
from lattice_jax.inference.sampling import Sampling, sample_token
from lattice_jax.models.decoder import Decoder, init_state
from lattice_jax.sharding import replicated, state_shardings
from lattice_jax.types import Segment, abstract_segment, make_segment


@dataclass(frozen=True)
class Shapes:
  """Everything static of generation but the sampling. prompt_len, max_len: tokens that a cache has to hold while the
  prompt is read and at the end; 0 where no memory needs one.
  """

  batch: int
  chunk_len: int
  block_len: int
  prompt_len: int
  max_len: int


@flax.struct.dataclass
class Progress:
  """What has been read. logits_BA: after each row's last token. open_B: the text goes on. index: tokens drawn."""

  logits_BA: jax.Array
  position_B: jax.Array
  open_B: jax.Array
  index: jax.Array
  state: Any


@dataclass(frozen=True)
class Programs:
  """start() → progress; prefill(variables, tokens_BT, segment, progress) → progress, donated; turn(progress) → progress
  for decoding, under the cache's policy.

  decode(variables, key_data_BW, allowed_B, stop_A, wanted_B, progress) → (tokens [B, block_len], progress), donated: a
  row ends after `allowed_B` tokens, at a token of `stop_A`, or where `wanted_B` is false. Its memory then stays, and
  what is given out beyond its end means nothing.
  """

  start: Callable[[], Progress]
  prefill: Callable[..., Progress]
  turn: Callable[[Progress], Progress]
  decode: Callable[..., tuple[jax.Array, Progress]]


def compile_programs(model: ModelConfig, sampling: Sampling, shapes: Shapes, mesh: Mesh, variables: Any) -> Programs:
  """Compiled ahead and kept, so that no call can retrace; `variables` must lie on the mesh.

  A cache that drops tokens reads the prompt as a full one and is compressed once, unless `model.cache.call_len` says
  that there is only room for calls of so many tokens.
  """
  abstract, reading, writing = Abstract.of(variables), model, model
  if make_policy(model.cache).drops and not model.cache.call_len:
    reading, writing = uncompressed(model), replace(model, cache=replace(model.cache, call_len=1))
  read_len = shapes.max_len if reading is writing else shapes.prompt_len
  start, prefill = _compile_prefill(reading, shapes.batch, shapes.chunk_len, read_len, mesh, abstract)
  _, shardings = _abstract_progress(writing, shapes.batch, shapes.max_len, mesh)

  def turn(progress: Progress) -> Progress:
    if reading is writing:
      return progress
    compressed = progress.replace(state=compress(writing, progress.state, shapes.max_len))
    return jax.device_put(compressed, shardings)

  return Programs(
    start=start, prefill=prefill, turn=turn,
    decode=_compile_decode(writing, sampling, shapes.batch, shapes.block_len, shapes.max_len, mesh, abstract))


@functools.lru_cache(maxsize=8)
def _compile_prefill(
  model: ModelConfig, batch: int, chunk_len: int, max_len: int, mesh: Mesh, variables: Abstract
) -> tuple[Callable[[], Progress], Callable[..., Progress]]:
  start = functools.partial(_start, model, batch, max_len)
  progress, shardings = _abstract_progress(model, batch, max_len, mesh)

  def chunk(dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, chunk_len), dtype, sharding=replicated(mesh))

  prefill = jax.jit(functools.partial(_prefill, model), donate_argnums=3, out_shardings=shardings)
  return (
    jax.jit(start, out_shardings=shardings).lower().compile(),
    prefill.lower(variables.tree(), chunk(jnp.int32), abstract_segment(chunk), progress).compile())


@functools.lru_cache(maxsize=8)
def _compile_decode(
  model: ModelConfig, sampling: Sampling, batch: int, block_len: int, max_len: int, mesh: Mesh, variables: Abstract
) -> Callable[..., tuple[jax.Array, Progress]]:
  progress, shardings = _abstract_progress(model, batch, max_len, mesh)
  key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))

  def given(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

  decode = jax.jit(
    functools.partial(_decode, model, sampling, block_len), donate_argnums=5,
    out_shardings=(replicated(mesh), shardings))
  return decode.lower(
    variables.tree(), given(key_data.dtype, batch, *key_data.shape), given(jnp.int32, batch),
    given(jnp.bool_, model.vocab), given(jnp.bool_, batch), progress).compile()


def _start(model: ModelConfig, batch: int, max_len: int) -> Progress:
  return Progress(
    logits_BA=jnp.zeros((batch, model.vocab), jnp.float32), position_B=jnp.zeros((batch,), jnp.int32),
    open_B=jnp.ones((batch,), bool), index=jnp.int32(0), state=init_state(model, batch, max_len))


def _abstract_progress(model: ModelConfig, batch: int, max_len: int, mesh: Mesh) -> tuple[Progress, Progress]:
  """(shapes that say where they lie, shardings)."""
  shapes = jax.eval_shape(functools.partial(_start, model, batch, max_len))
  shardings = jax.tree.map(lambda _: replicated(mesh), shapes).replace(state=state_shardings(shapes.state, mesh))
  return with_shardings(shapes, shardings), shardings


def _prefill(
  model: ModelConfig, variables: Any, tokens_BT: jax.Array, segment: Segment, progress: Progress) -> Progress:
  decoder = Decoder(model)
  output = decoder.apply(variables, tokens_BT, progress.state, segment)
  num_valid_B = segment.valid_BT.sum(axis=1, dtype=jnp.int32)
  last_B1D = jnp.take_along_axis(output.features_BTD, jnp.maximum(num_valid_B - 1, 0)[:, None, None], axis=1)
  logits_BA = decoder.apply(variables, last_B1D, method=Decoder.logits)[:, 0]
  return progress.replace(
    logits_BA=jnp.where(num_valid_B[:, None] > 0, logits_BA, progress.logits_BA),
    position_B=progress.position_B + num_valid_B, state=output.state)


def _decode(
  model: ModelConfig, sampling: Sampling, block_len: int, variables: Any, key_data_BW: jax.Array,
  allowed_B: jax.Array, stop_A: jax.Array, wanted_B: jax.Array, progress: Progress,
) -> tuple[jax.Array, Progress]:
  """Draws from the last logits, then reads what was drawn, `block_len` times."""
  decoder = Decoder(model)
  keys_B = jax.random.wrap_key_data(key_data_BW)

  def step(progress: Progress, _: None) -> tuple[Progress, jax.Array]:
    index = progress.index
    token_B = sample_token(progress.logits_BA, jax.vmap(jax.random.fold_in, (0, None))(keys_B, index), sampling)
    open_B = progress.open_B & (index < allowed_B) & ~stop_A[token_B]
    segment = make_segment(progress.position_B[:, None], valid_BT=open_B[:, None])
    output = decoder.apply(variables, token_B[:, None], progress.state, segment)
    logits_BA = decoder.apply(variables, output.features_BTD, method=Decoder.logits)[:, 0]
    read = Progress(
      logits_BA=logits_BA, position_B=progress.position_B + open_B, open_B=open_B, index=index + 1, state=output.state)
    return read, token_B

  progress = progress.replace(open_B=progress.open_B & wanted_B)
  progress, tokens_NB = jax.lax.scan(step, progress, length=block_len)
  return tokens_NB.T, progress
