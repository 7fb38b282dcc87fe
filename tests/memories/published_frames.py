"""The recurrent layers with the frames they were published in: from an input to an output, norms and gates included.

float64, one document. Written from the papers and from the source of flash-linear-attention (fla), mamba_ssm and
ttt-lm-jax, and not from our layers; `w` are our parameters, by their names: [inputs, heads, width], taps newest first.
"""

from __future__ import annotations

import numpy as np

from tests.memories import published_ops as ops
from tests.memories.published_layers import conv, heads, rotary, sigmoid, silu, softplus

LENGTH_EPS = 1e-6  # of fla's norm of queries and keys, inside the root
SLOTS_EPS, TTT_EPS = 1e-5, 1e-6  # of output norms that cannot be chosen


def each_head(step, *arrays):
  """step(head's number, its arrays [T, …]) of every head, side by side."""
  return np.stack([step(h, *(x[:, h] for x in arrays)) for h in range(arrays[0].shape[1])], axis=1)


def back(w, out_THV):
  return np.einsum("thv,hvd->td", out_THV, w["out"])


def rms_norm(x, gain, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def over_heads(norm, x_THV, *parameters, eps):
  """A norm of all heads' channels together."""
  flat = norm(x_THV.reshape(len(x_THV), -1), *(p.reshape(-1) for p in parameters), eps)
  return flat.reshape(x_THV.shape)


def unit(x):
  return x / np.sqrt((x**2).sum(-1, keepdims=True) + LENGTH_EPS)


def linear(w, x_TD, config):
  """Katharopoulos et al. (2006.16236), eqs. 4, 9 and 12, φ(x) = elu(x) + 1; their code adds 1e-6 to the sum."""
  def phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

  q, k, v = phi(heads(x_TD, w["query"])), phi(heads(x_TD, w["key"])), heads(x_TD, w["value"])

  def attend(h, q_TK, k_TK, v_TV):
    score_TT = np.tril(q_TK @ k_TK.T)
    return score_TT @ v_TV / (score_TT.sum(1, keepdims=True) + config.norm_eps)

  return back(w, each_head(attend, q, k, v))


def mamba2(w, x_TD, config):
  """Dao and Gu (2405.21060) with their code's layer: one B and C for all heads, gate before the norm of all heads.

  h_t = exp(Δ_t A) h_{t−1} + Δ_t x_t B_tᵀ;  y_t = h_t C_t + D x_t;  Δ = softplus(· + bias);  A = −exp(A_log)
  """
  def convolved(what):
    return silu(conv(heads(x_TD, w[what]), w[f"{what}_taps"]) + w[f"{what}_taps_bias"])

  x_THV, B_TN, C_TN = convolved("value"), convolved("key")[:, 0], convolved("query")[:, 0]
  delta_TH, A_H = softplus(x_TD @ w["width"] + w["width_bias"]), -np.exp(w["log_rate"])
  y_THV = np.zeros_like(x_THV)
  for h in range(x_THV.shape[1]):
    state_VN = np.zeros((x_THV.shape[2], B_TN.shape[1]))
    for t in range(len(x_TD)):
      step = delta_TH[t, h]
      state_VN = np.exp(step * A_H[h]) * state_VN + step * np.outer(x_THV[t, h], B_TN[t])
      y_THV[t, h] = state_VN @ C_TN[t] + w["skip"][h] * x_THV[t, h]
  return back(w, over_heads(rms_norm, y_THV * silu(heads(x_TD, w["gate"])), w["gain"], eps=config.norm_eps))


def gla(w, x_TD, config):
  """Yang et al. (2312.06635), fla's layer: α = sigmoid(low rank)^(1/16); SiLU only behind a convolution."""
  def make(what):
    x_THK = heads(x_TD, w[what])
    return silu(conv(x_THK, w[f"{what}_taps"])) if config.conv_width else x_THK

  q, k, v = make("query") / np.sqrt(config.key_dim), make("key"), make("value")
  decay = sigmoid(heads(x_TD @ w["decay_down"], w["decay_up"]) + w["decay_bias"]) ** (1 / 16)
  out = rms_norm(each_head(lambda h, *head: ops.gated(*head), q, k, v, decay), w["gain"], config.norm_eps)
  return back(w, out * silu(heads(x_TD, w["gate"])) if config.gated else out)


def delta_inputs(w, x_TD, config):
  """q, k of length one, v, β: shared by the three delta rules; β is doubled where eigenvalues may be negative."""
  def make(what):
    x_THK = heads(x_TD, w[what])
    return silu(conv(x_THK, w[f"{what}_taps"]) if config.conv_width else x_THK)

  beta_TH = config.max_step * sigmoid(x_TD @ w["step"])
  return unit(make("query")) / np.sqrt(config.key_dim), unit(make("key")), make("value"), beta_TH


def deltanet(w, x_TD, config):
  """Yang et al. (2406.06484)."""
  out = each_head(lambda h, *head: ops.delta(*head), *delta_inputs(w, x_TD, config))
  out = rms_norm(out, w["gain"], config.norm_eps)
  return back(w, out * silu(heads(x_TD, w["gate"])) if config.gated else out)


def gated_deltanet(w, x_TD, config):
  """Yang et al. (2412.06464): log α = −exp(A_log) softplus(w·x + dt_bias)."""
  alpha_TH = np.exp(-np.exp(w["log_rate"]) * softplus(x_TD @ w["width"] + w["width_bias"]))
  out = each_head(lambda h, *head: ops.delta(*head), *delta_inputs(w, x_TD, config), alpha_TH)
  return back(w, rms_norm(out, w["gain"], config.norm_eps) * silu(heads(x_TD, w["gate"])))


def kimi_delta(w, x_TD, config):
  """Kimi Linear (2510.26692): α of every key channel, and a sigmoid of low rank on the normed output."""
  low_THK = heads(x_TD @ w["decay_down"], w["decay_up"]) + w["decay_bias"]
  alpha_THK = np.exp(-np.exp(w["log_rate"])[:, None] * softplus(low_THK))
  out = each_head(lambda h, *head: ops.kimi_delta(*head)[0], *delta_inputs(w, x_TD, config), alpha_THK)
  gate_THV = sigmoid(heads(x_TD @ w["gate_down"], w["gate_up"]) + w["gate_bias"])
  return back(w, rms_norm(out, w["gain"], config.norm_eps) * gate_THV)


def gated_slots(w, x_TD, config):
  """Zhang et al. (2409.07146), fla's layer: α = sigmoid^(1/8); SiLU, then a norm of all heads, on the output."""
  def make(what):
    x_THK = heads(x_TD, w[what])
    return silu(silu(conv(x_THK, w[f"{what}_taps"])) if config.conv_width else x_THK)

  decay_THM = sigmoid(heads(x_TD, w["decay"])) ** (1 / 8)
  q, k, v = make("query"), make("key"), make("value")
  out = each_head(lambda h, *head: ops.gated_slots(*head), q, k, v, decay_THM)
  return back(w, over_heads(rms_norm, silu(out), w["gain"], eps=SLOTS_EPS))


def ttt_linear(w, x_TD, config):
  """Sun et al. (2407.04620), ttt-lm-jax's TTTLinear: q and k are convolutions, with biases, of one projection.

  Token l's step as token j of its mini-batch sees it is inner_rate · max(1/(j + 1) + θ_j, 0) · sigmoid(w·x_l + b) / V.
  """
  def layer_norm(x, gain, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * gain + bias

  shared_THV, place_T = heads(x_TD, w["query"]), np.arange(len(x_TD)) % config.mini_batch
  q, k = (
    rotary(conv(shared_THV, w[f"{what}_taps"]) + w[f"{what}_taps_bias"], place_T) for what in ("query", "key"))
  step_TH = config.inner_rate * sigmoid(x_TD @ w["step"] + w["step_bias"]) / config.value_dim
  factor_C = np.maximum(1 / (1 + np.arange(config.mini_batch)) + w["place_rate"], 0)

  def learn(h, *head):
    inner = (w[name][h] for name in ("inner_start", "inner_bias", "inner_scale", "inner_shift"))
    return ops.ttt_linear(*head, *inner, factor_C)

  out = each_head(learn, q, k, heads(x_TD, w["value"]), step_TH)
  out = over_heads(layer_norm, out, w["gain"], w["norm_bias"], eps=TTT_EPS)
  z = heads(x_TD, w["gate"])
  return back(w, out * z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))))


LAYERS = {
  "linear": linear, "scalar_decay": mamba2, "gla": gla, "deltanet": deltanet, "gated_deltanet": gated_deltanet,
  "kimi_delta": kimi_delta, "gated_slots": gated_slots, "ttt_linear": ttt_linear}
