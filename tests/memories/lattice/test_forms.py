"""Forms of Lattice that take a chunk of tokens at a time, against the token scan and their own loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.lattice.op import (
  APPROXIMATE_FORMS,
  FORMS,
  OBJECTIVES,
  Form,
  Rule,
  convergence,
  empty_state,
  lattice,
  lattice_with_rounds,
)
from tests.contract.harness import quick_jit
from tests.memories.lattice.cases import LENGTH, assert_near, correlated, run, scene
from tests.thorough import further

EXACT = Form("parallel", chunk_len=4, rounds=4, tolerance=0.0)
CHUNK = 6  # of the approximate forms
# Where a token's direction is its value, there is no residual: "live" is "frozen".
APPROXIMATE = [
  (Rule(objective), name) for objective in OBJECTIVES for name in APPROXIMATE_FORMS
  if objective == "decoding" or name != "live"]
UNPROJECTED = [(Rule(is_projected=False), name) for name in APPROXIMATE_FORMS]


@pytest.mark.parametrize("is_projected", [True, *further(False)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_as_many_rounds_as_tokens_are_exact_with_all_gradients(objective, is_projected):
  """Across resets, padding and chunks that the call does not fill."""
  rule = Rule(objective, is_projected=is_projected)
  with jax.enable_x64(True):
    here = scene(rule, length=LENGTH, dtype="float64")
    assert_near(run(rule, here, form=EXACT), run(rule, here, "reference"), 1e-11)


def test_one_token_chunks_are_exact_without_any_round():
  with jax.enable_x64(True):
    here = scene(Rule(), length=LENGTH, dtype="float64")
    assert_near(run(Rule(), here, form=Form("parallel", 1, 0, 0.0)), run(Rule(), here, "reference"), 1e-11)


def test_rounds_that_end_by_tolerance_are_exact_in_fp32():
  here = scene(Rule(), length=LENGTH, dtype="float32")
  assert_near(run(Rule(), here, form=Form("parallel", 8)), run(Rule(), here, "reference"), 1e-5)


@pytest.mark.parametrize("impl", ["xla", *further("reference")])
@pytest.mark.parametrize(
  "form", [EXACT, *(Form(name, CHUNK) for name in APPROXIMATE_FORMS)], ids=lambda form: form.name)
def test_what_stands_at_invalid_tokens_changes_nothing(form, impl):
  rule = Rule()
  with jax.enable_x64(True):
    here = scene(rule, length=LENGTH, dtype="float64", form=form)
    spoiled = {
      name: jnp.where(here.valid.reshape(*here.valid.shape, *(1,) * (x.ndim - 2)), x, jnp.nan)
      for name in ("q", "k", "v", "step", "forget") for x in [getattr(here, name)]}
    clean, dirty = (run(rule, scene, impl, form) for scene in (here, here.replace(**spoiled)))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(dirty))


@functools.cache
def pull(form, dtype):
  """Outputs, last slots and gradients of one long document."""
  q, k, v, step, start = (np.asarray(x, dtype) for x in correlated(192))
  step = np.asarray(0.5 * step, dtype)
  ids, valid = jnp.zeros(step.shape[:2], jnp.int32), jnp.ones(step.shape[:2], bool)
  d_out = jnp.asarray(np.random.default_rng(5).normal(size=v.shape), dtype)

  def loss(*inputs):
    state = empty_state(1, *start.shape, rule=Rule(), form=form, dtype=jnp.dtype(dtype))
    out, state = lattice(*inputs[:4], None, inputs[4], state, ids, valid, rule=Rule(), form=form, impl="xla")
    return (out * d_out).sum(), (out, state.slots.unit_BHMV)

  grads, outputs = quick_jit(jax.grad(loss, argnums=range(5), has_aux=True))(q, k, v, step, start)
  return [np.asarray(x, np.float64) for x in (*outputs, *grads)]


@pytest.mark.parametrize("form", [Form("parallel", 16, 8, 0.0), Form("parallel", 16), Form("parallel", 8, 8, 0.0)],
                         ids=("8-rounds", "by-tolerance", "8-of-8"))
def test_parallel_form_in_fp32_is_as_near_to_float64_as_the_scan_in_fp32(form):
  with jax.enable_x64(True):
    true = pull(Form(), "float64")

    def errors(form):
      return [np.linalg.norm(got - want) / np.linalg.norm(want)
              for got, want in zip(pull(form, "float32"), true, strict=True)]

    for got, scan in zip(errors(form), errors(Form()), strict=True):
      assert got <= 3 * scan, (errors(form), errors(Form()))


@functools.cache
def one_document():
  """Arguments of the op: 64 tokens, no gate, an empty state."""
  q, k, v, step, start = correlated(64)
  ids, valid = jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64), bool)
  return q, k, v, step, None, start, empty_state(1, *start.shape, rule=Rule(), form=Form()), ids, valid


@functools.cache
def changes():
  """What each of 16 rounds changes in each of 4 chunks, chunks × rounds."""
  return np.asarray(quick_jit(functools.partial(convergence, rule=Rule(), chunk_len=16))(*one_document()))


def test_report_of_rounds_falls_to_rounding_and_ends_at_zero():
  change = changes()
  assert change.shape == (4, 16)
  assert (change[:, 0] > 1e-3).all() and (change[:, -1] < 1e-6).all()
  assert (change[:, 8] < 1e-2 * change[:, 0]).all()


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_call_says_how_many_rounds_each_chunk_took_and_what_the_last_changed(tolerance):
  form = Form("parallel", 16, 7, tolerance)
  rounds = quick_jit(lambda *inputs: lattice_with_rounds(*inputs, rule=Rule(), form=form)[2])(*one_document())
  number, change = (np.asarray(x) for x in rounds)
  assert ((change <= tolerance) | (number == form.rounds)).all()
  # Later chunks begin with slots that those rounds have made.
  first = number[0]
  assert first == (np.argmax(changes()[0] <= tolerance) + 1 if tolerance else form.rounds)
  np.testing.assert_allclose(change[0], changes()[0, first - 1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("rule", "name"), [*APPROXIMATE, *UNPROJECTED], ids=str)
def test_approximate_form_equals_its_own_loop_with_all_gradients(rule, name):
  """Rows begin with open chunks of different lengths, and have resets, padding and chunks that the call leaves open."""
  form = Form(name, CHUNK)
  with jax.enable_x64(True):
    here = scene(rule, length=LENGTH, dtype="float64", form=form)
    assert_near(run(rule, here, form=form), run(rule, here, "reference", form), 1e-10)


@pytest.mark.parametrize(("rule", "name"), APPROXIMATE, ids=str)
def test_approximate_chunks_of_one_token_are_the_exact_recurrence(rule, name):
  form = Form(name, chunk_len=1)
  with jax.enable_x64(True):
    got = run(rule, scene(rule, length=LENGTH, dtype="float64", form=form), form=form, with_gradient=False)
    want = run(rule, scene(rule, length=LENGTH, dtype="float64"), "reference")
    np.testing.assert_allclose(got.out, want.out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.state.slots.unit_BHMV, want.state.slots.unit_BHMV, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
  "form", [EXACT, *(Form(name, CHUNK) for name in APPROXIMATE_FORMS)], ids=lambda form: form.name)
def test_any_split_gives_the_same_for_the_open_chunk_of_an_approximate_form_is_in_the_state(form):
  rule = Rule()
  with jax.enable_x64(True):
    here = scene(rule, length=LENGTH, dtype="float64", form=form)
    whole = run(rule, here, form=form)
    for cuts in ((1, 12), (11, 22)):
      state, parts = here.state, []
      for begin, end in itertools.pairwise((0, *cuts, LENGTH)):
        part = run(rule, here.cut(begin, end, state), form=form, with_gradient=False)
        state = part.state
        parts.append(part.out)
      np.testing.assert_allclose(jnp.concatenate(parts, 1), whole.out, rtol=0, atol=1e-12)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), state, whole.state)


@pytest.mark.parametrize("name", APPROXIMATE_FORMS)
def test_a_packed_document_has_the_chunks_of_a_document_alone(name):
  rule, form, row, first = Rule(), Form(name, CHUNK), 1, 8
  with jax.enable_x64(True):
    here = scene(rule, length=LENGTH, dtype="float64", form=form)
    # Its tokens first in a row, of which the rest no longer matters.
    tokens = {name: np.roll(getattr(here, name), -first, 1) for name in ("q", "k", "v", "step", "forget")}
    state = here.state.replace(document_B=np.full(here.state.document_B.shape, -1, np.int32))
    alone = here.replace(state=state, ids=np.zeros_like(here.ids), valid=np.ones_like(here.valid), **tokens)
    packed = run(rule, here, form=form).out[row, first:]
    np.testing.assert_allclose(run(rule, alone, form=form).out[row, : LENGTH - first], packed, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", FORMS)
def test_slots_have_length_one_after_ten_thousand_correlated_tokens_in_every_form(name):
  length = 10_000
  form = Form(name, chunk_len=8, rounds=8)
  q, k, v, step, start = correlated(length)
  ids, valid = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length), bool)

  @quick_jit
  def last(q, k, v, step, start):
    state = empty_state(1, *start.shape, rule=Rule(), form=form)
    return lattice(q, k, v, 0.5 * step, None, start, state, ids, valid, rule=Rule(), form=form)[1]

  slots = np.asarray(last(q, k, v, step, start).slots.unit_BHMV, np.float64)
  assert np.abs(np.linalg.norm(slots, axis=-1) - 1).max() <= 1e-5


def test_accumulated_slots_are_left_to_the_scan():
  rule = Rule(state="accumulated")
  here = scene(rule, length=1, dtype="float32")
  with pytest.raises(ValueError, match="form='parallel' of op 'lattice' is one of state='retracted'"):
    run(rule, here, form=EXACT)


def test_unknown_forms_are_refused():
  with pytest.raises(ValueError, match=r"form.name='chunk' of op 'lattice' is not one of scan"):
    Form("chunk")
  with pytest.raises(ValueError, match=r"form.chunk_len=0 of op 'lattice' must be at least 1"):
    Form(chunk_len=0)
  with pytest.raises(ValueError, match=r"form.rounds=-1 of op 'lattice' must be at least 0"):
    Form(rounds=-1)
