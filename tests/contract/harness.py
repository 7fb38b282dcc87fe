"""A memory layer with fixed variables, driven by one compiled function per input shape.

`Form.pull` returns the layer's output together with the gradient of a linear projection of it. Splits are
differentiated by chaining pullbacks by hand, so that every law shares the same few compiled shapes. What is around
them is NumPy: JAX would compile every slice and sum of every shape, which took longer than the layers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.memories.memory import Memory
from lattice_jax.types import Segment, slice_time, whole_segment
from tests.contract.memories import MAX_LEN, ROWS_PER_BATCH, Row

State = Any

# The laws are about the program, not about LLVM: without these passes it compiles ten times as fast.
_CPU_OPTIONS = {
  "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True,
  # an option that JAX 0.11 no longer has
  **({"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {})}


@flax.struct.dataclass
class Pulled:
  """One call: what came out, and the gradients of the projection that `Form.pull` was given."""

  y_BTD: np.ndarray
  state: State
  losses: dict[str, Any]
  statistics: dict[str, Any]
  d_params: Any
  d_x_BTD: np.ndarray
  d_state: dict[str, np.ndarray]  # by path; float leaves only


class Form:
  """One implementation of one memory: its layer, its variables, its compiled `pull`."""

  def __init__(self, name: str, memory: Memory, model: ModelConfig, variables: Any):
    self.label = f"{name} {model.impl} {model.dtype}"
    self.memory, self.model = memory, model
    self.layer = memory.make(model)
    self.dtype = jnp.dtype(model.dtype)
    self.variables = variables
    self.traces = 0
    self._pull = quick_jit(self._trace)

  def init_state(self, batch: int = ROWS_PER_BATCH, max_len: int = MAX_LEN) -> State:
    return self.layer.init_state(batch, max_len)

  def pull(
    self, x_BTD: np.ndarray, state: State, segment: Segment, d_y_BTD: np.ndarray | None = None,
    d_state: dict[str, np.ndarray] | None = None, loss_weight: float = 0.0,
  ) -> Pulled:
    """Gradients of Σ y·d_y + Σ state·d_state + loss_weight · Σ losses; a cotangent left out is zero."""
    return jax.device_get(self.call(x_BTD, state, segment, d_y_BTD, d_state, loss_weight))

  def call(self, x_BTD, state, segment, d_y_BTD=None, d_state=None, loss_weight=0.0) -> Pulled:
    """As `pull`, but JAX's own arrays."""
    d_y_BTD = np.zeros(x_BTD.shape, np.float32) if d_y_BTD is None else d_y_BTD
    if d_state is None:
      d_state = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in float_leaves(state).items()}
    return self._pull(self.variables, x_BTD.astype(self.dtype), state, segment, d_y_BTD, d_state,
                      np.float32(loss_weight))

  def apply(self, variables: Any, x_BTD: jax.Array, state: State, segment: Segment) -> Any:
    """The layer in training mode with every dropout rate at zero, so that losses and statistics appear."""
    rngs = {"dropout": jax.random.key(0), "sequence": jax.random.key(1)}
    return self.layer.apply(variables, x_BTD, state, segment, train=True, rngs=rngs)

  def _trace(self, variables, x_BTD, state, segment, d_y_BTD, d_state, loss_weight) -> Pulled:
    self.traces += 1

    def project(params, x_BTD, floats):
      out = self.apply({**variables, "params": params}, x_BTD, replace_floats(state, floats), segment)
      total = jnp.sum(out.y_BTD.astype(jnp.float32) * d_y_BTD)
      for path, leaf in float_leaves(out.state).items():
        total += jnp.sum(leaf.astype(jnp.float32) * d_state[path])
      return total + loss_weight * sum(value for value, _ in out.losses.values()), out

    grad = jax.grad(project, argnums=(0, 1, 2), has_aux=True)
    (d_params, d_x_BTD, d_floats), out = grad(variables["params"], x_BTD, float_leaves(state))
    return Pulled(out.y_BTD, out.state, out.losses, out.statistics, d_params, d_x_BTD, d_floats)


