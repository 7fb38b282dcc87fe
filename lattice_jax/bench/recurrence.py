"""Nonlinear recurrences token by token and a chunk at a time, by fixed-point rounds and by Newton's.

GRUs go through `ops/parallel_recurrence`, Lattice and TTT-Linear through the rounds that suit their matrices. Outputs,
last states and gradients are compared with those of the scan in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.bench import lattice, recurrence_ttt
from lattice_jax.bench.gradients import in_float64, with_gradients
from lattice_jax.bench.harness import BenchCase
from lattice_jax.bench.recurrence_table import write_summary
from lattice_jax.memories.gru.op import GRUWeights, step
from lattice_jax.ops.parallel_recurrence import RecurrenceForm, solve

__all__ = ["BASELINES", "MODES", "SHAPES", "cases", "write_summary"]

SCAN, DEFINITION = "scan", "definition"
BASELINES = (SCAN,)
MODES = ("fwd", "fwd+bwd")
_SLOWEST = -4.0  # logit of the slowest update gate: a unit that lives for some fifty tokens

Arrays = tuple[jax.Array, ...]  # three inputs [B, T, H, V], three weights, the first state


@dataclass(frozen=True)
class Shape:
  """One layer. kind: "gru", units that see themselves alone; "block_gru", heads that are dense; "lattice"; "ttt"."""

  kind: str
  heads: int
  width: int


SHAPES = {
  "gru8": Shape("gru", heads=1, width=8),
  "gru64": Shape("gru", heads=4, width=16),
  "gru512": Shape("gru", heads=8, width=64),
  "block_gru64": Shape("block_gru", heads=8, width=8),
  "lattice": Shape("lattice", heads=4, width=64),
  "ttt": Shape("ttt", heads=4, width=64),
}
CHUNKS = (32, 256)


def cases(head: str, length: int, mode: str, batch: int) -> Iterator[BenchCase]:
  """All cases of a group; "fwd+bwd" also computes gradients of all that goes in."""
  shape = SHAPES[head]
  group = {"op": "recurrence", "head": head, "T": length, "B": batch, "mode": mode, "dtype": "float32"}
  if shape.kind == "lattice":
    yield from _lattice_cases(group, length, mode, batch)
  elif shape.kind == "ttt":
    yield from recurrence_ttt.cases(group, shape.heads, shape.width, length, mode, batch)
  else:
    yield from _gru_cases(shape, group, length, mode, batch)


def _gru_cases(shape: Shape, group: dict[str, Any], length: int, mode: str, batch: int) -> Iterator[BenchCase]:
  arguments = gru_inputs(shape, batch, length)
  run = with_gradients if mode == "fwd+bwd" else lambda attend: attend
  exact = functools.cache(functools.partial(in_float64, run(_by_definition(shape)), arguments))
  yield BenchCase(DEFINITION, group, run(_by_definition(shape)), arguments, batch * length, exact)
  forms = {SCAN: RecurrenceForm("scan")}
  jacobian = "diagonal" if shape.kind == "gru" else "block"
  forms |= {f"newton {chunk}": RecurrenceForm("newton", jacobian, chunk) for chunk in CHUNKS}
  # Information goes on by one token in a round, and what is left of the guess decays as the units do.
  forms["rounds 32"] = RecurrenceForm("rounds", jacobian, 32, rounds=32)
  for name, form in forms.items():
    form = replace(form, jacobian=jacobian)
    count = None if name == SCAN else functools.partial(_count, shape, form, arguments)
    yield BenchCase(name, group, run(_solved(shape, form)), arguments, batch * length, exact, count)


def gru_inputs(shape: Shape, batch: int, length: int) -> Arrays:
  """Inputs of unit variance and biases under which units live for two to fifty tokens, as at a layer's start."""
  rng = np.random.default_rng(0)
  update, reset, candidate = rng.normal(size=(3, batch, length, shape.heads, shape.width))
  update += rng.uniform(_SLOWEST, 0, (shape.heads, shape.width))
  # Weights of units on themselves; of a dense head, so many a unit that their sum is as large.
  size = (shape.heads, shape.width) if shape.kind == "gru" else (shape.heads, shape.width, shape.width)
  weights = 0.5 * rng.normal(size=(3, *size)) / (1 if shape.kind == "gru" else shape.width**0.5)
  first = np.zeros((batch, shape.heads, shape.width))
  return tuple(jnp.asarray(x, jnp.float32) for x in (update, reset, candidate, *weights, first))


def gru_step(shape: Shape) -> Callable[..., jax.Array]:
  """(weights, state, inputs) → state, of a GRU whose units, or whose heads, see themselves alone."""
  return _diagonal_step if shape.kind == "gru" else _block_step


def _diagonal_step(weights: Arrays, state_BHV: jax.Array, inputs: Arrays) -> jax.Array:
  return step(GRUWeights(*weights), state_BHV, inputs)


def _block_step(weights: Arrays, state_BHV: jax.Array, inputs: Arrays) -> jax.Array:
  z_BHV, r_BHV = (
    jax.nn.sigmoid(jnp.einsum("BHV,HVW->BHW", state_BHV, weight, precision="highest") + x)
    for weight, x in zip(weights[:2], inputs[:2], strict=True))
  own_BHV = jnp.einsum("BHV,HVW->BHW", r_BHV * state_BHV, weights[2], precision="highest")
  return state_BHV + z_BHV * (jnp.tanh(own_BHV + inputs[2]) - state_BHV)


def _solved(shape: Shape, form: RecurrenceForm) -> Callable[..., Arrays]:
  def run(*arrays):
    return solve(gru_step(shape), arrays[3:6], arrays[6], arrays[:3], form=form)[:2]

  return run


def _by_definition(shape: Shape) -> Callable[..., Arrays]:
  """A loop over tokens under autodiff."""

  def run(*arrays):
    def one_token(state_BHV, token):
      state_BHV = gru_step(shape)(arrays[3:6], state_BHV, token)
      return state_BHV, state_BHV

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in arrays[:3])
    last_BHV, state_TBHV = jax.lax.scan(one_token, arrays[6], tokens)
    return jnp.moveaxis(state_TBHV, 0, 1), last_BHV

  return run


def _count(shape: Shape, form: RecurrenceForm, arrays: Arrays) -> dict[str, float]:
  solved = jax.jit(lambda *arrays: solve(
    gru_step(shape), arrays[3:6], arrays[6], arrays[:3], form=form)[2:])(*arrays)
  rounds_N, residual_N, is_scanned_N = map(np.asarray, solved)
  return {
    "solver_rounds": float(rounds_N.mean()), "residual": float(residual_N.max()),
    "scanned": float(is_scanned_N.mean())}


def _lattice_cases(group: dict[str, Any], length: int, mode: str, batch: int) -> Iterator[BenchCase]:
  names = {"scan": SCAN, "definition": DEFINITION, "parallel 16, till exact": "rounds 16"}
  for case in lattice.cases("m64", length, mode, batch):
    if case.name not in names:
      continue
    count = functools.partial(_count_lattice, case.arguments) if case.name not in (SCAN, DEFINITION) else None
    yield replace(case, name=names[case.name], group=group, count=count)


def _count_lattice(arrays: Arrays) -> dict[str, float]:
  rounds = jax.jit(lattice.rounds_of(lattice.FORMS["parallel 16, till exact"]))(*arrays)
  return {"solver_rounds": float(rounds.number.mean()), "residual": float(rounds.change.max()), "scanned": 0.0}
