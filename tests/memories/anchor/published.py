"""AnSAN as its paper writes it (arXiv 2402.07616, section 3 and Algorithm 1), token by token in float64.

Written from the paper and not from the op: the mask of a whole row, and inference that deletes what is reduced.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np

from tests.memories import published_layers as layers


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


def read(params, config, tokens_T, is_anchor_T, cuts, *, reduce):
  """Logits [T, A] of a decoder whose layers attend by the mask, float64, read in the calls that `cuts` bound.

  A cache entry is (place, segment, whether it is an anchor, key, value); with `reduce`, what is no anchor of a closed
  segment is deleted after every call. config: a ModelConfig of blocks with an MLP, one memory in all layers.
  """
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  segment_T = np.concatenate([[0], np.cumsum(is_anchor_T)[:-1]])
  block, attention = params["groups"]["block_0"], config.attention
  cache = [[] for _ in range(config.layers)]
  logits = []
  for start, stop in itertools.pairwise(cuts):
    x_TD = params["embedding"][tokens_T[start:stop]]
    for index in range(config.layers):
      layer = jax.tree.map(lambda leaf, index=index: leaf[index], block)
      memory, place_T = layer["memory"], np.arange(start, stop)
      h_TD = layers.rms_norm(x_TD) * layer["memory_norm"]["gain"]
      q_THK, k_THK = (
        layers.rotary(layers.heads(h_TD, memory[name]), place_T, attention.rope_theta) for name in ("query", "key"))
      v_THV = layers.heads(h_TD, memory["value"])
      cache[index] += [(t, segment_T[t], is_anchor_T[t], k, v) for t, k, v in zip(place_T, k_THK, v_THV, strict=True)]
      seen_TS = np.array([[
        key[0] <= t and (key[1] == segment_T[t] or (key[2] and not is_anchor_T[t])) for key in cache[index]]
        for t in place_T])
      out_THV = attention_over(q_THK, [key[3] for key in cache[index]], [key[4] for key in cache[index]], seen_TS)
      x_TD = x_TD + np.einsum("thv,hvd->td", out_THV, memory["out"])
      h_TD = layers.rms_norm(x_TD) * layer["mlp_norm"]["gain"]
      x_TD = x_TD + (layers.silu(h_TD @ layer["mlp"]["gate"]) * (h_TD @ layer["mlp"]["up"])) @ layer["mlp"]["down"]
      if reduce:
        open_segment = is_anchor_T[:stop].sum()
        cache[index] = [key for key in cache[index] if key[2] or key[1] == open_segment]
    logits.append(layers.rms_norm(x_TD) * params["final_norm"]["gain"] @ params["head"] + params["head_bias"])
  return np.concatenate(logits), [key[0] for key in cache[0]]


def attention_over(q_THK, keys, values, seen_TS):
  k_SHK, v_SHV = np.stack(keys), np.stack(values)
  group = q_THK.shape[1] // k_SHK.shape[1]
  score_HTS = np.einsum("thk,shk->hts", q_THK, np.repeat(k_SHK, group, axis=1)) / np.sqrt(q_THK.shape[-1])
  odds_HTS = np.where(seen_TS, np.exp(score_HTS - score_HTS.max(-1, keepdims=True)), 0)
  return np.einsum("hts,shv->thv", odds_HTS / odds_HTS.sum(-1, keepdims=True), np.repeat(v_SHV, group, axis=1))
