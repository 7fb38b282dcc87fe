"""One far token that no query was made to look for until the end, and then every head does: what is left of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.evaluation.bootstrap import interval_of_mean
from lattice_jax.inspect.local.context import Context
from lattice_jax.inspect.local.stream import Compared, Inputs, exact_outputs, positions, relative_errors
from lattice_jax.inspect.local.texts import read_layers

TAIL = 16  # last tokens, whose queries look for the needle
_PLACE = 4  # the needle stands after one part in so many
_ODDS = 9.0  # of the needle against everything else, on the geometric mean of a head's queries


def measure_needle(context: Context) -> dict[str, Any]:
  """Errors of the last queries at every budget, and in how many heads the needle is still there as it is."""
  found: dict[tuple[int, str], list[list[Compared]]] = {
    (budget, name): [] for budget, arms in context.settings.items() for name in arms}
  ids_BT, place = context.ids_BT[:context.sizes.needle_texts], context.sizes.seq_len // _PLACE
  rng, mass = np.random.default_rng(context.sizes.seed), []
  for number, ids_T in enumerate(ids_BT):
    for texts in found.values():
      texts.append([])
    for inputs in read_layers(context.loaded, ids_T):
      planted, mass_LTQ = plant(inputs, place, rng)
      mass.append(np.asarray(mass_LTQ).mean())
      exact, is_tail_N = exact_outputs(planted), positions(planted) >= context.sizes.seq_len - TAIL
      for (budget, name), texts in found.items():
        arm = context.settings[budget][name]
        texts[-1].append(context.compare(arm, budget, planted, exact, place))
    context.report(f"needle: text {number + 1} of {len(ids_BT)}")
  return {
    "texts": len(ids_BT), "place": place, "tail": TAIL, "seq_len": context.sizes.seq_len, "mass": float(np.mean(mass)),
    "budgets": [{"budget": budget, "arms": [
      _record(name, arm.setting, found[budget, name], is_tail_N) for name, arm in arms.items()]}
      for budget, arms in context.settings.items()]}


def plant(inputs: Inputs, place: int, rng: np.random.Generator) -> tuple[Inputs, jax.Array]:
  """The inputs with a needle, and the weight that full attention gives to it, [L, T, Q] of the last queries.

  The last queries and the key at `place` grow along a direction that the other keys hardly have, so that their scores
  stay; the value there is another one, of the usual length.
  """
  added_LHK = _step(inputs, jnp.asarray(place))
  layers, _, heads, value_dim = inputs.v_LTHV.shape
  group = inputs.q_LTQK.shape[2] // heads
  usual_LH = jnp.sqrt((inputs.v_LTHV**2).sum(-1).mean(1))
  value_LHV = jnp.asarray(rng.normal(size=(layers, heads, value_dim)), jnp.float32)
  value_LHV *= (usual_LH / jnp.linalg.norm(value_LHV, axis=-1))[..., None]
  planted = inputs.replace(
    q_LTQK=inputs.q_LTQK.at[:, -TAIL:].add(jnp.repeat(added_LHK, group, axis=1)[:, None]),
    k_LTHK=inputs.k_LTHK.at[:, place].add(added_LHK), v_LTHV=inputs.v_LTHV.at[:, place].set(value_LHV))
  score_LHGTS = _scores(planted)
  weight_LHGT = jnp.exp(score_LHGTS[..., place] - jax.nn.logsumexp(score_LHGTS, axis=-1))
  return planted, jnp.moveaxis(weight_LHGT.reshape(layers, heads * group, TAIL), 1, 2)


@jax.jit
def _step(inputs: Inputs, place: jax.Array) -> jax.Array:
  """What the needle's key and the queries that look for it gain, [L, H, K].

  Its direction is that in which the keys have least. Its length a makes the mean score of the needle, which grows by
  (a² + a·b) K^-1/2 where b is what the key and the mean query have there already, exceed the mean log-sum-exp of
  everything by the log of the odds.
  """
  layers, _, heads, key_dim = inputs.k_LTHK.shape
  energy_LHKK = jnp.einsum("LTHK,LTHJ->LHKJ", inputs.k_LTHK, inputs.k_LTHK, precision="highest")
  direction_LHK = jnp.linalg.eigh(energy_LHKK)[1][..., 0]
  score_LHGTS = _scores(inputs)
  missing_LHGT = jax.nn.logsumexp(score_LHGTS, axis=-1) - jnp.take(score_LHGTS, place, axis=-1)
  square_LH = (missing_LHGT.mean((2, 3)) + jnp.log(_ODDS)) * key_dim**0.5
  query_LHK = inputs.q_LTQK[:, -TAIL:].reshape(layers, TAIL, heads, -1, key_dim).mean((1, 3))
  have_LH = jnp.einsum("LHK,LHK->LH", query_LHK + inputs.k_LTHK[:, place], direction_LHK)
  size_LH = (jnp.sqrt(have_LH**2 + 4 * square_LH) - jnp.abs(have_LH)) / 2
  return direction_LHK * (size_LH * jnp.where(have_LH < 0, -1, 1))[..., None]


def _scores(inputs: Inputs) -> jax.Array:
  """Of the last queries with every key that they see, [L, H, G, T, S]."""
  layers, length, heads, key_dim = inputs.k_LTHK.shape
  q_LTHGK = inputs.q_LTQK[:, -TAIL:].reshape(layers, TAIL, heads, -1, key_dim)
  score_LHGTS = jnp.einsum("LTHGK,LSHK->LHGTS", q_LTHGK, inputs.k_LTHK, precision="highest") * key_dim**-0.5
  is_seen_TS = jnp.arange(length) <= jnp.arange(length - TAIL, length)[:, None]
  return jnp.where(is_seen_TS, score_LHGTS, -1e30)


def _record(name: str, setting: str, texts: list[list[Compared]], is_tail_N: np.ndarray) -> dict[str, Any]:
  error_B = np.array([relative_errors(text, is_tail_N).mean() for text in texts])
  kept_B = np.array([np.mean([part.is_kept[-1].mean() for part in text]) for text in texts])
  return {
    "name": name, "setting": setting, "error": float(error_B.mean()), "interval": interval_of_mean(error_B),
    "kept": float(kept_B.mean())}
