"""Local attention as its definition says it, in float64: for every token and head, the tokens that are seen."""

from __future__ import annotations

import numpy as np


def seen(index, window, sinks):
  """The tokens that the token at `index` sees, itself the last; window 0 sees all."""
  return [j for j in range(index + 1) if j < sinks or not window or index - j < window]


def attend(q_TQK, k_THK, v_THV, windows, sinks):
  """(output [T, Q, V], log-sum-exp [T, Q]); head h sees windows[h]."""
  q_TQK, k_THK, v_THV = (np.asarray(x, np.float64) for x in (q_TQK, k_THK, v_THV))
  length, queries, width = q_TQK.shape
  group = queries // k_THK.shape[1]
  out_TQV, lse_TQ = np.zeros((length, queries, v_THV.shape[-1])), np.zeros((length, queries))
  for t in range(length):
    for query in range(queries):
      head = query // group
      tokens = seen(t, windows[head], sinks)
      score_S = k_THK[tokens, head] @ q_TQK[t, query] / np.sqrt(width)
      lse_TQ[t, query] = score_S.max() + np.log(np.exp(score_S - score_S.max()).sum())
      out_TQV[t, query] = np.exp(score_S - lse_TQ[t, query]) @ v_THV[tokens, head]
  return out_TQV, lse_TQ
