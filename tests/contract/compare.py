"""What the laws compare of two calls, and how they make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lattice_jax.types import Segment
from tests.contract.harness import Form, Pulled, chain
from tests.contract.scenes import Scene, keep_valid
from tests.contract.tolerances import assert_close, assert_same


def pull(form: Form, scene: Scene) -> Pulled:
  """The scene in one call, gradients of its projection and of the losses."""
  return form.pull(scene.x_BTD, scene.state, scene.segment, scene.d_y_BTD, scene.d_state, loss_weight=1.0)


def pull_in_pieces(form: Form, scene: Scene, pieces: Sequence[int]) -> Pulled:
  """As `pull`, in pieces of these lengths."""
  return chain(form, scene.x_BTD, scene.state, scene.segment, scene.d_y_BTD, scene.d_state, pieces, loss_weight=1.0)


def assert_pulls_close(
  law: str, label: str, got: Pulled, want: Pulled, segment: Segment, *, dtype: str = "float32"
) -> None:
  """Everything a call returns, and all gradients."""
  outputs = keep_valid(got.y_BTD, segment), keep_valid(want.y_BTD, segment)
  assert_close(law, label, "output", *outputs, dtype=dtype)
  assert_close(law, label, "state", got.state, want.state, dtype=dtype)
  assert_close(law, label, "loss", got.losses, want.losses, dtype=dtype)
  assert_close(law, label, "statistics", got.statistics, want.statistics, dtype=dtype)
  assert_close(law, label, "gradient.input", got.d_x_BTD, want.d_x_BTD, dtype=dtype)
  assert_close(law, label, "gradient.parameters", got.d_params, want.d_params, dtype=dtype)
  assert_close(law, label, "gradient.state", got.d_state, want.d_state, dtype=dtype)


def assert_rows_same(
  law: str, label: str, got: Pulled, want: Pulled, segment: Segment, rows: Sequence[int] | np.ndarray
) -> None:
  """Outputs and states of some rows are bit-identical."""
  assert_same(law, label, "output", keep_valid(got.y_BTD, segment)[rows], keep_valid(want.y_BTD, segment)[rows])
  assert_same(law, label, "state", of_rows(got.state, rows), of_rows(want.state, rows))


def of_rows(tree: Any, rows: Any) -> Any:
  return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def magnitudes(tree: Any) -> np.ndarray:
  """The largest magnitude of each array."""
  return np.array([float(np.abs(leaf).max(initial=0)) for leaf in jax.tree.leaves(tree)])
