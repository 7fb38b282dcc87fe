"""Kernels of the delta rule on TPUs, interpreted, against the definition: values, all gradients, meshes, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from lattice_jax.memories.delta import op as delta
from lattice_jax.ops.decay.matrix import MatrixState
from lattice_jax.ops.decay.tokens import by_token
from pallas_kernels import specs_delta
from pallas_kernels.delta import choose_chunk, recurrence, supports, supports_backend
from tests.contract.harness import quick_jit
from tests.contract.tolerances import TOLERANCE, rms_ratio
from tests.memories import recurrence_cases
from tests.memories.lattice.cases import assert_near
from tests.thorough import further

LIMIT = TOLERANCE["output", "float32"]
BY_NAME = {case.name: case for case in recurrence_cases.CASES}
BY_HEAD, BY_CHANNEL = "gated_deltanet", "kimi_delta"


def inputs(batch, length, heads, key_dim, value_dim, by_channel, dtype=jnp.float32):
  """Arguments of `recurrence`, keys of length one, a third of the decays zero, one or tiny; cotangents of results."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  q, k, v = (normal(batch, length, heads, width) for width in (key_dim, key_dim, value_dim))
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  decay = rng.uniform(0.3, 1, (batch, length, heads, key_dim if by_channel else 1))
  decay = np.where(rng.uniform(size=decay.shape) < 1 / 3, rng.choice([0, 1, 1e-30], decay.shape), decay)
  gates = rng.uniform(0, 1, (batch, length, heads)), decay
  tokens = *(jnp.asarray(x, dtype) for x in (q, k, v)), *(jnp.asarray(x, jnp.float32) for x in gates)
  memory = jnp.asarray(normal(batch, heads, key_dim, value_dim))
  return (*tokens, memory), (normal(batch, length, heads, value_dim), normal(batch, heads, key_dim, value_dim))


def with_gradients(call):
  @quick_jit
  def results_and_gradients(arguments, cotangents):
    results, pull = jax.vjp(call, *arguments)
    return results, pull(cotangents)

  return results_and_gradients


def definition(q, k, v, step, decay, memory):
  return by_token(delta._step, decay, (q, k, v, step[..., None]), memory)


@functools.cache
def compiled(interpret, chunk_len=0):
  return with_gradients(functools.partial(recurrence, chunk_len=chunk_len, interpret=interpret))


def assert_close(got, want, limit=LIMIT):
  for number, (a, b) in enumerate(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)):
    assert a.dtype == b.dtype
    assert rms_ratio(a, b) <= limit, number


@pytest.mark.parametrize("name", [BY_HEAD, BY_CHANNEL, *further("deltanet")])
def test_ops_equal_the_definition_with_all_gradients(name):
  """Gates at 0 and 1, resets inside chunks, padding, a row without tokens, odd sizes, a last chunk that is not full."""
  case = BY_NAME[name]
  here = recurrence_cases.scene(case, "float32")
  assert choose_chunk(recurrence_cases.CHUNK, recurrence_cases.LENGTH) == 16
  assert_near(recurrence_cases.run(case, here, "interpret"), recurrence_cases.run(case, here, "reference"), LIMIT)


@pytest.mark.parametrize(("by_channel", "chunk_len"), [(True, 0), *further((False, 0), (False, 32))])
def test_several_whole_chunks_equal_the_definition(by_channel, chunk_len):
  """Products of decays as far apart as 10⁻³⁰⁰⁰ and zero, and a step of the rule into the last chunk by one token."""
  arguments, cotangents = inputs(1, 129, 2, 8, 16, by_channel)
  got = compiled(True, chunk_len)(arguments, cotangents)
  assert_close(got, with_gradients(definition)(arguments, cotangents))


