"""Tiny random models of the Llama family, written to disk as their publishers write them."""

from __future__ import annotations

import json
import struct

import gguf
import numpy as np
import safetensors.numpy

LLAMA = {
  "model_type": "llama", "vocab_size": 37, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-3, "rope_theta": 100.0,
  "max_position_embeddings": 64, "tie_word_embeddings": False, "hidden_act": "silu"}
WINDOW = {"sliding_window": 5}
QWEN2 = LLAMA | WINDOW | {"model_type": "qwen2", "tie_word_embeddings": True, "head_dim": 8}
LLAMA3 = {
  "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64}


def make_tensors(config, seed=0):
  """float32 by the names of safetensors; gains near 1, everything else of unit scale, so that every part matters."""
  random = np.random.default_rng(seed)
  dim, width = config["hidden_size"], config["head_dim"]
  rows = {"q": config["num_attention_heads"] * width, "k": config["num_key_value_heads"] * width}
  rows["v"] = rows["k"]

  def matrix(out, inputs):
    return np.float32(random.normal(size=(out, inputs)) * inputs**-0.5)

  tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], dim) * np.float32(dim**0.5)}
  for layer in range(config["num_hidden_layers"]):
    at = f"model.layers.{layer}."
    for name in ("q", "k", "v"):
      tensors[f"{at}self_attn.{name}_proj.weight"] = matrix(rows[name], dim)
      if config["model_type"] == "qwen2" or config.get("attention_bias"):
        tensors[f"{at}self_attn.{name}_proj.bias"] = matrix(rows[name], 1)[:, 0]
    tensors[at + "self_attn.o_proj.weight"] = matrix(dim, rows["q"])
    if config.get("attention_bias"):
      tensors[at + "self_attn.o_proj.bias"] = matrix(dim, 1)[:, 0]
    for name in ("gate", "up"):
      tensors[f"{at}mlp.{name}_proj.weight"] = matrix(config["intermediate_size"], dim)
    tensors[at + "mlp.down_proj.weight"] = matrix(dim, config["intermediate_size"])
    for name in ("input_layernorm", "post_attention_layernorm"):
      tensors[f"{at}{name}.weight"] = 1 + 0.3 * matrix(dim, 1)[:, 0]
  tensors["model.norm.weight"] = 1 + 0.3 * matrix(dim, 1)[:, 0]
  if not config["tie_word_embeddings"]:
    tensors["lm_head.weight"] = matrix(config["vocab_size"], dim)
  return tensors


def write_folder(folder, config, tensors, *, shards=1):
  """config.json and the weights in one file, or in several with an index."""
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  if shards == 1:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder
  file_of = {name: f"part-{n % shards}.safetensors" for n, name in enumerate(tensors)}
  for file in set(file_of.values()):
    safetensors.numpy.save_file({name: tensors[name] for name in tensors if file_of[name] == file}, folder / file)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
  return folder


def write_gguf(path, config, tensors, *, kind="F32", fields=()):
  """As llama.cpp's converter does: its names, its order of rows within heads; (the file, the weights it then holds).

  fields: (method of the writer, arguments …) for further metadata.
  """
  family = config["model_type"]
  writer = gguf.GGUFWriter(path, family)
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(config["num_attention_heads"])
  writer.add_head_count_kv(config["num_key_value_heads"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_rope_freq_base(config["rope_theta"])
  if family == "llama":
    writer.add_rope_dimension_count(config["head_dim"])
  for method, *arguments in fields:
    getattr(writer, method)(*arguments)
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config["num_hidden_layers"])
  held = {}
  for name, tensor in tensors.items():
    wanted = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
    permuted = permute(config, name, tensor)
    stored = gguf.quants.quantize(permuted, wanted)
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), stored, raw_dtype=wanted)
    held[name] = permute(config, name, gguf.quants.dequantize(stored, wanted).reshape(tensor.shape), back=True)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path, held


def permute(config, name, tensor, *, back=False):
  """Rows of queries and keys of the architecture «llama»: halves of a head to pairs side by side, or back."""
  heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
  heads = next((number for part, number in heads.items() if part in name), None)
  if config["model_type"] != "llama" or heads is None:
    return tensor
  place = np.arange(len(tensor)).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
  return tensor[np.argsort(place)] if back else tensor[place]


def gguf_bytes(fields, tensors=(), *, alignment=32):
  """A file of these metadata and float32 tensors, whatever they say."""
  tensors = dict(tensors)
  head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
  head += b"".join(_text(key) + _typed(value) for key, value in fields.items())
  data = b""
  for name, tensor in tensors.items():
    head += _text(name) + struct.pack("<I", tensor.ndim) + struct.pack(f"<{tensor.ndim}Q", *tensor.shape[::-1])
    head += struct.pack("<IQ", 0, len(data))
    data += tensor.astype("<f4").tobytes() + bytes(-tensor.nbytes % alignment)
  return head + bytes(-len(head) % alignment) + data


def _text(text):
  raw = text if isinstance(text, bytes) else text.encode()
  return struct.pack("<Q", len(raw)) + raw


def _typed(value):
  if isinstance(value, bool):
    return struct.pack("<I?", 7, value)
  if isinstance(value, int):
    return struct.pack("<Iq", 11, value)
  if isinstance(value, float):
    return struct.pack("<Id", 12, value)
  if isinstance(value, list):
    return struct.pack(f"<IIQ{len(value)}q", 9, 11, len(value), *value)
  return struct.pack("<I", 8) + _text(value)
