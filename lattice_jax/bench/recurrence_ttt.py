"""TTT-Linear that steps at every token (mini-batches of one): the scan, and fixed-point rounds of its dual form.

With the inner gradients g of a chunk known, its weights are W − Σ η k̃ᵀ g and the rest is products of matrices; with
these weights known, so are the gradients. Gradients of a token need those of earlier tokens only, so that as many
rounds as tokens are exact. It is Newton's method with the Jacobian of the step taken for one. Where gradients are made
one token after another, no round is needed: substitution, which like the scan waits for every token, but for V numbers
and not for its matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.bench.gradients import in_float64, with_gradients
from lattice_jax.bench.harness import BenchCase
from lattice_jax.bench.lattice import Shape, make_inputs
from lattice_jax.memories.ttt.rule import layer_norm, output_gradient, with_one

CHUNK, TOLERANCE = 16, 1e-6
_SPREAD = 0.02  # of the inner model's weights at the start, as the layer has them

Arrays = tuple[jax.Array, ...]  # q, k, v [B, T, H, V], steps [B, T, H], weights [B, H, K + 1, V]


def cases(
  group: dict[str, Any], heads: int, width: int, length: int, mode: str, batch: int) -> Iterator[BenchCase]:
  """Rounds have no adjoint of their own, so that "fwd+bwd" has none of them."""
  arguments = make_arrays(heads, width, batch, length)
  run = with_gradients if mode == "fwd+bwd" else lambda attend: attend
  exact = functools.cache(functools.partial(in_float64, run(by_token), arguments))
  yield BenchCase("scan", group, run(by_token), arguments, batch * length, exact)
  yield BenchCase(f"substitution {CHUNK}", group, run(by_substitution), arguments, batch * length, exact)
  if mode == "fwd":
    count = functools.partial(_count, arguments)
    yield BenchCase(
      f"rounds {CHUNK}", group, lambda *arrays: by_rounds(*arrays)[:2], arguments, batch * length, exact, count)


def make_arrays(heads: int, width: int, batch: int, length: int) -> Arrays:
  """Correlated keys as long as the root of their width, which steps of at most 1/V make up for, as in the layer."""
  q, k, v, step, _ = make_inputs(Shape(heads, slots=width, value_dim=width), batch, length)
  rng = np.random.default_rng(1)
  weight = jnp.asarray(_SPREAD * rng.normal(size=(batch, heads, width + 1, width)), jnp.float32)
  return width**0.5 * q, width**0.5 * k, width**0.5 * v, step / width, weight


def step(weight_HKV: jax.Array, k_HV: jax.Array, v_HV: jax.Array, step_H: jax.Array) -> jax.Array:
  """W − η k̃ᵀ g(k̃ W), without a row's axis; the norm has neither scale nor shift."""
  k_HK = with_one(k_HV)
  gradient_HV = gradient(jnp.einsum("HK,HKV->HV", k_HK, weight_HKV, precision="highest"), v_HV - k_HV)
  return weight_HKV - (step_H[:, None] * k_HK)[..., None] * gradient_HV[:, None]


def read(weight_HKV: jax.Array, q_HV: jax.Array) -> jax.Array:
  """q + LN(q̃ W)."""
  return q_HV + _normed(jnp.einsum("HK,HKV->HV", with_one(q_HV), weight_HKV, precision="highest"))


def by_token(q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, weight: jax.Array) -> Arrays:
  """Outputs and last weights."""

  def one_token(weight_BHKV, token):
    q_BHV, k_BHV, v_BHV, rate_BH = token
    weight_BHKV = jax.vmap(step)(weight_BHKV, k_BHV, v_BHV, rate_BH)
    return weight_BHKV, jax.vmap(read)(weight_BHKV, q_BHV)

  weight, out_TBHV = jax.lax.scan(one_token, weight, tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, rate)))
  return jnp.moveaxis(out_TBHV, 0, 1), weight


