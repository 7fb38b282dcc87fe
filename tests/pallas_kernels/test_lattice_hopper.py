"""Lattice kernels of Hopper GPUs: their arithmetic against the TPU kernels', and that they lower for CUDA."""

import jax
import jax.numpy as jnp
import pytest

from lattice_jax.dispatch import BACKEND, target_backend
from lattice_jax.memories.lattice.kernel import choose_lattice_impl
from lattice_jax.memories.lattice.op import Form, Rule
from pallas_kernels import lattice_hopper, specs_lattice
from tests.contract.tolerances import TOLERANCE, rms_ratio
from tests.pallas_kernels.emulated_hopper import emulated
from tests.pallas_kernels.test_lattice import compiled, inputs
from tests.thorough import further


@pytest.mark.parametrize("objective", ["decoding", *further("encoding")])
def test_equals_the_tpu_kernel_with_all_gradients(objective):
  """More than a tile of tokens, and a document that begins within one."""
  (q, k, v, rate, is_start, start, slots), (d_out, d_last) = inputs(1, 9, 1, 5, 7)
  with emulated():
    *results, boundary = lattice_hopper.forward(
      objective, q, k, v, rate, is_start, start, slots, keeps_boundary=True)
    grads = lattice_hopper.backward(objective, q, k, v, rate, is_start, start, boundary, d_out, d_last)
  want = compiled(True, objective)((q, k, v, rate, is_start, start, slots), (d_out, d_last))
  for a, b in zip((*results, *grads), jax.tree.leaves(want), strict=True):
    assert rms_ratio(a, b) <= TOLERANCE["output", "float32"]


@pytest.mark.parametrize("case", specs_lattice.HOPPER_CASES[:2], ids=lambda case: case[0])
def test_lowers_for_an_h100(case):
  name, function, shapes = case
  text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@mosaic_gpu") == 1 + name.endswith("gradient")


def test_runs_by_name_only(monkeypatch):
  monkeypatch.setenv(BACKEND, "gpu")
  assert target_backend() == "gpu"
  head = {"slots": 64, "value_dim": 64, "dtype": jnp.dtype("float32")}
  assert choose_lattice_impl("auto", Rule(), Form(), **head) == "xla"
  assert choose_lattice_impl("pallas", Rule(), Form(), **head) == "pallas"
