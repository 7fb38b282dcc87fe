"""Local attention as its definition says it, in float64: for every token and head, the tokens that are seen."""

from __future__ import annotations

import numpy as np

from tests.cache.lagkv_numpy import partition_scores


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


def token_scores(k_TK, v_TV, sinks, lag):
  """LagKV's score of every token of one head whose partition has a whole successor, by its index."""
  by_partition = partition_scores(np.asarray(k_TK), np.asarray(v_TV), sinks=sinks, lag=lag)
  return {sinks + p * lag + n: score for p, score_L in enumerate(by_partition) for n, score in enumerate(score_L)}


def picked(scores, index, window, sinks, picks):
  """The best of the tokens that have left the window once the token at `index` is there; the best first."""
  left = range(sinks, index - window + 1) if window else ()
  return sorted(left, key=lambda j: (-scores[j], j))[:picks]
