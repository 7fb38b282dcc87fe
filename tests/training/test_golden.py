"""The first update of five configs in numbers, so that no default and no initialiser changes unnoticed.

If a change was meant, `python -m tests.training.test_golden` prints the new GOLDEN.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config_text import apply_overrides, read_config
from lattice_jax.data.loader import train_batches
from lattice_jax.data.sources import load_source
from lattice_jax.sharding import unbox
from lattice_jax.training.state import initial_state, make_optimizer
from lattice_jax.training.step import make_update
from tests.contract.harness import quick_jit

# loss, norm of its gradient, sum of all parameters, sum of how far the update moves each
GOLDEN = {
  "configs/quickstart.py:smoke": (6.069267, 0.4584133, -116.4993, 16.06897),
  "configs/vq_imagenet64.py:smoke": (5.553927, 0.002932306, -94.48053, 0),
  "configs/lattice_enwik8.py:smoke": (6.024813, 0.6584186, -70.69211, 4.317451),
  "configs/delta_enwik8.py:gla,smoke": (6.094297, 0.6676239, -74.44696, 4.104866),
  "configs/full_pg19.py:smoke": (7.625453, 0.002971699, -290.7923, 0),
}
# The same mathematics, in the form that compiles fastest and rounds least.
SIMPLE = ("model.scan_layers=False", "model.remat=none", "model.impl=reference", "model.dtype=float32")


def first_update(name):
  """The four numbers of a config."""
  config = read_config(name, [])
  config = apply_overrides(config, [*SIMPLE, f"model.layers={len(config.model.pattern)}"])
  batch = next(train_batches(config, load_source(config.data, "train"), start_step=0))

  def run(batch):
    state = unbox(initial_state(config))
    new_state, metrics = make_update(config, make_optimizer(config))(state, batch)
    moves = jax.tree.map(lambda new, old: jnp.abs(new - old), new_state.params, state.params)
    return metrics["loss"], metrics["grad_norm"], state.params, moves

  loss, grad_norm, *trees = jax.device_get(quick_jit(run)(batch))
  sums = [sum(np.sum(leaf, dtype=np.float64) for leaf in jax.tree.leaves(tree)) for tree in trees]
  return [float(number) for number in (loss, grad_norm, *sums)]


@pytest.mark.parametrize("name", GOLDEN)
def test_first_update_has_not_changed(name):
  assert first_update(name) == pytest.approx(GOLDEN[name], rel=1e-4), (
    "a default, an initialiser or the mathematics of a layer has changed; new runs cannot be compared with old ones. "
    "If that was meant, `python -m tests.training.test_golden` prints the new GOLDEN.")


if __name__ == "__main__":
  for name in GOLDEN:
    sys.stdout.write(f'  "{name}": ({", ".join(f"{number:.7g}" for number in first_update(name))}),\n')
