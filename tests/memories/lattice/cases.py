"""Inputs of the tests of Lattice, and one compiled call that returns outputs, state and all gradients."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.memories.lattice.op import Form, LatticeState, Rule, empty_state, lattice
from tests.contract.harness import quick_jit

ROWS, LENGTH, HEADS, SLOTS, VALUE = 4, 23, 2, 5, 7
# Document ids of each row after the one its state has read: it goes on; one reset; two; no tokens at all.
DOCUMENTS = ((0, 0, 0), (1, 2, 2), (9, 5, 6), (0, 0, 0))


@flax.struct.dataclass
class Scene:
  """One call of the op, and the projection of what comes out whose gradient is taken."""

  q: jax.Array
  k: jax.Array
  v: jax.Array
  step: jax.Array
  forget: jax.Array
  start: jax.Array
  state: LatticeState
  ids: jax.Array
  valid: jax.Array
  d_out: jax.Array
  d_slots: Any

  def cut(self, begin: int, end: int, state: LatticeState) -> Scene:
    """Tokens [begin, end) of every row, from `state`."""
    parts = {field.name: getattr(self, field.name)[:, begin:end] for field in dataclasses.fields(self)
             if field.name not in ("start", "state", "d_slots")}
    return self.replace(state=state, **parts)


@flax.struct.dataclass
class Run:
  """What a call returns, and the gradients of the scene's projection."""

  out: jax.Array
  state: LatticeState
  d_q: jax.Array | None = None
  d_k: jax.Array | None = None
  d_v: jax.Array | None = None
  d_step: jax.Array | None = None
  d_forget: jax.Array | None = None
  d_start: jax.Array | None = None
  d_slots: Any = None


def slots_like(shape: tuple[int, ...], dtype: str = "float32") -> jax.Array:
  slots = np.random.default_rng(8).normal(size=shape)
  return jnp.asarray(slots / np.linalg.norm(slots, axis=-1, keepdims=True), dtype)


def floats(state: LatticeState) -> Any:
  """The parts of a state that have a gradient."""
  return state.slots, None if state.open is None else state.open.anchor_BHMV


def with_floats(state: LatticeState, parts: Any) -> LatticeState:
  slots, anchor = parts
  return state.replace(slots=slots, open=None if state.open is None else state.open.replace(anchor_BHMV=anchor))


@functools.cache
def scene(rule: Rule, *, length: int, dtype: str, form: Form | None = None) -> Scene:
  """Keys and values of length about one; the last tokens of row 2 and all of row 3 are invalid.

  Rows of an approximate form come with open chunks of different lengths.
  """
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  form = form or Form()
  state = empty_state(ROWS, HEADS, SLOTS, VALUE, rule=rule, form=form, dtype=jnp.dtype(dtype))
  norms = jnp.abs(normal(ROWS, HEADS, SLOTS)) + 1.1 if rule.state == "accumulated" else None
  slots = state.slots.replace(unit_BHMV=slots_like((ROWS, HEADS, SLOTS, VALUE), dtype), norm_BHM=norms)
  documents = jnp.asarray([row[0] for row in DOCUMENTS], jnp.int32)
  state = state.replace(slots=slots, document_B=documents)
  if form.is_approximate:
    fill = jnp.arange(ROWS, dtype=jnp.int32) % form.chunk_len
    anchor = slots_like((ROWS, HEADS, SLOTS, VALUE), dtype)[::-1]
    anchor = jnp.where((fill > 0)[:, None, None, None], anchor, slots.unit_BHMV)
    state = state.replace(open=state.open.replace(anchor_BHMV=anchor, fill_B=fill))
  thirds = np.arange(length) * 3 // max(length, 3)
  if length == LENGTH:
    thirds = np.array([0] * 8 + [1] * 8 + [2] * 7)
  valid = np.arange(length) < np.array([[length], [length], [length - length // 5], [0]])
  return Scene(
    q=normal(ROWS, length, HEADS, SLOTS), k=normal(ROWS, length, HEADS, SLOTS) / SLOTS**0.5,
    v=normal(ROWS, length, HEADS, VALUE) / VALUE**0.5,
    step=jnp.asarray(rng.uniform(0, 1.2, (ROWS, length, HEADS)), dtype),
    forget=jnp.asarray(rng.uniform(0.7, 1, (ROWS, length, HEADS)), dtype), start=normal(HEADS, SLOTS, VALUE),
    state=state,
    ids=jnp.asarray(np.array(DOCUMENTS, np.int32)[:, thirds]), valid=jnp.asarray(valid),
    d_out=normal(ROWS, length, HEADS, VALUE) * valid[..., None, None],
    d_slots=jax.tree.map(lambda x: normal(*x.shape), floats(state)))


def run(rule: Rule, here: Scene, impl: str = "xla", form: Form | None = None, *, with_gradient: bool = True) -> Run:
  """One call; gradients of Σ out·d_out + Σ slots·d_slots."""
  return _compiled(rule, impl, form, with_gradient)(here)


@functools.cache
def _compiled(rule: Rule, impl: str, form: Form | None, with_gradient: bool) -> Any:
  return quick_jit(functools.partial(_run, rule, impl, form, with_gradient))


def _run(rule: Rule, impl: str, form: Form | None, with_gradient: bool, here: Scene) -> Run:
  def project(q, k, v, step, forget, start, slots):
    out, state = lattice(
      q, k, v, step, forget, start, with_floats(here.state, slots), here.ids, here.valid, rule=rule, form=form,
      impl=impl)
    out = jnp.where(here.valid[..., None, None], out, 0)
    products = jax.tree.map(lambda x, d: (x * d).sum(), floats(state), here.d_slots)
    return (out * here.d_out).sum() + sum(jax.tree.leaves(products)), (out, state)

  inputs = here.q, here.k, here.v, here.step, here.forget, here.start, floats(here.state)
  if not with_gradient:
    return Run(*project(*inputs)[1])
  grads, (out, state) = jax.grad(project, argnums=range(7), has_aux=True)(*inputs)
  return Run(out, state, *grads)


def assert_near(got: Run, want: Run, tolerance: float) -> None:
  """RMS of the difference over RMS of the value, array by array."""
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ratio = np.sqrt(((a - b) ** 2).mean()) / max(np.sqrt((b**2).mean()), 1e-6)
    assert ratio <= tolerance, f"{jax.tree_util.keystr(path)}: {ratio:.1e}"


def correlated(length: int) -> tuple[jax.Array, ...]:
  """One row and head of tokens as a convolution with SiLU makes them: keys and values resemble their neighbours."""
  rng = np.random.default_rng(2)

  def smooth(width):
    x = np.zeros((length, width))
    noise = rng.normal(size=(length, width))
    for t in range(length):
      x[t] = 0.8 * x[t - 1] + 0.6 * noise[t]
    x = x / (1 + np.exp(-x))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  q, k, v = (jnp.asarray(smooth(width)[None, :, None], jnp.float32) for width in (16, 16, 12))
  step = jnp.asarray(rng.uniform(0.5, 1, (1, length, 1)), jnp.float32)
  return q, k, v, step, slots_like((1, 16, 12))
