"""Our config of a Llama-family model, from its config.json.

The families hardly differ: Qwen2 has biases on queries, keys and values; Mistral and some Qwen2 attend to a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lattice_jax.config import ModelConfig
from lattice_jax.config_checks import parse_config
from lattice_jax.models.pretrained.metadata import CONFIG, check_keys, flag, positive_number, whole_number
from lattice_jax.models.pretrained.rope_config import read_rope
from lattice_jax.shown import shown

# The defaults of each family, for what config.json does not say.
_LLAMA = {
  "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
  "rope_scaling": None, "rope_parameters": None, "max_position_embeddings": 2048, "attention_bias": False,
  "sliding_window": None, "use_sliding_window": True, "max_window_layers": 0, "layer_types": None}
FAMILIES: dict[str, dict[str, Any]] = {
  "llama": _LLAMA,
  "mistral": _LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
  "qwen2": _LLAMA | {
    "num_key_value_heads": 32, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28,
    "max_position_embeddings": 32_768},
}
_MAX_LAYERS = 1_000
_MEMORIES = {"full_attention": "attention", "sliding_attention": "window"}


def read_model_config(
    given: Mapping[str, Any], path: Path, *, dtype: str, context_len: int = 0) -> tuple[ModelConfig, int]:
  """(our config, the number of tokens that the model can read) for a config.json.

  `context_len` > 0 asks for another length, on which only «dynamic» rotary scaling depends.

  Raises ValueError if our decoder lacks the family or variant, or values are impossible.
  """
  family = given.get("model_type")
  if family not in tuple(FAMILIES):
    raise ValueError(
      f"{path} holds a model of type {shown(family)}; models of type {', '.join(FAMILIES)} can be read.")
  source = str(path)
  check_keys(given, CONFIG[family], source)
  config = FAMILIES[family] | dict(given)
  size = {
    name: whole_number(config, name, source)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
  heads = size["num_attention_heads"]
  key_dim, kv_heads = (
    default if config[name] is None else whole_number(config, name, source)
    for name, default in (("head_dim", size["hidden_size"] // heads), ("num_key_value_heads", heads)))
  layer_types = _layer_types(config, source)
  rope, context_len = read_rope(config, set(layer_types), source, key_dim=key_dim, context_len=context_len)
  bias = "qkv" if family == "qwen2" else "all" if flag(config, "attention_bias", source) else "none"
  model = {
    "vocab": size["vocab_size"], "dim": size["hidden_size"], "layers": size["num_hidden_layers"],
    "pattern": _pattern(layer_types), "block": "mlp", "mlp": "swiglu", "mlp_dim": size["intermediate_size"],
    "norm_eps": positive_number(config, "rms_norm_eps", source, below=1),
    "tied_embeddings": flag(config, "tie_word_embeddings", source), "head_bias": False, "dtype": dtype,
    "attention": {
      "heads": heads, "kv_heads": kv_heads, "key_dim": key_dim, "value_dim": key_dim, "bias": bias,
      # a window longer than all texts equals one as long as the longest text
      "window": min(config["sliding_window"], context_len) if "sliding_attention" in layer_types else 0, **rope}}
  try:
    return parse_config({"model": model}).model, context_len
  except ValueError as error:
    raise ValueError(f"{path} describes an impossible model: {error}") from error


def _layer_types(config: Mapping[str, Any], source: str) -> list[str]:
  """full_attention or sliding_attention for each layer."""
  layers = config["num_hidden_layers"]
  if layers > _MAX_LAYERS:
    raise ValueError(f"{source} says num_hidden_layers={layers:,}; no model has more than {_MAX_LAYERS:,}.")
  has_windows = flag(config, "use_sliding_window", source) and config["sliding_window"] is not None
  if config["layer_types"] is None:
    first = whole_number(config, "max_window_layers", source, least=0) if has_windows else layers
    types = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
  else:
    types = config["layer_types"]
    if not isinstance(types, list) or len(types) != layers or not all(kind in tuple(_MEMORIES) for kind in types):
      raise ValueError(
        f"{source} must name in layer_types as many layers as there are, {layers}, each {' or '.join(_MEMORIES)}.")
    if "sliding_attention" in types and not has_windows:
      raise ValueError(
        f"{source} names sliding_attention in layer_types, but use_sliding_window or sliding_window says that there is "
        "none; correct one of them.")
  if "sliding_attention" in types:
    whole_number(config, "sliding_window", source)
  return types


def _pattern(layer_types: list[str]) -> tuple[str, ...]:
  """The shortest pattern of memories whose repetition gives the layers."""
  layers, memories = len(layer_types), tuple(_MEMORIES[kind] for kind in layer_types)
  length = next(n for n in range(1, layers + 1) if layers % n == 0 and memories == memories[:n] * (layers // n))
  return memories[:length]
