"""The Llama family once more, in numpy and float64, from the tensors' published names: what the decoder must equal."""

from __future__ import annotations

import numpy as np


def logits(config, tensors, tokens):
  """[T, A] for one row of tokens; a loop over layers, heads and queries, and rotation by complex numbers."""
  read = {name: np.float64(tensor) for name, tensor in tensors.items()}
  x = read["model.embed_tokens.weight"][tokens]
  for layer in range(config["num_hidden_layers"]):
    block = {
      name.removeprefix(f"model.layers.{layer}."): tensor for name, tensor in read.items()
      if name.startswith(f"model.layers.{layer}.")}
    x = x + attention(config, block, norm(config, x, block["input_layernorm.weight"]), window_of(config, layer))
    h = norm(config, x, block["post_attention_layernorm.weight"])
    gate = h @ block["mlp.gate_proj.weight"].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ block["mlp.up_proj.weight"].T)) @ block["mlp.down_proj.weight"].T
  head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
  return norm(config, x, read["model.norm.weight"]) @ read[head].T


def norm(config, x, gain):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * gain


def attention(config, block, x, window):
  def project(name):
    y = x @ block[f"self_attn.{name}.weight"].T
    return y + block[f"self_attn.{name}.bias"] if f"self_attn.{name}.bias" in block else y

  heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
  width = config["head_dim"]
  q, k, v = project("q_proj"), project("k_proj"), project("v_proj")
  outputs = []
  for head in range(heads):
    shared = head // (heads // kv_heads)
    q_head = turn(config, q[:, head * width:(head + 1) * width])
    k_head = turn(config, k[:, shared * width:(shared + 1) * width])
    v_head = v[:, shared * width:(shared + 1) * width]
    rows = []
    for query in range(len(x)):
      first = max(0, query + 1 - window) if window else 0
      score = k_head[first:query + 1] @ q_head[query] / np.sqrt(width)
      weight = np.exp(score - score.max())
      rows.append(weight / weight.sum() @ v_head[first:query + 1])
    outputs.append(rows)
  y = np.concatenate(outputs, axis=-1) @ block["self_attn.o_proj.weight"].T
  return y + block["self_attn.o_proj.bias"] if "self_attn.o_proj.bias" in block else y


def turn(config, x):
  half = x.shape[-1] // 2
  frequency, gain = frequencies(config, 2 * half)
  z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * np.arange(len(x))[:, None] * frequency) * gain
  return np.concatenate([z.real, z.imag], axis=-1)


def window_of(config, layer):
  kinds = config.get("layer_types")
  if kinds:
    return config["sliding_window"] if kinds[layer] == "sliding_attention" else 0
  if config["model_type"] == "mistral":
    return config["sliding_window"] or 0
  is_windowed = config.get("use_sliding_window") and layer >= config["max_window_layers"]
  return config["sliding_window"] if is_windowed else 0


def frequencies(config, width):
  """(radians a token of each pair, gain), one pair at a time, as the published code says it in words."""
  theta, scaling = config["rope_theta"], config.get("rope_scaling") or {"rope_type": "default"}
  kind, trained = scaling["rope_type"], config["max_position_embeddings"]
  plain = [1.0 / theta ** (2 * pair / width) for pair in range(width // 2)]
  if kind == "linear":
    return np.array(plain) / scaling["factor"], 1.0
  if kind == "llama3":
    return np.array([stretch_llama3(scaling, value) for value in plain]), 1.0
  if kind == "yarn":
    return stretch_yarn(scaling, theta, np.array(plain), trained)
  return np.array(plain), 1.0


def stretch_llama3(scaling, frequency):
  wavelength, trained = 2 * np.pi / frequency, scaling["original_max_position_embeddings"]
  if wavelength < trained / scaling["high_freq_factor"]:
    return frequency
  if wavelength > trained / scaling["low_freq_factor"]:
    return frequency / scaling["factor"]
  smooth = (trained / wavelength - scaling["low_freq_factor"]) / (
    scaling["high_freq_factor"] - scaling["low_freq_factor"])
  return (1 - smooth) * frequency / scaling["factor"] + smooth * frequency


def stretch_yarn(scaling, theta, plain, trained):
  width = 2 * len(plain)
  trained = scaling.get("original_max_position_embeddings", trained)

  def dimension(turns):
    return width * np.log(trained / (turns * 2 * np.pi)) / (2 * np.log(theta))

  low, high = dimension(scaling.get("beta_fast", 32)), dimension(scaling.get("beta_slow", 1))
  if scaling.get("truncate", True):
    low, high = np.floor(low), np.ceil(high)
  low, high = max(low, 0), min(high, width - 1)
  gain = scaling.get("attention_factor", 0.1 * np.log(scaling["factor"]) + 1)
  ramp = np.clip((np.arange(len(plain)) - low) / (high - low + (0.001 if high == low else 0)), 0, 1)
  return plain / scaling["factor"] * ramp + plain * (1 - ramp), gain
