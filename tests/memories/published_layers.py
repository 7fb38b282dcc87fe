"""The memory layers as their papers write them: how an input becomes queries, keys, values, gates and an output.

float64, one row of one document. Written from the papers' equations and not from the layers; `params` are the layer's.
"""

from __future__ import annotations

import numpy as np

from tests.memories import published_ops as ops
from tests.memories.online_vq import published as clusters

NORM_EPS, LENGTH_EPS = 1e-6, 1e-4


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def silu(x):
  return x * sigmoid(x)


def softplus(x):
  return np.log1p(np.exp(x))


def softmax(x):
  odds = np.exp(x - x.max())
  return odds / odds.sum()


def rms_norm(x):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + NORM_EPS)


def unit(x):
  return x / np.sqrt((x**2).sum(-1, keepdims=True) + LENGTH_EPS)


def conv(x_THK, tap_WHK):
  """y_t = Σ_w tap_w x_{t−w}, channel by channel."""
  y = np.zeros_like(x_THK)
  for t in range(len(x_THK)):
    for w in range(min(len(tap_WHK), t + 1)):
      y[t] += tap_WHK[w] * x_THK[t - w]
  return y


def rotary(x_THK, place_T, theta=10_000.0):
  """RoPE (2104.09864) on the pairs (k, k + K/2): a turn by place · theta^(−2k/K)."""
  half = x_THK.shape[-1] // 2
  turn = np.exp(1j * place_T[:, None] * theta ** (-2 * np.arange(half) / x_THK.shape[-1]))[:, None]
  turned = (x_THK[..., :half] + 1j * x_THK[..., half:]) * turn
  return np.concatenate([turned.real, turned.imag], -1)


def heads(x_TD, w_DHK):
  return np.einsum("td,dhk->thk", x_TD, w_DHK)


def recurrent(name, params, x_TD, config):
  """The block around all recurrences: short convolution, SiLU, q and k of length one, RMS norm of a head, gate."""
  def project(what, feature):
    return feature(conv(heads(x_TD, params[what]), params[f"{what}_taps"]))

  features = {
    "gated_slots": (silu, silu, silu),
    "ttt_linear": (lambda x: x,) * 3,
    "gru": (lambda x: x,) * 3,
    "online_vq": (unit, unit, lambda x: x),
    "lattice": (lambda x: unit(silu(x)),) * 3,
  }.get(name, (lambda x: unit(silu(x)), lambda x: unit(silu(x)), silu))
  q, k, v = (project(what, feature) for what, feature in zip(("query", "key", "value"), features, strict=True))
  out_THV = np.stack([
    RECURRENCES[name](params, x_TD, q[:, h], k[:, h], v[:, h], h, config) for h in range(q.shape[1])], axis=1)
  gate_THV = low_rank_gate(params, x_TD) if name == "kimi_delta" else silu(heads(x_TD, params["gate"]))
  return np.einsum("thv,hvd->td", rms_norm(out_THV) * params["gain"] * gate_THV, params["out"])


def low_rank_gate(params, x_TD):
  """Kimi Linear's (2510.26692) gate of the output."""
  return sigmoid(heads(x_TD @ params["gate_down"], params["gate_up"]) + params["gate_bias"])


def logit(params, name, x_TD, h):
  return x_TD @ params[name][:, h] + params[f"{name}_bias"][h]


def mamba_width(params, x_TD, h):
  """Δ = softplus(w·x + b) and the decay exp(Δ A) with A = −exp(A_log)."""
  width = softplus(logit(params, "width", x_TD, h))
  return width, np.exp(-np.exp(params["log_rate"][h]) * width)


def linear(params, x_TD, q, k, v, h, config):
  return ops.linear(q, k, v)


def scalar_decay(params, x_TD, q, k, v, h, config):
  width, decay = mamba_width(params, x_TD, h)
  return ops.gated(q, width[:, None] * k, v, decay[:, None] * np.ones(k.shape)) + params["skip"][h] * v


def gla(params, x_TD, q, k, v, h, config):
  low = x_TD @ params["decay_down"] @ params["decay_up"][:, h] + params["decay_bias"][h]
  return ops.gated(q, k, v, sigmoid(low) ** (1 / 16))


def deltanet(params, x_TD, q, k, v, h, config):
  return ops.delta(q, k, v, config.max_step * sigmoid(logit(params, "step", x_TD, h)))


def gated_deltanet(params, x_TD, q, k, v, h, config):
  _, decay = mamba_width(params, x_TD, h)
  return ops.delta(q, k, v, config.max_step * sigmoid(logit(params, "step", x_TD, h)), decay)


def kimi_delta(params, x_TD, q, k, v, h, config):
  """α = exp(−exp(A_log) · softplus(W↑ W↓ x + dt_bias)), channel by channel."""
  low = x_TD @ params["decay_down"] @ params["decay_up"][:, h] + params["decay_bias"][h]
  decay = np.exp(-np.exp(params["log_rate"][h]) * softplus(low))
  return ops.kimi_delta(q, k, v, config.max_step * sigmoid(logit(params, "step", x_TD, h)), decay)[0]


def gated_slots(params, x_TD, q, k, v, h, config):
  return ops.gated_slots(q, k, v, sigmoid(x_TD @ params["decay"][:, h]) ** (1 / 8))


