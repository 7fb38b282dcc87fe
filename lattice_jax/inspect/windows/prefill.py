"""The baseline «windows while prefilling, full attention while decoding» (SWAA, arXiv 2512.10411).

A prompt is read under windows, but the keys and values of all its tokens are kept, and what follows sees all of them.
That saves work while a prompt is read, and no byte of the cache: a step of decoding reads what full attention reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lattice_jax.config import ModelConfig
from lattice_jax.evaluation.compiled import EvalShapes, compile_evaluation
from lattice_jax.inspect.op_inputs import op_inputs, read_op_inputs
from lattice_jax.memories.local.config import window_rows
from lattice_jax.sharding import put_batch
from lattice_jax.types import Batch, slice_time

_BLOCK = "block_"


def score_continuation(
  reading: ModelConfig, model: ModelConfig, variables: Any, mesh: Mesh, batch: Batch, start: int) -> np.ndarray:
  """[B, T − start]: nats of the targets from `start` on, under `model`, full attention with a cache that drops nothing.

  The tokens before were read under `reading`, in one call, with the windows of `model.local`. One text at a time.
  """
  count, length = batch.tokens_BT.shape
  shapes = EvalShapes(batch=1, chunk_len=length - start, max_len=length)
  step, make_state = compile_evaluation(model, shapes, mesh, variables)
  rows = []
  for row in range(count):
    one = jax.tree.map(lambda x, row=row: x[row:row + 1] if np.ndim(x) else x, batch)
    prompt = slice_time(one.segment, 0, start)
    sown = read_op_inputs(reading, variables, one.tokens_BT[:, :start], prompt)
    state = _with_prompt(model, make_state(), [op_inputs(sown, reading, layer) for layer in range(model.layers)])
    rest = jax.tree.map(lambda x: x[:, start:] if np.ndim(x) else x, one)
    _, (nll_BT, *_) = step(variables, state, put_batch(rest, mesh, rows=1))
    rows.append(np.asarray(nll_BT))
  return np.concatenate(rows)


def _with_prompt(model: ModelConfig, state: dict[str, Any], inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The empty caches of a decoder with the keys and values of a prompt, which one call gave to each layer."""
  blocks, filled = len(model.pattern), {}
  for name, cache in state.items():
    own = inputs[int(name.removeprefix(_BLOCK))::blocks]
    length = own[0]["k"].shape[1]
    used = slice(0, length)

    def put(old: jax.Array, key: str, own=own, used=used) -> jax.Array:
      new_LBHTK = jnp.stack([jnp.moveaxis(each[key], 1, 2) for each in own]).astype(old.dtype)
      return jax.device_put(old.at[..., used, :].set(new_LBHTK), old.sharding)

    counts = {
      field: jax.device_put(jnp.full_like(getattr(cache, field), value), getattr(cache, field).sharding)
      for field, value in (("length_B", length), ("filled_B", length), ("seen_B", length), ("document_B", 0))}
    positions = cache.position_BHS.at[..., used].set(jnp.arange(length))
    filled[name] = cache.replace(
      key_BHSK=put(cache.key_BHSK, "k"), value_BHSV=put(cache.value_BHSV, "v"),
      position_BHS=jax.device_put(positions, cache.position_BHS.sharding), **counts)
  return filled


def prefill_pairs(reading: ModelConfig, length: int) -> float:
  """Pairs of a query and a key that a prompt's attention computes, as a share of those of full attention.

  All other work of reading a prompt, projections and MLPs, is the same. reading: full attention, or under windows.
  """
  full = length * (length + 1) // 2
  if set(reading.pattern) != {"local"}:
    return 1.0
  local, heads = reading.local, reading.attention.kv_heads
  seen_T = np.arange(1, length + 1, dtype=np.int64)
  windows = [window for row in window_rows(local, reading.layers, heads) for window in row]
  shares = {window: int((np.minimum(seen_T, local.sinks + window) if window else seen_T).sum()) / full
            for window in set(windows)}
  return float(np.mean([shares[window] for window in windows]))