def by_rounds(
  q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Outputs, last weights, and of every chunk its rounds and what the last of them changed.

  Rounds go on until one moves no gradient by more than `TOLERANCE` of the largest.
  """
  return _by_chunk(_fixed_point, q, k, v, rate, weight)


def by_substitution(q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, weight: jax.Array) -> Arrays:
  """Outputs and last weights; token by token in the dual form, so that a chunk touches its weights once."""
  return _by_chunk(_substitution, q, k, v, rate, weight)


def _by_chunk(solve: Callable[..., Any], q, k, v, rate, weight) -> Any:
  batch, length, *_ = q.shape
  chunk = min(CHUNK, length)

  def cut(x_BT):
    return jnp.moveaxis(x_BT.reshape(batch, -1, chunk, *x_BT.shape[2:]), (1, 3), (0, 2))

  weight, (out_NBHCV, *more) = jax.lax.scan(
    functools.partial(_one_chunk, solve), weight, tuple(map(cut, (q, k, v, rate))))
  return jnp.moveaxis(out_NBHCV, (0, 2), (1, 3)).reshape(q.shape), weight, *more


def _one_chunk(solve: Callable[..., Any], weight_BHKV: jax.Array, token: Arrays):
  q_BHCV, k_BHCV, v_BHCV, rate_BHC = token
  q_BHCK, k_BHCK = with_one(q_BHCV), with_one(k_BHCV)
  pair_BHCS = jnp.tril(_product(k_BHCK, jnp.swapaxes(k_BHCK, 2, 3)), -1) * rate_BHC[..., None, :]
  gradient_BHCV, *more = solve(_product(k_BHCK, weight_BHKV), pair_BHCS, v_BHCV - k_BHCV)
  step_BHCV = rate_BHC[..., None] * gradient_BHCV
  seen_BHCS = jnp.tril(_product(q_BHCK, jnp.swapaxes(k_BHCK, 2, 3)))
  out_BHCV = q_BHCV + _normed(_product(q_BHCK, weight_BHKV) - _product(seen_BHCS, step_BHCV))
  return weight_BHKV - _product(jnp.swapaxes(k_BHCK, 2, 3), step_BHCV), (out_BHCV, *more)


def _fixed_point(start_BHCV: jax.Array, pair_BHCS: jax.Array, target_BHCV: jax.Array):
  """Gradients at z = start − pair · gradients; rounds and what the last of them changed."""

  def advance(carry):
    gradient_BHCV, rounds, _ = carry
    new_BHCV = gradient(start_BHCV - _product(pair_BHCS, gradient_BHCV), target_BHCV)
    return new_BHCV, rounds + 1, jnp.abs(new_BHCV - gradient_BHCV).max() / jnp.abs(new_BHCV).max()

  def goes_on(carry):
    _, rounds, change = carry
    return ~(change <= TOLERANCE) & (rounds < start_BHCV.shape[2])

  first = gradient(start_BHCV, target_BHCV), jnp.int32(0), jnp.asarray(jnp.inf, start_BHCV.dtype)
  return jax.lax.while_loop(goes_on, advance, first)


def _substitution(start_BHCV: jax.Array, pair_BHCS: jax.Array, target_BHCV: jax.Array) -> tuple[jax.Array]:
  """The same gradients, of one token after another."""

  def one_token(gradient_BHCV, xs):
    place, start_BHV, pair_BHS, target_BHV = xs
    z_BHV = start_BHV - jnp.einsum("BHS,BHSV->BHV", pair_BHS, gradient_BHCV, precision="highest")
    return gradient_BHCV.at[:, :, place].set(gradient(z_BHV, target_BHV)), None

  by_token = (jnp.moveaxis(x, 2, 0) for x in (start_BHCV, pair_BHCS, target_BHCV))
  places = jnp.arange(start_BHCV.shape[2])
  return jax.lax.scan(one_token, jnp.zeros_like(start_BHCV), (places, *by_token))[:1]


def gradient(z: jax.Array, target: jax.Array) -> jax.Array:
  """∂ ½‖LN(z) − target‖² / ∂z, of a norm that has neither scale nor shift."""
  return output_gradient(z, target, jnp.ones((), z.dtype), jnp.zeros((), z.dtype))


def _normed(z: jax.Array) -> jax.Array:
  return layer_norm(z, jnp.ones((), z.dtype), jnp.zeros((), z.dtype))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum("BHIJ,BHJK->BHIK", a, b, precision="highest")


def _count(arrays: Arrays) -> dict[str, float]:
  rounds_N, change_N = map(np.asarray, jax.jit(lambda *arrays: by_rounds(*arrays)[2:])(*arrays))
  return {"solver_rounds": float(rounds_N.mean()), "residual": float(change_N.max()), "scanned": 0.0}