def ttt_linear(params, x_TD, q, k, v, h, config):
  """The step of token l as token j of its mini-batch sees it is inner_rate · factor_j / (j + 1) · sigmoid / width."""
  place = np.arange(len(q)) % config.mini_batch
  q, k = (rotary(x[:, None], place)[:, 0] for x in (q, k))
  step = config.inner_rate * sigmoid(logit(params, "step", x_TD, h)) / v.shape[1]
  factor = np.exp(params["place_rate"]) / (1 + np.arange(config.mini_batch))
  inner = (params[name][h] for name in ("inner_start", "inner_bias", "inner_scale", "inner_shift"))
  return ops.ttt_linear(q, k, v, step, *inner, factor)


def gru(params, x_TD, q, k, v, h, config):
  """The token's shares of update, reset and candidate are the frame's query, key and value."""
  names = ("update", "reset", "candidate")
  inputs = (x + params[f"{name}_bias"][h] for name, x in zip(names, (q, k, v), strict=True))
  return ops.para_gru(*inputs, *(params[f"own_{name}"][h] for name in names))


def lattice(params, x_TD, q, k, v, h, config):
  step = config.max_step * sigmoid(logit(params, "step", x_TD, h))
  forget = 0.5 + 0.5 * sigmoid(logit(params, "forget", x_TD, h)) if config.forget else np.ones(len(q))
  return ops.lattice(q, k, v, step, forget, params["start"][h], objective=config.objective)


def online_vq(params, x_TD, q, k, v, h, config):
  """β is √K times a learned factor above zero."""
  sharpness = np.exp(params["log_sharpness"][h]) * np.sqrt(q.shape[1])
  return clusters.online_vq(sharpness * q, k, v, config.codes, config.chunk_len)[0]


RECURRENCES = {
  "linear": linear, "scalar_decay": scalar_decay, "gla": gla, "deltanet": deltanet, "gated_deltanet": gated_deltanet,
  "kimi_delta": kimi_delta,
  "gated_slots": gated_slots, "ttt_linear": ttt_linear, "gru": gru, "lattice": lattice, "online_vq": online_vq}


def attention(params, x_TD, config, window):
  """Grouped-query softmax attention with rotary positions; normed q and k, SiLU values and a SiLU gate where asked."""
  place = np.arange(len(x_TD))
  q, k, v = (heads(x_TD, params[what]) for what in ("query", "key", "value"))
  if config.bias != "none":
    q, k, v = (x + params[f"{what}_bias"] for x, what in ((q, "query"), (k, "key"), (v, "value")))
  if config.qk_norm:
    q, k = rms_norm(q), rms_norm(k)
  q, k = rotary(q, place, config.rope_theta), rotary(k, place, config.rope_theta)
  if config.gated:
    v = silu(v)
  out_TQV, group = np.zeros((len(q), config.heads, config.value_dim)), config.heads // config.kv_heads
  for i, h in np.ndindex(len(q), config.heads):
    seen = slice(max(0, i - window + 1) if window else 0, i + 1)
    weight = softmax(k[seen, h // group] @ q[i, h] / np.sqrt(config.key_dim))
    out_TQV[i, h] = weight @ v[seen, h // group]
  if config.gated:
    out_TQV *= silu(heads(x_TD, params["gate"]))
  y_TD = np.einsum("tqv,qvd->td", out_TQV, params["out"])
  return y_TD + params["out_bias"] if config.bias == "all" else y_TD


def transformer_vq(params, rows_HMK, x_TD, config):
  """Transformer-VQ (2309.16354): (output, Σ‖k − k̂‖², codes [T, H]).

  Query i scores key j ≤ i with (q_i + u)·k̂_j, to which the W nearest and itself add (q_i + v)·r_{i−j}; q and k are
  normed and scaled by K^(−1/4), r is a projected sinusoid.
  """
  scale, reach = config.key_dim**-0.25, config.reach
  q, k = (scale * rms_norm(heads(x_TD, params[what])) for what in ("query", "key"))
  v = heads(x_TD, params["value"])
  if config.gated:
    v = silu(v)
  distance_THM = ((k[:, :, None] - rows_HMK) ** 2).sum(-1)
  code_TH = distance_THM.argmin(-1)
  k_hat = np.stack([rows_HMK[h, code_TH[:, h]] for h in range(config.kv_heads)], 1)
  dim = x_TD.shape[1]
  angle = np.arange(reach + 1)[:, None] * config.max_wavelength ** (-2 * np.arange(dim // 2) / dim)
  r = scale * heads(np.concatenate([np.sin(angle), np.cos(angle)], 1), params["relative"])
  u, w = scale * params["content_bias"], scale * params["position_bias"]
  out_TQV, group = np.zeros((len(q), config.heads, config.value_dim)), config.heads // config.kv_heads
  for i, h in np.ndindex(len(q), config.heads):
    shared = h // group
    score = np.array([
      (q[i, h] + u[h]) @ k_hat[j, shared] + ((q[i, h] + w[h]) @ r[i - j, shared] if i - j <= reach else 0)
      for j in range(i + 1)])
    out_TQV[i, h] = softmax(score) @ v[:i + 1, shared]
  if config.gated:
    out_TQV *= silu(heads(x_TD, params["gate"]))
  return np.einsum("tqv,qvd->td", out_TQV, params["out"]), distance_THM.min(-1).sum(), code_TH
