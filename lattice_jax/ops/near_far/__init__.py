"""Attention that reads recent tokens exactly and older ones through a summary of fixed size, in linear time.

A memory of this kind keeps the last W tokens of a document, and a summary of all that are older. Queries are read in
blocks: those of a block see the block itself, the W slots before it, and the summary of everything older still. What
the summary is, a memory says in a `FarMemory`: how some tokens are summarized, how two summaries become one, and how
queries read. Everything else is here: documents, padding, the window, and the summaries before every block.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Bool, Int

from lattice_jax.ops.documents import EMPTY, keep_only
from lattice_jax.ops.near_far.blocks import INPUT_SCAN, attend_blocks
from lattice_jax.ops.near_far.far import REDUCTIONS, FarMemory, far_before_blocks, fold_by_token, summarize
from lattice_jax.ops.near_far.state import Far, NearFarState, Stream, close, empty_state, from_runs, to_runs

__all__ = [
  "FORMS", "INPUT_SCAN", "REDUCTIONS", "Far", "FarMemory", "NearFarState", "Stream", "attend", "attend_blocks", "close",
  "empty_state", "far_before_blocks", "fold_by_token", "from_runs", "summarize", "to_runs",
]

FORMS = (*REDUCTIONS, INPUT_SCAN)


def attend(
  memory: FarMemory, queries: Any, tokens: Any, state: NearFarState, ids: Int[Array, "B T"], valid: Bool[Array, "B T"],
  *, block_len: int, reduction: str = "serial", use_far: bool = True,
) -> tuple[Any, NearFarState]:
  """Attends every query to the earlier tokens of its document, and moves the state on.

  Args:
    memory: how older tokens are summarized and read.
    queries: arrays [B, T, …] as `memory.read` takes them.
    tokens: arrays [B, T, …] as `memory.summarize` takes them.
    state: what came before; `empty_state` makes the first.
    ids, valid: document of each token; invalid tokens (a suffix) are replaced by zeros at the door, leave the state
      alone and read zeros.
    block_len: queries read at a time, any number; a matter of cost alone.
    reduction: how the summaries before every block are made, one of `FORMS`; a matter of cost alone.
    use_far: False forgets what lies further back than W tokens.

  Returns:
    Output of `memory.read` for all tokens and the next state.
  """
  if reduction not in FORMS:
    raise ValueError(f"reduction={reduction!r} is not one of {', '.join(FORMS)}.")
  queries, tokens = keep_only(valid, (queries, tokens))
  before, run_BT, document_B = to_runs(state, ids, valid)
  stream = before.near.followed_by(tokens, run_BT)
  out_BT, far = attend_blocks(
    memory, queries, stream, before.far, run_BT, block_len=block_len, reduction=reduction, use_far=use_far)
  after = close(stream, state.near.id_BS.shape[1], (run_BT != EMPTY).sum(1), far)
  return keep_only(valid, out_BT), from_runs(after, document_B)
