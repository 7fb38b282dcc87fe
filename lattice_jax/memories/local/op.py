"""Local self-attention: each head sees the first tokens of the document and as many of the last as its window says.

Between them and what is far may be tokens that stay for their score. The three are disjoint and merged exactly.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.cache.append import Arrivals, arrivals
from lattice_jax.dispatch import choose_impl
from lattice_jax.memories.local.config import LocalConfig, check, window_rows
from lattice_jax.memories.local.far import far_block_len, find_fold
from lattice_jax.memories.local.reference import attend_reference, read_picks
from lattice_jax.memories.local.state import LocalCache, LocalView, clear, empty_cache
from lattice_jax.ops.attention import merge
from lattice_jax.ops.attention.kernel import reasons_against
from lattice_jax.ops.attention.slots import Readers, after_reading
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.documents import EMPTY, keep_only
from lattice_jax.ops.far_summary import FarSummary, FeatureMaps, join
from lattice_jax.ops.local import (
  Ring,
  attend_band,
  attend_far,
  attend_picks,
  group_heads,
  join_heads,
  leaving,
  read_ring,
  score_leaving_ring,
  take_heads,
  write_ring,
)
from lattice_jax.types import whole_segment

__all__ = ["local_attention"]


def local_attention(
  q: Float[Array, "B T Q K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"],
  state: LocalCache | LocalView | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, config: LocalConfig | None = None, fold: FarSummary | None = None,
  maps: FeatureMaps | None = None, max_len: int = 0, impl: str = "auto",
) -> tuple[Float[Array, "B T Q V"], LocalCache | LocalView]:
  """Attends every query to the sinks, picks and window of its head, up to itself, and moves the state on.

  Args:
    q: queries, positions included; Q = H·G, query head h·G + g reads key/value head h.
    k, v: keys and values of the same tokens.
    state: what came before; None starts without tokens. One layer of a stack of caches, a `LocalView`, is written in
      place, and whoever owns the stack clears it.
    ids, valid: document of each token; invalid tokens (a suffix) leave the state alone and read zeros. Their numbers
      are replaced by zeros in `ops.attention` and `reference`. None: one document, all valid.
    config: None: the defaults. Its windows are those of one layer, but where the state is a `LocalView` of several.
    fold: a summary of what leaves the windows, in the place of that of `config.far`.
    maps: what makes features of queries and keys, for `config.far` "features"; None for all else.
    max_len: tokens of a document for which a first state has room; with 0 it forgets between calls.
    impl: "reference" attends under the mask written out, and to the summary token by token.

  Returns:
    Output in fp32 and the next state.

  Raises:
    ValueError: fields of the config contradict one another or the heads, the state has another shape, or maps are
      missing or not asked for.
  """
  config = config or LocalConfig()
  check(config)
  _check_maps(config, maps)
  fold = find_fold(config, q.shape[2] // k.shape[2]) if fold is None else fold
  segment = whole_segment(*q.shape[:2])
  given = {"ids_BT": ids, "valid_BT": valid}
  segment = segment.replace(**{field: array for field, array in given.items() if array is not None})
  layers = len(state.stack.seen_B) if isinstance(state, LocalView) else 1
  groups = group_heads(window_rows(config, layers, k.shape[2]))
  if isinstance(state, LocalView):
    return _read_and_write(config, fold, maps, groups, q, k, v, state, segment, impl)
  room = max_len if state is None else 0  # a state that is given may have any
  state, *_ = complete_call("local_attention", state, ids, valid, like=q, empty=lambda: empty_cache(
    config, groups, len(q), room, key_dim=k.shape[3], value_dim=v.shape[3], dtype=k.dtype, fold=fold))
  out_BTQV, view = _read_and_write(
    config, fold, maps, groups, q, k, v, LocalView.alone(state), segment, impl)
  if not state.num_slots:
    return out_BTQV, state
  return out_BTQV, jax.tree.map(lambda leaf: leaf[0], clear({"": view.stack})[""])


def _check_maps(config: LocalConfig, maps: FeatureMaps | None) -> None:
  if (maps is not None) != (config.far == "features"):
    raise ValueError(
      f"local_attention is given {'no maps' if maps is None else 'maps'}, and config.far={config.far}; maps belong to "
      "far=features, and to nothing else.")


def _read_and_write(config, fold, maps, groups, q, k, v, view, segment, impl):
  arriving = arrivals(view.read("seen_B"), view.read("document_B"), segment)
  is_static = all(len(group.windows) == 1 for group in groups)
  chosen = choose_impl("local_attention", impl, **reasons_against(q, k, v, is_static=is_static))
  attend = attend_reference if chosen == "reference" else functools.partial(attend_band, impl=chosen)
  own = attend(q, k, v, arriving.run_BT, arriving.index_BT, groups, view.layer, sinks=config.sinks)
  past = "reference" if chosen == "reference" else "xla"  # there is no kernel for slots yet
  rings, kept, reads, gone = list(view.stack.rings), [], [], []
  picks = view.read("picks")
  for group, read in zip(groups, own, strict=True):
    its_rings, rings = rings[:len(group.windows)], rings[len(group.windows):]
    q_BTQK, k_BTHK, v_BTHV = (take_heads(x, group, k.shape[2]) for x in (q, k, v))
    partition_BCH = None if picks is None else take_heads(picks.partition_BCH, group, k.shape[2])
    *read, left = _read(
      config, fold, group, its_rings, q_BTQK, k_BTHK, v_BTHV, partition_BCH, view, arriving, read, past)
    reads.append(read)
    gone.append(left)
    if not view.stack.num_slots:
      continue
    # what is written must wait for all that is read
    found = [leaf for leaf in jax.tree.leaves((read[1], left)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    layer = functools.reduce(after_reading, found, view.layer)
    kept += _write(config, group, its_rings, k_BTHK, v_BTHV, layer, arriving)
  read = tuple(join_heads(list(parts), groups) for parts in zip(*reads, strict=True))
  summary, share_B = None, None
  if gone[0] is not None:
    q, starts_BT = keep_only(segment.valid_BT, q), segment.valid_BT & (arriving.index_BT == 0)
    left, scores = jax.tree.map(lambda *parts: join_heads(list(parts), groups), *gone)
    if picks is not None:
      attend = read_picks if chosen == "reference" else attend_picks
      stays, picks, left = attend(q, picks, left, scores, starts_BT, segment.valid_BT)
      read = merge(*read, *stays)
  if fold is not None:
    if maps is not None:
      q, left = maps.query(q), left.replace(key_BTHK=maps.key(left.key_BTHK))
    far, summary = attend_far(
      fold, q, left, starts_BT, view.read("summary"),
      block_len=q.shape[1] if chosen == "reference" else far_block_len(fold, config, q.shape[1]))
    near_BTQ = read[1]
    read = join(*read, *far, most_share=config.summary.most_share)
    share_BT = jax.lax.stop_gradient(1 - jnp.exp(near_BTQ - read[1])).mean(-1)
    share_B = keep_only(arriving.is_last_BT, share_BT).sum(1)
  if not view.stack.num_slots:
    return read[0], view
  return read[0], _move_on(view, tuple(kept), arriving, share_B, summary=summary, picks=picks)


def _read(config, fold, group, rings, q_BTQK, k_BTHK, v_BTHV, partition_BCH, view, arriving, read, impl):
  """(output, log-sum-exp) `read` of a group's heads merged with attention to what they keep, and what leaves them.

  The last is (`Leaving`, `Scores`); the scores are None without picks, and both where nothing takes what leaves.
  """
  seen_B, place, has_room = view.read("seen_B"), group.place(view.layer), view.stack.num_slots > 0
  if not has_room and fold is None and partition_BCH is None:
    return *read, None
  readers, is_token_BT = Readers(index_BT=arriving.index_BT, sees_BT=arriving.run_BT == 0), arriving.run_BT != EMPTY

  def reader(ring, window):
    limits = {"sinks": config.sinks, "window": window}

    def read_one(q_BTQK, k_BTHK, v_BTHV, *read):
      if has_room:
        read = read_ring(ring, place, q_BTQK, read, seen_B, readers, impl=impl, **limits)
      if fold is None and partition_BCH is None:
        return *read, None
      came = ring, place, k_BTHK, v_BTHV, arriving.index_BT, is_token_BT
      scores = None if partition_BCH is None else score_leaving_ring(*came, partition_BCH, **limits)
      return *read, (leaving(*came, **limits), scores)

    return read_one

  branches = [reader(ring, window) for ring, window in zip(rings, group.windows, strict=True)]
  if len(branches) == 1:
    return branches[0](q_BTQK, k_BTHK, v_BTHV, *read)
  flat = [lambda *given, branch=branch: _flat(branch(*given)) for branch in branches]
  (out, lse), rest = jax.lax.switch(group.kind(view.layer), flat, q_BTQK, k_BTHK, v_BTHV, *read)
  return out.reshape(read[0].shape), lse.reshape(read[1].shape), rest


def _flat(read):
  out, lse, rest = read
  return (out.reshape(len(out), -1), lse.reshape(len(lse), -1)), rest


def _write(config, group, rings, k_BTHK, v_BTHV, layer, arriving):
  """The group's rings with the call's tokens in the one that the layer has; nothing is written to the others."""
  kind, place = group.kind(layer), group.place(layer)
  return [
    write_ring(
      ring, place, k_BTHK, v_BTHV, arriving.index_BT, arriving.is_last_BT & (kind == n), arriving.seen_B,
      sinks=config.sinks, window=window)
    for n, (ring, window) in enumerate(zip(rings, group.windows, strict=True))]


def _move_on(
  view: LocalView, rings: tuple[Ring, ...], arriving: Arrivals, share_B: jax.Array | None, **written: Any) -> LocalView:
  """The view after the call; in slots that a new document has not reached, tokens of the last one may still lie."""
  stale_B = view.read("stale_B") | arriving.is_new_B & (view.read("seen_B") > 0)
  if share_B is not None:
    before_B = jax.lax.stop_gradient(view.read("far_share_B"))
    share_B += jnp.where(arriving.is_new_B, 0, before_B)
  view = view.write(
    seen_B=arriving.seen_B, document_B=arriving.document_B, stale_B=stale_B, far_share_B=share_B, **written)
  return view.replace(stack=view.stack.replace(rings=rings))
