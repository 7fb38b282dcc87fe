"""The recurrences that Lattice is compared with, as rows of one table, and one compiled call of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.memories.delta import op as delta
from lattice_jax.memories.gated_linear import op as gated_linear
from lattice_jax.memories.gated_slots import op as gated_slots
from lattice_jax.memories.gru import op as gru
from lattice_jax.memories.ttt import op as ttt
from lattice_jax.ops.parallel_recurrence import RecurrenceForm
from tests.contract.harness import float_leaves, quick_jit, replace_floats

ROWS, LENGTH, HEADS, KEY, VALUE, SLOTS, CHUNK = 4, 23, 2, 3, 5, 4, 6
# Document ids of each row after the one its state has read: it goes on; one reset; two; no tokens at all.
DOCUMENTS = np.repeat(np.array(((0, 0, 0), (1, 2, 2), (9, 5, 6), (0, 0, 0)), np.int32), (8, 8, 7), axis=1)
RESET = 8  # of row 1, its only one


@dataclass(frozen=True, eq=False)
class Case:
  """shapes: of a token's inputs, head by head. call: (tokens, learned, state, ids, valid, impl=) → (out, state)."""

  name: str
  shapes: dict[str, tuple[int, ...]]
  value_dim: int
  empty: Callable[..., Any]
  call: Callable[..., tuple[jax.Array, Any]]
  learned: Callable[[Callable[..., jax.Array]], Any] = lambda normal: ()


def _matrix(name: str, op: Callable, *, has_start: bool = False, **more: tuple[int, ...]) -> Case:
  """A case whose state is a matrix a head. more: inputs beside q, k and v, a gate of width K or 1 among them."""

  def call(tokens, learned, state, ids, valid, impl):
    start = learned if has_start else None
    decay = {"decay": tokens["decay"] if "decay" in more else None}
    return op(**tokens | decay, state=state, ids=ids, valid=valid, chunk_len=CHUNK, impl=impl, start=start)

  def learned(normal):
    return normal(HEADS, KEY, VALUE) if has_start else ()

  shapes = {"q": (KEY,), "k": (KEY,), "v": (VALUE,), **more}
  empty = functools.partial(gated_linear.empty_state, ROWS, HEADS, KEY, VALUE)
  return Case(name, shapes, VALUE, empty, call, learned)


def _call_slots(tokens, learned, state, ids, valid, impl):
  del learned
  return gated_slots.gated_slots(**tokens, state=state, ids=ids, valid=valid, chunk_len=CHUNK, impl=impl)


def _call_ttt(tokens, learned, state, ids, valid, impl):
  return ttt.ttt(**tokens, learner=learned, state=state, ids=ids, valid=valid, impl=impl)


def _call_gru(tokens, learned, state, ids, valid, impl):
  # Rounds go on until rounding, which is another in float64.
  form = RecurrenceForm("newton", chunk_len=CHUNK, tolerance=8 * float(jnp.finfo(state.hidden_BHV.dtype).eps))
  return gru.gru(**tokens, weights=learned, state=state, ids=ids, valid=valid, form=form, impl=impl)


def _units(normal):
  return gru.GRUWeights(*(normal(HEADS, VALUE) for _ in range(3)))


def _learner(normal):
  return ttt.Learner(
    normal(HEADS, VALUE, VALUE), normal(HEADS, VALUE), 1 + 0.2 * normal(HEADS, VALUE), 0.2 * normal(HEADS, VALUE),
    jnp.abs(1 / jnp.arange(1, CHUNK + 1) + 0.05 * normal(CHUNK)))


CASES = (
  _matrix("linear", gated_linear.gated_linear),
  _matrix("scalar_decay", gated_linear.gated_linear, decay=(1,)),
  _matrix("gla", gated_linear.gated_linear, decay=(KEY,)),
  _matrix("deltanet", delta.delta, step=()),
  _matrix("gated_deltanet", delta.delta, step=(), decay=(1,)),
  _matrix("kimi_delta", delta.kimi_delta, step=(), decay=(KEY,)),
  _matrix("deltanet-start", delta.delta, has_start=True, step=()),
  _matrix("kimi_delta-start", delta.kimi_delta, has_start=True, step=(), decay=(KEY,)),
  _matrix("scalar_decay-start", gated_linear.gated_linear, has_start=True, decay=(1,)),
  Case(
    "gated_slots", {"q": (KEY,), "k": (KEY,), "v": (VALUE,), "share": (SLOTS,), "decay": (SLOTS,)}, VALUE,
    functools.partial(gated_slots.empty_state, ROWS, HEADS, SLOTS, KEY, VALUE), _call_slots),
  Case(
    "ttt_linear", {"q": (VALUE,), "k": (VALUE,), "v": (VALUE,), "step": ()}, VALUE,
    functools.partial(ttt.empty_state, ROWS, HEADS, VALUE), _call_ttt, _learner),
  Case(
    "gru", {"update": (VALUE,), "reset": (VALUE,), "candidate": (VALUE,)}, VALUE,
    functools.partial(gru.empty_state, ROWS, HEADS, VALUE), _call_gru, _units),
)


