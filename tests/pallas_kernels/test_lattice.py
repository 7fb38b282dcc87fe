"""Lattice kernels of TPUs, interpreted, against the definition: values, all gradients, memory, meshes, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from lattice_jax.memories.lattice.op import OBJECTIVES, Form, LatticeSlots, Rule, empty_state, lattice
from lattice_jax.memories.lattice.reference import lattice_reference
from lattice_jax.memories.lattice.tokens import Tokens
from pallas_kernels import specs_lattice
from pallas_kernels.lattice import LARGEST_STATE, MOST_TPU_SLOTS, recurrence, supports, supports_backend
from pallas_kernels.lattice_layout import (
  PROGRAM_BYTES,
  REPLAY_BYTES,
  choose_layout,
  pack_state,
  pack_values,
  unpack_state,
  unpack_values,
)
from tests.contract.harness import quick_jit
from tests.contract.tolerances import TOLERANCE, rms_ratio
from tests.memories.lattice.cases import LENGTH, SLOTS, VALUE, assert_near, run, scene
from tests.thorough import further

LIMIT = TOLERANCE["output", "float32"]
RETURNING = Rule("decoding", "returning")
RULES = [*map(Rule, OBJECTIVES), RETURNING, Rule("encoding", "returning")]


def inputs(batch, length, heads, slots, value_dim, dtype=jnp.float32):
  """Arguments of `recurrence` with a document that begins in the middle of row 0, and cotangents of its results."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  is_start = np.zeros((batch, length), bool)
  is_start[0, length // 2] = True
  tokens = (normal(batch, length, heads, slots), unit(normal(batch, length, heads, slots)),
            unit(normal(batch, length, heads, value_dim)), rng.uniform(0, 1, (batch, length, heads)))
  arguments = (*(jnp.asarray(x, dtype) for x in tokens), jnp.asarray(is_start),
               jnp.asarray(unit(normal(heads, slots, value_dim))),
               jnp.asarray(unit(normal(batch, heads, slots, value_dim))))
  return arguments, (normal(batch, length, heads, value_dim), normal(batch, heads, slots, value_dim))


def rest_of(rule, rate):
  """What returning slots get of their start; None of others."""
  if rule.state == "returning":
    return jnp.asarray(np.random.default_rng(1).uniform(0, 0.4, rate.shape), rate.dtype)
  return None


@functools.cache
def compiled(interpret, objective="decoding"):
  @quick_jit
  def results_and_gradients(arguments, cotangents, rest=None):
    q, k, v, rate, is_start, start, slots = arguments
    results, pull = jax.vjp(
      lambda q, k, v, rate, start, slots, rest: recurrence(
        q, k, v, rate, is_start, start, slots, objective=objective, rest=rest, interpret=interpret),
      q, k, v, rate, start, slots, rest)
    return results, pull(cotangents)

  return results_and_gradients


def test_lanes_hold_the_parts_of_rows():
  batch, length, heads, slots, value_dim = 2, 3, 2, 4, 40
  layout = choose_layout(batch, length, heads, slots, value_dim)
  assert (layout.rows, layout.parts, layout.values) == (8, 16, 3)
  rng = np.random.default_rng(0)
  values, state = rng.normal(size=(batch, length, heads, value_dim)), rng.normal(size=(batch, heads, slots, value_dim))
  packed_values, packed_state = pack_values(layout, jnp.asarray(values)), pack_state(layout, jnp.asarray(state))
  for row, part in ((0, 0), (3, 5), (2, 12)):  # of lane part · rows + row; row b · H + h
    here, lane = divmod(row, heads), 8 * part + row
    numbers = slice(3 * part, 3 * part + 3)
    np.testing.assert_array_equal(packed_values[0, 1, :, lane], np.float32(values[here[0], 1, here[1], numbers]))
    np.testing.assert_array_equal(packed_state[0, :, 2, lane], np.float32(state[*here, 2, numbers]))
  np.testing.assert_array_equal(unpack_values(layout, packed_values, values.shape), np.float32(values))
  np.testing.assert_array_equal(unpack_state(layout, packed_state, state.shape), np.float32(state))


@pytest.mark.parametrize("rows", [1, 16, 128])
def test_a_backward_program_of_every_supported_size_has_room(rows):
  """The longest chunk for which it has; with codes of many slots that is shorter than the slots alone would say."""
  for slots in (8, 64, 128, 256, MOST_TPU_SLOTS):
    for value_dim in (8, 64, 128, 256):
      if slots * value_dim <= LARGEST_STATE:
        layout = choose_layout(rows, 4096, 1, slots, value_dim)
        assert layout.backward_bytes() <= PROGRAM_BYTES and layout.chunk >= 8
        longer = dataclasses.replace(layout, chunk=2 * layout.chunk)
        assert (layout.chunk == 64 or longer.backward_bytes() > PROGRAM_BYTES
                or longer.chunk * layout.state_bytes > REPLAY_BYTES)
  assert choose_layout(1, 1024, 4, 128, 128).chunk == 32
  assert supports_backend("tpu", state="retracted", slots=MOST_TPU_SLOTS, value_dim=8) is None
  assert "at most 768 slots" in supports_backend("tpu", state="retracted", slots=MOST_TPU_SLOTS + 1, value_dim=8)


def rules(*some):
  return pytest.mark.parametrize("rule", some, ids=lambda rule: f"{rule.objective}-{rule.state}")


@rules(*RULES, *further(Rule("similarity", "returning")))
def test_equals_the_definition_with_all_gradients(rule):
  """An odd number of tokens, documents that begin anywhere, invalid tokens, a row without any."""
  here = scene(rule, length=LENGTH, dtype="float32")
  assert_near(run(rule, here, "interpret"), run(rule, here, "reference"), LIMIT)


@pytest.mark.parametrize("length", [150, *further(1)])
@rules(Rule(), *further(RETURNING))
def test_one_token_and_several_chunks(rule, length):
  here = scene(rule, length=length, dtype="float32")
  assert length == 1 or choose_layout(*here.q.shape[:3], SLOTS, VALUE).chunks == 3
  assert_near(run(rule, here, "interpret"), run(rule, here, "reference"), LIMIT)


def test_inputs_in_bf16_are_widened_and_nothing_else_is_rounded():
  rule = Rule()
  here = scene(rule, length=LENGTH, dtype="float32")
  short = {name: getattr(here, name).astype(jnp.bfloat16) for name in ("q", "k", "v", "step", "forget")}
  got, want = (run(rule, here.replace(**short), impl) for impl in ("interpret", "reference"))
  assert rms_ratio(got.out, want.out) <= LIMIT
  for name in ("d_q", "d_k", "d_v", "d_step", "d_forget"):
    assert getattr(got, name).dtype == jnp.bfloat16
    # both round a gradient once, but now and then to different neighbours
    assert rms_ratio(getattr(got, name), getattr(want, name)) <= 2e-3, name
  assert rms_ratio(got.d_start, want.d_start) <= LIMIT


def test_more_heads_than_lanes():
  """129 rows fill one group of lanes whole, and leave one row to a second."""
  layout = choose_layout(43, 4, 3, 3, 5)
  assert (layout.rows, layout.groups, layout.parts) == (128, 2, 1)
  arguments, cotangents = inputs(43, 4, 3, 3, 5)
  q, k, v, rate, is_start, start, slots = arguments

  @quick_jit
  def by_definition(q, k, v, rate, cotangents):
    def call(q, k, v, rate):
      out, after = lattice_reference(
        Rule(), Tokens(q, k, v, rate, jnp.ones_like(rate)), is_start, LatticeSlots(start, None),
        LatticeSlots(slots, None))
      return out, after.unit_BHMV

    want, pull = jax.vjp(call, q, k, v, rate)
    return *want, *pull(cotangents)

  got, want = compiled(True)(arguments, cotangents), by_definition(q, k, v, rate, cotangents)
  for a, b in zip((*got[0], *got[1][:4]), want, strict=True):
    assert rms_ratio(a, b) <= LIMIT


@rules(*RULES)
def test_one_token_of_two_blocks_of_rows_and_two_strips_of_slots(rule):
  (q, k, v, rate, is_start, start, slots), _ = inputs(43, 1, 3, 70, 5)
  is_start, rest = jnp.zeros_like(is_start), rest_of(rule, rate)
  got = jax.jit(functools.partial(recurrence, objective=rule.objective, interpret=True))(
    q, k, v, rate, is_start, start, slots, rest=rest)
  forget = jnp.ones_like(rate) if rest is None else 1 - rest
  out, after = quick_jit(lambda *token: lattice_reference(
    rule, Tokens(*token), is_start, LatticeSlots(start, None), LatticeSlots(slots, None)))(q, k, v, rate, forget)
  assert rms_ratio(got[0], out) <= LIMIT and rms_ratio(got[1], after.unit_BHMV) <= LIMIT


def test_two_runs_are_equal_to_the_last_bit():
  here = scene(Rule(), length=LENGTH, dtype="float32")
  first, second = (run(Rule(), here, "interpret") for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, second)


@rules(Rule(), RETURNING)
def test_no_memory_is_read_before_it_is_written_and_nothing_races(rule, capfd):
  params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2)
  arguments, cotangents = inputs(1, 3, 1, 2, 3)
  rest = rest_of(rule, arguments[3])
  got, want = (compiled(interpret)(arguments, cotangents, rest) for interpret in (params, True))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
  q, k, v, rate, is_start, start, slots = arguments
  one = *(x[:, :1] for x in (q, k, v, rate, is_start)), start, slots
  step = functools.partial(recurrence, *one, objective="decoding", rest=None if rest is None else rest[:, :1])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), step(interpret=params), step(interpret=True))
  assert "RACE" not in capfd.readouterr().out


