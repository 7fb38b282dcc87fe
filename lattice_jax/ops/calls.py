"""What a call of an op may leave out, and a state that does not fit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def complete_call(
  op: str, state: Any, ids: jax.Array | None, valid: jax.Array | None, *, like: jax.Array, empty: Callable[[], Any],
) -> tuple[Any, jax.Array, jax.Array]:
  """(state, ids, valid) of a call: where they are None, a state without tokens, one document, and all tokens valid.

  Args:
    like: any of the call's arrays [B, T, …].
    empty: makes the state without tokens that fits the other arrays.

  Raises:
    ValueError: the state has other fields or shapes.
  """
  ids = jnp.zeros(like.shape[:2], jnp.int32) if ids is None else ids
  valid = jnp.ones(like.shape[:2], bool) if valid is None else valid
  if state is None:
    return empty(), ids, valid
  check_state(
    f"op {op!r}", state, jax.eval_shape(empty),
    "start with state=None, or go on with the state that the last call with such arrays returned")
  return state, ids, valid


def check_state(owner: str, state: Any, wanted: Any, advice: str) -> None:
  """Raises ValueError for a state of other fields or shapes than `wanted`, in which an axis of length 0 takes any."""
  given_shapes, wanted_shapes = _shapes(state), _shapes(wanted)
  for name in {**wanted_shapes, **given_shapes}:
    given, shape = (shapes[name] if name in shapes else None for shapes in (given_shapes, wanted_shapes))
    if given is None or shape is None:
      raise ValueError(
        f"{owner} was given a state {'without' if given is None else 'with'} the field {name!r}, which its state "
        f"{'has' if given is None else 'lacks'}; {advice}.")
    if len(given) != len(shape) or any(size not in (0, found) for size, found in zip(shape, given, strict=True)):
      raise ValueError(f"{owner} was given a state whose {name} has shape {given}, and needs {shape}; {advice}.")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): jnp.shape(leaf) for path, leaf in leaves}