@flax.struct.dataclass
class Scene:
  """One call of an op, and the projection of what comes out whose gradient is taken."""

  tokens: dict[str, jax.Array]
  learned: Any
  state: Any
  ids: jax.Array
  valid: jax.Array
  d_out: jax.Array
  d_state: dict[str, jax.Array]

  def cut(self, begin: int, end: int, state: Any) -> Scene:
    """Tokens [begin, end) of every row, from `state`."""
    tokens, ids, valid, d_out = jax.tree.map(
      lambda x: x[:, begin:end], (self.tokens, self.ids, self.valid, self.d_out))
    return self.replace(tokens=tokens, state=state, ids=ids, valid=valid, d_out=d_out)


@flax.struct.dataclass
class Run:
  """What a call returns, and the gradients of the scene's projection."""

  out: jax.Array
  state: Any
  d_tokens: dict[str, jax.Array] | None = None
  d_learned: Any = None
  d_state: dict[str, jax.Array] | None = None


@functools.cache
def scene(case: Case, dtype: str) -> Scene:
  """Gates lie in [0, 1], both ends included; the last tokens of row 2 and all of row 3 are invalid."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  tokens = {name: normal(ROWS, LENGTH, HEADS, *shape) for name, shape in case.shapes.items()}
  if "k" in tokens:
    tokens["k"] /= jnp.linalg.norm(tokens["k"], axis=-1, keepdims=True)
  for name in sorted({"step", "decay", "share"} & set(tokens)):  # a set has another order in every process
    tokens[name] = jnp.asarray(np.clip(rng.uniform(-0.2, 1.4, tokens[name].shape), 0, 1), dtype)
  state = case.empty(dtype=jnp.dtype(dtype))
  state = replace_floats(state, {path: normal(*leaf.shape) for path, leaf in float_leaves(state).items()})
  state = state.replace(document_B=jnp.asarray(DOCUMENTS[:, 0]))
  if hasattr(state, "fill_B"):
    state = state.replace(fill_B=jnp.arange(1, ROWS + 1, dtype=jnp.int32))
  valid = np.arange(LENGTH) < np.array([[LENGTH], [LENGTH], [LENGTH - 4], [0]])
  return Scene(
    tokens, case.learned(normal), state, jnp.asarray(DOCUMENTS), jnp.asarray(valid),
    normal(ROWS, LENGTH, HEADS, case.value_dim) * valid[..., None, None],
    {path: normal(*leaf.shape) for path, leaf in float_leaves(state).items()})


def run(case: Case, here: Scene, impl: str = "xla", *, with_gradient: bool = True) -> Run:
  """One call; gradients of Σ out·d_out + Σ state·d_state."""
  return _compiled(case, impl, with_gradient)(here)


@functools.cache
def _compiled(case: Case, impl: str, with_gradient: bool) -> Any:
  return quick_jit(functools.partial(_run, case, impl, with_gradient))


def _run(case: Case, impl: str, with_gradient: bool, here: Scene) -> Run:
  def project(tokens, learned, floats):
    out, state = case.call(tokens, learned, replace_floats(here.state, floats), here.ids, here.valid, impl=impl)
    out = jnp.where(here.valid[..., None, None], out, 0)
    total = (out * here.d_out).sum()
    return total + sum((leaf * here.d_state[path]).sum() for path, leaf in float_leaves(state).items()), (out, state)

  inputs = here.tokens, here.learned, float_leaves(here.state)
  if not with_gradient:
    return Run(*project(*inputs)[1])
  grads, (out, state) = jax.grad(project, argnums=(0, 1, 2), has_aux=True)(*inputs)
  return Run(out, state, *grads)
