"""What a memory's folder tells the rest of the code: one record, and the contract that its layer keeps.

A memory layer is an `nn.Module` with `init_state(batch, max_len=0) -> state`, which needs no parameters, and
`__call__(x_BTD, state, segment, *, train) -> LayerOutput`. One call serves training, prefill and decoding. Its laws,
which tests/contract checks for every record:

* Any split of a sequence into calls gives the same outputs and the same final state.
* An output depends on the inputs that `visible` names, and on no other.
* A new document forgets everything; invalid tokens change nothing; rows do not depend on one another.
* The state keeps its structure, shapes and dtypes; what it sums over time is float32.
* Gradients with respect to inputs, parameters and the initial state are those of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.config import ModelConfig
from lattice_jax.memories.cases import Case, Sizes
from lattice_jax.memories.fla import FlaWeights, Params
from lattice_jax.memories.multiply_adds import full_rank_gate, recurrent_frame


@dataclass(frozen=True)
class Carried:
  """How states that are too large to be copied ride through the scan over layers: as its carry, written in place.

  rides: whether this state does; one without room need not.
  enter: (stack of all layers' states, layer) → the state that the layer is called with.
  leave: the state that the layer returned → the stack.
  finish: (model, stacks by block, tokens of the call) → the stacks after the last layer.
  """

  rides: Callable[[Any], bool]
  enter: Callable[[Any, jax.Array], Any]
  leave: Callable[[Any], Any]
  finish: Callable[[ModelConfig, dict[str, Any], int], dict[str, Any]]


@dataclass(frozen=True)
class Windowed:
  """How windows of a memory's heads are changed once a prompt has been read, in a model of that memory alone.

  check: raises ValueError where they cannot be.
  rungs: (model, max_len) → (sinks, windows that hide something of a text of so many tokens, ascending).
  with_windows: (model, the window of every key/value head, layer by layer; 0 = all) → the model with these.
  from_full: (model, state, max_len) → its state, from one in which softmax attention has kept all tokens.
  lower: (model before, model after, state, max_len) → the state under smaller windows.
  far_share: state of a block → (tokens of the documents so far, their shares of attention that was far, summed; None
    where nothing stands for what is far), [L, B].
  """

  check: Callable[[ModelConfig], None]
  rungs: Callable[[ModelConfig, int], tuple[int, tuple[int, ...]]]
  with_windows: Callable[[ModelConfig, tuple[tuple[int, ...], ...]], ModelConfig]
  from_full: Callable[[ModelConfig, Any, int], Any]
  lower: Callable[[ModelConfig, ModelConfig, Any, int], Any]
  far_share: Callable[[Any], tuple[jax.Array, jax.Array | None]]


@dataclass(frozen=True)
class Fitted:
  """Parameters of a memory that attends, beside those of attention, which a pretrained model lacks.

  field: of the model section, such as "local.maps", that names the file in which they are; runs have their own.
  read: (model, digest of the pretrained weights) → parameter → array [L, …] over all layers of the model; {} where the
    config asks for no such parameters. Raises ValueError where it does and no file is named, or it does not fit.
  """

  field: str
  read: Callable[[ModelConfig, str], dict[str, Any]]


def stack_alike(layer: nn.Module, batch: int, max_len: int, layers: int) -> Any:
  """The states of so many layers, which are the same."""
  state = layer.init_state(batch, max_len)
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (layers, *x.shape)), state)


# how calls go over tokens on several devices (`lattice_jax.ops.sequence`), in words for logs
EXCHANGES = {
  "relay": "states from device to device",
  "prefix": "what each makes of a state, as one matrix",
  "sums": "sums by code, and the last tokens of the device before",
  "halo": "the last tokens of the device before",
  "gather": "keys and values of all devices",
  "anchors": "the last tokens of the devices before, and of all devices what closed segments leave",
}


@dataclass(frozen=True)
class Memory:
  """One memory: how its layer is made, what it costs, and where it differs from a recurrent state of fixed size.

  make: (model, name=None) → the layer.
  multiply_adds: (model, tokens of a sequence) → multiply-adds of one layer's forward pass, per token.
  cases: of `self_check`: the memory's op at sizes of choice. Memories that share an op share the function.
  check: raises ValueError where the model config cannot be built.
  visible: (model, query, key) → whether the output at `query` may depend on the input at `key` within a document.
  update_buffers: (model, buffers, statistics, rng) → buffers after an optimizer step, for one layer.
  needs_token_cache: whether the state must be given a `max_len` to remember what went before the call.
  takes_policy: whether `model.cache` says what stays of that cache.
  is_attention: whether its parameters are those of softmax attention (`attention_frame`), in whose place it can stand.
  protects: model → tokens of a document that may be marked as protected; None of a memory that reads no marks.
  marks_after: model → tokens without a mark after which the memory marks one itself; None of one that never does.
  composes_kernels: whether its op is made of several calls of kernels that are not its own, so that only the op itself
    shows whether it compiles.
  block_field: the config field that holds the tokens of its block; training lengths must be a multiple of it, the layer
    itself takes any length.
  exchange: what devices that share the tokens of a row hand to one another, a key of `EXCHANGES`.
  reach: model → tokens that each of these devices must have at least.
  position_unit: model → tokens by whose multiples its loss by position is reported.
  resolve: model → the model with what its config names by a file, whose content takes the name's place; raises
    ValueError where there is no such file, or it does not fit.
  at_block: (model, block of the pattern) → the model as the layers of that block take it.
  init_stack: (layer, batch, max_len, layers) → the states of a stack of layers that have read nothing.
  fitted: see `Fitted`; None of a memory whose parameters are never more than those of attention.
  from_fla: (weights of a layer of flash-linear-attention, ε of its norm, whether its steps go up to two) → the layer
    and its parameters; None where that library has no such layer.
  windowed: see `Windowed`; None of a memory whose heads have no windows of their own.
  carried: see `Carried`; None where the scan over layers takes states in and gives them out.
  """

  make: Callable[..., nn.Module]
  multiply_adds: Callable[[ModelConfig, int], float]
  cases: Callable[[Sizes], Iterator[Case]]
  check: Callable[[ModelConfig], None] = lambda model: None
  visible: Callable[[ModelConfig, int, int], bool] = lambda model, query, key: key <= query
  update_buffers: Callable[[ModelConfig, Any, Any, jax.Array], Any] = lambda model, buffers, statistics, rng: buffers
  needs_token_cache: bool = False
  takes_policy: bool = False
  is_attention: bool = False
  protects: Callable[[ModelConfig], int] | None = None
  marks_after: Callable[[ModelConfig], int] | None = None
  composes_kernels: bool = False
  block_field: str | None = None
  exchange: str = "relay"
  reach: Callable[[ModelConfig], int] = lambda model: 1
  position_unit: Callable[[ModelConfig], int] | None = None
  resolve: Callable[[ModelConfig], ModelConfig] = lambda model: model
  at_block: Callable[[ModelConfig, int], ModelConfig] = lambda model, block: model
  init_stack: Callable[[nn.Module, int, int, int], Any] = stack_alike
  fitted: Fitted | None = None
  from_fla: Callable[[FlaWeights, float, bool], tuple[nn.Module, Params]] | None = None
  windowed: Windowed | None = None
  carried: Carried | None = None


def maker(layer: Callable[..., nn.Module], section: str) -> Callable[..., nn.Module]:
  """`make` of a layer that takes its section of the config, a dtype and an implementation."""

  def make(model: ModelConfig, name: str | None = None) -> nn.Module:
    return layer(getattr(model, section), dtype=model.dtype, impl=model.impl, name=name)

  return make


def recurrent_memory(
  layer: Callable[..., nn.Module], section: str, *, cases: Callable[[Sizes], Iterator[Case]],
  gates: Callable[[int, Any], float], passes: Callable[[Any], float], key_dim: str = "key_dim",
  output_gate: Callable[[int, Any], float] = full_rank_gate,
  check: Callable[[ModelConfig], None] = lambda model: None,
  from_fla: Callable[[FlaWeights, float, bool], tuple[nn.Module, Params]] | None = None,
  shared: Callable[[int, Any], float] | None = None, exchange: str = "relay",
) -> Memory:
  """The record of a layer in the frame of `recurrent.py`, which needs to say only what goes on inside the frame.

  gates: (width of the model, section of the config) → multiply-adds that make the gates of a token.
  passes: section of the config → multiply-adds of the recurrence itself, all heads together.
  output_gate: as `gates`, of the gate on the output, where it is not the frame's.
  key_dim: the field that holds the width of a head's queries and keys.
  shared: as `gates`, what a faithful layer has less than the frame, because some of it is shared.
  """

  def multiply_adds(model: ModelConfig, length: int) -> float:
    del length
    config = getattr(model, section)
    frame = recurrent_frame(model.dim, config, getattr(config, key_dim)) + output_gate(model.dim, config)
    if shared is not None and config.faithful:
      frame -= shared(model.dim, config)
    return frame + gates(model.dim, config) + passes(config)

  return Memory(
    make=maker(layer, section), multiply_adds=multiply_adds, cases=cases, check=check, from_fla=from_fla,
    exchange=exchange, reach=lambda model: max(1, getattr(model, section).conv_width - 1))
