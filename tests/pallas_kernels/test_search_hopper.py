"""Code search on Hopper GPUs: interpreted, races looked for, against the definition and float64; lowered; chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lattice_jax.dispatch import BACKEND
from lattice_jax.memories.vq.op import quantize
from pallas_kernels import search_hopper, specs, vq
from pallas_kernels.flash_backends import supports_search
from tests.pallas_kernels.interpreted_hopper import PARAMS, interpreted
from tests.thorough import further

ROWS = 8


def search(keys, rows):
  with interpreted(ROWS):
    return np.asarray(vq.nearest_code(keys, rows, backend="gpu", interpret=PARAMS))


@pytest.mark.parametrize(("batch", "length", "heads", "codes", "key_dim"), [
  (2, 19, 2, 21, 5), *further((1, 3, 1, 45, 70))])
def test_finds_the_nearest_row_and_the_lowest_of_equals(batch, length, heads, codes, key_dim):
  """Tiles of keys and codes that are not full, more of them than places of the ring, widths of one unit and two."""
  rows = jax.random.normal(jax.random.key(0), (heads, codes, key_dim))
  rows = rows.at[:, 3].set(rows[:, 1]).at[:, codes - 1].set(rows[:, 1])  # in the same tile and in the last one
  keys = jax.random.normal(jax.random.key(1), (batch, length, heads, key_dim)).at[:, 0].set(rows[None, :, 1])
  code_BTH = search(keys, rows)
  np.testing.assert_array_equal(code_BTH, quantize(keys, rows, impl="reference").code_BTH)
  assert (code_BTH[:, 0] == 1).all()


def test_tells_codes_apart_that_bfloat16_does_not():
  """Nor two parts of it: halves of a pair differ by some 2⁻¹⁷ of a number, distances by ten times their rounding."""
  length, codes, key_dim = 16, 8, 64
  rows = np.array(jax.random.normal(jax.random.key(0), (1, codes, key_dim)))
  rows[:, 1::2] = rows[:, ::2] * (1 + 2**-17 * np.array(jax.random.normal(jax.random.key(1), (1, codes // 2, key_dim))))
  keys = np.array(jax.random.normal(jax.random.key(2), (1, length, 1, key_dim)))
  distance_TM = ((keys[0].astype(np.float64) - rows.astype(np.float64)) ** 2).sum(-1)
  nearest_TM = np.sort(distance_TM)
  is_clear_T = nearest_TM[:, 1] - nearest_TM[:, 0] > 1e-5
  assert is_clear_T.sum() > length / 2
  np.testing.assert_array_equal(search(keys, rows)[0, is_clear_T, 0], distance_TM.argmin(-1)[is_clear_T])


def test_parts_are_the_number():
  x = np.array([1.0, -1 / 3, 2**-30 / 3, -1e20 / 3, 0.0, 1 + 2**-8, 1 - 2**-24, 3.1415927], np.float32)
  parts = search_hopper.in_parts(jnp.asarray(x))
  assert all(part.dtype == jnp.bfloat16 for part in parts)
  np.testing.assert_array_equal(sum(np.asarray(part, np.float64) for part in parts), x)


def test_lowers_for_an_h100():
  cases = {name: case for name, *case in specs.HOPPER_CASES}
  function, shapes = cases["nearest_code"]
  with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)):
    text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@mosaic_gpu") == 1 and "manual" in text


def test_runs_by_name_only(monkeypatch):
  monkeypatch.setenv(BACKEND, "gpu")

  def program(impl, key_dim):
    keys, rows = jnp.zeros((1, 2, 1, key_dim)), jnp.ones((1, 3, key_dim))
    return str(jax.make_jaxpr(jax.grad(lambda *args: quantize(*args, impl=impl).key_BTHK.sum(), (0, 1)))(keys, rows))

  by_name = program("pallas", 8)
  assert "argmin" in program("auto", 8) and "argmin" not in by_name and "nearest_code" in by_name
  with pytest.raises(ValueError, match=r"op 'vq_codes' cannot run: .* of at most 128 numbers, not 129"):
    program("pallas", 129)
  assert "no Pallas kernel of it for cpu" in supports_search("cpu", key_dim=8)