def quick_jit(function: Callable, *static: str) -> Callable:
  """`jax.jit` that does not spend its time on optimising. static: names of static arguments."""
  options = _CPU_OPTIONS if jax.default_backend() == "cpu" else None
  return jax.jit(function, static_argnames=static, compiler_options=options)


def form(row: Row, *, impl: str = "xla", dtype: str = "float32", variant: str = "") -> Form:
  """The form of a row, made once; all forms of one variant share their variables."""
  return _form(row, impl, dtype, variant)


@functools.cache  # of values without defaults: the same form by other arguments would be compiled again
def _form(row: Row, impl: str, dtype: str, variant: str) -> Form:
  same = {name: (of, model) for name, of, model in row.forms}
  of, model = same[variant] if variant in same else (variant, {"": row.model, **dict(row.variants)}[variant])
  name = f"{row.name}/{variant}" if variant else row.name
  if variant in same or (impl, dtype) != ("xla", "float32"):
    variables = form(row, variant=of).variables
  else:
    variables = _variables(row, model)
  return Form(name, row.memory, dataclasses.replace(model, impl=impl, dtype=dtype), variables)


def chain(
  form: Form, x_BTD: np.ndarray, state: State, segment: Segment, d_y_BTD: np.ndarray, d_state: dict[str, np.ndarray],
  pieces: Sequence[int], loss_weight: float = 0.0,
) -> Pulled:
  """`Form.pull` of the whole, computed in pieces that hand the state on, and its gradient back."""
  bounds = list(itertools.pairwise(itertools.accumulate(pieces, initial=0)))
  assert bounds[-1][1] == x_BTD.shape[1]
  states = [state]
  for start, stop in bounds[:-1]:
    states.append(form.pull(x_BTD[:, start:stop], states[-1], slice_time(segment, start, stop)).state)
  pulled = []
  for (start, stop), before in zip(reversed(bounds), reversed(states), strict=True):
    pulled.insert(0, form.pull(x_BTD[:, start:stop], before, slice_time(segment, start, stop),
                               d_y_BTD[:, start:stop], d_state, loss_weight))
    d_state = pulled[0].d_state
  return Pulled(
    y_BTD=np.concatenate([part.y_BTD for part in pulled], 1), state=pulled[-1].state,
    losses=_total([part.losses for part in pulled]), statistics=_total([part.statistics for part in pulled]),
    d_params=_total([part.d_params for part in pulled]),
    d_x_BTD=np.concatenate([part.d_x_BTD for part in pulled], 1), d_state=d_state)


def float_leaves(state: State) -> dict[str, jax.Array]:
  """The leaves that have a gradient, by path."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)}


def replace_floats(state: State, floats: dict[str, jax.Array]) -> State:
  def pick(path, leaf):
    path = jax.tree_util.keystr(path)
    return floats[path] if path in floats else leaf

  return jax.tree_util.tree_map_with_path(pick, state)


def normal(seed: int, shape: Sequence[int]) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def normal_like(seed: int, tree: Any) -> Any:
  """fp32 normals in the shapes of `tree`."""
  leaves, structure = jax.tree.flatten(tree)
  return jax.tree.unflatten(structure, [normal(seed + i, leaf.shape) for i, leaf in enumerate(leaves)])


def init_boxed(layer: Any, model: ModelConfig, rng: jax.Array) -> Any:
  """The variables of a layer, in the boxes that name their axes."""
  return layer.init(rng, jnp.zeros((1, 2, model.dim)), layer.init_state(1, 2), whole_segment(1, 2), train=False)


def _variables(row: Row, model: ModelConfig) -> Any:
  """Initial values plus noise, so that no parameter is at zero, where a missing path would not show."""
  layer = row.memory.make(model)
  variables = jax.device_get(meta.unbox(quick_jit(lambda rng: init_boxed(layer, model, rng))(jax.random.key(0))))
  params = variables["params"]
  params = jax.tree.map(lambda param, noise: param + np.float32(0.2) * noise, params, normal_like(100, params))
  return {**variables, "params": row.adjust(params)}


def _total(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: functools.reduce(np.add, leaves), *trees)