@pytest.mark.parametrize("by_channel", [False, *further(True)])
def test_inputs_in_bf16_are_widened_and_nothing_else_is_rounded(by_channel):
  arguments, cotangents = inputs(1, 20, 2, 5, 7, by_channel, jnp.bfloat16)
  got = compiled(True)(arguments, cotangents)
  wide = tuple(x.astype(jnp.float32) for x in arguments)
  want, want_grads = with_gradients(definition)(wide, cotangents)
  assert_close(got[0], want)
  for a, b, x in zip(got[1], want_grads, arguments, strict=True):
    assert a.dtype == x.dtype
    # gradients of q, k and v are rounded once
    assert rms_ratio(a, b) <= (3e-3 if x.dtype == jnp.bfloat16 else LIMIT)


def test_two_runs_are_equal_to_the_last_bit():
  here = inputs(1, 20, 2, 5, 7, False, jnp.bfloat16)
  jax.tree.map(np.testing.assert_array_equal, compiled(True)(*here), compiled(True)(*here))


@pytest.mark.parametrize(("by_channel", "heads"), [(False, 1), *further((False, 2), (True, 2))])
def test_no_memory_is_read_before_it_is_written_and_nothing_races(capfd, by_channel, heads):
  """Two chunks; two heads may run on two cores at once."""
  params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2)
  here = inputs(1, 17, heads, 3, 4, by_channel)
  got, want = (compiled(interpret, 16)(*here) for interpret in (params, True))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
  assert "RACE" not in capfd.readouterr().out


def test_a_mesh_splits_rows_and_heads():
  """No array is shared by rows or heads, so the gradient has no sum over parts."""
  mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
  arguments, _ = inputs(2, 3, 2, 2, 3, True)

  def program():
    return quick_jit(functools.partial(recurrence, interpret=True))

  want = program()(*arguments)
  with jax.set_mesh(mesh):
    got = program()(*arguments)
  assert_close(got, want)


@pytest.mark.parametrize(
  "case", [case for case in specs_delta.TPU_CASES if case[0].endswith("gradient")], ids=lambda case: case[0])
def test_lowers_for_a_tpu(case):
  _, function, shapes = case
  text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("tpu_custom_call") == 2


def test_a_chunk_is_a_power_of_two():
  asked = {(0, 1000): 64, (0, 33): 64, (0, 1): 16, (20, 1000): 32, (500, 1000): 64, (1, 5): 16}
  assert {sizes: choose_chunk(*sizes) for sizes in asked} == asked


def test_what_no_kernel_does_is_said():
  sizes = {"key_dim": 128, "value_dim": 128}
  assert supports(dtype=jnp.float32) is None
  assert "memory in float32, not float64" in supports(dtype=jnp.float64)
  assert supports_backend("tpu", **sizes) is None
  assert "at most 128 key and value numbers, not 128 and 256" in supports_backend("tpu", **sizes | {"value_dim": 256})
  assert supports_backend("gpu", **sizes | {"value_dim": 256}) is None
  assert "at most 128 numbers, not 192" in supports_backend("gpu", **sizes | {"key_dim": 192})
  assert "no Pallas kernel of it for cpu" in supports_backend("cpu", **sizes)

  def call(impl, dtype=jnp.float32):
    x = jnp.ones((1, 2, 1, 3))
    state = MatrixState(jnp.zeros((1, 1, 3, 3), dtype), jnp.full((1,), -1))
    delta.kimi_delta(x, x, x, x[..., 0], x, state, impl=impl)

  with pytest.raises(ValueError, match="op 'kimi_delta' cannot run: there is no Pallas kernel of it for cpu; use"):
    call("pallas")
  with jax.enable_x64(True), pytest.raises(ValueError, match="impl='interpret' of op 'kimi_delta' cannot run: its"):
    call("interpret", jnp.float64)


@pytest.mark.parametrize(("length", "chosen"), [(15, False), (16, True)])
def test_auto_takes_the_kernel_of_a_tpu_for_more_than_some_tokens(monkeypatch, length, chosen):
  monkeypatch.setenv("LATTICE_JAX_BACKEND", "tpu")
  x = jnp.ones((1, length, 1, 3))
  program = str(jax.make_jaxpr(lambda x: delta.gated_delta(x, x, x, x[..., 0], x[..., :1])[0])(x))
  assert ("delta_forward" in program) == chosen
