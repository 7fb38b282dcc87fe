"""Recurrences solved a chunk at a time: the scan's states and gradients, whatever the rounds do."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.dispatch import BACKEND
from lattice_jax.memories.gru.op import GRUWeights, step
from lattice_jax.ops.parallel_recurrence import RecurrenceForm, choose_form, solve
from lattice_jax.ops.parallel_recurrence import form as form_module
from lattice_jax.ops.parallel_recurrence.linear import solve_backward, solve_forward
from lattice_jax.ops.parallel_recurrence.rounds import iterate
from tests.contract.harness import quick_jit
from tests.thorough import further

ROWS, LENGTH, HEADS, WIDTH, CHUNK = 3, 26, 2, 3, 8  # a last chunk that is not full
RESET, LAST = 11, 19  # of row 1, inside a chunk; of row 2, whose other tokens are none


def gru_step(weights, h_BHV, x):
  return step(GRUWeights(*weights), h_BHV, x)


def head_step(weights, h_BHV, x):
  """A GRU whose heads are dense: what "block" is for."""
  z, r, c = (jnp.einsum("BHV,HVW->BHW", h_BHV, w_HVW) for w_HVW in weights)
  z, r = jax.nn.sigmoid(z + x[0]), jax.nn.sigmoid(r + x[1])
  return (1 - z) * h_BHV + z * jnp.tanh(r * c + x[2])


def row_step(weights, h_BHV, x):
  """As `head_step`, and the other head's candidate is half of what a head moves to: "dense"."""
  other_BHV = head_step(weights, h_BHV, x)
  return 0.5 * (other_BHV + jnp.tanh(other_BHV[:, ::-1] + h_BHV))


STEPS = {"diagonal": (gru_step, (HEADS, WIDTH)), "block": (head_step, (HEADS, WIDTH, WIDTH)),
         "dense": (row_step, (HEADS, WIDTH, WIDTH))}


def scene(jacobian, dtype="float64", length=LENGTH):
  """(step, parameters, first state, inputs, start, where documents begin, which tokens are some)."""
  rng = np.random.default_rng(0)

  def normal(*shape, scale=1.0):
    return jnp.asarray(scale * rng.normal(size=shape), dtype)

  step_fn, shape = STEPS[jacobian]
  weights = tuple(normal(*shape, scale=0.8) for _ in range(3))
  inputs = tuple(normal(ROWS, length, HEADS, WIDTH) for _ in range(3))
  is_start = np.zeros((ROWS, length), bool)
  is_start[1, RESET] = True
  is_valid = np.arange(length) < np.array([[length], [length], [LAST]])
  return (step_fn, weights, normal(ROWS, HEADS, WIDTH), inputs, normal(HEADS, WIDTH), jnp.asarray(is_start),
          jnp.asarray(is_valid))


def run(form, here):
  """(states, last states), gradients of parameters, first state, inputs and start, and how it was solved."""
  step_fn, weights, first, inputs, start, is_start, is_valid = here

  @quick_jit
  def both(weights, first, inputs, start):
    def project(weights, first, inputs, start):
      solved = solve(
        step_fn, weights, first, inputs, start=start, is_start_BT=is_start, is_valid_BT=is_valid, form=form)
      weight_BT = jnp.cos(jnp.arange(solved.state_BT.size).reshape(solved.state_BT.shape))
      return (solved.state_BT * weight_BT).sum() + (solved.state_B**2).sum(), solved
    return jax.grad(project, argnums=(0, 1, 2, 3), has_aux=True)(weights, first, inputs, start)

  gradients, solved = both(weights, first, inputs, start)
  return solved[:2], gradients, jax.tree.map(np.asarray, solved)


@functools.cache
def by_definition(jacobian):
  """A plain loop under autodiff."""
  step_fn, weights, first, inputs, start, is_start, is_valid = scene(jacobian)

  def project(weights, first, inputs, start):
    def one_token(h_BHV, xs):
      token, is_start_B, is_valid_B = xs
      before = jnp.where(is_start_B[:, None, None], start, h_BHV)
      h_BHV = jnp.where(is_valid_B[:, None, None], step_fn(weights, before, token), h_BHV)
      return h_BHV, h_BHV
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (inputs, is_start, is_valid))
    last, states = jax.lax.scan(one_token, first, xs)
    states = jnp.moveaxis(states, 0, 1)
    weight_BT = jnp.cos(jnp.arange(states.size).reshape(states.shape))
    return (states * weight_BT).sum() + (last**2).sum(), (states, last)

  gradients, states = quick_jit(jax.grad(project, argnums=(0, 1, 2, 3), has_aux=True))(weights, first, inputs, start)
  return states, gradients


def assert_all_near(got, want, atol):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), got, want)


