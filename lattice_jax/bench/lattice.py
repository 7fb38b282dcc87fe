"""Lattice in its exact and approximate forms, against plain ways to run the same recurrence and against softmax.

Outputs, last slots and gradients of every form are compared with those of the token scan in float64.

XLA runs the steps of a loop one after another, so that on a CPU the scan keeps only one core busy. On several devices
(JAX_NUM_CPU_DEVICES=2 makes two of a CPU) the scan and blockwise attention are also timed with heads spread over them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lattice_jax.bench.gradients import in_float64, with_gradients
from lattice_jax.bench.harness import BenchCase
from lattice_jax.bench.vq import BLOCKWISE, blockwise
from lattice_jax.memories.lattice.op import (
  Form,
  LatticeState,
  Rounds,
  Rule,
  empty_state,
  lattice,
  lattice_with_rounds,
)

DEFINITION, CHECKPOINTED, RETURNING = "definition", "definition, checkpointed", "scan, slots that return"
BASELINES = (DEFINITION, CHECKPOINTED, BLOCKWISE)
MODES = ("fwd", "fwd+bwd")
_CHECKPOINT_EVERY = 64  # tokens
_RETURNING_RULE, _FORGET = Rule(state="returning"), 0.98
_CORRELATION = 0.8  # of neighbouring tokens before SiLU, as after a convolution

Inputs = tuple[jax.Array, ...]  # q, k, v, step, start


@dataclass(frozen=True)
class Shape:
  """One layer; its slots are `value_dim` wide, and its largest step is `max_step`."""

  heads: int
  slots: int
  value_dim: int
  max_step: float = 1.0


SHAPES = {"m64": Shape(heads=4, slots=64, value_dim=64), "m16": Shape(heads=4, slots=16, value_dim=64)}
FORMS = {
  "scan": Form("scan"),
  "parallel 16, till exact": Form("parallel", 16),
  **{f"parallel 16, {rounds} rounds": Form("parallel", 16, rounds, 0.0) for rounds in (0, 2, 4, 8)},
  **{f"live {length}": Form("live", length) for length in (4, 16, 64)},
  **{f"frozen {length}": Form("frozen", length) for length in (4, 16, 64)},
  **{f"additive {length}": Form("additive", length) for length in (4, 16, 64)},
}


def cases(head: str, length: int, mode: str, batch: int) -> Iterator[BenchCase]:
  """All cases of a group; "fwd+bwd" also computes gradients of queries, keys, values, steps and start."""
  shape = SHAPES[head]
  group = {"op": "lattice", "head": head, "T": length, "B": batch, "mode": mode, "dtype": "float32"}
  arguments = make_inputs(shape, batch, length)
  run = with_gradients if mode == "fwd+bwd" else lambda attend: attend
  exact = functools.cache(functools.partial(in_float64, run(_run(Form())), arguments))
  forms = {name: _run(form) for name, form in FORMS.items()}
  forms |= {DEFINITION: _run(Form(), "reference"), CHECKPOINTED: _run_checkpointed}
  for name, attend in forms.items():
    yield BenchCase(name, group, run(attend), arguments, batch * length, exact)
  returning = run(_run(Form(), rule=_RETURNING_RULE))
  yield BenchCase(RETURNING, group, returning, arguments, batch * length, functools.cache(
    functools.partial(in_float64, returning, arguments)))
  yield BenchCase(BLOCKWISE, group, run(_blockwise), arguments, batch * length)
  devices = jax.device_count()
  if devices > 1 and shape.heads % devices == 0:
    for name, attend, is_like in (("scan", forms["scan"], exact), (BLOCKWISE, _blockwise, None)):
      spread, placed = _spread_heads(attend, arguments)
      yield BenchCase(f"{name}, heads over {devices} devices", group, run(spread), placed, batch * length, is_like)


def make_inputs(shape: Shape, batch: int, length: int) -> Inputs:
  """Like the inputs of a trained layer: correlated neighbours, SiLU, norm one; steps in [max_step / 2, max_step]."""
  rng = np.random.default_rng(0)

  def smooth(width):
    x_T = rng.normal(size=(length, batch, shape.heads, width))
    for t in range(1, length):
      x_T[t] = _CORRELATION * x_T[t - 1] + (1 - _CORRELATION**2) ** 0.5 * x_T[t]
    x_T /= 1 + np.exp(-x_T)
    return jnp.asarray(np.moveaxis(x_T / np.linalg.norm(x_T, axis=-1, keepdims=True), 0, 1), jnp.float32)

  q, k, v = (smooth(width) for width in (shape.slots, shape.slots, shape.value_dim))
  step = jnp.asarray(shape.max_step * rng.uniform(0.5, 1, (batch, length, shape.heads)), jnp.float32)
  return q, k, v, step, jnp.asarray(rng.normal(size=(shape.heads, shape.slots, shape.value_dim)), jnp.float32)


def _run(form: Form, impl: str = "xla", rule: Rule | None = None) -> Callable[..., Any]:
  """Inputs → outputs and last slots."""

  def attend(q, k, v, step, start):
    ids, valid = jnp.zeros(step.shape[:2], jnp.int32), jnp.ones(step.shape[:2], bool)
    forget = jnp.full(step.shape, _FORGET, step.dtype) if rule else None
    out, state = lattice(
      q, k, v, step, forget, start, _empty(start, step, form), ids, valid, rule=rule or Rule(), form=form, impl=impl)
    return out, state.slots.unit_BHMV

  return attend


def rounds_of(form: Form) -> Callable[..., Rounds]:
  """Inputs → how form "parallel" solved each chunk."""

  def run(q, k, v, step, start):
    return lattice_with_rounds(q, k, v, step, None, start, rule=Rule(), form=form, impl="xla")[2]

  return run


def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, *_: jax.Array) -> tuple[jax.Array, ...]:
  return (blockwise(q, k, v),)


def _spread_heads(attend: Callable[..., Any], arguments: Inputs) -> tuple[Callable[..., Any], Inputs]:
  """(`attend` with equally many heads on every device, its arguments placed accordingly)."""
  mesh = jax.make_mesh((jax.device_count(),), ("heads",))
  of_token, of_slots = P(None, None, "heads"), P(None, "heads")
  in_specs = (of_token,) * 4 + (P("heads"),)
  outputs = jax.eval_shape(attend, *arguments)
  out_specs = tuple(of_token if out.shape == arguments[2].shape else of_slots for out in outputs)
  spread = jax.shard_map(attend, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  placed = tuple(jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arguments, in_specs, strict=True))
  return spread, placed


def _run_checkpointed(q, k, v, step, start):
  """The definition with a state saved every few tokens, from which autodiff recomputes the rest."""
  length = math.gcd(_CHECKPOINT_EVERY, step.shape[1])

  def chunked(x_BT):
    return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], -1, length, *x_BT.shape[2:]), 1, 0)

  @jax.checkpoint
  def one_chunk(state, tokens):
    ids, valid = jnp.zeros(tokens[3].shape[:2], jnp.int32), jnp.ones(tokens[3].shape[:2], bool)
    out, state = lattice(*tokens, None, start, state, ids, valid, rule=Rule(), impl="reference")
    return state, out

  state, out_NBC = jax.lax.scan(one_chunk, _empty(start, step, Form()), tuple(map(chunked, (q, k, v, step))))
  return jnp.moveaxis(out_NBC, 0, 1).reshape(v.shape), state.slots.unit_BHMV


def _empty(start: jax.Array, step: jax.Array, form: Form) -> LatticeState:
  return empty_state(step.shape[0], *start.shape, rule=Rule(), form=form, dtype=start.dtype)
