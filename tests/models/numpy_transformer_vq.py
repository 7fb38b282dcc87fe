"""The published Transformer-VQ, block after block, in float64: one head, keys, values and gate of one projection."""

from __future__ import annotations

import dataclasses

import numpy as np

MASKED = -1e30


@dataclasses.dataclass
class UnitState:
  """Of one row and one gated attention unit: the last W tokens, and counts and means of all older ones by code."""

  code_W: np.ndarray  # as many as there are codes: not filled yet
  key_WK: np.ndarray
  value_WV: np.ndarray
  count_M: np.ndarray
  mean_MV: np.ndarray
  num_read: int = 0


def empty_state(window, codes, key_dim, value_dim):
  return UnitState(
    np.full(window, codes), np.zeros((window, key_dim)), np.zeros((window, value_dim)), np.zeros(codes),
    np.zeros((codes, value_dim)))


def normalize(x):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def silu(x):
  return x / (1 + np.exp(-x))


def norm(params, x):
  return normalize(x) * params["gain"] + params["bias"]


def sinusoid(place, dim, wavelength):
  angle = place * wavelength ** (-np.arange(0, dim, 2) / dim)
  return np.concatenate([np.sin(angle), np.cos(angle)])


def read_block(params, rows_MK, x_CD, state, *, window):
  """Residual branch [C, D] of one block of one row before dropout, its codes, and the state after it."""
  key_dim, codes = rows_MK.shape[1], len(rows_MK)
  scale, length = key_dim**-0.25, len(x_CD)
  q_CK = normalize(x_CD @ params["query"][:, 0]) * scale
  width = (params["joined"].shape[1] - key_dim) // 2
  k_CK, v_CV, g_CV = np.split(x_CD @ params["joined"], [key_dim, key_dim + width], axis=-1)
  k_CK, v_CV, g_CV = normalize(k_CK) * scale, silu(v_CV), silu(g_CV)
  code_C = ((k_CK[:, None] - rows_MK) ** 2).sum(-1).argmin(-1)
  key_SK = np.concatenate([state.key_WK, rows_MK[code_C]])
  value_SV = np.concatenate([state.value_WV, v_CV])
  code_S = np.concatenate([state.code_W, code_C])
  qu_CK, qw_CK = q_CK + params["content_bias"][0] * scale, q_CK + params["position_bias"][0] * scale

  score = np.full((length, codes + window + length), MASKED)
  used_M = state.count_M > 0
  score[:, :codes][:, used_M] = (qu_CK @ rows_MK.T + np.log(np.maximum(state.count_M, 1)))[:, used_M]
  for i in range(length):
    for j in range(window + length):
      distance = window + i - j
      if distance < 0 or j < window - state.num_read:
        continue
      score[i, codes + j] = qu_CK[i] @ key_SK[j]
      if distance <= window:
        relative_K = sinusoid(distance, x_CD.shape[1], 1e5) @ params["relative"][:, 0] * scale
        score[i, codes + j] += qw_CK[i] @ relative_K
  weight = np.exp(score - score.max(-1, keepdims=True))
  weight /= weight.sum(-1, keepdims=True)
  out_CV = weight @ np.concatenate([state.mean_MV, value_SV])

  count_M, total_MV = state.count_M.copy(), state.mean_MV * state.count_M[:, None]
  for code, value_V in zip(code_S[:length], value_SV[:length], strict=True):
    if code < codes:
      count_M[code] += 1
      total_MV[code] += value_V
  new = UnitState(
    code_S[length:], key_SK[length:], value_SV[length:], count_M, total_MV / np.maximum(count_M, 1)[:, None],
    state.num_read + length)
  return (out_CV * g_CV) @ params["out"][0], code_C, new


def read_update(params, rows_LMK, tokens_BT, states_LB, start, config):
  """Logits [B, T, A] of tokens from place `start`, and the states after. params: `units`, one a layer, and the rest."""
  block, window = config.vq.block_len, config.vq.reach
  x_BTD = params["embedding"][tokens_BT]
  if config.position_wavelength:
    table_TD = np.stack([
      sinusoid(start + t, config.dim, config.position_wavelength) for t in range(tokens_BT.shape[1])])
    x_BTD = x_BTD + params["position_scale"] * table_TD
  states_LB = [list(states) for states in states_LB]
  for number, unit in enumerate(params["units"]):
    branch_BTD = np.zeros_like(x_BTD)
    for row in range(len(tokens_BT)):
      for begin in range(0, tokens_BT.shape[1], block):
        x_CD = norm(unit["memory_norm"], x_BTD[row, begin:begin + block])
        branch_BTD[row, begin:begin + block], _, states_LB[number][row] = read_block(
          unit["memory"], rows_LMK[number], x_CD, states_LB[number][row], window=window)
    x_BTD = x_BTD + branch_BTD
  if config.final_norm:
    x_BTD = norm(params["final_norm"], x_BTD)
  head_DA = params["embedding"].T if config.tied_embeddings else params["head"]
  return (x_BTD @ head_DA + params["head_bias"]) * config.logit_scale, states_LB
