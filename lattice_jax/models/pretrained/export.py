"""Exports our Llama-shaped models as safetensors and config.json, which `transformers` loads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from lattice_jax.config import ModelConfig
from lattice_jax.formats.safetensors_folder import INDEX, SINGLE
from lattice_jax.models.pretrained.tensors import file_names, leaf_name, to_file

SHARD_BYTES = 2 << 30  # of weights held in memory at a time
_SCALING_NAMES = {
  "llama3": ("low_freq_factor", "high_freq_factor", "original_len"),
  "yarn": ("beta_fast", "beta_slow", "truncate", "original_len", "gain")}
_THEIR_NAMES = {"original_len": "original_max_position_embeddings", "gain": "attention_factor"}


def export_model(
  model: ModelConfig, params: Any, folder: Path, *, context_len: int, dtype: str = "float32",
  special_ids: dict[str, Any], shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes config.json and the weights into `folder`, which must be empty or missing.

  special_ids: bos_token_id, eos_token_id and pad_token_id of config.json.

  Raises ValueError if the model is not a Llama, Mistral or Qwen2 of `transformers`, or the folder is not empty.
  """
  config = _their_config(model, context_len) | special_ids | {"dtype": dtype, "torch_dtype": dtype}
  if folder.is_dir() and any(folder.iterdir()):
    raise ValueError(f"{folder} is not empty; give a folder that does not exist yet.")
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
  file_of, sizes, shard = {}, [], {}
  for name, tensor in _tensors(model, params, jnp.dtype(dtype)):
    if shard and sum(part.nbytes for part in shard.values()) + tensor.nbytes > shard_bytes:
      _write(folder, shard, file_of, sizes)
      shard = {}
    shard[name] = tensor
  _write(folder, shard, file_of, sizes)
  _name_files(folder, file_of, sizes)


def _write(folder: Path, shard: dict[str, np.ndarray], file_of: dict[str, int], sizes: list[int]) -> None:
  save_file(shard, folder / f"part-{len(sizes)}", metadata={"format": "pt"})
  file_of |= dict.fromkeys(shard, len(sizes))
  sizes.append(sum(tensor.nbytes for tensor in shard.values()))


def _name_files(folder: Path, file_of: dict[str, int], sizes: list[int]) -> None:
  """Names the files last, because each name contains the number of files."""
  if len(sizes) == 1:
    (folder / "part-0").rename(folder / SINGLE)
    return
  names = [f"model-{number + 1:05d}-of-{len(sizes):05d}.safetensors" for number in range(len(sizes))]
  for number, name in enumerate(names):
    (folder / f"part-{number}").rename(folder / name)
  index = {"metadata": {"total_size": sum(sizes)}, "weight_map": {name: names[n] for name, n in file_of.items()}}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tensors(model: ModelConfig, params: Any, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(_stacked(model, params)):
    name, array = leaf_name(path), np.asarray(leaf)
    if name == "final_norm/gain":
      array = array * model.logit_scale  # the family has no such factor; scaling the final norm is equivalent
    names = file_names(name, model)
    for one, tensor_name in zip(array if "/block_" in name else [array], names, strict=True):
      yield tensor_name, to_file(name, one).astype(dtype)


def _stacked(model: ModelConfig, params: Any) -> Any:
  """The parameters in the layout of a scanned model."""
  if model.scan_layers:
    return params
  groups = [params[f"group_{n}"] for n in range(model.layers // len(model.pattern))]
  rest = {name: value for name, value in params.items() if not name.startswith("group_")}
  return rest | {"groups": jax.tree.map(lambda *leaves: np.stack(leaves), *groups)}


def _their_config(model: ModelConfig, context_len: int) -> dict[str, Any]:
  attention = model.attention
  _check_is_llama(model)
  has_window = "window" in model.pattern
  family = "qwen2" if attention.bias == "qkv" else "mistral" if has_window else "llama"
  config = {
    "architectures": [f"{family.capitalize()}ForCausalLM"],
    "model_type": family, "vocab_size": model.vocab, "hidden_size": model.dim, "intermediate_size": model.mlp_dim,
    "num_hidden_layers": model.layers, "num_attention_heads": attention.heads,
    "num_key_value_heads": attention.kv_heads, "head_dim": attention.key_dim, "hidden_act": "silu",
    "rms_norm_eps": model.norm_eps, "rope_theta": attention.rope_theta, "max_position_embeddings": context_len,
    "tie_word_embeddings": model.tied_embeddings, "attention_bias": attention.bias == "all", "mlp_bias": False,
    "attention_dropout": 0.0, "sliding_window": attention.window if has_window else None}
  if family == "qwen2":
    repeats = model.layers // len(model.pattern)
    kinds = {"attention": "full_attention", "window": "sliding_attention"}
    config |= {
      "use_sliding_window": has_window, "layer_types": [kinds[memory] for memory in model.pattern] * repeats}
  if attention.rope_scaling.kind != "none":
    config["rope_scaling"] = _their_scaling(model, context_len)
  return config


def _their_scaling(model: ModelConfig, context_len: int) -> dict[str, Any]:
  scaling = model.attention.rope_scaling
  values = dataclasses.asdict(scaling)
  if scaling.kind == "linear":
    # without it, the config's length would be taken for the original one
    return {
      "rope_type": "linear", "factor": scaling.factor, _THEIR_NAMES["original_len"]: int(context_len / scaling.factor)}
  return {"rope_type": scaling.kind, "factor": scaling.factor} | {
    _THEIR_NAMES[name] if name in _THEIR_NAMES else name: values[name] for name in _SCALING_NAMES[scaling.kind]}


def _check_is_llama(model: ModelConfig) -> None:
  attention = model.attention
  memories = set(model.pattern)
  wrong = {
    f"model.pattern={','.join(model.pattern)}": not memories <= {"attention", "window"}
      or (len(memories) > 1 and attention.bias != "qkv"),
    f"model.block={model.block}": model.block != "mlp",
    f"model.mlp={model.mlp}": model.mlp != "swiglu",
    "model.norm_gain=False": not model.norm_gain,
    "model.norm_bias=True": model.norm_bias,
    "model.position_wavelength": model.position_wavelength > 0,
    "model.final_norm=False": not model.final_norm,
    "model.head_bias=True": model.head_bias and not model.tied_embeddings,
    "model.tied_bias=True": model.tied_bias and model.tied_embeddings,
    "model.attention.rope_theta=0": not attention.rope_theta,
    "model.attention.qk_norm=True": attention.qk_norm,
    "model.attention.gated=True": attention.gated,
    "model.attention.value_dim≠key_dim": attention.value_dim != attention.key_dim,
    "model.attention.bias=all with windows": attention.bias == "all" and "window" in memories,
  }
  found = [name for name, is_wrong in wrong.items() if is_wrong]
  if found:
    raise ValueError(
      f"a model with {', '.join(found)} is not a Llama, Mistral or Qwen2 of transformers, so it cannot be exported; "
      "train one with model.block=mlp, model.mlp=swiglu, model.head_bias=False and the memory 'attention' or "
      "'window'.")
