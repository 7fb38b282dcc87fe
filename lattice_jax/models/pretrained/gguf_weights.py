"""Presents a GGUF file as a folder of safetensors: with its tensor names, its order within heads and a config.json."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.formats.stored_tensor import StoredTensor
from lattice_jax.models.pretrained.metadata import GGUF_BY_ARCHITECTURE, check_keys, positive_number, whole_number
from lattice_jax.models.pretrained.tensors import EMBEDDING, HEAD
from lattice_jax.ops.rotary import scaled_frequencies
from lattice_jax.ops.rotary_config import RopeScalingConfig
from lattice_jax.shown import shown

_OUTSIDE = {"token_embd.weight": EMBEDDING, "output.weight": HEAD, "output_norm.weight": "model.norm.weight"}
_IN_BLOCK = {
  "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_SCALING_NAMES = {
  "type": "rope_type", "factor": "factor", "original_context_length": "original_max_position_embeddings",
  "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies since Llama 3.1


class GGUFWeights:
  """config: what its config.json would say. shapes: of every tensor, by its name in safetensors."""

  def __init__(self, path: Path):
    self.path = path
    self._file = GGUFFile.open(path)
    self.config = _config(self._file)
    # this architecture stores rotary pairs next to each other; ours, as in safetensors, half a head apart
    self._is_interleaved = self._file.text("general.architecture") == "llama"
    self._source = {_their_name(name): name for name in self._file.tensors if name != _ROPE_FACTORS}
    self.shapes = {name: self._file.tensors[source].shape for name, source in self._source.items()}

  def read(self, name: str) -> np.ndarray:
    """The tensor in float32."""
    return self._in_our_order(name, self._file.read(self._source[name]))

  def read_codes(self, name: str) -> tuple[np.ndarray, ...] | None:
    """See `GGUFFile.read_codes`."""
    codes = self._file.read_codes(self._source[name])
    return codes and tuple(self._in_our_order(name, part) for part in codes)

  def stored(self, name: str) -> StoredTensor:
    """The tensor where it lies in the file, under the name in safetensors, its rows in our order."""
    tensor = self._file.stored(self._source[name])
    return replace(tensor, name=name, rows=self._heads_apart(name, tensor.rows))

  def _in_our_order(self, name: str, tensor: np.ndarray) -> np.ndarray:
    return self._heads_apart(name, tensor).reshape(tensor.shape)

  def _heads_apart(self, name: str, tensor: np.ndarray) -> np.ndarray:
    """A view: of queries and keys that are interleaved [heads, 2, half a head, …], of all others as it is."""
    heads = {".q_proj.": "num_attention_heads", ".k_proj.": "num_key_value_heads"}
    found = next((self.config[key] for part, key in heads.items() if part in name), None)
    if found is None or not self._is_interleaved:
      return tensor
    return tensor.reshape(found, -1, 2, *tensor.shape[1:]).swapaxes(1, 2)


def _their_name(name: str) -> str:
  """The name in safetensors. An unknown name stays, and is refused later with other unexpected tensors."""
  if name in _OUTSIDE:
    return _OUTSIDE[name]
  parts = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
  if not parts or parts[2] not in _IN_BLOCK:
    return name
  return f"model.layers.{int(parts[1])}.{_IN_BLOCK[parts[2]]}.{parts[3]}"


def _config(file: GGUFFile) -> dict[str, Any]:
  family, source = _architecture(file), str(file.path)
  prefix = f"{family}."
  fields = {name.removeprefix(prefix): value for name, value in file.fields.items() if name.startswith(prefix)}
  check_keys(fields, GGUF_BY_ARCHITECTURE[family], source, prefix=prefix)
  for name, value in fields.items():
    if isinstance(value, (list, np.ndarray)):
      raise ValueError(
        f"{source} gives each layer its own {prefix}{name}; only models whose layers are alike can be read.")
  size = {
    name: whole_number(fields, name, source)
    for name in ("context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count")}
  fields = {"rope.freq_base": 10_000.0, "attention.head_count_kv": size["attention.head_count"]} | fields
  theta = positive_number(fields, "rope.freq_base", source, above=1, below=1e12)
  eps = positive_number(fields, "attention.layer_norm_rms_epsilon", source)
  _check_same(fields, "attention.layer_norm_epsilon", eps, source)
  has_window = fields.get("attention.sliding_window") not in (None, 0)
  config = {
    # Mistral has no architecture of its own: it is a Llama with windows
    "model_type": "mistral" if has_window and family == "llama" else family,
    "vocab_size": _vocab(file, fields, source), "hidden_size": size["embedding_length"],
    "intermediate_size": size["feed_forward_length"], "num_hidden_layers": size["block_count"],
    "num_attention_heads": size["attention.head_count"],
    "num_key_value_heads": whole_number(fields, "attention.head_count_kv", source),
    "head_dim": _head_dim(fields, source), "rms_norm_eps": eps,
    "max_position_embeddings": size["context_length"], "rope_theta": theta,
    "rope_scaling": _rope_scaling(file, fields, source),
    "tie_word_embeddings": "output.weight" not in file.tensors,
    "attention_bias": "blk.0.attn_output.bias" in file.tensors,
    "sliding_window": whole_number(fields, "attention.sliding_window", source) if has_window else None}
  return config | ({"use_sliding_window": has_window, "max_window_layers": 0} if family == "qwen2" else {})


def _architecture(file: GGUFFile) -> str:
  family = file.text("general.architecture")
  if family not in tuple(GGUF_BY_ARCHITECTURE):
    raise ValueError(
      f"{file.path} holds a model of architecture {shown(family)}; GGUF files of architecture "
      f"{', '.join(GGUF_BY_ARCHITECTURE)} can be read.")
  if file.text("general.type") not in (None, "model"):
    raise ValueError(f"{file.path} holds {shown(file.text('general.type'))}, not a model; give the model's own file.")
  if file.fields.get("split.count") not in (None, 0, 1):
    raise ValueError(
      f"{file.path} is one of {shown(file.fields['split.count'])} parts; join them with `llama-gguf-split --merge`.")
  return family


def _vocab(file: GGUFFile, fields: dict[str, Any], source: str) -> int:
  if "token_embd.weight" not in file.tensors:
    raise ValueError(f"{source} lacks the tensor token_embd.weight; get it again.")
  rows = file.tensors["token_embd.weight"].shape[0]
  _check_same(fields, "vocab_size", rows, source)
  return rows


def _head_dim(fields: dict[str, Any], source: str) -> int | None:
  """The width of keys, values and rotary part of each head, which must be equal; None if none is stated."""
  names = ("attention.key_length", "rope.dimension_count", "attention.value_length")
  said = [whole_number(fields, name, source) for name in names if name in fields]
  for name in names:
    _check_same(fields, name, said[0] if said else None, source)
  return said[0] if said else None


def _check_same(fields: dict[str, Any], name: str, wanted: Any, source: str) -> None:
  if name in fields and fields[name] != wanted:
    raise ValueError(
      f"{source} says {name}={shown(fields[name])}, where the rest of it says {shown(wanted)}; only equal ones can be "
      "read.")


def _rope_scaling(file: GGUFFile, fields: dict[str, Any], source: str) -> dict[str, Any] | None:
  """The scaling in the form of a config.json. A factor without a type is linear; its older key is rope.scale_linear."""
  said = {ours: fields["rope.scaling." + theirs] for theirs, ours in _SCALING_NAMES.items()
          if "rope.scaling." + theirs in fields}
  if "rope.scale_linear" in fields:
    said = {"factor": fields["rope.scale_linear"]} | said
    _check_same(fields, "rope.scale_linear", said["factor"], source)
  said = {"rope_type": "linear"} | said
  gain = positive_number({"rope.scaling.attn_factor": 1.0} | fields, "rope.scaling.attn_factor", source)
  kind, has_factor = said["rope_type"], said.get("factor") not in (None, 0, 1)
  if (kind != "yarn" and gain != 1) or (kind == "none" and has_factor):
    raise ValueError(
      f"{source} says rope.scaling.type={shown(kind)} with a factor of {shown(said.get('factor'))} and an "
      f"attn_factor of {gain:g}, which contradict each other; use the model's safetensors.")
  is_plain = kind == "none" or (kind == "linear" and not has_factor)
  if _ROPE_FACTORS in file.tensors:
    if not is_plain:
      raise ValueError(f"{source} stretches by {_ROPE_FACTORS} and by rope.scaling; use the model's safetensors.")
    return _llama3_scaling(file, fields, source)
  if is_plain:
    return None
  if gain != 1:
    factor = positive_number(said, "factor", source, least=1)
    said["attention_factor"] = gain * (0.1 * math.log(factor) + 1)  # the format's factor multiplies YaRN's own
  return said


def _llama3_scaling(file: GGUFFile, fields: dict[str, Any], source: str) -> dict[str, Any]:
  """The file holds only the factors; all published models share the other numbers of the rule that gave them."""
  factors_K = file.read(_ROPE_FACTORS)
  theta, half = fields["rope.freq_base"], factors_K.size
  is_rule = factors_K.ndim == 1 and bool((factors_K >= 1).all()) and 2 * half == _head_dim(fields, source)
  scaling = RopeScalingConfig(kind="llama3", factor=float(factors_K.max()))
  if not is_rule or not np.allclose(
    scaled_frequencies(scaling, theta, half) * factors_K, theta ** (-np.arange(half) / half), rtol=1e-3, atol=0):
    raise ValueError(
      f"{source} has rotary factors that are not Llama 3's (up to {scaling.factor:g}); use the model's safetensors.")
  return {
    "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
    "high_freq_factor": scaling.high_freq_factor, "original_max_position_embeddings": scaling.original_len}
