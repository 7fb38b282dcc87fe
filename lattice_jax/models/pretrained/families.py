"""From the config.json of a Llama-family model to ours.

The families differ in little: Qwen2 has biases on queries, keys and values, Mistral and some Qwen2 see a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lattice_jax.config import ModelConfig
from lattice_jax.config_checks import parse_config

# What each family's published config means where config.json is silent.
_LLAMA = {
  "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
  "hidden_act": "silu", "rope_theta": 10_000.0, "rope_scaling": None, "rope_parameters": None,
  "partial_rotary_factor": 1.0, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False,
  "sliding_window": None, "use_sliding_window": True, "max_window_layers": 0, "layer_types": None}
FAMILIES: dict[str, dict[str, Any]] = {
  "llama": _LLAMA,
  "mistral": _LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
  "qwen2": _LLAMA | {
    "num_key_value_heads": 32, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28,
    "max_position_embeddings": 32_768},
}
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MEMORIES = {"full_attention": "attention", "sliding_attention": "window"}


def read_family(given: Mapping[str, Any], path: Path, *, dtype: str, context_len: int = 0) -> tuple[ModelConfig, int]:
  """(our config, tokens that the model can read) of a config.json.

  `context_len` > 0 asks for another length; only «dynamic» rotary scaling depends on it.

  Raises:
    ValueError: a family or a variant that our decoder has not, or values that cannot be.
  """
  family = given.get("model_type")
  if family not in tuple(FAMILIES):
    raise ValueError(
      f"{path} holds a model of type {family!r}; models of type {', '.join(FAMILIES)} can be read.")
  config = FAMILIES[family] | dict(given)
  _check_needed(config, path)
  heads = config["num_attention_heads"]
  context_len = context_len or config["max_position_embeddings"]
  key_dim = config["head_dim"] or config["hidden_size"] // heads
  pattern = _pattern(config, path)
  biases = {"qwen2": "qkv", "mistral": "none", "llama": "all" if config["attention_bias"] else "none"}
  model = {
    "vocab": config["vocab_size"], "dim": config["hidden_size"], "layers": config["num_hidden_layers"],
    "pattern": pattern, "block": "mlp", "mlp": "swiglu", "mlp_dim": config["intermediate_size"],
    "norm_eps": config["rms_norm_eps"], "tied_embeddings": bool(config["tie_word_embeddings"]), "head_bias": False,
    "dtype": dtype,
    "attention": {
      "heads": heads, "kv_heads": config["num_key_value_heads"] or heads, "key_dim": key_dim, "value_dim": key_dim,
      "window": config["sliding_window"] if "window" in pattern else 0, "bias": biases[family],
      **_rope(config, path, key_dim, context_len)}}
  try:
    return parse_config({"model": model}).model, context_len
  except ValueError as error:
    raise ValueError(f"{path} describes a model that cannot be: {error}") from error


def _check_needed(config: Mapping[str, Any], path: Path) -> None:
  for name in (*_NEEDED, "max_position_embeddings"):
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise ValueError(f"{path} says {name}={value!r}; it must say a whole number of at least 1.")
  if config["hidden_act"] != "silu" or config["mlp_bias"] or config["partial_rotary_factor"] != 1.0:
    raise ValueError(
      f"{path} has hidden_act={config['hidden_act']!r}, mlp_bias={config['mlp_bias']} and "
      f"partial_rotary_factor={config['partial_rotary_factor']}; only 'silu', no MLP bias and 1.0 can be read.")


def _pattern(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
  """The shortest pattern of memories that the layers repeat."""
  layers, window = config["num_hidden_layers"], config["sliding_window"]
  if layers > 10_000:
    raise ValueError(f"{path} says num_hidden_layers={layers:,}; no model has more than 10,000.")
  if config["layer_types"]:
    kinds = config["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in tuple(_MEMORIES) for kind in kinds):
      raise ValueError(
        f"{path} must name in layer_types as many layers as there are, {layers}, each {' or '.join(_MEMORIES)}.")
    memories = tuple(_MEMORIES[kind] for kind in kinds)
  else:
    first = layers
    if window and config["use_sliding_window"]:
      first = config["max_window_layers"]
      if not isinstance(first, int):
        raise ValueError(f"{path} says max_window_layers={first!r}; it must say from which layer on there are windows.")
    memories = tuple("window" if layer >= first else "attention" for layer in range(layers))
  length = next(n for n in range(1, layers + 1) if layers % n == 0 and memories == memories[:n] * (layers // n))
  return memories[:length]


def _rope(config: Mapping[str, Any], path: Path, key_dim: int, context_len: int) -> dict[str, Any]:
  """rope_theta and rope_scaling. Newer files hold both in rope_parameters, older ones call rope_type «type»."""
  given = config["rope_parameters"] or config["rope_scaling"] or {}
  if not isinstance(given, dict):
    raise ValueError(f"{path} says rope_scaling={given!r}; it must say an object or null.")
  theta = positive_number({"rope_theta": config["rope_theta"]} | given, "rope_theta", path)
  kind = given.get("rope_type") or given.get("type") or "default"
  if kind == "default":
    return {"rope_theta": theta}
  if kind not in ("linear", "dynamic", "llama3", "yarn"):
    raise ValueError(
      f"{path} has rotary scaling of type {kind!r}; default, linear, dynamic, llama3 and yarn can be read.")
  factor, trained_len = positive_number(given, "factor", path), config["max_position_embeddings"]
  if kind == "dynamic":
    stretch = factor * max(context_len, trained_len) / trained_len - (factor - 1)
    return {"rope_theta": theta * stretch ** (key_dim / (key_dim - 2))}
  scaling = {"kind": kind, "factor": factor, "original_len": trained_len}
  for name, ours in (
    ("original_max_position_embeddings", "original_len"), ("low_freq_factor", "low_freq_factor"),
    ("high_freq_factor", "high_freq_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
    if given.get(name) is not None:
      scaling[ours] = given[name]
  if kind == "yarn":
    scaling["gain"] = _yarn_gain(given, factor, path)
  return {"rope_theta": theta, "rope_scaling": scaling}


def _yarn_gain(given: Mapping[str, Any], factor: float, path: Path) -> float:
  """What queries and keys are multiplied with, so that attention over more tokens stays as sharp."""
  def gain(scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

  if given.get("attention_factor") is not None:
    return positive_number(given, "attention_factor", path)
  if given.get("mscale") and given.get("mscale_all_dim"):
    return gain(positive_number(given, "mscale", path)) / gain(positive_number(given, "mscale_all_dim", path))
  return gain(1.0)


def positive_number(given: Mapping[str, Any], name: str, path: Path) -> float:
  """A number of the rotary embedding. Raises ValueError where it is missing or something else."""
  value = given.get(name)
  if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
    raise ValueError(f"{path} says {name}={value!r} in its rotary embedding; it must say a positive number.")
  return float(value)
