"""The mathematics of Lattice: its gradients, what they imply, and the laws that a layer on top needs."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.lattice.op import (
  OBJECTIVES,
  STATES,
  Form,
  Rule,
  empty_state,
  inner_gradient,
  inner_loss,
  lattice,
)
from lattice_jax.types import MEMORY_BOUNDARY
from tests.contract.harness import quick_jit
from tests.memories.lattice.cases import LENGTH, SLOTS, VALUE, assert_near, correlated, run, scene, slots_like
from tests.thorough import further

RULES = [Rule(objective, state) for objective, state in itertools.product(OBJECTIVES, STATES)]
UNPROJECTED = [Rule(objective, state, is_projected=False) for objective, state in
               (("decoding", "retracted"), ("encoding", "accumulated"))]


def name_of(value):
  if not isinstance(value, Rule):
    return str(value)
  return f"{value.objective}-{value.state}" + "-unprojected" * (not value.is_projected)


each_rule = pytest.mark.parametrize("rule", RULES, ids=name_of)
each_objective = pytest.mark.parametrize("objective", OBJECTIVES)


def random_tokens(num):
  rng = np.random.default_rng(1)
  shapes = (SLOTS, VALUE), (SLOTS,), (VALUE,)
  return tuple(jnp.asarray(rng.normal(size=(num, *shape))) for shape in shapes)


@each_objective
def test_gradient_is_the_gradient_of_the_stated_objective(objective):
  with jax.enable_x64(True):
    slot, k, v = random_tokens(100)
    want = jax.vmap(jax.grad(lambda *token: inner_loss(objective, *token)))(slot, k, v)
    np.testing.assert_allclose(inner_gradient(Rule(objective), slot, k, v), want, rtol=0, atol=1e-12)


@each_objective
def test_an_update_is_orthogonal_to_its_slot_and_so_lengthens_it(objective):
  with jax.enable_x64(True):
    slot, k, v = random_tokens(100)
    update = -0.7 * inner_gradient(Rule(objective), slot, k, v)
    np.testing.assert_allclose((update * slot).sum(-1), 0, rtol=0, atol=1e-12)
    grown = (slot**2).sum(-1) + (update**2).sum(-1)
    np.testing.assert_allclose(((slot + update) ** 2).sum(-1), grown, rtol=1e-12)


@each_rule
def test_one_token_takes_one_gradient_step(rule):
  """Of the stated loss, by autodiff, from slots of their actual length; forgetting scales the slots first."""
  with jax.enable_x64(True):
    here = scene(rule, length=1, dtype="float64")
    slots = here.state.slots
    raw = slots.unit_BHMV * (1.0 if slots.norm_BHM is None else slots.norm_BHM[..., None])
    grad = jax.vmap(jax.vmap(jax.grad(lambda *token: inner_loss(rule.objective, *token))))(
      raw, here.k[:, 0], here.v[:, 0])
    moved = here.forget[:, 0, :, None, None] * raw - here.step[:, 0, :, None, None] * grad
    if rule.state == "returning":
      start = here.start / jnp.linalg.norm(here.start, axis=-1, keepdims=True)
      moved += (1 - here.forget[:, 0, :, None, None]) * start
    length = jnp.linalg.norm(moved, axis=-1)
    want = jnp.einsum("bhm,bhmv->bhv", here.q[:, 0], moved / length[..., None])
    for impl in ("reference", "xla"):
      got = run(rule, here, impl, with_gradient=False)
      np.testing.assert_allclose(got.out[:2, 0], want[:2], rtol=0, atol=1e-12)
      np.testing.assert_allclose(got.state.slots.unit_BHMV[:2], (moved / length[..., None])[:2], rtol=0, atol=1e-12)
      if rule.state == "accumulated":
        np.testing.assert_allclose(got.state.slots.norm_BHM[:2], length[:2], rtol=1e-12)


@pytest.mark.parametrize(
  ("dtype", "rule"),
  [*(("float64", rule) for rule in [*RULES, *UNPROJECTED]), ("float32", RULES[0]),
   *further(*(("float32", rule) for rule in [*RULES[1:], *UNPROJECTED]))], ids=name_of)
def test_scan_with_its_own_adjoint_equals_the_reference_with_all_gradients(dtype, rule):
  """The mathematics in float64; L8 of the contract has rules in fp32 too."""
  with jax.enable_x64(dtype == "float64"):
    here = scene(rule, length=LENGTH, dtype=dtype)
    assert_near(run(rule, here, "xla"), run(rule, here, "reference"), 1e-11 if dtype == "float64" else 3e-5)


def test_chunks_of_the_scan_do_not_show():
  """Several chunks and a rest, with resets inside them; and rows that are cut anywhere."""
  rule = Rule()
  with jax.enable_x64(True):
    here = scene(rule, length=150, dtype="float64")
    assert_near(run(rule, here, "xla"), run(rule, here, "reference"), 1e-11)


@pytest.mark.parametrize("rule", [RULES[0], Rule("encoding", "accumulated")], ids=name_of)
def test_documents_may_begin_where_a_call_a_chunk_and_its_rest_do(rule):
  with jax.enable_x64(True):
    here = scene(rule, length=130, dtype="float64")
    starts = np.isin(np.arange(130), [0, 63, 64, 128, 129])  # chunks of 64 tokens
    here = here.replace(ids=jnp.broadcast_to(100 + np.cumsum(starts), here.ids.shape))
    assert_near(run(rule, here, "xla"), run(rule, here, "reference"), 1e-11)


@pytest.mark.parametrize("rule", [RULES[0], Rule("encoding", "accumulated")], ids=name_of)
def test_any_split_gives_the_same_output_and_state(rule):
  with jax.enable_x64(True):
    here = scene(rule, length=LENGTH, dtype="float64")
    whole = run(rule, here, "xla", with_gradient=False)
    for cuts in ((1, 12), (11, 12), (11, 22)):
      state, parts = here.state, []
      for begin, end in itertools.pairwise((0, *cuts, LENGTH)):
        part = run(rule, here.cut(begin, end, state), "xla", with_gradient=False)
        state = part.state
        parts.append(part.out)
      np.testing.assert_allclose(jnp.concatenate(parts, 1), whole.out, rtol=0, atol=1e-12)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), state, whole.state)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_a_new_document_starts_from_the_learned_slots_and_knows_nothing_of_the_past(impl):
  rule = Rule()
  here = scene(rule, length=LENGTH, dtype="float32")
  got = run(rule, here, impl)
  row, first = 1, 8  # the row whose only reset is at its ninth token
  later = here.cut(first, LENGTH, empty_state(*here.q.shape[:1], *here.start.shape, rule=rule, form=Form()))
  np.testing.assert_allclose(
    run(rule, later, impl, with_gradient=False).out[row], got.out[row, first:], rtol=0, atol=1e-5)
  alone = run(rule, here.replace(d_out=here.d_out.at[:, :first].set(0)), impl)
  for gradient in (alone.d_q, alone.d_k, alone.d_v, alone.d_step, alone.d_forget):
    assert not np.asarray(gradient[row, :first]).any()
  assert not np.asarray(alone.d_slots[0].unit_BHMV[row]).any()
  assert np.asarray(alone.d_start).any()


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_invalid_tokens_change_nothing_and_a_row_without_tokens_keeps_its_state(impl):
  rule = Rule(state="accumulated")
  here = scene(rule, length=LENGTH, dtype="float32")

  def spoil(x):
    return jnp.where(here.valid[..., None, None], x, jnp.nan)

  clean, dirty = run(rule, here, impl), run(rule, here.replace(k=spoil(here.k), v=spoil(here.v)), impl)
  for name in ("out", "state", "d_q", "d_step", "d_forget", "d_start", "d_slots"):
    jax.tree.map(np.testing.assert_array_equal, getattr(dirty, name), getattr(clean, name))
  assert not np.asarray(jnp.where(here.valid[..., None, None], 0, dirty.d_k)).any()
  empty = ~np.asarray(here.valid).any(1)
  assert empty.any()
  for got, want in zip(jax.tree.leaves(clean.state.slots), jax.tree.leaves(here.state.slots), strict=True):
    np.testing.assert_array_equal(got[empty], want[empty])
  for got, want in zip(jax.tree.leaves(clean.d_slots), jax.tree.leaves(here.d_slots), strict=True):
    np.testing.assert_array_equal(got[empty], want[empty])


@each_rule
def test_slots_have_no_order(rule):
  with jax.enable_x64(True):
    here = scene(rule, length=LENGTH, dtype="float64")
    order = np.random.default_rng(3).permutation(SLOTS)

    def mix(slots):
      return jax.tree.map(lambda x: x[:, :, order], slots)

    mixed = here.replace(
      q=here.q[..., order], k=here.k[..., order], start=here.start[:, order],
      state=here.state.replace(slots=mix(here.state.slots)))
    got, want = (run(rule, x, "xla", with_gradient=False) for x in (mixed, here))
    np.testing.assert_allclose(got.out, want.out, rtol=0, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), got.state.slots,
                 mix(want.state.slots))


def test_similarity_with_its_activation_as_code_is_ojas_rule():
  with jax.enable_x64(True):
    here = scene(Rule("similarity", "accumulated"), length=1, dtype="float64")
    slots = here.state.slots.replace(norm_BHM=jnp.ones_like(here.state.slots.norm_BHM))
    v, step = here.v[:, 0, :, None], 0.1
    activation = (slots.unit_BHMV * v).sum(-1)
    # Oja: s += step·y (v − y s), with y = s·v
    oja = slots.unit_BHMV + step * activation[..., None] * (v - activation[..., None] * slots.unit_BHMV)
    here = here.replace(
      k=activation[:, None], step=jnp.full_like(here.step, step), forget=jnp.ones_like(here.forget),
      state=here.state.replace(slots=slots))
    after = run(Rule("similarity", "accumulated"), here, "xla", with_gradient=False).state.slots
    np.testing.assert_allclose((after.unit_BHMV * after.norm_BHM[..., None])[:2], oja[:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_slots_stay_of_length_one_over_ten_thousand_correlated_tokens(objective, impl):
  q, k, v, step, start = correlated(10_000)
  ids, valid = jnp.zeros((1, 10_000), jnp.int32), jnp.ones((1, 10_000), bool)

  @jax.jit
  def last(q, k, v, step, start):
    state = empty_state(1, *start.shape, rule=Rule(objective), form=Form())
    return lattice(q, k, v, step, None, start, state, ids, valid, rule=Rule(objective), impl=impl)[1].slots.unit_BHMV

  length = np.linalg.norm(np.asarray(last(q, k, v, step, start), np.float64), axis=-1)
  assert np.abs(length - 1).max() <= 1e-5


@pytest.mark.parametrize("step", [0.0, 2.0, *further(1.0)])
@pytest.mark.parametrize("state", STATES)
def test_finite_after_many_equal_tokens_at_both_ends_of_the_gates(state, step):
  length = 4096
  rule = Rule(state=state)
  shape = (1, length, 1)
  k = jnp.broadcast_to(jnp.eye(SLOTS, dtype=jnp.bfloat16)[0], (*shape, SLOTS))
  v = jnp.ones((*shape, VALUE), jnp.bfloat16)
  ids, valid = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length), bool)
  before = empty_state(1, 1, SLOTS, VALUE, rule=rule, form=Form())

  @jax.jit
  def loss(k, v, step, forget, start):
    out, after = lattice(k, k, v, step, forget, start, before, ids, valid, rule=rule)
    assert out.dtype == jnp.float32 and after.slots.unit_BHMV.dtype == jnp.float32
    return (out**2).sum() + sum((x**2).sum() for x in jax.tree.leaves(after.slots))

  for forget in (0.0, 1.0):
    gates = jnp.full(shape, step, jnp.bfloat16), jnp.full(shape, forget, jnp.bfloat16)
    value, grads = jax.value_and_grad(loss, argnums=range(5))(k, v, *gates, slots_like((1, SLOTS, VALUE)))
    assert np.isfinite(value) and all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)
    assert grads[0].dtype == grads[2].dtype == jnp.bfloat16


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_forgetting_a_retracted_slot_is_a_larger_step(impl):
  here = scene(Rule(), length=LENGTH, dtype="float32")
  larger = here.replace(step=here.step / here.forget, forget=jnp.ones_like(here.forget))
  got, want = (run(Rule(), x, impl, with_gradient=False).out for x in (here, larger))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="objective='oja' of op 'lattice' is not one of decoding, encoding, similarity"):
    Rule("oja")
  with pytest.raises(ValueError, match="state='unit' of op 'lattice' is not one of retracted, accumulated, returning"):
    Rule(state="unit")


def test_rematerialisation_that_keeps_the_boundaries_does_not_run_the_forward_pass_a_third_time():
  length, chunk = 128, 64
  rule, ids, valid = Rule(), jnp.zeros((1, length), jnp.int32), jnp.ones((1, length), bool)
  q, k, v, step, start = correlated(length)

  def memory(q, k, v, step, start):
    before = empty_state(1, *start.shape, rule=rule, form=Form())
    out, state = lattice(q, k, v, step, None, start, before, ids, valid, rule=rule, impl="xla")
    return jnp.tanh(out), state.slots.unit_BHMV

  def compiled(function):
    def loss(*inputs):
      out, slots = function(*inputs)
      return (out**2).sum() + (slots**3).sum()

    return quick_jit(jax.grad(loss, argnums=range(5))).lower(q, k, v, step, start).compile().as_text()

  keep = jax.checkpoint_policies.save_only_these_names(MEMORY_BOUNDARY)
  loops = {name: compiled(function).count(" while(") for name, function in (
    ("kept", memory), ("boundary", jax.checkpoint(memory, policy=keep)), ("full", jax.checkpoint(memory)))}
  assert loops["boundary"] == loops["kept"] < loops["full"], loops
  _, slots, value = start.shape
  every_state = re.compile(rf"f32\[(?:1,)*{length},(?:1,)*{slots},{value}\]")
  assert not every_state.search(compiled(memory)), "the states of all tokens stand in memory at once"
  assert re.search(rf"f32\[(?:1,)*{length // chunk},(?:1,)*{slots},{value}\]", compiled(memory))