@pytest.mark.thorough
def test_sixty_six_thousand_tokens():
  """Slots keep their length, and what the last tokens read does not depend on how far they are from the first."""
  length, tail = 2**16 + 77, 64
  (q, k, v, rate, _, start, slots), _ = inputs(1, length, 1, 2, 3)
  is_start = jnp.zeros((1, length), bool).at[0, length - tail].set(True)
  run_all = jax.jit(functools.partial(recurrence, objective="decoding", interpret=True))
  out, last = run_all(q, k, v, rate, is_start, start, slots)
  want, want_last = run_all(*(x[:, -tail:] for x in (q, k, v, rate, is_start)), start, slots)
  assert rms_ratio(out[:, -tail:], want) <= LIMIT and rms_ratio(last, want_last) <= LIMIT
  np.testing.assert_allclose(jnp.linalg.norm(last, axis=-1), 1, rtol=1e-6)


@rules(RETURNING, *further(Rule()))
def test_a_mesh_splits_rows_and_heads(rule):
  mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
  arguments, cotangents = inputs(2, 3, 2, 2, 3)
  rest = rest_of(rule, arguments[3])
  want = compiled(True)(arguments, cotangents, rest)
  with jax.set_mesh(mesh):
    got = compiled.__wrapped__(True)(arguments, cotangents, rest)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert rms_ratio(a, b) <= LIMIT


