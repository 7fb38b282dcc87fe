"""From logits to the next token: greedy, temperature, top-k, nucleus."""

from __future__ import annotations

from dataclasses import dataclass

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
