"""Whether a stored run's config may be changed so: `lattice_jax.config_text` reads the changes."""

from __future__ import annotations

from typing import Any

import jax

from lattice_jax.config import ModelConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import unbox


def check_variables_fit(model: ModelConfig, variables: Any) -> None:
  """Raises ValueError when overrides describe a model whose parameters and buffers are not the stored ones."""
  wanted = _shapes(jax.eval_shape(lambda: init_variables(model, jax.random.key(0))))
  stored = _shapes(variables)
  changed = sorted(dict(wanted.items() ^ stored.items()))
  if changed:
    raise ValueError(
      f"with these overrides the model's {changed[0]} would not be what the checkpoint holds; override only fields "
      "that leave parameters and codebooks as they are, such as model.vq.cache.")


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(unbox(variables))}
