"""The inputs that a model's Lattice layers receive while it reads one text. The slot audit is for Lattice alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.inspect.slot_trace import SlotInputs
from lattice_jax.memories.lattice.config import LatticeConfig
from lattice_jax.memories.lattice.op import Rule
from lattice_jax.models.decoder import Decoder, init_state, num_groups
from lattice_jax.types import whole_segment


def lattice_layers(model: ModelConfig) -> list[int]:
  """The layers whose memory is Lattice, counted bottom up from 0. Raises ValueError if there is none."""
  layers = [layer for layer in range(model.layers) if model.pattern[layer % len(model.pattern)] == "lattice"]
  if not layers:
    raise ValueError(
      f"model.pattern={','.join(model.pattern)} has no memory with slots to audit; give the workdir of a run whose "
      "pattern names 'lattice'.")
  return layers


def rule_of(config: LatticeConfig) -> Rule:
  """The rule by which a token changes the slots of this model."""
  return Rule(config.objective, config.state, config.projected)


def read_inputs(model: ModelConfig, params: Any, buffers: Any, tokens_T: np.ndarray) -> dict[int, SlotInputs]:
  """Layer → its inputs while the model reads `tokens_T`, eos first, as one document from an empty memory.

  The layers report them in Flax's collection "intermediates", which exists only when it is requested.
  """
  # A scan over layers would have to stack the collection in training too; unrolled layers need no such support.
  plain = dataclasses.replace(model, scan_layers=False, remat="none")
  variables = {"params": unstack(params, model), "buffers": unstack(buffers, model)}
  state, segment = init_state(plain, 1), whole_segment(1, len(tokens_T))

  @jax.jit
  def read(variables: Any) -> Any:
    _, sown = Decoder(plain).apply(
      variables, jnp.asarray(tokens_T, jnp.int32)[None], state, segment, mutable=["intermediates"])
    return sown["intermediates"]

  sown = read(variables)
  return {layer: _inputs(sown, model, layer) for layer in lattice_layers(model)}


def _inputs(sown: Any, model: ModelConfig, layer: int) -> SlotInputs:
  group, block = divmod(layer, len(model.pattern))
  (inputs,) = sown[f"group_{group}"][f"block_{block}"]["memory"]["op_inputs"]
  k_THM, v_THV, step_TH, forget_TH = (
    None if inputs[name] is None else inputs[name][0] for name in ("k", "v", "step", "forget"))
  return SlotInputs(k_THM, v_THV, step_TH, forget_TH, inputs["start"])


def unstack(tree: Any, model: ModelConfig) -> Any:
  """Turns the variables of stacked layers into those of unrolled layers."""
  if "groups" not in tree:
    return tree
  rest = {name: part for name, part in tree.items() if name != "groups"}
  return rest | {
    f"group_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], tree["groups"]) for n in range(num_groups(model))}
