"""What an anchor cache holds and costs beside the full cache and beside no cache at all."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.inference.session import Session
from lattice_jax.inspect.anchors.losses import segment_facts
from lattice_jax.inspect.anchors.readers import Reader
from lattice_jax.inspect.anchors.texts import spots, to_batch, window_rows
from lattice_jax.marks import Marker
from lattice_jax.memories.anchor.state import AnchorCache
from lattice_jax.models.decoder import num_groups
from lattice_jax.ops.documents import EMPTY
from lattice_jax.sharding import tree_bytes

_WARM_UP = 2  # first steps, which include compilation and are not timed
_REPEATS = 3  # of reading the whole prefix again


def measure_caches(
  full: Reader, masked: Reader, ids_T: np.ndarray, tokenizer: Any, markers: dict[str, Marker | None], *, chunk_len: int,
  steps: int, report: Callable[[str], None],
) -> dict[str, Any]:
  """Reads all but the last `steps` tokens under each rule, then those one by one, in turn with the full cache.

  ids_T: begin with the end-of-text token.
  markers: name of a rule → what it marks. The first one's cache is timed.
  """
  prefix, warm = ids_T[:len(ids_T) - steps], min(_WARM_UP, steps - 1)
  sessions = {"full cache": _session(full, None, chunk_len, len(ids_T))}
  rules = []
  for name, marker in markers.items():
    sized = _sized(masked, ids_T, tokenizer, marker)
    session = _session(sized, marker, chunk_len, len(ids_T))
    session.read([prefix])
    rules.append({"rule": name} | _facts(masked, sized, session, ids_T, tokenizer, marker, chunk_len))
    live, whole = rules[-1]["live_bytes"], rules[-1]["full_bytes"]
    report(f"{name}: {live:,} bytes, {1 - live / whole:.1%} fewer than {whole:,} of the full cache")
    if name == next(iter(markers)):
      sessions["anchor cache"] = session
  sessions["full cache"].read([prefix])
  times = _time_steps(sessions, ids_T[len(prefix):], warm)
  times.append(_time_without_cache(full, prefix))
  report(", ".join(f"{row['what']}: {row['ms']:.1f} ms a token" for row in times))
  return {"tokens": len(prefix), "steps": steps - warm, "rules": rules, "times": times}


def kept_bytes(model: ModelConfig, tokens: int) -> int:
  """The formula: keys and values of so many tokens in all layers that have anchors."""
  layers = sum(memory == "anchor" for memory in model.pattern) * num_groups(model)
  width = model.attention.kv_heads * (model.attention.key_dim + model.attention.value_dim)
  return layers * width * np.dtype(model.dtype).itemsize * tokens


def kept_tokens(memory: Any) -> int:
  """Tokens of the first row that the first layer still holds: anchors, the open segment and protected tokens."""
  cache = next(
    leaf for leaf in jax.tree.leaves(memory, is_leaf=lambda x: isinstance(x, AnchorCache))
    if isinstance(leaf, AnchorCache))
  regions = cache.anchors, cache.open, cache.protected
  return int(sum((np.asarray(region.position_BHS)[0, 0, 0] != EMPTY).sum() for region in regions))


def _facts(masked, sized, session, ids_T, tokenizer, marker, chunk_len) -> dict[str, Any]:
  """Counts and bytes of a session that has read the prefix."""
  read, kept = int(session.state.position_B[0]), kept_tokens(session.state.memory)
  batch = to_batch(window_rows(ids_T[None, 1:read]), tokenizer, marker)
  live = tree_bytes(session.state.memory)
  full_bytes = _live_bytes(dataclasses.replace(masked.model, pattern=tuple(
    "attention" if memory == "anchor" else memory for memory in masked.model.pattern)), masked, len(ids_T), chunk_len)
  anchor = sized.model.anchor
  return segment_facts(spots(masked.model, batch, marker)) | {
    "read": read, "kept": kept, "kept_share": kept / read, "kept_bytes": kept_bytes(masked.model, kept),
    "reach": anchor.reach, "max_segment": anchor.max_segment, "live_bytes": live, "full_bytes": full_bytes,
    "configured_bytes": _live_bytes(masked.model, masked, len(ids_T), chunk_len), "saved": 1 - live / full_bytes}


def _live_bytes(model: ModelConfig, reader: Reader, max_len: int, chunk_len: int) -> int:
  """Of the arrays of an empty memory with room for `max_len` tokens; nothing of it grows."""
  return tree_bytes(_session(dataclasses.replace(reader, model=model), None, chunk_len, max_len).state.memory)


def _sized(masked: Reader, ids_T: np.ndarray, tokenizer: Any, marker: Marker | None) -> Reader:
  """The same mask on this text, with no more slots than it needs."""
  anchor = masked.model.anchor
  if anchor.fanout:
    return masked
  where = spots(masked.model, to_batch(window_rows(ids_T[None, 1:]), tokenizer, marker), marker)
  facts = segment_facts(where)
  open_len = int(where.place_BT.max()) + 1
  reach = min(facts["anchors"], anchor.reach or facts["anchors"])
  sized = dataclasses.replace(anchor, reach=max(1, reach), max_segment=min(anchor.max_segment, open_len + 1))
  return dataclasses.replace(masked, model=dataclasses.replace(masked.model, anchor=sized))


def _session(reader: Reader, marker: Marker | None, chunk_len: int, max_len: int) -> Session:
  return Session(reader.model, reader.variables, batch=1, max_len=max_len, chunk_len=chunk_len, marker=marker)


def _time_steps(sessions: dict[str, Session], ids_T: np.ndarray, warm: int) -> list[dict[str, Any]]:
  """Milliseconds and CPU seconds of a step, medians; the sessions take turns."""
  spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
  for id in ids_T:
    for name, session in sessions.items():
      spent[name].append(_timed(lambda session=session, id=id: session.step(np.array([id], np.int32)), session))
  return [_times(name, pairs[warm:]) for name, pairs in spent.items()]


def _time_without_cache(full: Reader, prefix: np.ndarray) -> dict[str, Any]:
  """A token that comes from reading the whole prefix again."""
  session = _session(full, None, len(prefix), 0)
  session.read([prefix])
  pairs = [_timed(lambda: session.read([prefix]), session) for _ in range(_REPEATS)]
  return _times("no cache, the prefix read again", pairs)


def _timed(action: Callable[[], None], session: Session) -> tuple[float, float]:
  start, cpu = time.perf_counter(), time.process_time()
  action()
  jax.block_until_ready(session.state)
  return time.perf_counter() - start, time.process_time() - cpu


def _times(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
  wall, cpu = ([pair[index] for pair in pairs] for index in (0, 1))
  return {
    "what": name, "repeats": len(pairs), "ms": 1000 * statistics.median(wall), "cpu_ms": 1000 * statistics.median(cpu)}
