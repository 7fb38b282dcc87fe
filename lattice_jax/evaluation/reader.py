"""Prompts read once under a full cache, and answered under any number of policies from copies of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.cache.convert import compress, uncompressed
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.evaluation.caches import with_cache
from lattice_jax.inference.placed import mesh_of, place_variables
from lattice_jax.inference.programs import Progress, Shapes, compile_programs
from lattice_jax.inference.prompts import prompt_chunk
from lattice_jax.inference.sampling import Sampling
from lattice_jax.models.decoder import Decoder
from lattice_jax.sharding import replicated
from lattice_jax.types import make_segment

_GREEDY = Sampling(temperature=0.0)


class Reader:
  """`batch` prompts at a time, of at most `length` tokens with their answers."""

  def __init__(
    self, model: ModelConfig, variables: Any, caches: Sequence[CacheConfig], *, batch: int, length: int,
    chunk_len: int = 128):
    """`caches`: all that the prompts will be compressed to."""
    self.mesh = mesh_of(variables)
    self.batch = batch
    self.chunk_len = chunk_len
    self._model = uncompressed(model, caches)
    self._variables = place_variables(variables, self.mesh)
    self._shapes = Shapes(batch=batch, chunk_len=chunk_len, block_len=1, prompt_len=length, max_len=length)
    self._programs = compile_programs(self._model, _GREEDY, self._shapes, self.mesh, self._variables)

  def start(self) -> Progress:
    return self._programs.start()

  def read(self, progress: Progress, rows: Sequence[np.ndarray]) -> Progress:
    """Every row's tokens, of any number; `progress` is given away, so keep a `fork` of what is needed again."""
    rows = [*rows, *[rows[-1]] * (self.batch - len(rows))]
    before_B = np.asarray(progress.position_B)
    for start in range(0, max(map(len, rows)), self.chunk_len):
      tokens_BT, segment = prompt_chunk(rows, start, self.chunk_len)
      segment = segment.replace(positions_BT=segment.positions_BT + before_B[:, None])
      tokens_BT, segment = jax.device_put((tokens_BT, segment), replicated(self.mesh))
      progress = self._programs.prefill(self._variables, tokens_BT, segment, progress)
    return progress

  def under(self, cache: CacheConfig, progress: Progress) -> Progress:
    """The same prompts with what the policy keeps of them; `progress` stays."""
    state = compress(with_cache(self._model, cache), progress.state, self._shapes.max_len)
    # arrays that the policy left as they were are those of `progress`
    return fork(progress.replace(state=state))

  def answer(
    self, cache: CacheConfig, progress: Progress, answers: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(nats, whether it was the likeliest) of each token of the answers, all equally long; `progress` stays."""
    answers_BG = np.stack([*answers, *[answers[-1]] * (self.batch - len(answers))])
    nll_BG, right_BG = _judged(
      with_cache(self._model, cache), self._variables, jax.device_put(answers_BG, replicated(self.mesh)), progress)
    return np.asarray(nll_BG)[:len(answers)], np.asarray(right_BG)[:len(answers)]

  def step(self, cache: CacheConfig, progress: Progress, token_B: jax.Array) -> Progress:
    """One more token of every row; `progress` is given away."""
    return _stepped(with_cache(self._model, cache), self._variables, token_B, progress)

  def write(self, cache: CacheConfig, progress: Progress, length: int) -> np.ndarray:
    """What the model itself writes, greedily: ids [batch, length]; `progress` is given away."""
    tokens = []
    for _ in range(length):
      tokens.append(_likeliest(progress.logits_BA))
      progress = self.step(cache, progress, tokens[-1])
    return np.stack([np.asarray(token_B) for token_B in tokens], axis=1)


def fork(progress: Progress) -> Progress:
  """A copy that may be given away."""
  return jax.tree.map(jnp.copy, progress)


@functools.partial(jax.jit, static_argnums=0)
def _judged(
  model: ModelConfig, variables: Any, answers_BG: jax.Array, progress: Progress) -> tuple[jax.Array, jax.Array]:
  decoder, length = Decoder(model), answers_BG.shape[1] - 1
  logits_BGA = progress.logits_BA[:, None]
  if length:
    position_BT = progress.position_B[:, None] + jnp.arange(length, dtype=jnp.int32)
    output = decoder.apply(variables, answers_BG[:, :-1], progress.state, make_segment(position_BT))
    rest_BTA = decoder.apply(variables, output.features_BTD, method=Decoder.logits)
    logits_BGA = jnp.concatenate([logits_BGA, rest_BTA], axis=1)
  log_probability_BGA = jax.nn.log_softmax(logits_BGA)
  nll_BG = -jnp.take_along_axis(log_probability_BGA, answers_BG[..., None], axis=-1)[..., 0]
  return nll_BG, logits_BGA.argmax(-1) == answers_BG


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _stepped(model: ModelConfig, variables: Any, token_B: jax.Array, progress: Progress) -> Progress:
  decoder = Decoder(model)
  output = decoder.apply(variables, token_B[:, None], progress.state, make_segment(progress.position_B[:, None]))
  logits_BA = decoder.apply(variables, output.features_BTD, method=Decoder.logits)[:, 0]
  return progress.replace(logits_BA=logits_BA, position_B=progress.position_B + 1, state=output.state)


@jax.jit
def _likeliest(logits_BA: jax.Array) -> jax.Array:
  return logits_BA.argmax(-1).astype(jnp.int32)
