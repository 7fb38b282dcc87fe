"""AnSAN as its paper writes it (arXiv 2402.07616, section 3 and Algorithm 1), token by token in float64.

Written from the paper and not from the op: the mask of a whole row, and inference that deletes what is reduced.
"""

from __future__ import annotations

import numpy as np


def mask(is_anchor_T, *, anchors_see_anchors=False, is_protected_T=None):
  """Bool [T, T], query and key, of one document."""
  length = len(is_anchor_T)
  segment_T = np.concatenate([[0], np.cumsum(is_anchor_T)[:-1]])
  protected_T = np.zeros(length, bool) if is_protected_T is None else np.asarray(is_protected_T)
  seen = np.zeros((length, length), bool)
  for i in range(length):
    for j in range(i + 1):
      is_old = segment_T[j] < segment_T[i] and (is_anchor_T[j] or protected_T[j])
      seen[i, j] = segment_T[i] == segment_T[j] or (is_old and (not is_anchor_T[i] or anchors_see_anchors))
  return seen


def attention(q_TQK, k_THK, v_THV, seen_TT):
  """Softmax attention of every query to the keys that it sees, float64; query head h·G + g reads key head h."""
  length, num_queries, key_dim = q_TQK.shape
  group = num_queries // k_THK.shape[1]
  out = np.zeros((length, num_queries, v_THV.shape[-1]))
  for t in range(length):
    for n in range(num_queries):
      score_S = (k_THK[seen_TT[t], n // group] @ q_TQK[t, n]) / np.sqrt(key_dim)
      odds_S = np.exp(score_S - score_S.max())
      out[t, n] = odds_S @ v_THV[seen_TT[t], n // group] / odds_S.sum()
  return out


def reduced(q_TQK, k_THK, v_THV, is_anchor_T, *, anchors_see_anchors=False):
  """Algorithm 1: (outputs token by token from a cache in which closed segments are their anchors, kept places at last).

  What was deleted is gone: outputs come from the entries that are left.
  """
  kept, outputs, sizes = [], [], []
  for t in range(len(q_TQK)):
    kept.append(t)
    hidden = is_anchor_T[t] and not anchors_see_anchors
    seen = [j for j in kept if not (hidden and j != t and is_anchor_T[j])]
    row = np.zeros((1, len(kept)), bool)
    row[0, [kept.index(j) for j in seen]] = True
    outputs.append(attention(q_TQK[t:t + 1], k_THK[kept], v_THV[kept], row)[0])
    if is_anchor_T[t]:
      kept = [j for j in kept if is_anchor_T[j]]
    sizes.append(len(kept))
  return np.stack(outputs), kept, sizes
