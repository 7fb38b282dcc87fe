"""Everything an update reads and writes beside the batch, made on its devices from the start."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lattice_jax.config import Config
from lattice_jax.models import decoder
from lattice_jax.sharding import param_shardings, replicated, state_shardings, unbox
from lattice_jax.training.optimizer import Optimizer, decay_mask, stacked_mask


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds; with the config and the step number it determines the rest of the run.

  step: int32, updates done.
  skipped: int32, how many of them left everything else unchanged because their loss or gradient was not finite.
  memory: the recurrent state of the batch's rows; () where every update starts from an empty one.
  """

  step: jax.Array
  skipped: jax.Array
  params: Any
  opt_state: Any
  buffers: Any
  memory: Any


def carries_memory(config: Config) -> bool:
  """Whether the memory at the end of an update is the start of the next."""
  return config.data.update_len < config.data.seq_len or config.data.rows == "documents"


def make_optimizer(config: Config) -> Optimizer:
  """The optimizer of a config; its masks need the parameters' logical axes only."""
  boxed = jax.eval_shape(lambda: decoder.init_variables(config.model, jax.random.key(0)))
  params = boxed["params"]
  return Optimizer(config.optimizer, config.train.steps, decay_mask(params), stacked_mask(params))


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings of the state: what a checkpoint is restored into."""
  boxed = jax.eval_shape(lambda: initial_state(config))
  shardings = _shardings(boxed, config, mesh)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), unbox(boxed), shardings)


def create_state(config: Config, mesh: Mesh, given: dict[str, Any] | None = None) -> TrainState:
  """The state before the first update; no array ever stands whole on one device, values do not depend on the mesh.

  given: fields that are there already, such as the parameters of another model; random ones are then not made.
  """
  given = given or {}
  others = dict.fromkeys(given, ())
  shardings = _shardings(jax.eval_shape(lambda: initial_state(config)), config, mesh).replace(**others)
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


def _shardings(boxed: TrainState, config: Config, mesh: Mesh) -> TrainState:
  return TrainState(
    step=replicated(mesh),
    skipped=replicated(mesh),
    params=param_shardings(boxed.params, mesh, config.mesh),
    opt_state=param_shardings(boxed.opt_state, mesh, config.mesh),
    buffers=param_shardings(boxed.buffers, mesh, config.mesh),
    memory=state_shardings(boxed.memory, mesh),
  )
