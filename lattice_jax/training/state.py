"""The state of training: everything that an update reads and writes except the batch."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from lattice_jax.config import Config
from lattice_jax.models import decoder
from lattice_jax.sharding import memory_axes, param_axes, param_shardings, state_shardings, unbox
from lattice_jax.training.optimizer import Optimizer, decay_mask, learns_mask, stacked_mask


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds; together with the config it determines the rest of the run.

  step: int32, finished updates.
  skipped: int32, how many of them changed nothing else because their loss or gradient was not finite.
  memory: the recurrent state of the batch's rows; () if every update starts from an empty memory.
  """

  step: jax.Array
  skipped: jax.Array
  params: Any
  opt_state: Any
  buffers: Any
  memory: Any


def carries_memory(config: Config) -> bool:
  """Whether an update starts from the memory that the one before it left."""
  return config.data.update_len < config.data.seq_len or config.data.rows == "documents"


def make_optimizer(config: Config) -> Optimizer:
  """The optimizer of a config; it needs the parameters' boxes, not their values."""
  params = decoder.abstract_variables(config.model)["params"]
  return Optimizer(
    config.optimizer, config.train.steps, decay_mask(params), stacked_mask(params),
    learns_mask(params, config.model, config.optimizer.last_layers))


def abstract_state(config: Config, mesh: Mesh | AbstractMesh) -> TrainState:
  """The shapes, dtypes and shardings of the state, into which a checkpoint is restored."""
  boxed = _boxed_shapes(config)
  shardings = _shardings(boxed, config, mesh)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), unbox(boxed), shardings)


def create_state(config: Config, mesh: Mesh, given: dict[str, Any] | None = None) -> TrainState:
  """The state before the first update, created in its shards; its values do not depend on the mesh.

  given: fields that exist already, such as the parameters of another model, and are not created.
  """
  given = given or {}
  others = dict.fromkeys(given, ())
  shardings = _shardings(_boxed_shapes(config), config, mesh).replace(**others)
  with jax.set_mesh(mesh):
    state = jax.jit(lambda: unbox(initial_state(config)).replace(**others), out_shardings=shardings)()
  return state.replace(**given)


def initial_state(config: Config) -> TrainState:
  """The state before the first update, with boxed arrays; call it under `jax.jit`."""
  variables = decoder.init_variables(config.model, jax.random.key(config.train.seed))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    params=variables["params"],
    opt_state=make_optimizer(config).init(variables["params"]),
    buffers=variables["buffers"],
    memory=decoder.init_state(config.model, config.data.batch) if carries_memory(config) else (),
  )


def state_axes(config: Config, mesh: Mesh | AbstractMesh) -> TrainState:
  """What the axes of each array of the state are, and over which axes of the mesh they should be split."""
  boxed = _boxed_shapes(config)
  return param_axes(boxed.replace(memory=()), mesh, config.mesh).replace(memory=memory_axes(boxed.memory))


@functools.lru_cache(maxsize=4)
def _boxed_shapes(config: Config) -> TrainState:
  return jax.eval_shape(lambda: initial_state(config))


def _shardings(boxed: TrainState, config: Config, mesh: Mesh | AbstractMesh) -> TrainState:
  without_memory = param_shardings(boxed.replace(memory=()), mesh, config.mesh)
  return without_memory.replace(memory=state_shardings(boxed.memory, mesh))
