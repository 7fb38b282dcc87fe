"""Which tokens are anchors: a function of each token and of the few before it, the same in training and in decoding.

`data.anchors` makes a `Marker` from a rule and a tokenizer; layers see only the marks.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED

# The bits of `Marker.class_A`, by the text of a token.
ENDS = 1  # closes a segment, whatever stands before it
DOT = 2  # a stop that may also stand inside a number or behind an abbreviation
FORBIDS = 4  # behind it a DOT closes nothing: " e", " Mr", "3", "www"
WORD = 8  # as FORBIDS if no LETTER stands before it: "e", "Mr", without the space at the start of a word
LETTER = 16  # ends in a letter or digit
SPACE = 32  # white space; in tokens of one byte, where the stop before it shows to be one
CLOSER = 64  # a quote or bracket, which may stand between stop and white space
PROTECTED = 128  # is never dropped


@flax.struct.dataclass
class Marker:
  """How marks follow from tokens. Ids beyond the table are as those that have no bits.

  class_A: uint8, the bits above of every token.
  every: each token of a document at which so many have been read is an anchor; 0 = off.
  spelled: the tokens are single bytes, in which a sentence ends at the first white space behind its stop.
  copies: an anchor is the last of so many tokens that close a segment; those before it are protected.
  apart: how many tokens stand at least between two such runs, in the texts that are read.
  """

  class_A: Any
  every: int = flax.struct.field(pytree_node=False, default=0)
  spelled: bool = flax.struct.field(pytree_node=False, default=False)
  copies: int = flax.struct.field(pytree_node=False, default=1)
  apart: int = flax.struct.field(pytree_node=False, default=1)

  @property
  def look_behind(self) -> int:
    """W: how many tokens before a token its mark may depend on."""
    return max(5 if self.spelled else 2, self.copies - 1)


def nothing_read(marker: Marker, batch: int) -> np.ndarray:
  """int32 [B, W] of −1: what stands before the first token of a text."""
  return np.full((batch, marker.look_behind), -1, np.int32)


def mark_tokens(marker: Marker, tokens_BT: Any, previous_BW: Any, positions_BT: Any) -> Any:
  """int8 [B, T], MARK_ANCHOR and MARK_PROTECTED of every token; arrays of numpy give numpy's.

  previous_BW: the W = `marker.look_behind` ids before the first token, −1 where there is none or it is not known.
  positions_BT: 0 at the start of a document; nothing before that is looked at.
  """
  xnp = np if isinstance(tokens_BT, np.ndarray) else jnp
  length, num_ids = tokens_BT.shape[1], marker.class_A.shape[0]
  ids_BS = xnp.concatenate([previous_BW.astype(tokens_BT.dtype), tokens_BT], axis=1)
  is_known_BS = (ids_BS >= 0) & (ids_BS < num_ids)
  class_BS = xnp.where(is_known_BS, xnp.asarray(marker.class_A)[xnp.clip(ids_BS, 0, num_ids - 1)], 0)

  def has(back: int, bit: int) -> Any:
    start = marker.look_behind - back
    return (class_BS[:, start:start + length] & bit != 0) & (positions_BT >= back)

  def closes(back: int) -> Any:
    is_inside_BT = has(back + 1, FORBIDS) | has(back + 1, WORD) & ~has(back + 2, LETTER)
    return has(back, ENDS) | has(back, DOT) & ~is_inside_BT

  is_anchor_BT, is_protected_BT = closes(0), has(0, PROTECTED)
  if marker.copies > 1:
    is_copy_BT = is_anchor_BT
    for back in range(1, marker.copies):
      is_anchor_BT = is_anchor_BT & has(back, ENDS)
    is_protected_BT |= is_copy_BT & ~is_anchor_BT
  if marker.spelled:
    after_closers_BT = has(1, CLOSER) & (closes(2) | has(2, CLOSER) & closes(3))
    is_anchor_BT = has(0, SPACE) & (closes(1) | after_closers_BT)
  if marker.every:
    is_anchor_BT |= (positions_BT + 1) % marker.every == 0
  anchor_BT, protected_BT = is_anchor_BT.astype(xnp.int8), is_protected_BT.astype(xnp.int8)
  return anchor_BT * xnp.int8(MARK_ANCHOR) | protected_BT * xnp.int8(MARK_PROTECTED)


def last_read(previous_BW: Any, tokens_BT: Any, num_B: Any) -> Any:
  """The W ids before the next token, once the first `num_B` tokens of every row have been read."""
  xnp = np if isinstance(tokens_BT, np.ndarray) else jnp
  ids_BS = xnp.concatenate([previous_BW, tokens_BT.astype(previous_BW.dtype)], axis=1)
  return xnp.take_along_axis(ids_BS, num_B[:, None] + xnp.arange(previous_BW.shape[1]), axis=1)
