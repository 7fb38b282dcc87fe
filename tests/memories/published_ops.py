"""The recurrences as their papers write them, one head, one token after another, float64.

Written from the papers' equations and not from the ops, whose formulas they are held against. S is [V, K], as there.
"""

from __future__ import annotations

import numpy as np

LAYER_NORM_EPS = 1e-6


def linear(q_TK, k_TK, v_TV):
  """S ← S + v kᵀ;  o = S q."""
  return gated(q_TK, k_TK, v_TV, np.ones(k_TK.shape))


def gated(q_TK, k_TK, v_TV, decay_TK):
  """S ← S diag(a) + v kᵀ: GLA (2312.06635); Mamba-2 (2405.21060) where all channels of a are one number."""
  S, out = np.zeros((v_TV.shape[1], k_TK.shape[1])), []
  for q, k, v, a in zip(q_TK, k_TK, v_TV, decay_TK, strict=True):
    S = S @ np.diag(a) + np.outer(v, k)
    out.append(S @ q)
  return np.stack(out)


def delta(q_TK, k_TK, v_TV, step_T, decay_T=None):
  """S ← α S (I − β k kᵀ) + β v kᵀ: Gated DeltaNet (2412.06464); DeltaNet (2406.06484) where α is one."""
  S, out = np.zeros((v_TV.shape[1], k_TK.shape[1])), []
  decay_T = np.ones(len(q_TK)) if decay_T is None else decay_T
  for q, k, v, beta, alpha in zip(q_TK, k_TK, v_TV, step_T, decay_T, strict=True):
    S = alpha * S @ (np.eye(len(k)) - beta * np.outer(k, k)) + beta * np.outer(v, k)
    out.append(S @ q)
  return np.stack(out)


def kimi_delta(q_TK, k_TK, v_TV, step_T, decay_TK, S_KV=None):
  """S ← (I − β k kᵀ) diag(α) S + β k vᵀ;  o = Sᵀ q: Kimi delta attention (2510.26692), whose S is [K, V].

  Returns (outputs, last S).
  """
  S, out = np.zeros((k_TK.shape[1], v_TV.shape[1])) if S_KV is None else S_KV, []
  for q, k, v, beta, alpha in zip(q_TK, k_TK, v_TV, step_T, decay_TK, strict=True):
    S = (np.eye(len(k)) - beta * np.outer(k, k)) @ np.diag(alpha) @ S + beta * np.outer(k, v)
    out.append(S.T @ q)
  return np.stack(out), S


def gated_slots(q_TK, k_TK, v_TV, decay_TM):
  """K̃ ← diag(a) K̃ + (1 − a) kᵀ;  Ṽ likewise;  o = Ṽᵀ softmax(K̃ q): Gated Slot Attention (2409.07146)."""
  keys, values, out = np.zeros((decay_TM.shape[1], k_TK.shape[1])), np.zeros((decay_TM.shape[1], v_TV.shape[1])), []
  for q, k, v, a in zip(q_TK, k_TK, v_TV, decay_TM, strict=True):
    keys = np.diag(a) @ keys + np.outer(1 - a, k)
    values = np.diag(a) @ values + np.outer(1 - a, v)
    odds = np.exp(keys @ q - (keys @ q).max())
    out.append(values.T @ (odds / odds.sum()))
  return np.stack(out)


def ttt_linear(q_TV, k_TV, v_TV, step_T, W_VV, b_V, scale_V, shift_V, factor_C):
  """TTT-Linear (2407.04620): f(x) = x + LN(x W + b), trained on ½‖f(k) − v‖²; q and k already turned.

  Token j of a mini-batch reads with W₀ − Σ_{l ≤ j} η_jl ∂loss_l/∂W₀, where η_jl = factor[j] · step[l], and the last
  token's weights begin the next mini-batch.
  """
  W, b, out = W_VV.copy(), b_V.copy(), []
  for begin in range(0, len(q_TV), len(factor_C)):
    d_W, d_b = np.zeros_like(W), np.zeros_like(b)
    for j, t in enumerate(range(begin, min(begin + len(factor_C), len(q_TV)))):
      z = k_TV[t] @ W + b
      d_z = layer_norm_jacobian(z, scale_V).T @ (k_TV[t] + layer_norm(z, scale_V, shift_V) - v_TV[t])
      d_W, d_b = d_W + step_T[t] * np.outer(k_TV[t], d_z), d_b + step_T[t] * d_z
      now_W, now_b = W - factor_C[j] * d_W, b - factor_C[j] * d_b
      out.append(q_TV[t] + layer_norm(q_TV[t] @ now_W + now_b, scale_V, shift_V))
    W, b = now_W, now_b
  return np.stack(out)


def para_gru(update_TV, reset_TV, candidate_TV, a_z, a_r, a_c):
  """h ← (1 − z) h + z c, all matrices on h diagonal: ParaGRU (2510.21450). The token's share of each logit is given."""
  h, out = np.zeros(update_TV.shape[1]), []
  for x_z, x_r, x_c in zip(update_TV, reset_TV, candidate_TV, strict=True):
    z, r = (1 / (1 + np.exp(-(np.diag(a) @ h + x))) for a, x in ((a_z, x_z), (a_r, x_r)))
    c = np.tanh(np.diag(a_c) @ (h * r) + x_c)
    h = (1 - z) * h + z * c
    out.append(h)
  return np.stack(out)


def layer_norm(z, scale, shift):
  return (z - z.mean()) / np.sqrt(z.var() + LAYER_NORM_EPS) * scale + shift


def layer_norm_jacobian(z, scale):
  """∂LN(z)_i / ∂z_j."""
  centred, deviation = z - z.mean(), np.sqrt(z.var() + LAYER_NORM_EPS)
  mean = np.full((len(z), len(z)), 1 / len(z))
  return scale[:, None] * ((np.eye(len(z)) - mean) / deviation - np.outer(centred, centred) / len(z) / deviation**3)


def lattice(q_TM, k_TM, v_TV, step_T, forget_T, start_MV, *, objective="decoding", projected=True):
  """Lattice (2504.05646): every slot takes one gradient step on the unit sphere and is put back to length one.

  The loss is ½‖v − Σ k_i ŝ_i‖² (decoding), ½ Σ (k_i − ŝ_i·v)² (encoding) or −Σ k_i ŝ_i·v (similarity).
  """
  slots, out = start_MV / np.linalg.norm(start_MV, axis=1, keepdims=True), []
  for q, k, v, step, forget in zip(q_TM, k_TM, v_TV, step_T, forget_T, strict=True):
    h = v - slots.T @ k if objective == "decoding" else v
    code = k - slots @ v if objective == "encoding" else k
    moved = []
    for slot, c in zip(slots, code, strict=True):
      across = h - slot * (slot @ h) if projected else h
      moved.append(forget * slot + step * c * across)
    slots = np.stack(moved)
    slots /= np.linalg.norm(slots, axis=1, keepdims=True)
    out.append(slots.T @ q)
  return np.stack(out)
