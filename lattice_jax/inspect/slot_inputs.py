"""The inputs that a model's Lattice layers receive while it reads one text. The slot audit is for Lattice alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.inspect.op_inputs import op_inputs, read_op_inputs
from lattice_jax.inspect.slot_trace import SlotInputs
from lattice_jax.memories.lattice.config import LatticeConfig
from lattice_jax.memories.lattice.op import Rule
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
  """Layer → its inputs while the model reads `tokens_T`, eos first, as one document from an empty memory."""
  tokens_BT = np.asarray(tokens_T, np.int32)[None]
  sown = read_op_inputs(model, {"params": params, "buffers": buffers}, tokens_BT, whole_segment(*tokens_BT.shape))
  return {layer: _inputs(op_inputs(sown, model, layer)) for layer in lattice_layers(model)}


def _inputs(inputs: dict[str, Any]) -> SlotInputs:
  k_THM, v_THV, step_TH, forget_TH = (
    None if inputs[name] is None else inputs[name][0] for name in ("k", "v", "step", "forget"))
  return SlotInputs(k_THM, v_THV, step_TH, forget_TH, inputs["start"])