def exact(name, jacobian="diagonal", **fields):
  return RecurrenceForm(name, jacobian, **{"chunk_len": CHUNK, "tolerance": 1e-13} | fields)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_a_linear_recurrence_is_solved_in_both_directions(length):
  """y_t = A_t y_{t−1} + b_t and λ_t = A_{t+1}ᵀ λ_{t+1} + b_t, by a loop in numpy."""
  rng = np.random.default_rng(length)
  matrix, b = rng.normal(size=(length, 2, 3, 3)), rng.normal(size=(length, 2, 3))
  diagonal = matrix[..., 0]

  def loop(A, is_reverse):
    y, found = np.zeros((2, 3)), np.empty_like(b)
    for t in reversed(range(length)) if is_reverse else range(length):
      past = 0 if t == length - 1 else np.einsum("bji,bj->bi", A[t + 1], y)
      y = b[t] + (past if is_reverse else np.einsum("bij,bj->bi", A[t], y))
      found[t] = y
    return found

  with jax.enable_x64(True):
    for A, dense in ((matrix, matrix), (diagonal, diagonal[..., None] * np.eye(3))):
      got = solve_forward(jnp.asarray(A), jnp.asarray(b))
      np.testing.assert_allclose(got, loop(dense, False), rtol=1e-12, atol=1e-12)
      for is_by_token in (False, True):
        got = solve_backward(jnp.asarray(A), jnp.asarray(b), is_by_token=is_by_token)
        np.testing.assert_allclose(got, loop(dense, True), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "jacobian"), [
  ("newton", "diagonal"), ("newton", "block"), ("newton", "dense"), ("scan", "block"), *further(
    ("rounds", "diagonal"), ("rounds", "dense"), ("scan", "diagonal"), ("scan", "dense"))])
def test_states_and_all_gradients_are_those_of_a_plain_loop(name, jacobian):
  """Documents, padding, a start that is learned, and chunks that hand states on."""
  with jax.enable_x64(True):
    states, gradients, solved = run(exact(name, jacobian), scene(jacobian))
    assert_all_near((states, gradients), by_definition(jacobian), 1e-12)
  assert not solved.is_scanned_N.any()
  assert (solved.rounds_N > 0).all() == (name != "scan")
  assert (solved.rounds_N < CHUNK).all() == (name != "rounds")
  assert (solved.residual_N < 1e-14).all()


def test_a_jacobian_with_too_little_costs_rounds_and_never_exactness():
  """The step is dense and the form says diagonal: rounds still end, and the adjoint finds out."""
  with jax.enable_x64(True):
    states, gradients, solved = run(exact("newton", "diagonal", rounds=CHUNK), scene("dense"))
    assert_all_near((states, gradients), by_definition("dense"), 1e-12)
  assert solved.rounds_N.max() > CHUNK // 2


@pytest.mark.parametrize("name", ["newton", *further("rounds")])
def test_chunks_that_rounds_do_not_solve_are_taken_token_by_token(name):
  with jax.enable_x64(True):
    states, gradients, solved = run(exact(name, rounds=1), scene("diagonal"))
    assert_all_near((states, gradients), by_definition("diagonal"), 1e-12)
  np.testing.assert_array_equal(solved.rounds_N, 1)
  assert solved.is_scanned_N.all()
  assert (solved.residual_N[:-1] > 1e-6).all()  # the last chunk has two tokens, of which one round solves both


def test_rounds_that_overflow_are_repaired_one_token_a_round():
  """The guess starts from the state before a document, whose powers overflow; what follows the start is small."""
  length = 16
  x = jnp.asarray(np.random.default_rng(1).uniform(-0.5, 0.5, (1, length, 1)), jnp.float32)
  is_start = jnp.zeros((1, length), bool).at[0, 1].set(True)

  def found(name):
    return solve(lambda p, h, x: x + h**9, (), jnp.full((1, 1), 20.0), x, is_start_BT=is_start,
                 form=RecurrenceForm(name, chunk_len=length))

  newton = found("newton")
  # The guess has the first two tokens, every round one more, and the last sees that nothing moves.
  assert newton.rounds_N[0] == length - 1
  assert not newton.is_scanned_N.any()
  np.testing.assert_allclose(newton.state_BT, found("scan").state_BT, rtol=1e-6)


def test_a_round_is_newtons_on_all_tokens_together():
  """Against the whole system J δ = −residual, written out and solved by numpy in float64 (arXiv 2510.21450)."""
  rng = np.random.default_rng(2)
  a_z, a_r, a_c, first = rng.normal(size=4)
  x_z, x_r, x_c = rng.normal(size=(3, 6))

  def sigmoid(y):
    return 1 / (1 + np.exp(-y))

  def stepped(h, t):
    z, r = sigmoid(a_z * h + x_z[t]), sigmoid(a_r * h + x_r[t])
    c = np.tanh(a_c * r * h + x_c[t])
    slope = 1 - z + (c - h) * z * (1 - z) * a_z + z * (1 - c * c) * a_c * (r + h * r * (1 - r) * a_r)
    return z * c + (1 - z) * h, slope

  h = np.array([stepped(first, t)[0] for t in range(6)])
  for _ in range(2):
    before = np.concatenate([[first], h[:-1]])
    residual, matrix = np.empty(6), np.eye(6)
    for t in range(6):
      value, slope = stepped(before[t], t)
      residual[t] = h[t] - value
      if t:
        matrix[t, t - 1] = -slope
    h = h + np.linalg.solve(matrix, -residual)

  with jax.enable_x64(True):
    weights = tuple(jnp.full((1, 1), a) for a in (a_z, a_r, a_c))
    tokens = tuple(jnp.asarray(x).reshape(6, 1, 1, 1) for x in (x_z, x_r, x_c))

    def step_all(before):
      return jax.vmap(lambda h, x: gru_step(weights, h, x))(before, tokens)

    start = jnp.full((1, 1, 1), first)
    for jacobian in ("diagonal", "block", "dense"):
      got, rounds, _ = iterate(
        RecurrenceForm("newton", jacobian, rounds=2, tolerance=1e-300), step_all, start,
        step_all(jnp.broadcast_to(start, (6, 1, 1, 1))))
      assert rounds == 2
      np.testing.assert_allclose(got[:, 0, 0, 0], h, rtol=0, atol=1e-13)


