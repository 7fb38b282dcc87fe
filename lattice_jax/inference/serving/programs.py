"""The compiled programs behind the rows: one puts a prompt that was read into a row, one draws a block for all rows.

Prompts are read apart, by a `Session` of one row. A chunk for all rows with one valid row would compute the others in
vain, and a cache that is compressed after the prompt has another shape while the prompt is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lattice_jax.cache.convert import compress_caches
from lattice_jax.cache.kv_cache import caches_of
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.inference.compilation import TreeSpec, with_shardings
from lattice_jax.inference.sampling import RowSampling, sample_rows
from lattice_jax.inference.session import Session, SessionState, abstract_state, read_token, start_state
from lattice_jax.marks import Marker
from lattice_jax.sharding import replicated, shape_letters

# In a block, in the place of a token: the row had ended, it ends here at a stop id, or its logits are not finite.
NO_TOKEN, STOPPED, BROKEN = -1, -2, -3


@flax.struct.dataclass
class Rows:
  """What the device holds of all rows. open_B: the row's text goes on. index_B: tokens drawn of it so far.

  allowed_B: the most tokens of its text. key_data_BW: the random key of its seed.
  """

  session: SessionState
  open_B: jax.Array
  index_B: jax.Array
  allowed_B: jax.Array
  key_data_BW: jax.Array
  sampling: RowSampling


@flax.struct.dataclass
class Admission:
  """What a row needs to know of its request besides the prompt; numbers without an axis."""

  row: Any
  seed: Any
  allowed: Any
  temperature: Any
  top_k: Any
  top_p: Any


def admission(
  *, row: int, seed: int, allowed: int, temperature: float, top_k: int, top_p: float) -> Admission:
  """The numbers as the program takes them."""
  return Admission(
    row=np.int32(row), seed=np.uint32(seed), allowed=np.int32(allowed), temperature=np.float32(temperature),
    top_k=np.int32(top_k), top_p=np.float32(top_p))


@functools.lru_cache(maxsize=8)
def compile_start(model: ModelConfig, batch: int, max_len: int, mesh: Mesh, marker: TreeSpec) -> Callable[[], Rows]:
  """() → rows that are all free."""
  start = functools.partial(_start, model, batch, max_len, marker.tree())
  return jax.jit(start, out_shardings=_abstract_rows(model, batch, max_len, mesh, marker)[1]).lower().compile()


@functools.lru_cache(maxsize=8)
def compile_admit(
  reading: ModelConfig, model: ModelConfig, batch: int, max_len: int, mesh: Mesh, marker: TreeSpec,
) -> Callable[[SessionState, Admission, Rows], Rows]:
  """(prompt, admission, rows) → rows, of which one holds the prompt as the cache of `model` would; rows are donated.

  The prompt was read by one row of a session under `reading`.
  """
  prompt, _ = abstract_state(reading, 1, max_len, mesh, marker)
  rows, shardings = _abstract_rows(model, batch, max_len, mesh, marker)
  numbers = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
    admission(row=0, seed=0, allowed=0, temperature=0, top_k=0, top_p=0))
  program = jax.jit(
    functools.partial(_admit, model if reading != model else None, max_len), donate_argnums=2, out_shardings=shardings)
  return program.lower(prompt, numbers, rows).compile()


def compile_draw(
  model: ModelConfig, banned: tuple[int, ...], block_len: int, batch: int, max_len: int, session: Session,
) -> Callable[..., tuple[jax.Array, Rows]]:
  """(variables, marker, stop_A, wanted_B, rows) → (tokens [B, block_len], rows), which are donated.

  The program goes on under `model` with what `session` read. A row ends where `wanted_B` is false, at a token of
  `stop_A`, where its logits are not finite, and once it has all tokens that it is allowed; it stands still from there.
  NO_TOKEN, STOPPED and BROKEN stand in the place of tokens that no row has.
  """
  return _compile_draw(
    model, tuple(banned), block_len, batch, max_len, session.mesh, TreeSpec.of(session.variables),
    TreeSpec.of(session.marker))


@functools.lru_cache(maxsize=8)
def _compile_draw(
  model: ModelConfig, banned: tuple[int, ...], block_len: int, batch: int, max_len: int, mesh: Mesh,
  variables: TreeSpec, marker: TreeSpec,
) -> Callable[..., tuple[jax.Array, Rows]]:
  rows, shardings = _abstract_rows(model, batch, max_len, mesh, marker)
  stop_A, wanted_B = (
    jax.ShapeDtypeStruct((size,), jnp.bool_, sharding=replicated(mesh)) for size in (model.vocab, batch))
  program = jax.jit(
    functools.partial(_draw, model, banned, block_len), donate_argnums=4, out_shardings=(replicated(mesh), shardings))
  return program.lower(variables.tree(), marker.tree(), stop_A, wanted_B, rows).compile()


def _draw(
  model: ModelConfig, banned: tuple[int, ...], block_len: int, variables: Any, marker: Marker | None,
  stop_A: jax.Array, wanted_B: jax.Array, rows: Rows,
) -> tuple[jax.Array, Rows]:
  """Draws from the last logits, then reads what was drawn, while a row goes on and the block has room."""

  def goes_on(carry: tuple[jax.Array, jax.Array, Rows]) -> jax.Array:
    place, _, rows = carry
    return (place < block_len) & rows.open_B.any()

  def step(carry: tuple[jax.Array, jax.Array, Rows]) -> tuple[jax.Array, jax.Array, Rows]:
    place, tokens_NB, rows = carry
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.key_data_BW), rows.index_B)
    token_B = sample_rows(rows.session.logits_BA, keys_B, rows.sampling, banned)
    is_finite_B = jnp.isfinite(rows.session.logits_BA).all(axis=1)
    is_drawn_B = rows.open_B & is_finite_B & ~stop_A[token_B]
    index_B = rows.index_B + is_drawn_B
    # nothing follows the last token, so nobody need read it
    open_B = is_drawn_B & (index_B < rows.allowed_B)
    session = read_token(model, variables, marker, token_B, open_B, rows.session)
    shown_B = jnp.where(is_drawn_B, token_B, jnp.where(is_finite_B, STOPPED, BROKEN))
    shown_B = jnp.where(rows.open_B, shown_B, NO_TOKEN)
    return place + 1, tokens_NB.at[place].set(shown_B), rows.replace(session=session, open_B=open_B, index_B=index_B)

  rows = rows.replace(open_B=rows.open_B & wanted_B)
  tokens_NB = jnp.full((block_len, *wanted_B.shape), NO_TOKEN, jnp.int32)
  _, tokens_NB, rows = jax.lax.while_loop(goes_on, step, (jnp.int32(0), tokens_NB, rows))
  return tokens_NB.T, rows


def _admit(
  compressing: ModelConfig | None, max_len: int, prompt: SessionState, admitted: Admission, rows: Rows) -> Rows:
  """compressing: the model whose cache policy the prompt's memory still has to be brought under; None if it is."""
  if compressing is not None:
    policy = make_policy(compressing.cache)
    caches = compress_caches(policy, policy.num_slots(max_len), caches_of(prompt.memory))
    prompt = prompt.replace(memory={**prompt.memory, **caches})
  first = Rows(
    session=prompt, open_B=jnp.ones((1,), bool), index_B=jnp.zeros((1,), jnp.int32),
    allowed_B=admitted.allowed[None], key_data_BW=jax.random.key_data(jax.random.key(admitted.seed))[None],
    sampling=RowSampling(
      temperature_B=admitted.temperature[None], top_k_B=admitted.top_k[None], top_p_B=admitted.top_p[None]))

  def put(path: tuple[Any, ...], all_rows: jax.Array, one_row: jax.Array) -> jax.Array:
    axis = shape_letters(path, all_rows).index("B")
    return jax.lax.dynamic_update_slice_in_dim(all_rows, one_row, admitted.row, axis)

  return jax.tree_util.tree_map_with_path(put, rows, first)


def _start(model: ModelConfig, batch: int, max_len: int, marker: Marker | None) -> Rows:
  def numbers(dtype: Any) -> jax.Array:
    return jnp.zeros((batch,), dtype)

  key_data_BW = jax.random.key_data(jax.random.split(jax.random.key(0), batch))
  return Rows(
    session=start_state(model, batch, max_len, marker), open_B=numbers(jnp.bool_), index_B=numbers(jnp.int32),
    allowed_B=numbers(jnp.int32), key_data_BW=key_data_BW,
    sampling=RowSampling(
      temperature_B=numbers(jnp.float32), top_k_B=numbers(jnp.int32), top_p_B=numbers(jnp.float32)))


def _abstract_rows(
  model: ModelConfig, batch: int, max_len: int, mesh: Mesh, marker: TreeSpec) -> tuple[Rows, Rows]:
  """(shapes that say where they lie, shardings)."""
  shapes = jax.eval_shape(functools.partial(_start, model, batch, max_len, marker.tree()))
  session, shardings = abstract_state(model, batch, max_len, mesh, marker)
  where = jax.tree.map(lambda _: replicated(mesh), shapes).replace(session=shardings)
  return with_shardings(shapes, where).replace(session=session), where
