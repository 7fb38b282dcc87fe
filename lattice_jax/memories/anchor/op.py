"""Anchor-based self-attention (AnSAN, arXiv 2402.07616): a segment that ends is known by its anchor alone."""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.memories.anchor.attend import attend_call
from lattice_jax.memories.anchor.config import AnchorConfig, check
from lattice_jax.memories.anchor.open_segment import check_call, compress_open
from lattice_jax.memories.anchor.places import ALL_LEVELS, find_places, is_seen, num_levels
from lattice_jax.memories.anchor.reference import attend_reference
from lattice_jax.memories.anchor.state import AnchorCache, AnchorView, Region, clear, empty_cache, write
from lattice_jax.ops.attention.kernel import reasons_against
from lattice_jax.ops.attention.slots import StackedSlots, after_reading, attend_slots
from lattice_jax.ops.calls import complete_call
from lattice_jax.types import whole_segment

__all__ = ["anchor_attention"]


def anchor_attention(
  q: Float[Array, "B T Q K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"],
  state: AnchorCache | AnchorView | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, marks: Int[Array, "B T"] | None = None,
  config: AnchorConfig | None = None, max_len: int = 0, impl: str = "auto",
) -> tuple[Float[Array, "B T Q V"], AnchorCache | AnchorView]:
  """Attends every query to its own segment up to itself and to the anchors of earlier ones, and moves the state on.

  A token marked as an anchor ends its segment. An anchor sees its own segment alone, other tokens see all earlier
  anchors of their document as well; `config` has the variants. Protected tokens are seen as anchors are, and end
  nothing.

  Args:
    q: queries, positions included; Q = H·G, query head h·G + g reads key/value head h.
    k, v: keys and values of the same tokens.
    state: what came before; None starts without tokens. One layer of a stack of caches, an `AnchorView`, is written in
      place, and whoever owns the stack clears and compresses it.
    ids, valid: document of each token; invalid tokens (a suffix) leave the state alone and read zeros. Their numbers
      are replaced by zeros in `ops.attention` and `reference`. None: one document, all valid.
    marks: of each token (`types.make_marks`); None: no token is marked.
    config: None: the defaults.
    max_len: tokens of a document for which a first state has room; with 0 it forgets between calls.
    impl: "reference" attends under the mask written out.

  Returns:
    Output in fp32 and the next state.

  Raises:
    ValueError: fields of the config contradict one another, the state has another shape, or the call is longer than
      `open_call_len`.
  """
  config = config or AnchorConfig()
  check(config)
  segment = whole_segment(*q.shape[:2])
  given = {"ids_BT": ids, "valid_BT": valid, "marks_BT": marks}
  segment = segment.replace(**{field: array for field, array in given.items() if array is not None})
  if isinstance(state, AnchorView):
    return _read_and_write(config, q, k, v, state, segment, impl)
  room = max_len if state is None else 0  # a state that is given may have any
  state, *_ = complete_call("anchor_attention", state, ids, valid, like=q, empty=lambda: empty_cache(
    config, len(q), room, heads=k.shape[2], key_dim=k.shape[3], value_dim=v.shape[3], dtype=k.dtype))
  out_BTQV, view = _read_and_write(config, q, k, v, AnchorView.alone(state), segment, impl)
  if not state.num_slots:
    return out_BTQV, state
  stacks = compress_open(config, clear({"": view.stack}), q.shape[1])
  return out_BTQV, jax.tree.map(lambda leaf: leaf[0], stacks[""])


def _read_and_write(config, q, k, v, view, segment, impl):
  before = view.counts
  places = find_places(config, before, segment)
  levels = max(num_levels(config, q.shape[1]), _levels_of(config, before.num_slots))
  chosen = choose_impl("anchor_attention", impl, **reasons_against(q, k, v))
  if chosen == "reference":
    read = attend_reference(config, q, k, v, places)
  else:
    read = attend_call(config, q, k, v, places, levels=levels, impl=chosen)
  if not before.num_slots:
    return read[0], view
  check_call(config, q.shape[1])
  past = "reference" if chosen == "reference" else "xla"  # there is no kernel for slots yet
  read = _attend_cache(config, q, view, before, places, read, past)
  view = view.replace(layer=after_reading(view.layer, read[1]))
  return read[0], write(config, view, k, v, places)


def _attend_cache(config, q, view, before, places, read, impl):
  """`read` merged with attention to what the cache holds."""
  stack, is_here_BT = view.stack, places.arriving.run_BT == 0

  def slots(region: Region, order_LBHS: jax.Array, length_B: jax.Array) -> StackedSlots:
    return StackedSlots(
      key_LBHSK=region.key_BHSK, value_LBHSV=region.value_BHSV, position_LBHS=order_LBHS, layer=view.layer,
      length_B=length_B)

  anchors = slots(stack.anchors, stack.number_BS[:, :, None], _slots_in_use(before.number_BS))
  readers = _Readers(is_here_BT & (places.below_BT > 0), places.passed_BT, places.below_BT)
  read = attend_slots(q, anchors, readers, read, rule=_AnchorRule(config), impl=impl)
  is_in_open_BT = is_here_BT & (places.segment_BT == 0)
  opened = slots(stack.open, stack.open.position_BHS, before.open_len_B)
  read = attend_slots(q, opened, _Readers(is_in_open_BT, None, None), read, impl=impl)
  if not config.protected:
    return read
  # an anchor sees those of its own segment
  time_T = jnp.arange(q.shape[1])
  first_BT = jnp.where(
    places.below_BT == ALL_LEVELS, 0, places.arriving.index_BT - time_T + places.start_BT)
  protected = slots(stack.protected, stack.protected.position_BHS, before.num_protected_B)
  return attend_slots(q, protected, _Readers(is_here_BT, first_BT, None), read, rule=_from_first, impl=impl)


@flax.struct.dataclass
class _Readers:
  """sees_BT: as of `ops.attention.slots.Readers`. place_BT, below_BT: what the rule of the region compares with."""

  sees_BT: jax.Array
  place_BT: jax.Array | None
  below_BT: jax.Array | None


@dataclass(frozen=True)
class _AnchorRule:
  config: AnchorConfig

  def __call__(self, readers: _Readers, number_BHS: jax.Array) -> jax.Array:
    passed_BHTS, below_BHTS = (x_BT[:, None, :, None] for x_BT in (readers.place_BT, readers.below_BT))
    return is_seen(self.config, number_BHS[:, :, None], passed_BHTS, below_BHTS)


def _from_first(readers: _Readers, position_BHS: jax.Array) -> jax.Array:
  return position_BHS[:, :, None] >= readers.place_BT[:, None, :, None]


def _slots_in_use(number_BS: jax.Array) -> jax.Array:
  """One more than the last slot that holds an anchor."""
  return jnp.where(number_BS >= 0, jnp.arange(1, number_BS.shape[1] + 1), 0).max(1, initial=0)


def _levels_of(config: AnchorConfig, num_slots: int) -> int:
  return (num_slots - config.keep_bos) // (config.fanout - 1) if config.fanout and num_slots else 1
