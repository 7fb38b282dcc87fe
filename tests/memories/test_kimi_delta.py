"""Kimi delta attention against its paper's equation in float64: outputs, last state, and gradients by complex steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.delta import op as delta
from tests.contract.harness import quick_jit
from tests.memories import published_ops as published

ROWS, LENGTH, HEADS, KEY, VALUE = 2, 9, 2, 3, 2
# Row 0 goes on with its state's document, which ends in mid-chunk; row 1 starts a document and ends early.
IDS = np.array([[5] * 6 + [7] * 3, [1] * 9], np.int32)
DOCUMENTS, LENGTHS = np.array([5, 5], np.int32), (9, 7)
RNG, TINY = np.random.default_rng(0), 1e-40
TOLERANCE = {"reference": 1e-12, "xla": 1e-11}


def normal(*shape):
  return RNG.normal(size=(ROWS, *shape))


def gates(*shape):
  return np.clip(RNG.uniform(-0.2, 1.2, size=(ROWS, *shape)), 0, 1)


Q, K, V = normal(LENGTH, HEADS, KEY), 0.6 * normal(LENGTH, HEADS, KEY), normal(LENGTH, HEADS, VALUE)
INPUTS = [Q, K, V, gates(LENGTH, HEADS), gates(LENGTH, HEADS, KEY), normal(HEADS, KEY, VALUE)]
D_OUT = normal(LENGTH, HEADS, VALUE) * (np.arange(LENGTH) < np.array(LENGTHS)[:, None])[..., None, None]
D_STATE = normal(HEADS, KEY, VALUE)


def of_head(row, head):
  *tokens, memory = INPUTS
  return [*(x[row, :, head] for x in tokens), memory[row, head]]


def equation(row, *inputs):
  """(outputs, last S) of one head, each of its documents from its own start."""
  *tokens, S = inputs
  parts, end = [], LENGTHS[row]
  for document in dict.fromkeys(IDS[row, :end].tolist()):
    here = np.flatnonzero(IDS[row, :end] == document)
    out, S = published.kimi_delta(*(x[here] for x in tokens), S if document == DOCUMENTS[row] else None)
    parts.append(out)
  return np.concatenate([*parts, np.zeros((LENGTH - end, VALUE))]), S


def slopes(row, head, number):
  """∂(Σ out·d_out + Σ S·d_S) / ∂(input `number`): its imaginary part, where the input has a tiny one."""
  result = np.zeros(of_head(row, head)[number].shape)
  for place in np.ndindex(result.shape):
    moved = [x.astype(complex) for x in of_head(row, head)]
    moved[number][place] += TINY * 1j
    out, S = equation(row, *moved)
    result[place] = ((out * D_OUT[row, :, head]).sum() + (S * D_STATE[row, head]).sum()).imag / TINY
  return result


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_outputs_last_state_and_all_gradients_are_those_of_the_papers_equation(impl):
  valid = jnp.asarray(np.arange(LENGTH) < np.array(LENGTHS)[:, None])

  def project(*inputs):
    *tokens, memory = inputs
    out, state = delta.kimi_delta(
      *tokens, delta.MatrixState(memory, jnp.asarray(DOCUMENTS)), jnp.asarray(IDS), valid, chunk_len=4, impl=impl)
    out = jnp.where(valid[..., None, None], out, 0)
    return (out * D_OUT).sum() + (state.memory_BHKV * D_STATE).sum(), (out, state.memory_BHKV)

  with jax.enable_x64(True):
    grad = quick_jit(jax.grad(project, argnums=tuple(range(len(INPUTS))), has_aux=True))
    gradients, (out, memory) = jax.device_get(grad(*map(jnp.asarray, INPUTS)))
  assert out.dtype == np.float64
  for row, head in np.ndindex(ROWS, HEADS):
    want_out, want_S = equation(row, *of_head(row, head))
    near = {"rtol": 0, "atol": TOLERANCE[impl]}
    np.testing.assert_allclose(out[row, :, head], want_out, **near)
    np.testing.assert_allclose(memory[row, head], want_S, **near)
    *of_tokens, of_memory = gradients
    for number, got in enumerate([*(x[row, :, head] for x in of_tokens), of_memory[row, head]]):
      np.testing.assert_allclose(got, slopes(row, head, number), **near)


def test_decays_of_heads_are_refused():
  x = jnp.ones((1, 2, 1, 3))
  with pytest.raises(ValueError, match=r"decays of shape \(1, 2, 1, 1\) with keys .* call gated_delta"):
    delta.kimi_delta(x, x, x, x[..., 0], x[..., :1])
