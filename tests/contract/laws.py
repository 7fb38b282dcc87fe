"""The laws of a memory layer, each a function of a row of the table that raises AssertionError; see also `meshes`."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.types import whole_segment
from tests.contract.compare import assert_pulls_close, assert_rows_same, magnitudes, of_rows, pull, pull_in_pieces
from tests.contract.harness import Form, Pulled, float_leaves, form, normal
from tests.contract.memories import LENGTH, LONG, PIECE, ROWS_PER_BATCH, Row
from tests.contract.scenes import PAST, PRESENT, documents, keep_valid, mixed, scene
from tests.contract.tolerances import (
  assert_close,
  assert_finite,
  assert_nonzero,
  assert_same,
  assert_zero,
  fail,
)

GATE_ENDS = 100.0  # of L12: an input times this makes logits of gates that are far beyond rounding
SPLITS = ((PIECE, PIECE, *(1,) * 7), (1, 1, PIECE, 1, PIECE, *(1,) * 4))


def split_invariant(row: Row) -> None:
  """L1: any split gives the same outputs, final state, sums and gradients."""
  subject = form(row)
  here = mixed(subject)
  whole = pull(subject, here)
  for pieces in SPLITS:
    assert_pulls_close("L1", f"{subject.label} {pieces}", pull_in_pieces(subject, here, pieces), whole, here.segment)


def token_by_token(row: Row) -> None:
  """L2: tokens one at a time equal the sequence."""
  subject = form(row)
  here = mixed(subject)
  steps = pull_in_pieces(subject, here, (1,) * LENGTH)
  assert_pulls_close("L2", subject.label, steps, pull(subject, here), here.segment)


def causal(row: Row, variant: str = "") -> None:
  """L3: the Jacobian is exactly zero where the memory says it cannot see, and not where it can."""
  subject = form(row, variant=variant)
  segment = whole_segment(ROWS_PER_BATCH, LENGTH)
  x_BTD = np.broadcast_to(normal(3, (1, LENGTH, row.model.dim)), (ROWS_PER_BATCH, LENGTH, row.model.dim))
  for first in range(0, LENGTH, ROWS_PER_BATCH):
    queries = [min(first + i, LENGTH - 1) for i in range(ROWS_PER_BATCH)]
    d_y_BTD = normal(4, x_BTD.shape) * np.eye(LENGTH, dtype=np.float32)[queries][..., None]
    influence_BTD = subject.pull(x_BTD, subject.init_state(), segment, d_y_BTD).d_x_BTD
    for i, query in enumerate(queries):
      for key in range(LENGTH):
        check = assert_nonzero if row.memory.visible(subject.model, query, key) else assert_zero
        check("L3", subject.label, f"influence of token {key} on token {query}", influence_BTD[i, key])


def past_forgotten_after_reset(row: Row) -> None:
  """L4: after a new id the past has no influence at all, and rows without one do not notice."""
  subject = form(row)
  here = mixed(subject)
  whole = pull(subject, here)
  last_start = [sum(count for _, _, count in layout[:-1]) for layout in PRESENT]
  after_BT = here.segment.valid_BT & (np.arange(LENGTH) >= np.array(last_start)[:, None])
  resets = [i for i, layout in enumerate(PRESENT) if layout and layout[-1][1] == 0]
  pulled = subject.pull(here.x_BTD, here.state, here.segment, here.d_y_BTD * after_BT[..., None])
  for i in resets:
    assert_zero("L4", subject.label, f"gradient of the past, row {i}", pulled.d_x_BTD[i, : last_start[i]])
    assert_zero("L4", subject.label, f"gradient of the state, row {i}", of_rows(pulled.d_state, i))
  assert_nonzero("L4", subject.label, "gradient of the state, row 0", magnitudes(of_rows(pulled.d_state, 0)))

  # Counts and codes have no gradient: outputs, of this call and the next, must not change with the past either.
  after = _outputs_after(subject, here.x_BTD, here.state)
  x_BTD = np.where(after_BT[..., None], here.x_BTD, normal(5, here.x_BTD.shape))
  past = subject.pull(normal(6, here.x_BTD.shape), subject.init_state(), documents(PAST, LENGTH)).state
  other_content = _outputs_after(subject, x_BTD, past)
  other_layout = _outputs_after(subject, x_BTD, jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), past))
  for i in resets:
    start = last_start[i]
    assert_same("L4", subject.label, f"output, row {i}", other_content[i, start:], after[i, start:])
    assert_close("L4", subject.label, f"output.row {i}", other_layout[i, start:], after[i, start:])

  # Without the reset of row 1, only row 1 changes.
  layouts = list(PRESENT)
  layouts[1] = [(2, 13, LENGTH)]
  without = subject.pull(here.x_BTD, here.state, documents(layouts, LENGTH))
  rest = np.delete(np.arange(ROWS_PER_BATCH), 1)
  assert_rows_same("L4", subject.label, without, whole, here.segment, rest)
  if np.array_equal(without.y_BTD[1], whole.y_BTD[1]):
    fail("L4", subject.label, "output of row 1", "does not depend on its reset")


def returning_id_is_new(row: Row) -> None:
  """L4: a change of id is a reset even when the id has been there before."""
  subject = form(row)
  shape = (ROWS_PER_BATCH, LENGTH, row.model.dim)

  def read(last_id: int) -> Pulled:
    layouts = [[(1, 0, 3 + b), (2, 0, 2), (last_id, 0, LENGTH - 5 - b)] for b in range(ROWS_PER_BATCH)]
    return pull(subject, scene(subject, normal(2, shape), subject.init_state(), documents(layouts, LENGTH)))

  back, new = read(1), read(3)
  assert_close("L4", subject.label, "output", back.y_BTD, new.y_BTD)
  assert_close("L4", subject.label, "state", float_leaves(back.state), float_leaves(new.state))
  assert_close("L4", subject.label, "gradient.input", back.d_x_BTD, new.d_x_BTD)


def _outputs_after(subject: Form, x_BTD: np.ndarray, state: Any) -> np.ndarray:
  """Outputs of PRESENT and of a further call in which the last document of every row goes on."""
  segment = documents(PRESENT, LENGTH)
  last = [layout[-1] if layout else None for layout in PRESENT]
  following = documents([[(doc[0], doc[1] + doc[2], LENGTH)] if doc else [] for doc in last], LENGTH)
  first = subject.pull(x_BTD, state, segment)
  then = subject.pull(normal(7, x_BTD.shape), first.state, following)
  return np.concatenate([keep_valid(first.y_BTD, segment), keep_valid(then.y_BTD, following)], axis=1)


def padding_ignored(row: Row) -> None:
  """L5: whatever stands after the valid tokens changes nothing; a row without any keeps its state."""
  subject = form(row)
  here = mixed(subject)
  clean = pull(subject, here)
  valid_BT = here.segment.valid_BT
  garbage = jax.tree.map(lambda field: np.where(valid_BT, field, 77).astype(field.dtype), here.segment)
  garbage = garbage.replace(valid_BT=valid_BT)
  x_BTD = np.where(valid_BT[..., None], here.x_BTD, np.float32(1e3) * normal(7, here.x_BTD.shape))
  dirty = pull(subject, dataclasses.replace(here, x_BTD=x_BTD, segment=garbage))
  outputs = keep_valid(dirty.y_BTD, here.segment), keep_valid(clean.y_BTD, here.segment)
  assert_same("L5", subject.label, "output", *outputs)
  for quantity in ("state", "losses", "statistics", "d_params", "d_x_BTD", "d_state"):
    assert_same("L5", subject.label, quantity, getattr(dirty, quantity), getattr(clean, quantity))
  assert_zero("L5", subject.label, "gradient of invalid tokens", np.where(valid_BT[..., None], 0, dirty.d_x_BTD))
  assert_finite("L5", subject.label, "output", dirty.y_BTD)
  empty = [i for i, layout in enumerate(PRESENT) if not layout]
  for i in empty:
    assert_same("L5", subject.label, "state of a row without tokens", of_rows(dirty.state, i), of_rows(here.state, i))
    # Empty slots may be cleared and counts have no gradient; whatever has one passes its cotangent on unchanged.
    got, want = of_rows(dirty.d_state, i), of_rows(here.d_state, i)
    want = jax.tree.map(lambda got, want: np.where(got != 0, want, 0), got, want)
    assert_same("L5", subject.label, "gradient of that state", got, want)

  layouts = [[(1, 0, PIECE)] for _ in PRESENT]
  fresh = subject.init_state()
  padded = scene(subject, normal(8, here.x_BTD.shape), fresh, documents(layouts, LENGTH))
  exact = scene(subject, padded.x_BTD[:, :PIECE], fresh, documents(layouts, PIECE))
  exact = dataclasses.replace(exact, d_y_BTD=padded.d_y_BTD[:, :PIECE])
  got = pull(subject, padded)
  got = got.replace(y_BTD=got.y_BTD[:, :PIECE], d_x_BTD=got.d_x_BTD[:, :PIECE])
  assert_pulls_close("L5", subject.label, got, pull(subject, exact), exact.segment)


def rows_independent(row: Row) -> None:
  """L6: what happens in one row does not reach another."""
  subject = form(row)
  here = mixed(subject)
  whole = pull(subject, here)
  rest = np.delete(np.arange(ROWS_PER_BATCH), 2)

  def swap(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    mine = np.array(mine)
    mine[2] = other[0]
    return mine

  changed = dataclasses.replace(
    here, x_BTD=swap(here.x_BTD, normal(9, here.x_BTD.shape)),
    state=jax.tree.map(swap, here.state, here.state), segment=jax.tree.map(swap, here.segment, here.segment))
  assert_rows_same("L6", subject.label, pull(subject, changed), whole, here.segment, rest)
  only_BTD = here.d_y_BTD.copy()
  only_BTD[rest] = 0
  pulled = subject.pull(here.x_BTD, here.state, here.segment, only_BTD)
  assert_zero("L6", subject.label, "gradient of other rows", pulled.d_x_BTD[rest])
  assert_zero("L6", subject.label, "gradient of other rows' states", jax.tree.map(lambda d: d[rest], pulled.d_state))


def state_constant(row: Row) -> None:
  """L7: the state keeps structure, shapes and dtypes, so it is a scan carry and no call compiles twice."""
  subject = form(row)
  shape = (ROWS_PER_BATCH, LENGTH, row.model.dim)
  fresh, segment = subject.init_state(), whole_segment(ROWS_PER_BATCH, LENGTH)
  first = subject.call(normal(10, shape), fresh, segment)
  traces = subject.traces
  second = subject.call(normal(11, shape), first.state, whole_segment(ROWS_PER_BATCH, LENGTH, start=LENGTH))
  if subject.traces != traces:
    fail("L7", subject.label, "compilations", "the second call, with the state of the first, was traced again")
  for state in (first.state, second.state):
    if _types(state) != _types(fresh):
      fail("L7", subject.label, "state", f"changed from {_types(fresh)} to {_types(state)}")

  variables = jax.tree.map(jnp.asarray, subject.variables)

  def step(state: Any, x_BD: jax.Array) -> tuple[Any, jax.Array]:
    out = subject.apply(variables, x_BD[:, None], state, whole_segment(ROWS_PER_BATCH, 1))
    return out.state, out.y_BTD

  try:
    jax.eval_shape(lambda: jax.lax.scan(step, fresh, jnp.zeros((3, ROWS_PER_BATCH, row.model.dim))))
  except TypeError as error:
    fail("L7", subject.label, "state", f"is no scan carry: {error}")


def _types(state: Any) -> Any:
  return jax.tree.map(lambda leaf: f"{leaf.dtype}{leaf.shape}{' weak' * leaf.weak_type}", state)


def matches_reference(row: Row, variant: str = "", of: str | None = None) -> None:
  """L8: outputs, final state and every gradient equal the reference's, or a variant's that this is a form of."""
  subject = form(row, variant=variant)
  other = form(row, impl="reference", variant=variant) if of is None else form(row, variant=of)
  here = mixed(subject)
  assert_pulls_close("L8", subject.label, pull(subject, here), pull(other, here), here.segment)


def bfloat16_accurate(row: Row) -> None:
  """L9: bf16 stays near the fp32 reference, and sums over time stay fp32."""
  subject, reference = form(row, dtype="bfloat16"), form(row, impl="reference")
  for name in row.accumulators:
    dtype = operator.attrgetter(name)(subject.init_state()).dtype
    if dtype != jnp.float32:
      fail("L9", subject.label, f"state.{name}", f"is {dtype}, not float32")
  x_BTD = normal(10, (ROWS_PER_BATCH, LENGTH, row.model.dim)).astype(jnp.bfloat16).astype(np.float32)
  here = scene(subject, x_BTD, subject.init_state(), documents(PRESENT, LENGTH))
  want_here = scene(reference, here.x_BTD, reference.init_state(), here.segment)
  got, want = pull(subject, here), pull(reference, want_here)
  if got.y_BTD.dtype != jnp.bfloat16:
    fail("L9", subject.label, "output", f"is {got.y_BTD.dtype}, not the dtype of the input")
  assert_pulls_close("L9", subject.label, got, want, here.segment, dtype="bfloat16")


def awkward_sizes(row: Row, variant: str) -> None:
  """L11: one slot, blocks of one token, blocks and windows longer than the sequence: L2 holds there too."""
  subject = form(row, variant=variant)
  here = mixed(subject)
  steps = pull_in_pieces(subject, here, (1,) * LENGTH)
  assert_pulls_close("L11", subject.label, steps, pull(subject, here), here.segment)


def long_constant_input(row: Row, dtype: str) -> None:
  """L12: after 16k equal tokens outputs, state and gradients are finite, also where gates are at their ends."""
  model = row.constant_model or row.model
  subject = Form(row.name, row.memory, dataclasses.replace(model, dtype=dtype), form(row).variables)
  # Multiples that drive whatever gate depends on the input to one end and to the other.
  scale_B11 = np.array([1.0, GATE_ENDS, -GATE_ENDS], np.float32)[:, None, None]
  x_BTD = np.broadcast_to(scale_B11 * normal(12, (1, 1, row.model.dim)), (3, LONG, row.model.dim))
  pulled = subject.pull(x_BTD, subject.init_state(batch=3), whole_segment(3, LONG), np.ones_like(x_BTD))
  assert_finite("L12", subject.label, "output", pulled.y_BTD)
  assert_finite("L12", subject.label, "state", pulled.state)
  assert_finite("L12", subject.label, "gradient", (pulled.d_params, pulled.d_x_BTD, pulled.d_state))
  # Equal values average to themselves, wherever they are kept.
  ends = pulled.y_BTD[0, -1], pulled.y_BTD[0, -1 - row.apart]
  assert_close("L12", subject.label, "output", *ends, dtype=dtype)
  row.constant_input(model, of_rows(pulled.state, slice(0, 1)))


def packed_equals_separate(row: Row) -> None:
  """L13: documents packed into rows give the outputs and gradients of the same documents in rows of their own."""
  subject = form(row)
  lengths = ((23,), (6, 17), (1, 9, 13), (5, 5, 5, 8), (22, 1), (10, 3), (4, 8, 11), (2, 12))
  most = max(map(len, lengths))
  x_BTD = normal(13, (ROWS_PER_BATCH, LENGTH, row.model.dim))
  layouts = [[(3 * i, 0, count) for i, count in enumerate(counts)] for counts in lengths]
  packed = scene(subject, x_BTD, subject.init_state(), documents(layouts, LENGTH))
  packed = dataclasses.replace(packed, d_state=jax.tree.map(np.zeros_like, packed.d_state))
  got = pull(subject, packed)
  y_BTD, d_x_BTD = np.zeros((2, *x_BTD.shape), np.float32)
  d_params = jax.tree.map(np.zeros_like, got.d_params)
  for nth in range(most):
    where = [(b, sum(counts[:nth]), counts[nth]) for b, counts in enumerate(lengths) if nth < len(counts)]
    x_own, d_y_own = np.zeros((2, *x_BTD.shape), np.float32)
    for b, start, count in where:
      x_own[b, :count] = x_BTD[b, start : start + count]
      d_y_own[b, :count] = packed.d_y_BTD[b, start : start + count]
    own_rows = [[(0, 0, counts[nth])] if nth < len(counts) else [] for counts in lengths]
    own = subject.pull(x_own, subject.init_state(), documents(own_rows, LENGTH), d_y_own, loss_weight=1.0)
    for b, start, count in where:
      y_BTD[b, start : start + count] = own.y_BTD[b, :count]
      d_x_BTD[b, start : start + count] = own.d_x_BTD[b, :count]
    d_params = jax.tree.map(np.add, d_params, own.d_params)
  assert_close("L13", subject.label, "output", keep_valid(got.y_BTD, packed.segment), y_BTD)
  assert_close("L13", subject.label, "gradient.input", got.d_x_BTD, d_x_BTD)
  assert_close("L13", subject.label, "gradient.parameters", got.d_params, d_params)
