"""Kernels of the delta rule on Hopper GPUs: their arithmetic against the definition, and that they lower for CUDA."""

import jax
import jax.numpy as jnp
import pytest

from lattice_jax.dispatch import BACKEND
from lattice_jax.memories.delta import op as delta
from pallas_kernels import specs_delta
from pallas_kernels.delta import recurrence
from tests.pallas_kernels.emulated_hopper import emulated
from tests.pallas_kernels.test_delta import assert_close, definition, inputs, with_gradients
from tests.thorough import further


@pytest.mark.parametrize("by_channel", [True, *further(False)])
def test_equals_the_definition_with_all_gradients(by_channel):
  """More than a tile of tokens, and more values than a part has."""
  arguments, cotangents = inputs(1, 9, 1, 5, 37, by_channel)
  with emulated():
    results, pull = jax.vjp(lambda *arguments: recurrence(*arguments, backend="gpu"), *arguments)
    got = results, pull(cotangents)
  assert_close(got, with_gradients(definition)(arguments, cotangents))


@pytest.mark.parametrize("case", specs_delta.HOPPER_CASES[:2], ids=lambda case: case[0])
def test_lowers_for_an_h100(case):
  _, function, shapes = case
  text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@mosaic_gpu") == 2


def test_runs_by_name_only(monkeypatch):
  monkeypatch.setenv(BACKEND, "gpu")
  x = jnp.ones((1, 32, 1, 3))

  def program(impl):
    return str(jax.make_jaxpr(lambda x: delta.gated_delta(x, x, x, x[..., 0], x[..., :1], impl=impl)[0])(x))

  assert "delta_forward" in program("pallas") and "delta_forward" not in program("auto")