@pytest.mark.parametrize(
  "case", [case for case in specs_lattice.TPU_CASES if case[0].endswith(("gradient", "step_m64_d64"))],
  ids=lambda case: case[0])
def test_lowers_for_a_tpu(case):
  name, function, shapes = case
  text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("tpu_custom_call") == 1 + name.endswith("gradient")


def test_what_no_kernel_does_is_said():
  sizes = {"state": "returning", "projected": True, "exact": True, "dtype": jnp.float32, "slots": 64, "value_dim": 64}
  assert supports(objective="decoding", **sizes) is None
  for change, reason in (
    ({"state": "accumulated"}, "state='retracted' or 'returning', not 'accumulated'"),
    ({"projected": False}, "orthogonal"), ({"exact": False}, "form='scan'"),
    ({"dtype": jnp.float64}, "float32, not float64"), ({"slots": 2048}, "not 2048 slots of 64")):
    assert reason in supports(**{"objective": "decoding", **sizes, **change})
  assert supports_backend("tpu", state="returning", slots=64, value_dim=64) is None
  assert "for cpu" in supports_backend("cpu", state="retracted", slots=64, value_dim=64)
  assert "not 'returning'" in supports_backend("gpu", state="returning", slots=64, value_dim=64)
  assert "at most 64 slots of 128, not 128 of 64" in supports_backend("gpu", state="retracted", slots=128, value_dim=64)

  def call(form, impl):
    state = empty_state(1, 1, SLOTS, VALUE, rule=Rule(), form=form)
    token_BTHM, gate_BTH = jnp.zeros((1, 2, 1, SLOTS)), jnp.zeros((1, 2, 1))
    lattice(
      token_BTHM, token_BTHM, jnp.zeros((1, 2, 1, VALUE)), gate_BTH, None, jnp.ones((1, SLOTS, VALUE)), state,
      jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), rule=Rule(), form=form, impl=impl)

  with pytest.raises(ValueError, match="op 'lattice' cannot run: there is no Pallas kernel of it for cpu; use"):
    call(Form(), "pallas")
  with pytest.raises(ValueError, match="impl='interpret' of op 'lattice' cannot run: its kernels go token by token"):
    call(Form("live"), "interpret")
