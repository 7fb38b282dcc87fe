"""How many rounds a chunk of a nonlinear recurrence needs, by how much of its Jacobian the rounds use.

Every method solves δ_t = A_t δ_{t−1} + r_t in a round, r_t being what the states are off, A_t the Jacobian of the
step or a part of it. Here that system is solved token by token, since only rounds are counted: so Newton's rounds are
counted also where nobody could hold its matrices. What a round would cost in parallel is in `Method.work`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.bench import lattice, recurrence, recurrence_ttt
from lattice_jax.markdown import markdown_table
from lattice_jax.memories.lattice.gates import gates
from lattice_jax.memories.lattice.op import Form, Rule
from lattice_jax.memories.lattice.op import lattice as lattice_op
from lattice_jax.memories.lattice.rule import incoming
from lattice_jax.memories.lattice.sphere import unit
from lattice_jax.memories.ttt.rule import with_one

LONGEST = 256  # chunk
WARM = 256  # tokens before the chunk
MOST = 64  # rounds that are tried
CLOSE = 1e-6  # relative error of what the chunk gives out, against float64; that of the scan in float32 is about 3e-7

SCAN = "scan"

# (state before, token, change of that state) → change of the state after
Push = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Method:
  """push: A_t δ; None where A is zero. work: tokens of a chunk → multiply-adds a token and round, if its system is
  solved in log C dependent steps.

  run: (state before, tokens, rounds) → what is read, of a method that solves no such system.
  """

  push: Push | None
  work: Callable[[int], float]
  run: Callable[[Any, Any, int], jax.Array] | None = None


@dataclass(frozen=True, eq=False)
class Problem:
  """A chunk of one row: its step, what is read of a state, methods by name.

  work: multiply-adds of the step. chunk: tokens → (state before the chunk, those tokens). longest: chunk to be counted.
  """

  step: Callable[[Any, Any], Any]
  read: Callable[[Any, Any], jax.Array]
  work: float
  chunk: Callable[[int], tuple[Any, Any]]
  methods: dict[str, Method]
  longest: int = LONGEST


def problems() -> dict[str, Problem]:
  """By name, at the sizes of `recurrence.SHAPES`."""
  found = {"gru64": _gru("gru64"), "block_gru64": _gru("block_gru64"), "ttt": _ttt()}
  return found | {f"lattice, {objective}": _lattice(objective) for objective in ("decoding", "encoding", "similarity")}


def count_rounds(problem: Problem, length: int) -> Iterator[dict[str, Any]]:
  """Of every method: rounds after which what is read is within CLOSE, the error then, and multiply-adds over a step's.

  error is None where as many rounds as tokens, or MOST, were not enough.
  """
  first, tokens = problem.chunk(length)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (first, tokens))
    exact = np.asarray(jax.jit(_scan, static_argnums=0)(problem, *wide))
  scanned = _error(jax.jit(_scan, static_argnums=0)(problem, first, tokens), exact)
  yield {"method": SCAN, "rounds": 0, "error": scanned, "work": 1.0}
  for name, method in problem.methods.items():
    errors = _errors(problem, method, first, tokens, exact)
    tried = zip(range(MOST + 1), errors, strict=False)
    rounds, error = next(((n, e) for n, e in tried if e <= CLOSE), (min(length, MOST), None))
    yield {"method": name, "rounds": rounds, "error": error, "work": method.work(length) / problem.work}


def format_rounds(records: Sequence[dict[str, Any]]) -> str:
  """A row for every problem and method: rounds by length of chunk, and the multiply-adds of the shortest chunk."""
  chunks = sorted({record["chunk"] for record in records})
  rows = [[
    "", "method", *(f"rounds, C = {chunk}" for chunk in chunks), f"error, C = {chunks[0]}", "a round ÷ a step",
    "all rounds ÷ the scan"]]
  for problem, method in dict.fromkeys((record["problem"], record["method"]) for record in records):
    of = {r["chunk"]: r for r in records if (r["problem"], r["method"]) == (problem, method)}
    one = of[chunks[0]]
    counted = [
      f"{'> ' * (of[chunk]['error'] is None)}{of[chunk]['rounds']}" if chunk in of else "–" for chunk in chunks]
    error = "" if one["error"] is None else f"{one['error']:.0e}"
    if method == SCAN:
      rows.append([problem, method, *["–"] * len(chunks), error, "1", "1"])
    else:
      rows.append([problem, method, *counted, error, f"{one['work']:,.2g}", f"{one['rounds'] * one['work']:,.2g}"])
  return markdown_table(rows, "ll".ljust(len(rows[0]), "r"))


def _errors(problem: Problem, method: Method, first: Any, tokens: Any, exact: np.ndarray) -> Iterator[float]:
  """After 0, 1, … rounds, from the step of every token on the state before the chunk."""
  if method.run:
    run = jax.jit(method.run, static_argnums=2)
    yield from (_error(run(first, tokens, rounds), exact) for rounds in range(len(exact) + 1))
    return
  read = jax.jit(jax.vmap(problem.read))
  states = jax.jit(jax.vmap(problem.step, in_axes=(None, 0)))(first, tokens)
  advance = jax.jit(lambda states: _round(problem, method, first, tokens, states))
  for _ in range(len(exact) + 1):
    yield _error(read(states, tokens), exact)
    states = advance(states)


def _round(problem: Problem, method: Method, first: Any, tokens: Any, states: Any) -> Any:
  before = jax.tree.map(lambda one, many: jnp.concatenate([one[None], many[:-1]]), first, states)
  stepped = jax.vmap(problem.step)(before, tokens)
  if method.push is None:
    return stepped

  def one_token(change, xs):
    before, token, residual = xs
    change = method.push(before, token, change) + residual
    return change, change

  residual = stepped - states
  moved = states + jax.lax.scan(one_token, jnp.zeros_like(first), (before, tokens, residual))[1]
  return jnp.where(jnp.isfinite(moved), moved, stepped)


def _scan(problem: Problem, first: Any, tokens: Any) -> jax.Array:
  def one_token(state, token):
    state = problem.step(state, token)
    return state, problem.read(state, token)

  return jax.lax.scan(one_token, first, tokens)[1]


def _error(got: jax.Array, exact: np.ndarray) -> float:
  error = float(np.linalg.norm(np.asarray(got, np.float64) - exact) / np.linalg.norm(exact))
  return error if np.isfinite(error) else float("inf")


def _newton(step: Callable[[Any, Any], Any]) -> Push:
  return lambda before, token, change: jax.jvp(lambda state: step(state, token), (before,), (change,))[1]


def _gru(head: str) -> Problem:
  shape = recurrence.SHAPES[head]
  update, reset, candidate, *weights, _ = recurrence.gru_inputs(shape, 1, WARM + LONGEST)
  run, width = recurrence.gru_step(shape), shape.width

  def step(state_HV, token):
    return run(tuple(weights), state_HV[None], tuple(x[None] for x in token))[0]

  def chunk(length):
    return _warm(step, jnp.zeros((shape.heads, width)), (update[0], reset[0], candidate[0]), length)

  units = shape.heads * width
  if shape.kind == "gru":
    # A tangent is two steps, a composition of affine maps three products.
    work = 6 * units
    methods = {
      "rounds": Method(None, lambda C: work),
      "newton, diagonal": Method(_newton(step), lambda C: 2 * work + 3 * units)}
    return Problem(step, lambda state, token: state, work, chunk, methods)

  def diagonal(before, token, change):
    return jnp.einsum("HVHV->HV", jax.jacfwd(lambda state: step(state, token))(before)) * change

  work = 3 * units * width
  methods = {
    "rounds": Method(None, lambda C: work),
    "newton, blocks": Method(_newton(step), lambda C: width * work + units * width**2),
    "quasi-newton, diagonal of the blocks": Method(diagonal, lambda C: width * work + 3 * units)}
  return Problem(step, lambda state, token: state, work, chunk, methods)


def _warm(step, first, tokens, length):
  """The state after WARM tokens, and the chunk after them."""
  state, _ = jax.jit(lambda: jax.lax.scan(
    lambda state, token: (step(state, token), None), first, jax.tree.map(lambda x: x[:WARM], tokens)))()
  return state, jax.tree.map(lambda x: x[WARM: WARM + length], tokens)


def _ttt() -> Problem:
  width = recurrence.SHAPES["ttt"].width
  q, k, v, rate, weight = recurrence_ttt.make_arrays(1, width, 1, WARM + LONGEST)

  def step(weight_HKV, token):
    return recurrence_ttt.step(weight_HKV, *token[1:])

  def read(weight_HKV, token):
    return recurrence_ttt.read(weight_HKV, token[0])

  def through_diagonal(before, token, change):
    """The step's tangent with all but the diagonal left out of ∂g/∂z."""
    _, k_HV, v_HV, rate_H = token
    k_HK = with_one(k_HV)
    slope_HV = jnp.einsum("HVHV->HV", jax.jacfwd(lambda z_HV: recurrence_ttt.gradient(z_HV, v_HV - k_HV))(
      jnp.einsum("HK,HKV->HV", k_HK, before)))
    seen_HV = slope_HV * jnp.einsum("HK,HKV->HV", k_HK, change)
    return change - (rate_H[:, None] * k_HK)[..., None] * seen_HV[:, None]

  rows = width + 1
  methods = {
    "rounds (dual form, A = 1)": Method(lambda before, token, change: change, lambda C: C * width / 2 + 8 * width),
    "newton, all of the weights": Method(_newton(step), lambda C: (rows * width) ** 3),
    "newton, dual form": Method(_newton(step), lambda C: C**2 * width**3 / 6),
    "quasi-newton, dual form, diagonal of ∂g/∂z": Method(through_diagonal, lambda C: C**2 * width / 6 + C * width)}
  return Problem(
    step, read, 2 * rows * width, lambda length: _warm(step, weight[0], (q[0], k[0], v[0], rate[0]), length), methods)


