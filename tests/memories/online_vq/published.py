"""Online vector-quantised attention (2602.03922) for one head and one document, token after token, float64.

Written from the equations of the memory's README and not from the op, with lists that grow where the op has masks.
"""

from __future__ import annotations

import math

import numpy as np


def online_vq(q_TK, k_TK, v_TV, most, chunk_len, growth="plateau"):
  """(outputs, mean keys, mean values, counts) with scores q·k; a dictionary of up to `most` codes."""
  clusters, out = [], []  # of each code the tokens that joined it
  for begin in range(0, len(q_TK), chunk_len):
    end = min(begin + chunk_len, len(q_TK))
    means = [(k_TK[own].mean(0), v_TV[own].mean(0), len(own)) for own in clusters]
    for t in range(begin, end):
      seen = [*means, *((k_TK[s], v_TV[s], 1) for s in range(begin, t + 1))]
      score = np.array([q_TK[t] @ key + math.log(count) for key, _, count in seen])
      odds = np.exp(score - score.max())
      out.append(odds / odds.sum() @ np.stack([value for _, value, _ in seen]))
    if end - begin == chunk_len:
      join(clusters, k_TK, range(begin, end), size(end, most, growth))
  keys, values = (np.stack([x[own].mean(0) for own in clusters]) for x in (k_TK, v_TV))
  return np.stack(out), keys, values, np.array([len(own) for own in clusters])


def size(tokens, most, growth):
  """N_t = ⌊t N/(t + N)⌋ of the paper, but at least one."""
  return min(tokens, most) if growth == "full" else max(1, tokens * most // (tokens + most))


def join(clusters, k_TK, tokens, num):
  """The tokens least like any mean found new clusters until there are `num`; the others join the likest one."""
  means = [k_TK[own].mean(0) for own in clusters]

  def likeness(t):
    if not means:
      return -math.inf if t == tokens[0] else k_TK[t] @ k_TK[tokens[0]]
    return max(k_TK[t] @ mean for mean in means)

  founders = sorted(sorted(tokens, key=likeness)[: num - len(clusters)])
  candidates = means + [k_TK[t] for t in founders]
  clusters += [[t] for t in founders]
  for t in tokens:
    if t not in founders:
      clusters[int(np.argmax([k_TK[t] @ mean for mean in candidates]))].append(t)
