"""The loss of the same windows under full attention, the mask, and the reduced cache; and where it differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation.bootstrap import interval_of_ratio
from lattice_jax.inspect.anchors.readers import Reader, score
from lattice_jax.inspect.anchors.texts import Spots, spots
from lattice_jax.marks import Marker
from lattice_jax.types import Batch

# Nats a token, on average, by which the reduced cache may differ from the masked forward pass in float32. Single tokens
# of a deep model differ by more under full attention too, whose own cache is measured beside it.
TOLERANCE = 1e-4
_POSITIONS = 32  # tokens of the first range of positions; each further one ends at twice the place of that before


def measure_text(
  readers: Sequence[Reader], batch: Batch, tokenizer: Tokenizer, marker: Marker | None, *, chunk_len: int, rows: int,
  report: Callable[[str], None],
) -> dict[str, Any]:
  """Totals of every way to read, and losses by place in the segment, segments before the token, and position.

  Raises:
    RuntimeError: the reduced cache does not give what the masked forward pass gives.
  """
  bytes_B = np.array([len(tokenizer.decode(ids_T)) for ids_T in batch.targets_BT])
  losses = {reader.name: score(reader, batch, rows=rows)[0] for reader in readers}
  report(f"{batch.targets_BT.size:,} tokens under {', '.join(losses)}")
  readings = []
  for index, reader in enumerate(readers):
    full_BT = losses[readers[index - index % 2].name]
    readings.append(_totals(reader.name, "one call, no cache", losses[reader.name], full_BT, bytes_B))
    cache = "reduced cache" if reader.is_masked else "full cache"
    for size in (chunk_len, 1) if reader.is_masked else (chunk_len,):
      what = f"{cache}, {f'{size} tokens a call' if size > 1 else 'token by token'}"
      nll_BT = score(reader, batch, rows=rows, chunk_len=size)[0]
      off_BT = np.abs(nll_BT - losses[reader.name])
      report(f"{reader.name}, {what}: {off_BT.mean():.1e} nats a token from one call, {off_BT.max():.1e} at most")
      if reader.is_masked:
        check_equal(float(off_BT.mean()), f"{reader.name}, {what}")
      readings.append(_totals(reader.name, what, nll_BT, full_BT, bytes_B) | {
        "mean_difference": float(off_BT.mean()), "largest_difference": float(off_BT.max())})
  masked = next(reader for reader in readers if reader.is_masked)
  where = spots(masked.model, batch, marker)
  all_BT = np.ones_like(where.segment_BT, bool)
  return {
    "windows": len(bytes_B), "tokens": batch.targets_BT.size, "window_len": batch.targets_BT.shape[1],
    "bytes": int(bytes_B.sum()), "readings": readings, "tolerance": TOLERANCE, "segments": segment_facts(where),
    # in the first segment of a window the mask hides nothing
    "by_place": _by(where.place_BT, where.segment_BT > 0, readers, losses),
    "by_segment": _by(where.segment_BT, all_BT, readers, losses),
    "by_position": _by(np.cumsum(all_BT, axis=1) - 1, all_BT, readers, losses, _POSITIONS)}


def check_equal(difference: float, what: str) -> None:
  """Raises RuntimeError if a reduced cache says other things than the masked forward pass."""
  if not difference <= TOLERANCE:
    raise RuntimeError(
      f"{what}: losses are {difference:.1e} nats a token from those of the masked forward pass, more than {TOLERANCE}.")


def segment_facts(where: Spots) -> dict[str, float]:
  """Mean and largest length of the closed segments of all rows."""
  lengths = where.place_BT[where.is_anchor_BT] + 1
  return {
    "anchors": int(where.is_anchor_BT.sum()), "mean_len": float(lengths.mean()) if len(lengths) else math.nan,
    "largest_len": int(lengths.max(initial=0))}


def bucket(value: int, unit: int = 1) -> str:
  """0, 1, 2–3, 4–7, 8–15 …; in units of 32: 0–31, 32–63, 64–127 …"""
  first = 1 << (value.bit_length() - 1) if value >= unit else 0
  last = max(2 * first, unit) - 1
  return str(first) if first == last else f"{first}–{last}"


def _totals(
  name: str, how: str, nll_BT: np.ndarray, full_BT: np.ndarray, bytes_B: np.ndarray) -> dict[str, Any]:
  """Means and 95 % intervals from resampling windows."""
  nats_B, full_B = nll_BT.astype(np.float64).sum(1), full_BT.astype(np.float64).sum(1)
  size_B = np.full(len(nats_B), nll_BT.shape[1])
  mean, bits_B = float(nats_B.sum() / size_B.sum()), nats_B / math.log(2)
  return {
    "reader": name, "how": how, "nats_per_token": mean, "nats_interval": interval_of_ratio(nats_B, size_B),
    "perplexity": math.exp(mean), "bits_per_byte": float(bits_B.sum() / bytes_B.sum()),
    "bits_interval": interval_of_ratio(bits_B, bytes_B),
    "above_full": float((nats_B - full_B).sum() / size_B.sum()),
    "above_full_interval": interval_of_ratio(nats_B - full_B, size_B)}


def _by(
  value_BT: np.ndarray, counts_BT: np.ndarray, readers: Sequence[Reader], losses: dict[str, np.ndarray],
  unit: int = 1,
) -> list[dict[str, Any]]:
  """Mean losses, and how much more than under full attention, over ranges of the values that double from `unit`."""
  label_BT = np.vectorize(lambda value: bucket(int(value), unit), otypes=[object])(value_BT)
  labels = dict.fromkeys(bucket(value, unit) for value in range(int(value_BT.max()) + 1))
  groups = []
  for label in labels:
    is_in_BT = (label_BT == label) & counts_BT
    if not is_in_BT.any():
      continue
    size_B = is_in_BT.sum(1)
    above = {}
    for index, reader in enumerate(readers):
      if reader.is_masked:
        extra_BT = np.where(is_in_BT, losses[reader.name] - losses[readers[index - 1].name], 0).astype(np.float64)
        above[reader.name] = [float(extra_BT.sum() / size_B.sum()), *interval_of_ratio(extra_BT.sum(1), size_B)]
    groups.append({
      "bucket": label, "tokens": int(size_B.sum()),
      "nats": {name: float(nll_BT[is_in_BT].mean()) for name, nll_BT in losses.items()}, "above_full": above})
  return groups