def _lattice(objective: str) -> Problem:
  shape, rule = lattice.SHAPES["m64"], Rule(objective)
  slots, width = shape.slots, shape.value_dim
  one_head = lattice.Shape(1, slots, width)
  q, k, v, rate, start = lattice.make_inputs(one_head, 1, WARM + LONGEST)
  tokens = q[0, :, 0], k[0, :, 0], v[0, :, 0], rate[0, :, 0]

  def moved(unit_MV, token, direction_of):
    """What a token makes of the slots before they are put back to length one. direction_of: slots that h is made of."""
    _, k_M, v_V, step = token
    h_V, _ = incoming(objective, direction_of, k_M, v_V)
    along_M = unit_MV @ h_V
    a_M, b_M = gates(rule, k_M, step, jnp.ones_like(step), along_M, None)
    return a_M[:, None] * unit_MV + b_M[:, None] * h_V, a_M

  def step(unit_MV, token):
    return unit(moved(unit_MV, token, unit_MV)[0])[0]

  def apart(before, token, change):
    """The tangent without what slots do to one another, by way of h."""
    def alone(unit_MV):
      return unit(moved(unit_MV, token, before)[0])[0]
    return jax.jvp(alone, (before,), (change,))[1]

  def kept(before, token, change):
    raw_MV, a_M = moved(before, token, before)
    return (a_M / unit(raw_MV)[1])[:, None] * change

  def fixed_point(first, here, rounds):
    out, _ = lattice_op(
      *(x[None, :, None] for x in here), None, first[None], rule=rule, impl="xla",
      form=Form("parallel", len(here[0]), rounds, tolerance=0.0))
    return out[0, :, 0]

  def chunk(length):
    return _warm(step, unit(start[0])[0], tokens, length)

  work = 5 * slots * width
  methods = {
    "rounds of gates (form \"parallel\")": Method(
      None, lambda C: 2 * slots * width + 1.5 * C * (slots + width), fixed_point),
    "newton, all slots": Method(_newton(step), lambda C: (slots * width) ** 3),
    "quasi-newton, slots apart": Method(apart, lambda C: slots * width**3),
    "quasi-newton, a factor a slot": Method(kept, lambda C: work + 3 * slots * width)}
  return Problem(
    step, lambda unit_MV, token: token[0] @ unit_MV, work, chunk, methods,
    longest=64)  # beyond, C²M products of gates fill the memory
