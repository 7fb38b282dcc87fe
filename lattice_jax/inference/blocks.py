"""The compiled program that draws a block of tokens, reading each before it draws the next."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lattice_jax.config import ModelConfig
from lattice_jax.inference.compilation import TreeSpec
from lattice_jax.inference.sampling import Sampling, sample_token
from lattice_jax.inference.session import Session, SessionState, abstract_state, read_token
from lattice_jax.marks import Marker
from lattice_jax.sharding import replicated


@flax.struct.dataclass
class Draws:
  """open_B: the row's text goes on. index: tokens drawn so far, of every row."""

  open_B: jax.Array | np.ndarray
  index: jax.Array | np.ndarray


def start_draws(batch: int) -> Draws:
  return Draws(open_B=np.ones((batch,), bool), index=np.int32(0))


def compile_block(
  model: ModelConfig, sampling: Sampling, block_len: int, max_len: int, session: Session) -> Callable[..., Any]:
  """The program that goes on with what `session` reads, under `model`, whose caches have room for `max_len` tokens.

  (variables, marker, key_data_BW, allowed_B, stop_A, num, wanted_B, draws, state) → (tokens [B, block_len], draws,
  state); draws and state are donated. `num` tokens are drawn, at most `block_len`; the others mean nothing. A row ends
  after `allowed_B` tokens, at a token of `stop_A`, or where `wanted_B` is false. Its memory then stays, and tokens
  beyond its end mean nothing.
  """
  return _compile(
    model, sampling, session.batch, block_len, max_len, session.mesh, TreeSpec.of(session.variables),
    TreeSpec.of(session.marker))


@functools.lru_cache(maxsize=8)
def _compile(
  model: ModelConfig, sampling: Sampling, batch: int, block_len: int, max_len: int, mesh: Mesh, variables: TreeSpec,
  marker: TreeSpec,
) -> Callable[..., Any]:
  state, shardings = abstract_state(model, batch, max_len, mesh, marker)
  key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))

  def given(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

  draws = Draws(open_B=given(jnp.bool_, batch), index=given(jnp.int32))
  program = jax.jit(
    functools.partial(_draw_block, model, sampling, block_len), donate_argnums=(7, 8),
    out_shardings=(replicated(mesh), replicated(mesh), shardings))
  return program.lower(
    variables.tree(), marker.tree(), given(key_data.dtype, batch, *key_data.shape), given(jnp.int32, batch),
    given(jnp.bool_, model.vocab), given(jnp.int32), given(jnp.bool_, batch), draws, state).compile()


def _draw_block(
  model: ModelConfig, sampling: Sampling, block_len: int, variables: Any, marker: Marker | None,
  key_data_BW: jax.Array, allowed_B: jax.Array, stop_A: jax.Array, num: jax.Array, wanted_B: jax.Array, draws: Draws,
  state: SessionState,
) -> tuple[jax.Array, Draws, SessionState]:
  """Draws from the last logits, then reads what was drawn, `num` times."""
  keys_B = jax.random.wrap_key_data(key_data_BW)

  def step(place: jax.Array, carry: tuple[jax.Array, Draws, SessionState]) -> tuple[jax.Array, Draws, SessionState]:
    tokens_NB, draws, state = carry
    index = draws.index
    token_B = sample_token(state.logits_BA, jax.vmap(jax.random.fold_in, (0, None))(keys_B, index), sampling)
    open_B = draws.open_B & (index < allowed_B) & ~stop_A[token_B]
    state = read_token(model, variables, marker, token_B, open_B, state)
    return tokens_NB.at[place].set(token_B), Draws(open_B=open_B, index=index + 1), state

  draws = draws.replace(open_B=draws.open_B & wanted_B)
  tokens_NB = jnp.zeros((block_len, *wanted_B.shape), jnp.int32)
  tokens_NB, draws, state = jax.lax.fori_loop(0, num, step, (tokens_NB, draws, state))
  return tokens_NB.T, draws, state
