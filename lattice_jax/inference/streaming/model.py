"""A pretrained model in the place of a tree of parameters: it opens sessions and draws tokens through its budget."""

from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lattice_jax.byte_size import ByteSize
from lattice_jax.config import MeshConfig, ModelConfig
from lattice_jax.domains import checked
from lattice_jax.inference.blocks import Draws
from lattice_jax.inference.compilation import TreeSpec
from lattice_jax.inference.sampling import Sampling, sample_token
from lattice_jax.inference.session import Session, SessionState
from lattice_jax.inference.streaming.evaluation import StreamedEvaluation
from lattice_jax.inference.streaming.layers import hash_layer, layer_parts
from lattice_jax.inference.streaming.programs import Score, compile_programs, work_bytes
from lattice_jax.inference.streaming.session import WORK, StreamedSession, reserve_compressed
from lattice_jax.inference.streaming.source import ModelFiles, Options, Source, Usage
from lattice_jax.marks import Marker
from lattice_jax.models.pretrained import Pretrained, open_pretrained
from lattice_jax.models.pretrained.stored_parts import block_parts, outside_parts
from lattice_jax.sharding import make_mesh, replicated
from lattice_jax.types import Segment, make_segment


class StreamedModel:
  """Takes the place of `variables` in `TokenStream`, `generate` and `write_texts`; everything is on one device.

  files: what is read, and where it lies in the files. usage: of the session that was opened last; None before
  there is one.
  """

  def __init__(
    self, pretrained: Pretrained, budget: int, *, device: jax.Device | None = None, options: Options | None = None):
    """budget: bytes for weights, the memory's state and temporary arrays; on accelerators those of the device.

    Raises:
      ValueError: the budget is no number of bytes, a tensor is stored in a form that cannot be streamed, parameters are
        in no file of the model, or the file holds a head that differs from the embedding to which its config ties it.
    """
    if pretrained.fitted:
      raise ValueError(
        f"weights are streamed from the files of a model, and {next(iter(pretrained.fitted))} is in none of them; give "
        "no budget, or leave out what needs it.")
    pretrained.check_head()
    self.pretrained, self.options = pretrained, options or Options()
    self.budget: int = checked(ByteSize(), "budget", budget)
    self.mesh: Mesh = make_mesh(MeshConfig(), [device or jax.local_devices()[0]])
    layers, apart = ([
      layer_parts(f"layer {layer}", block_parts(pretrained, layer, packed=packed))
      for layer in range(pretrained.model.layers)] for packed in (True, False))
    self.files = ModelFiles(layers, apart, layer_parts("what is outside the layers", outside_parts(pretrained)))
    self.usage: Usage | None = None
    self._source: Callable[[], Source | None] = lambda: None

  def open_session(
    self, model: ModelConfig, *, batch: int, max_len: int, chunk_len: int, marker: Marker | None = None) -> Session:
    """An empty session that reads under `model`, which may have another cache than the pretrained one.

    Raises:
      ValueError: as `StreamedSession`, another session is open, or the budget is too small.
    """
    source = self._open_source()
    session = StreamedSession(model, source, batch=batch, max_len=max_len, chunk_len=chunk_len, marker=marker)
    source.check()
    return session

  def open_evaluation(
    self, model: ModelConfig, *, batch: int, length: int, max_len: int, score: Score) -> StreamedEvaluation:
    """What reads rows of known tokens, with a budget of its own as a session.

    Raises:
      ValueError: as `StreamedEvaluation`, or a session is open.
    """
    return StreamedEvaluation(
      model, self._open_source(), batch=batch, length=length, max_len=max_len, score=score)

  def _open_source(self) -> Source:
    source = self._source()
    if source is not None and not source.is_closed:
      raise ValueError("a budget is one session's at a time; close the session that is open.")
    source = Source(self.files, self.budget, self.mesh, self.options)
    self.usage, self._source = source.usage, weakref.ref(source)
    return source

  def compile_block(
    self, model: ModelConfig, sampling: Sampling, block_len: int, max_len: int, session: Session) -> Callable[..., Any]:
    """As `blocks.compile_block`, with a pass over the layers for each token.

    Raises:
      ValueError: the budget has no room for what `model` needs.
    """
    assert isinstance(session, StreamedSession)
    source, batch = session.source, session.batch
    marker = TreeSpec.of(session.marker)
    programs = compile_programs(model, source, batch=batch, max_len=max_len, length=1, marker=marker)
    draw = _compile_draw(model, sampling, batch, self.mesh)
    source.reserve(WORK, max(programs.work_bytes, work_bytes(draw)), shared=True)
    if model != session.model:
      reserve_compressed(source, model, batch, max_len, session.marker)
    source.check()
    join = _compile_join(block_len, batch, self.mesh)

    def draw_block(
      variables: Any, marker: Marker | None, key_data_BW: jax.Array, allowed_B: jax.Array, stop_A: jax.Array,
      num: jax.Array, wanted_B: jax.Array, draws: Draws, state: SessionState,
    ) -> tuple[jax.Array, Draws, SessionState]:
      del variables  # the source has them
      drawn = []
      for _ in range(int(num)):
        token_B1, segment, draws = draw(
          key_data_BW, allowed_B, stop_A, wanted_B, draws, state.logits_BA, state.position_B)
        state = programs.read(model, source, marker, token_B1, segment, state)
        drawn.append(token_B1)
      return join(*drawn, *[drawn[-1]] * (block_len - len(drawn))), draws, state

    return draw_block

  def content_digest(self) -> str:
    """32 hex digits of what the files hold; it reads them once."""
    digest = hashlib.blake2b(digest_size=16)
    for layer in (self.files.outside, *self.files.layers):
      hash_layer(layer, digest)
    return digest.hexdigest()


