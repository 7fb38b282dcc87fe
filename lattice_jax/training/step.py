"""One optimizer update as a pure function of state and batch, and the compiled program that runs several.

Row r of the batch belongs to micro-batch r % accumulate, so that every device keeps its own rows, each with its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lattice_jax.config import Config
from lattice_jax.metrics import ratio
from lattice_jax.models import decoder
from lattice_jax.sharding import replicated, shape_letters
from lattice_jax.training.optimizer import Optimizer
from lattice_jax.training.state import TrainState, carries_memory
from lattice_jax.types import Batch

DROPOUT, SEQUENCE, BUFFERS = range(3)  # streams of random keys

Update = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_update(config: Config, optimizer: Optimizer) -> Update:
  """(state, batch) → (state, metrics): forward, backward, optimizer, buffers.

  If the loss or gradient is not finite, only `skipped` and `step` change; once `train.nan_skips` are used up, `step`
  does not change either, and the metric `halted` is 1.
  """
  def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    keys = [jax.random.fold_in(jax.random.key(config.train.seed), stream) for stream in (DROPOUT, SEQUENCE, BUFFERS)]
    step_keys = (jax.random.fold_in(keys[DROPOUT], state.step), jax.random.fold_in(keys[SEQUENCE], batch.sequence))
    grads, totals, memory = _gradients(config, optimizer, state, batch, step_keys)
    params, opt_state, norms = optimizer.update(grads, state.opt_state, state.params, step=state.step)
    buffers = decoder.update_buffers(
      config.model, state.buffers, totals["statistics"], jax.random.fold_in(keys[BUFFERS], state.step))
    new_state = state.replace(params=params, opt_state=opt_state, buffers=buffers, memory=memory)
    is_finite = jnp.isfinite(totals["nll"]) & jnp.isfinite(norms["grad_norm"])
    may_skip = state.skipped < config.train.nan_skips
    new_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new_state, state).replace(
      step=state.step + (is_finite | may_skip), skipped=state.skipped + (~is_finite & may_skip))
    return new_state, {
      "loss": totals["nll"],
      **norms,
      **{f"aux_{name}": value for name, value in totals["losses"].items()},
      **{name: ratio(pair) for name, pair in totals["metrics"].items()},
      "skipped": (~is_finite & may_skip).astype(jnp.float32),
      "halted": (~is_finite & ~may_skip).astype(jnp.float32),
    }

  return update


def make_program(config: Config, optimizer: Optimizer, mesh: Mesh, state: TrainState) -> Any:
  """The jitted (state, batches, first_step, count) → (state, metrics [K, …]); `state` gives the shardings.

  Runs updates first_step … first_step + count − 1 on the first `count` of K stacked batches. `count` is an argument,
  not a constant, so that any number of updates runs the same compiled body and gives the same bits. The loop ends early
  if the state's step is not the expected one, that is after a halted update, in this call or an earlier one.
  """
  update = make_update(config, optimizer)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

  def program(state: TrainState, batches: Batch, first_step: jax.Array, count: jax.Array) -> tuple[TrainState, Any]:
    def batch_at(i: jax.Array | int) -> Batch:
      return jax.tree.map(lambda field: jax.lax.dynamic_index_in_dim(field, i, keepdims=False), batches)

    metric_shapes = jax.eval_shape(update, state, batch_at(0))[1]
    num_stacked = batches.sequence.shape[0]
    metrics = {name: jnp.zeros((num_stacked, *shape.shape), shape.dtype) for name, shape in metric_shapes.items()}

    def goes_on(carry: tuple[jax.Array, TrainState, Any]) -> jax.Array:
      i, state, _ = carry
      return (i < count) & (state.step == first_step + i)

    def body(carry: tuple[jax.Array, TrainState, Any]) -> tuple[jax.Array, TrainState, Any]:
      i, state, metrics = carry
      # the barriers keep XLA from fusing the update with reads and writes that depend on K, which would change the bits
      state, new = jax.lax.optimization_barrier(update(*jax.lax.optimization_barrier((state, batch_at(i)))))
      state = jax.lax.with_sharding_constraint(state, shardings)
      return i + 1, state, {name: metrics[name].at[i].set(new[name]) for name in metrics}

    _, state, metrics = jax.lax.while_loop(goes_on, body, (jnp.zeros((), jnp.int32), state, metrics))
    return state, metrics

  return jax.jit(program, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _gradients(
  config: Config, optimizer: Optimizer, state: TrainState, batch: Batch, keys: tuple[jax.Array, jax.Array],
) -> tuple[Any, ...]:
  """The gradients of the whole update's loss, the totals for metrics and buffers, and the new memory.

  Parameters that do not learn are constants, so nothing goes back beyond the first layer that does.
  """
  num_micro = config.train.accumulate
  memory = state.memory
  if not carries_memory(config):
    memory = decoder.init_state(config.model, batch.tokens_BT.shape[0])
  weight_sum = jnp.maximum(batch.weights_BT.sum(), 1.0)

  def micro_step(memory: Any, rows: tuple[Any, ...], index: jax.Array | int) -> tuple[Any, dict[str, Any], Any]:
    def loss_fn(learned: Any) -> tuple[jax.Array, Any]:
      params = optimizer.with_learned(state.params, learned)
      micro_keys = [jax.random.fold_in(key, index) for key in keys]
      return _micro_loss(config, params, state.buffers, memory, rows, micro_keys, weight_sum)

    (_, (totals, memory)), grads = jax.value_and_grad(loss_fn, has_aux=True)(optimizer.learned(state.params))
    return grads, totals, memory

  rows = (batch.tokens_BT, batch.targets_BT, batch.weights_BT, batch.segment)
  if num_micro == 1:
    grads, totals, memory = micro_step(memory, rows, 0)
  else:
    grads, totals, memory = _accumulate(micro_step, memory, rows, num_micro)
  if not carries_memory(config):
    memory = ()
  return grads, totals, jax.lax.stop_gradient(memory)


def _micro_loss(
  config: Config, params: Any, buffers: Any, memory: Any, rows: tuple[Any, ...], keys: list[jax.Array],
  weight_sum: jax.Array,
) -> tuple[jax.Array, tuple[dict[str, Any], Any]]:
  tokens_BT, targets_BT, weights_BT, segment = rows
  nll_BT, output = decoder.Decoder(config.model).apply(
    {"params": params, "buffers": buffers}, tokens_BT, targets_BT, memory, segment, train=True,
    method=decoder.Decoder.score, rngs={"dropout": keys[DROPOUT], "sequence": keys[SEQUENCE]})
  nll = jnp.sum(nll_BT * weights_BT) / weight_sum
  losses = {name: ratio(pair) / config.train.accumulate for name, pair in output.losses.items()}
  totals = {"nll": nll, "losses": losses, "metrics": output.metrics, "statistics": output.statistics}
  return nll + sum(losses.values()), (totals, output.state)


def _accumulate(micro_step: Any, memory: Any, rows: tuple[Any, ...], num_micro: int) -> tuple[Any, dict[str, Any], Any]:
  """Sums gradients and totals over micro-batches, one at a time."""
  micro_memory = _split_memory(memory, num_micro)
  micro_rows = jax.tree.map(lambda field: _split_rows(field, 0, num_micro), rows)
  first = jax.tree.map(lambda field: field[0], (micro_memory, micro_rows))
  shapes = jax.eval_shape(micro_step, *first, 0)[:2]
  zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

  def body(sums: Any, item: tuple[Any, Any, jax.Array]) -> tuple[Any, Any]:
    grads, totals, memory = micro_step(*item)
    return jax.tree.map(jnp.add, sums, (grads, totals)), memory

  (grads, totals), micro_memory = jax.lax.scan(body, zeros, (micro_memory, micro_rows, jnp.arange(num_micro)))
  return grads, totals, _join_memory(micro_memory, memory)


def _split_rows(field: jax.Array, axis: int, num_micro: int) -> jax.Array:
  """[…, B, …] → [A, …, B/A, …] with row r at [r % A, …, r // A, …]."""
  shape = field.shape
  split = field.reshape(*shape[:axis], shape[axis] // num_micro, num_micro, *shape[axis + 1:])
  return jnp.moveaxis(split, axis + 1, 0)


def _split_memory(memory: Any, num_micro: int) -> Any:
  def split(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    return _split_rows(leaf, shape_letters(path, leaf).index("B"), num_micro)

  return jax.tree_util.tree_map_with_path(split, memory)


def _join_memory(micro_memory: Any, memory: Any) -> Any:
  def join(path: tuple[Any, ...], whole: jax.Array, split: jax.Array) -> jax.Array:
    axis = shape_letters(path, whole).index("B")
    return jnp.moveaxis(split, 0, axis + 1).reshape(whole.shape)

  return jax.tree_util.tree_map_with_path(join, memory, micro_memory)
