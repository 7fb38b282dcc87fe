"""The one tolerance table of the contract tests, and the comparison that uses it.

Differences are RMS ratios, rms(got - want) / rms(want), for each array apart.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Summation order alone costs a few 1e-7 in fp32; a gradient sums over batch and time, and cancels more.
# bf16 has 8 bits: one rounding is 2e-3 RMS, and a layer makes about five of them in a row.
TOLERANCE = {
  ("output", "float32"): 1e-5,
  ("state", "float32"): 1e-5,
  ("loss", "float32"): 1e-5,
  ("statistics", "float32"): 1e-5,
  ("gradient", "float32"): 1e-4,
  ("output", "bfloat16"): 2e-2,
  ("state", "bfloat16"): 2e-2,
  ("loss", "bfloat16"): 2e-2,
  ("statistics", "bfloat16"): 2e-2,
  ("gradient", "bfloat16"): 5e-2,
}
# An array whose true value is zero (the query gradient of a softmax over one key) holds rounding of its neighbours:
# below these RMS values, absolute and as a part of the whole tree's, the divisor stays where it is.
FLOOR = 1e-4
TREE_FLOOR = 1e-2
_records: list[dict[str, float]] = []


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, float]]:
  """The largest RMS ratio of each line of the table that is compared meanwhile, for those who report them."""
  _records.append(defaultdict(float))
  try:
    yield _records[-1]
  finally:
    _records.pop()


def rms_ratio(got: Any, want: Any, floor: float = FLOOR) -> float:
  """rms(got - want) / rms(want) in fp64; inf where `got` is not finite."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  if not np.isfinite(got).all():
    return float("inf")
  return _rms(got - want) / max(_rms(want), floor)


def assert_close(law: str, label: str, quantity: str, got: Any, want: Any, *, dtype: str = "float32") -> None:
  """Every array of `got` equals its partner in `want` within the table; integers and bools exactly.

  The part of `quantity` before the first dot names the line of the table.
  """
  limit = TOLERANCE[quantity.split(".")[0], dtype]
  floor = max(FLOOR, TREE_FLOOR * _tree_rms(want)) if quantity.startswith("gradient") else FLOOR
  for name, got_leaf, want_leaf in _pairs(law, label, quantity, got, want):
    if not jnp.issubdtype(want_leaf.dtype, jnp.inexact):
      _exact(law, label, name, got_leaf, want_leaf)
      continue
    ratio = rms_ratio(got_leaf, want_leaf, floor)
    for record in _records:
      record[quantity.split(".")[0]] = max(record[quantity.split(".")[0]], ratio)
    if not ratio <= limit:
      fail(law, label, name, f"RMS ratio {ratio:.2e} is above {limit:.0e} ({dtype})")


def assert_same(law: str, label: str, quantity: str, got: Any, want: Any) -> None:
  """Bit-identical arrays, leaf by leaf."""
  for name, got_leaf, want_leaf in _pairs(law, label, quantity, got, want):
    _exact(law, label, name, got_leaf, want_leaf)


def assert_zero(law: str, label: str, quantity: str, tree: Any) -> None:
  """Exactly zero everywhere: not small, zero."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    largest = float(np.abs(np.asarray(leaf, np.float64)).max(initial=0.0))
    if largest != 0.0:
      fail(law, label, quantity + jax.tree_util.keystr(path), f"is {largest:.2e} where it must be exactly zero")


def assert_nonzero(law: str, label: str, quantity: str, array: Any) -> None:
  """Larger than rounding could make it."""
  largest = float(np.abs(np.asarray(array, np.float64)).max(initial=0.0))
  if not largest > 1e-8:
    fail(law, label, quantity, f"is {largest:.2e} where it must not be zero")


def assert_finite(law: str, label: str, quantity: str, tree: Any) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not np.isfinite(np.asarray(leaf, np.float64)).all():
      fail(law, label, quantity + jax.tree_util.keystr(path), "is not finite")


def fail(law: str, label: str, quantity: str, what: str) -> None:
  """`label` is memory and implementation, as `Form.label` gives it."""
  raise AssertionError(f"{law} · {label} · {quantity}: {what}")


def _pairs(law: str, label: str, quantity: str, got: Any, want: Any):
  got_structure, want_structure = jax.tree.structure(got), jax.tree.structure(want)
  if got_structure != want_structure:
    fail(law, label, quantity, f"the trees differ: {got_structure} and {want_structure}")
  want_leaves = jax.tree.leaves(want)
  for (path, got_leaf), want_leaf in zip(jax.tree_util.tree_leaves_with_path(got), want_leaves, strict=True):
    name = quantity + jax.tree_util.keystr(path)
    if jnp.shape(got_leaf) != jnp.shape(want_leaf):
      fail(law, label, name, f"has shape {jnp.shape(got_leaf)}, not {jnp.shape(want_leaf)}")
    yield name, got_leaf, want_leaf


def _exact(law: str, label: str, name: str, got: Any, want: Any) -> None:
  got, want = np.asarray(got), np.asarray(want)
  if not np.array_equal(got, want):
    fail(law, label, name, f"{int((got != want).sum())} of {got.size} entries differ where all must be identical")


def _tree_rms(tree: Any) -> float:
  return _rms(np.concatenate([np.zeros(1), *(np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree))]))


def _rms(array: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0