def open_streamed(
  name: str | Path, budget: int, *, dtype: str = "float32", options: Options | None = None) -> StreamedModel:
  """A known model, a folder of safetensors or a .gguf file, streamed through `budget` bytes.

  Raises:
    ValueError: as `open_pretrained` and `StreamedModel`.
  """
  return StreamedModel(open_pretrained(name, dtype=dtype), budget, options=options)


@functools.lru_cache(maxsize=8)
def _compile_draw(model: ModelConfig, sampling: Sampling, batch: int, mesh: Mesh) -> Callable[..., Any]:
  """(keys, allowed, stop, wanted, draws, logits, position) → (tokens [B, 1], their segment, draws), as a block does."""
  def draw(
    key_data_BW: jax.Array, allowed_B: jax.Array, stop_A: jax.Array, wanted_B: jax.Array, draws: Draws,
    logits_BA: jax.Array, position_B: jax.Array,
  ) -> tuple[jax.Array, Segment, Draws]:
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(key_data_BW), draws.index)
    token_B = sample_token(logits_BA, keys_B, sampling)
    open_B = draws.open_B & wanted_B & (draws.index < allowed_B) & ~stop_A[token_B]
    segment = make_segment(position_B[:, None], valid_BT=open_B[:, None])
    return token_B[:, None], segment, Draws(open_B=open_B, index=draws.index + 1)

  def given(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

  key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
  return jax.jit(draw, out_shardings=replicated(mesh)).lower(
    given(key_data.dtype, batch, *key_data.shape), given(jnp.int32, batch), given(jnp.bool_, model.vocab),
    given(jnp.bool_, batch), Draws(open_B=given(jnp.bool_, batch), index=given(jnp.int32)),
    given(jnp.float32, batch, model.vocab), given(jnp.int32, batch)).compile()


@functools.lru_cache(maxsize=8)
def _compile_join(num: int, batch: int, mesh: Mesh) -> Callable[..., Any]:
  """`num` columns of tokens side by side."""
  column = jax.ShapeDtypeStruct((batch, 1), jnp.int32, sharding=replicated(mesh))
  join = jax.jit(lambda *columns: jnp.concatenate(columns, axis=1), out_shardings=replicated(mesh))
  return join.lower(*[column] * num).compile()
