"""Text from a model: the prompt in chunks, then token by token, through the decoder's one call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.inference.sampling import Sampling, sample_token
from lattice_jax.models.decoder import Decoder, init_state, needs_token_cache
from lattice_jax.sharding import unbox
from lattice_jax.types import Segment

SPECIAL_IDS = (0, 1, 2)  # pad, eos, unk of every tokenizer here


def generate(
  model: ModelConfig,
  variables: Any,
  prompts: Sequence[Any] | np.ndarray,
  *,
  length: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  seed: int | Sequence[int] = 0,
  banned: tuple[int, ...] = SPECIAL_IDS,
  start_ids: tuple[int, ...] = (1,),
  prefill_len: int = 256,
) -> np.ndarray:
  """The `length` tokens [B, length] that follow each prompt; prompts may differ in length and may be empty.

  As in training, the model reads `start_ids` and then the prompt. A row's text depends on its prompt and its seed
  alone (with one `seed`, row r uses seed + r), so it is the same in any batch. Memory is the layers' state: constant
  in `length`, but for softmax attention, whose token cache holds prompt and text.

  Args:
    start_ids: what a text starts with: eos for models trained here.
    banned: ids that are never drawn; to let the model end its text, leave the eos id out and cut the result there.
    prefill_len: tokens of prompt per call; changes speed and memory only.
  """
  _check_arguments(model, prompts, length, prefill_len)
  sampling = Sampling(banned=tuple(banned), temperature=temperature, top_k=top_k, top_p=top_p)
  keys = jnp.stack([jax.random.key(row_seed) for row_seed in _row_seeds(seed, len(prompts))])
  rows = [np.asarray([*start_ids, *row], np.int32) for row in prompts]
  if not all(map(len, rows)):
    raise ValueError("a prompt is empty, and this model starts a text with no token of its own; give a prompt.")
  longest = max(map(len, rows))
  chunk_len = min(prefill_len, 1 << (longest - 1).bit_length())
  max_len = longest + length if needs_token_cache(model) else 0
  variables = unbox(variables)
  state = _empty_state(model, len(rows), max_len)
  logits_BA = jnp.zeros((len(rows), model.vocab), jnp.float32)
  for start in range(0, longest, chunk_len):
    tokens_BT, segment = _prompt_chunk(rows, start, chunk_len)
    logits_BA, state = _prefill(model, variables, tokens_BT, segment, logits_BA, state)
  positions_B = jnp.asarray([len(row) for row in rows], jnp.int32)
  return np.asarray(_decode(model, sampling, length, variables, logits_BA, positions_B, keys, state))


_empty_state = jax.jit(init_state, static_argnums=(0, 1, 2))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(4, 5))
def _prefill(
  model: ModelConfig, variables: Any, tokens_BT: jax.Array, segment: Segment, logits_BA: jax.Array, state: Any
) -> tuple[jax.Array, Any]:
  """The state after a chunk of prompt, and the logits after each row's last token so far."""
  decoder = Decoder(model)
  output = decoder.apply(variables, tokens_BT, state, segment)
  num_valid_B = segment.valid_BT.sum(axis=1)
  last_B1D = jnp.take_along_axis(output.features_BTD, jnp.maximum(num_valid_B - 1, 0)[:, None, None], axis=1)
  new_logits_BA = decoder.apply(variables, last_B1D, method=Decoder.logits)[:, 0]
  return jnp.where(num_valid_B[:, None] > 0, new_logits_BA, logits_BA), output.state


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(
  model: ModelConfig, sampling: Sampling, length: int, variables: Any, logits_BA: jax.Array, positions_B: jax.Array,
  keys: jax.Array, state: Any,
) -> jax.Array:
  """`length` tokens of every row: draw from the last logits, then read what was drawn."""
  decoder = Decoder(model)

  def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
    logits_BA, state = carry
    token_B = sample_token(logits_BA, jax.vmap(jax.random.fold_in, (0, None))(keys, index), sampling)
    position_B1 = (positions_B + index)[:, None]
    segment = Segment(
      positions_BT=position_B1, ids_BT=jnp.zeros_like(position_B1), valid_BT=jnp.ones_like(position_B1, bool),
      marks_BT=jnp.zeros_like(position_B1, jnp.int8))
    output = decoder.apply(variables, token_B[:, None], state, segment)
    logits_B1A = decoder.apply(variables, output.features_BTD, method=Decoder.logits)
    return (logits_B1A[:, 0], output.state), token_B

  _, tokens_TB = jax.lax.scan(step, (logits_BA, state), jnp.arange(length, dtype=jnp.int32))
  return tokens_TB.T


def _prompt_chunk(rows: list[np.ndarray], start: int, chunk_len: int) -> tuple[np.ndarray, Segment]:
  """Tokens [start, start + chunk_len) of every row; what lies beyond a row's end is invalid."""
  tokens_BT = np.zeros((len(rows), chunk_len), np.int32)
  valid_BT = np.zeros((len(rows), chunk_len), bool)
  for index, row in enumerate(rows):
    piece = row[start:start + chunk_len]
    tokens_BT[index, :len(piece)] = piece
    valid_BT[index, :len(piece)] = True
  positions_BT = np.broadcast_to(np.arange(start, start + chunk_len, dtype=np.int32), tokens_BT.shape)
  segment = Segment(
    positions_BT=positions_BT, ids_BT=np.zeros_like(tokens_BT), valid_BT=valid_BT,
    marks_BT=np.zeros_like(tokens_BT, np.int8))
  return tokens_BT, segment


def _row_seeds(seed: int | Sequence[int], num_rows: int) -> Sequence[int]:
  if isinstance(seed, int):
    return range(seed, seed + num_rows)
  if len(seed) != num_rows:
    raise ValueError(f"{len(seed)} seeds were given for {num_rows} prompts; give one each, or a single number.")
  return seed


def _check_arguments(model: ModelConfig, prompts: Any, length: int, prefill_len: int) -> None:
  if len(prompts) == 0:
    raise ValueError("generation needs at least one prompt; an empty prompt [] starts a new document.")
  if length < 1 or prefill_len < 1:
    raise ValueError(f"length={length} and prefill_len={prefill_len} must be at least 1.")
  for row in prompts:
    ids = np.asarray(row, np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < model.vocab:
      raise ValueError(f"a prompt holds token {ids.max()} or {ids.min()}, outside the vocabulary of {model.vocab}.")