def flat(found):
  """States and all gradients, each as one vector of float64."""
  return [np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]) for tree in found[:2]]


def test_newton_in_fp32_is_as_near_to_float64_as_the_scan():
  length = 1024
  with jax.enable_x64(True):
    true = flat(run(exact("scan", chunk_len=256), scene("diagonal", length=length)))

  def error(name):
    got = flat(run(RecurrenceForm(name, chunk_len=256), scene("diagonal", "float32", length)))
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(got, true, strict=True)])

  newton, scan = error("newton"), error("scan")
  assert newton[0] <= scan[0], (newton, scan)
  assert newton[1] <= 1.5 * scan[1], (newton, scan)


def test_one_document_without_padding_needs_no_flags():
  """Also where tokens are filled up to a chunk, and the last state is the last token's."""
  with jax.enable_x64(True):
    step_fn, weights, first, inputs, start, *_ = scene("diagonal")
    nowhere, everywhere = jnp.zeros((ROWS, LENGTH), bool), jnp.ones((ROWS, LENGTH), bool)
    got, d_got, _ = run(exact("newton"), (step_fn, weights, first, inputs, start, None, None))
    want, d_want, _ = run(exact("newton"), (step_fn, weights, first, inputs, start, nowhere, everywhere))
    assert_all_near((got, d_got), (want, d_want), 1e-13)
    np.testing.assert_array_equal(got[0][:, -1], got[1])


def test_a_token_alone_is_a_step():
  step_fn, weights, first, inputs, *_ = scene("diagonal", "float32")
  one = jax.tree.map(lambda x: x[:, :1], inputs)
  solved = solve(step_fn, weights, first, one, form=RecurrenceForm("newton"))
  np.testing.assert_array_equal(solved.rounds_N, 0)
  np.testing.assert_allclose(
    solved.state_BT[:, 0], step_fn(weights, first, jax.tree.map(lambda x: x[:, 0], one)), rtol=1e-6)


@pytest.mark.parametrize(("backend", "measured", "length", "chosen", "why"), [
  ("cpu", form_module.QUICKER_FROM, 131_072, "scan", "the quicker one on cpu"),
  ("cpu", {"cpu": 64}, 64, "newton", "the quicker one on cpu"),
  ("cpu", {"cpu": 64}, 63, "scan", "the quicker one on cpu"),
  ("tpu", {"cpu": 64}, 64, "scan", "nothing was measured on tpu; name a form")])
def test_auto_is_what_was_measured_and_says_so(monkeypatch, caplog, backend, measured, length, chosen, why):
  monkeypatch.setenv(BACKEND, backend)
  monkeypatch.setattr(form_module, "QUICKER_FROM", measured)
  form_module._log_choice.cache_clear()
  with caplog.at_level("INFO", logger="lattice_jax"):
    assert choose_form(RecurrenceForm(), length) == chosen
  assert [record.getMessage() for record in caplog.records if f"form {chosen} ({why}" in record.getMessage()]
  assert choose_form(RecurrenceForm("newton"), length) == "newton"
  assert choose_form(RecurrenceForm("newton"), 1) == "scan"


@pytest.mark.parametrize(("fields", "message"), [
  ({"name": "parallel"}, "not one of auto, scan, newton, rounds"), ({"jacobian": "full"}, "diagonal, block, dense"),
  ({"rounds": 0}, "form.name='scan'"), ({"chunk_len": 0}, "at least 1"), ({"tolerance": 0.0}, "above 0")])
def test_a_form_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    RecurrenceForm(**fields)


def test_a_step_that_changes_the_state_is_refused():
  _, _, first, inputs, *_ = scene("diagonal", "float32")
  with pytest.raises(ValueError, match="must give back what it takes"):
    solve(lambda p, h, x: h[:, 0], (), first, inputs)
  with pytest.raises(ValueError, match="inputs of int32, and takes floats"):
    solve(lambda p, h, x: h, (), first, inputs[0].astype(jnp.int32))
  with pytest.raises(ValueError, match="at least one token"):
    solve(lambda p, h, x: h, (), first, jax.tree.map(lambda x: x[:, :0], inputs))
