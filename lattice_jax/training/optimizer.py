"""The update rule: clipping, direction (AdamW, Lion, Adafactor), schedule and weight decay.

A stacked parameter [L, …] must be updated exactly as its L layers would be one by one. Therefore the type of a
parameter's box, and not its rank, decides whether it is decayed, and a rule that mixes the elements of a tensor
(Adafactor) is vmapped over the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lattice_jax.config import ModelConfig, OptimizerConfig
from lattice_jax.modules import Weight
from lattice_jax.sharding import is_box
from lattice_jax.training.adafactor import adafactor

# Each rule takes the config and a tree of bool, true for parameters that are stacked over layers.
RULES: dict[str, Callable[[OptimizerConfig, Any], optax.GradientTransformation]] = {
  "adamw": lambda config, stacked: optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.float32),
  "lion": lambda config, stacked: optax.scale_by_lion(config.b1, config.b2, mu_dtype=jnp.float32),
  "adafactor": lambda config, stacked: adafactor(stacked),
}


@dataclass(frozen=True)
class Optimizer:
  """`init` takes boxed or plain parameters (moments of their shape then have their boxes); `update` takes plain ones.

  decays, stacked, learns: trees of bool, one per parameter; see `decay_mask`, `stacked_mask` and `learns_mask`. All
    parameters learn where `learns` is True.
  """

  config: OptimizerConfig
  steps: int
  decays: Any
  stacked: Any
  learns: Any = True

  @property
  def rule(self) -> optax.GradientTransformation:
    return RULES[self.config.name](self.config, self.learned(self.stacked))

  def init(self, params: Any) -> Any:
    return self.rule.init(self.learned(params))

  def learned(self, tree: Any) -> Any:
    """The tree with None in place of what does not learn."""
    return jax.tree.map(lambda learns, leaf: leaf if learns else None, self.learns, tree)

  def with_learned(self, params: Any, learned: Any) -> Any:
    """The parameters with those that learn replaced: `learned` is a tree as `self.learned` makes it."""
    return jax.tree.map(
      lambda new, old: old if new is None else new, learned, params, is_leaf=lambda leaf: leaf is None)

  def update(
    self, grads: Any, opt_state: Any, params: Any, *, step: jax.Array
  ) -> tuple[Any, Any, dict[str, jax.Array]]:
    """New parameters, new optimizer state, and the norms and learning rate for the log.

    grads: of the parameters that learn, None in place of the others.
    """
    grad_norm = optax.tree.norm(grads)
    if self.config.clip_norm:
      scale = jnp.minimum(1.0, self.config.clip_norm / jnp.maximum(grad_norm, 1e-12))
      grads = jax.tree.map(lambda grad: grad * scale, grads)
    learned = self.learned(params)
    direction, opt_state = self.rule.update(grads, opt_state, learned)
    rate = learning_rate(self.config, self.steps, step)
    decay_rate = self.config.weight_decay * (rate if self.config.decay == "scaled" else 1.0)

    def move(param: jax.Array, change: jax.Array, decayed: bool) -> jax.Array:
      return param - rate * change - (decay_rate * param if decayed else 0.0)

    params = self.with_learned(params, jax.tree.map(move, learned, direction, self.learned(self.decays)))
    return params, opt_state, {
      "grad_norm": grad_norm, "param_norm": optax.tree.norm(params), "learning_rate": rate}


def learning_rate(config: OptimizerConfig, steps: int, step: jax.Array | int) -> jax.Array:
  """Rate of the update with index `step`: peak / warmup_steps for the first, peak × final_fraction for the last.

  With `zero_start` every rate comes one update later, so the first is 0 (without warm-up it is the peak).
  """
  first = 0 if config.zero_start else 1
  warmup = max(config.warmup_steps, first)
  since_start = jnp.asarray(step, jnp.float32) + first
  rise = jnp.minimum(since_start / warmup, 1.0) if warmup else 1.0
  progress = jnp.clip((since_start - warmup) / max(steps - warmup, 1), 0.0, 1.0)
  falls = {
    "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "linear": 1.0 - progress,
    "constant": jnp.ones_like(progress),
  }
  fraction = config.final_fraction + (1.0 - config.final_fraction) * falls[config.schedule]
  return config.learning_rate * rise * fraction


def decay_mask(boxed: Any) -> Any:
  """True for parameters that `modules.weight` made."""
  return jax.tree.map(lambda leaf: isinstance(leaf, Weight), boxed, is_leaf=is_box)


def stacked_mask(boxed: Any) -> Any:
  """True for parameters whose first axis is the layer."""
  return jax.tree.map(lambda leaf: is_box(leaf) and leaf.names[:1] == ("layers",), boxed, is_leaf=is_box)


def learns_mask(boxed: Any, model: ModelConfig, last_layers: int) -> Any:
  """True for the parameters of the last layers and of the final norm; 0 layers = for all."""
  first = model.layers - last_layers if last_layers else 0

  def learns(path: tuple[Any, ...], leaf: Any) -> bool:
    del leaf
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    if names[0] == "groups":
      return int(names[1].removeprefix("block_")) >= first
    return not last_layers or names[0] == "final_norm"

  return jax.tree_util.tree_map_with_path(learns, boxed, is_leaf=is_box)
