"""A GGUF file as if it were a folder of safetensors: the same names, the same order within heads, a config.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.config import RopeScalingConfig
from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.layers.rope import scaled_frequencies
from lattice_jax.models.pretrained.families import positive_number
from lattice_jax.models.pretrained.tensors import EMBEDDING, HEAD

_OUTSIDE = {"token_embd.weight": EMBEDDING, "output.weight": HEAD, "output_norm.weight": "model.norm.weight"}
_IN_BLOCK = {
  "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_ROPE_FACTORS = "rope_freqs.weight"  # what the frequencies of a Llama 3.1 and later are divided by
_ARCHITECTURES = ("llama", "qwen2")


class GGUFWeights:
  """config: what its config.json would say. shapes: of every tensor, by the names of safetensors."""

  def __init__(self, path: Path):
    self.path = path
    self._file = GGUFFile(path)
    self.config = _config(self._file)
    # this architecture keeps pairs of the rotary embedding side by side; ours, as in safetensors, half a head apart
    self._is_interleaved = self.config["model_type"] == "llama"
    self._source = {_their_name(name): name for name in self._file.tensors if name != _ROPE_FACTORS}
    self.shapes = {name: self._file.tensors[source].shape for name, source in self._source.items()}

  def read(self, name: str) -> np.ndarray:
    """The tensor in float32."""
    tensor = self._file.read(self._source[name])
    if not self._is_interleaved:
      return tensor
    if ".q_proj." in name:
      return _halves_apart(tensor, self.config["num_attention_heads"])
    if ".k_proj." in name:
      return _halves_apart(tensor, self.config["num_key_value_heads"])
    return tensor


def _halves_apart(tensor: np.ndarray, heads: int) -> np.ndarray:
  return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _their_name(name: str) -> str:
  """The name in safetensors; unknown ones stay as they are, to be refused with the others that nobody asked for."""
  if name in _OUTSIDE:
    return _OUTSIDE[name]
  parts = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
  if not parts or parts[2] not in _IN_BLOCK:
    return name
  return f"model.layers.{int(parts[1])}.{_IN_BLOCK[parts[2]]}.{parts[3]}"


def _config(file: GGUFFile) -> dict[str, Any]:
  fields = file.fields
  family = file.text("general.architecture")
  if family not in _ARCHITECTURES:
    raise ValueError(
      f"{file.path} holds a model of architecture {family!r}; GGUF files of architecture {', '.join(_ARCHITECTURES)} "
      "can be read.")
  if fields.get("split.count") not in (None, 0, 1):
    raise ValueError(f"{file.path} is one of {fields['split.count']} parts; join them with `llama-gguf-split --merge`.")

  def field(name: str, default: Any = None) -> Any:
    key = f"{family}.{name}"
    value = fields[key] if key in fields else default
    if isinstance(value, (list, np.ndarray)):
      raise ValueError(f"{file.path} gives each layer its own {key}; only models whose layers are alike can be read.")
    return value

  theta = positive_number({"rope_theta": field("rope.freq_base", 10_000.0)}, "rope_theta", file.path)
  embedding = file.tensors["token_embd.weight"].shape if "token_embd.weight" in file.tensors else (0,)
  heads, head_dim = field("attention.head_count"), field("attention.key_length") or field("rope.dimension_count")
  if field("attention.value_length", head_dim) != head_dim or field("rope.dimension_count", head_dim) != head_dim:
    raise ValueError(
      f"{file.path} has heads whose keys, values and rotary part differ in width; all three must be {head_dim}.")
  return {
    "model_type": family, "vocab_size": embedding[0], "hidden_size": field("embedding_length"),
    "intermediate_size": field("feed_forward_length"), "num_hidden_layers": field("block_count"),
    "num_attention_heads": heads, "num_key_value_heads": field("attention.head_count_kv", heads),
    "head_dim": head_dim, "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
    "max_position_embeddings": field("context_length"), "rope_theta": theta,
    "rope_scaling": _rope_scaling(file, family, theta),
    "tie_word_embeddings": "output.weight" not in file.tensors,
    "attention_bias": "blk.0.attn_output.bias" in file.tensors,
    "sliding_window": field("attention.sliding_window"), "use_sliding_window": True, "max_window_layers": 0}


def _rope_scaling(file: GGUFFile, family: str, theta: float) -> dict[str, Any] | None:
  if _ROPE_FACTORS in file.tensors:
    return _llama3_scaling(file, theta)
  prefix, fields = f"{family}.rope.scaling.", file.fields
  kind = file.text(prefix + "type")
  if kind in (None, "none"):
    return None
  scaling = {"rope_type": kind}
  for theirs, name in (
    ("factor", "factor"), ("original_context_length", "original_max_position_embeddings"),
    ("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
    if prefix + theirs in fields:
      scaling[name] = fields[prefix + theirs]
  return scaling


def _llama3_scaling(file: GGUFFile, theta: float) -> dict[str, Any]:
  """The file holds the factors, not the rule they came from; all published models share its other numbers."""
  factors_K = file.read(_ROPE_FACTORS)
  scaling = RopeScalingConfig(kind="llama3", factor=float(factors_K.max()))
  plain_K = theta ** (-np.arange(len(factors_K)) / len(factors_K))
  if not np.allclose(scaled_frequencies(scaling, theta, len(factors_K)) * factors_K, plain_K, rtol=1e-3, atol=0):
    raise ValueError(
      f"{file.path} has rotary factors that are not Llama 3's (up to {scaling.factor:g}); use the model's safetensors.")
  return {
    "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
    "high_freq_factor": scaling.high_freq_factor, "original_max_position_embeddings": scaling.original_len}
