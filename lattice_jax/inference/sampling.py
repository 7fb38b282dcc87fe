"""From logits to the next token: greedy, temperature, top-k, nucleus."""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lattice_jax.domains import TEMPERATURE, TOP_K, TOP_P, checked


@dataclass(frozen=True)
class Sampling:
  """How the next token is drawn. The filters apply in the order of the fields.

  banned: ids that are never drawn.
  temperature: logits are divided by it; 0 takes the most likely token.
  top_k: draw from the k most likely tokens, the lower id first among equals; 0 = all.
  top_p: of those, draw from the smallest set of most likely tokens whose probability reaches top_p; 1 = all.
  """

  banned: tuple[int, ...] = ()
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self) -> None:
    checked(TEMPERATURE, "temperature", self.temperature)
    checked(TOP_K, "top_k", self.top_k)
    checked(TOP_P, "top_p", self.top_p)


def filter_logits(logits: Float[Array, "*b A"], sampling: Sampling) -> Float[Array, "*b A"]:
  """Logits at the sampling temperature; -inf for tokens that may not be drawn."""
  logits = ban_tokens(logits.astype(jnp.float32), sampling.banned)
  if sampling.temperature > 0:
    logits = logits / sampling.temperature
  if sampling.top_k:
    logits = keep_top_k(logits, sampling.top_k)
  if sampling.top_p < 1:
    logits = keep_nucleus(logits, sampling.top_p)
  return logits


def sample_token(
  logits: Float[Array, "B A"], keys: jax.Array, sampling: Sampling
) -> Int[Array, "B"]:
  """The next token of every row; `keys` [B] are the rows' own random keys."""
  filtered_BA = filter_logits(logits, sampling)
  if sampling.temperature == 0:
    return jnp.argmax(filtered_BA, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys, filtered_BA).astype(jnp.int32)


@flax.struct.dataclass
class RowSampling:
  """How the next token of each row is drawn; the fields mean what those of `Sampling` do, one number a row."""

  temperature_B: jax.Array
  top_k_B: jax.Array
  top_p_B: jax.Array


def sample_rows(
  logits: Float[Array, "B A"], keys: jax.Array, rows: RowSampling, banned: tuple[int, ...]
) -> Int[Array, "B"]:
  """`sample_token` with each row's own sampling. What no row asks for is not computed."""
  is_drawn_B = rows.temperature_B > 0
  logits_BA = ban_tokens(logits.astype(jnp.float32), banned)
  scaled_BA = logits_BA / jnp.where(is_drawn_B, rows.temperature_B, 1)[:, None]
  is_filtered_B = is_drawn_B & ((rows.top_k_B > 0) | (rows.top_p_B < 1))

  def draw() -> jax.Array:
    filtered_BA = jax.lax.cond(
      is_filtered_B.any(), lambda x_BA: _keep_rows(x_BA, rows), lambda x_BA: x_BA, scaled_BA)
    return jax.vmap(jax.random.categorical)(keys, filtered_BA).astype(jnp.int32)

  most_likely_B = jnp.argmax(logits_BA, axis=-1).astype(jnp.int32)
  drawn_B = jax.lax.cond(is_drawn_B.any(), draw, lambda: most_likely_B)
  return jnp.where(is_drawn_B, drawn_B, most_likely_B)


def _keep_rows(logits_BA: jax.Array, rows: RowSampling) -> jax.Array:
  """`keep_top_k`, then `keep_nucleus`, with one sort; the others become -inf."""
  order_BA = jnp.argsort(logits_BA, axis=-1, descending=True, stable=True)
  num_B = jnp.where(rows.top_k_B > 0, rows.top_k_B, logits_BA.shape[-1])
  is_kept_BA = jnp.arange(logits_BA.shape[-1]) < num_B[:, None]
  sorted_BA = jnp.where(is_kept_BA, jnp.take_along_axis(logits_BA, order_BA, axis=-1), -jnp.inf)
  probability_BA = jax.nn.softmax(sorted_BA, axis=-1)
  mass_before_BA = jnp.cumsum(probability_BA, axis=-1) - probability_BA
  is_nucleus_BA = (mass_before_BA < rows.top_p_B[:, None]).at[:, 0].set(True)
  is_kept_BA &= is_nucleus_BA | (rows.top_p_B >= 1)[:, None]
  row_B1 = jnp.arange(order_BA.shape[0])[:, None]
  return jnp.where(jnp.zeros_like(is_kept_BA).at[row_B1, order_BA].set(is_kept_BA), logits_BA, -jnp.inf)


def ban_tokens(logits: Float[Array, "*b A"], banned: tuple[int, ...]) -> Float[Array, "*b A"]:
  if not banned:
    return logits
  return logits.at[..., jnp.asarray(banned)].set(-jnp.inf)


def keep_top_k(logits: Float[Array, "*b A"], top_k: int) -> Float[Array, "*b A"]:
  """Keeps exactly the k largest, the lower id first among equals; the others become -inf."""
  order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
  rank = jnp.argsort(order, axis=-1)
  return jnp.where(rank < top_k, logits, -jnp.inf)


def keep_nucleus(logits: Float[Array, "*b A"], top_p: float) -> Float[Array, "*b A"]:
  """Keeps the smallest set of most likely tokens with probability ≥ top_p, the lower id first among equals."""
  order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
  probability = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
  mass_before = jnp.cumsum(probability, axis=-1) - probability
  # the most likely token stays whatever rounding does to its mass
  is_kept = (mass_before < top_p).at[..., 0].set(True)
  return jnp.where(jnp.take_along_axis(is_kept, jnp.argsort(order, axis=-1), axis=-1), logits, -jnp.inf)
