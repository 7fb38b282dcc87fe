"""Cross-entropy in chunks of tokens against its definition, in float64 numpy, with its gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops.cross_entropy import cross_entropy
from tests.contract.harness import quick_jit

BATCH, LENGTH, DIM, VOCAB = 3, 7, 4, 11


@pytest.mark.parametrize("chunk", [1, 6, 9, 100])
def test_nats_and_gradients_are_those_of_the_softmax(chunk):
  rng = np.random.default_rng(0)
  features, head, bias = rng.normal(size=(BATCH, LENGTH, DIM)), rng.normal(size=(DIM, VOCAB)), rng.normal(size=VOCAB)
  targets, weight = rng.integers(0, VOCAB, (BATCH, LENGTH)), rng.normal(size=(BATCH, LENGTH))

  def loss(features, head, bias):
    nll = cross_entropy(features, head, bias, jnp.asarray(targets), chunk=chunk)
    return (nll * weight).sum(), nll

  inputs = map(functools.partial(jnp.asarray, dtype=jnp.float32), (features, head, bias))
  grads, nll = quick_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
  odds = np.exp(features @ head + bias)
  share = odds / odds.sum(-1, keepdims=True)
  chosen = np.eye(VOCAB)[targets]
  np.testing.assert_allclose(nll, -np.log((share * chosen).sum(-1)), rtol=1e-5, atol=1e-6)
  d_logits = (share - chosen) * weight[..., None]
  wanted = d_logits @ head.T, np.einsum("btd,bta->da", features, d_logits), d_logits.sum((0, 1))
  for got, want in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("data", "turns"), [(1, 16), (4, 4), (3, 16)], ids=["one", "split", "not-divided"])
def test_a_chunk_is_of_a_device_so_that_a_head_on_many_is_gathered_seldom(data, turns):
  """8 rows of 16 tokens, 8 tokens a chunk: a device of four has two rows, and so four of their columns at a time."""
  shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (
    ((8, 16, DIM), "float32"), ((DIM, VOCAB), "float32"), ((VOCAB,), "float32"), ((8, 16), "int32"))]
  with jax.set_mesh(jax.make_mesh((data,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
    program = jax.make_jaxpr(functools.partial(cross_entropy, chunk=8))(*shapes)
  loops = [equation.params["length"] for equation in program.eqns if equation.primitive.name == "scan"]
  assert loops == [turns]
