"""The cases of one op: measured in turn, and written as JSON lines, tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lattice_jax.bench import delta, lattice, recurrence, vq
from lattice_jax.bench.harness import GIGA, Measured, measure
from lattice_jax.bench.records import format_scaling, format_table, plot_records, records_like, write_records
from lattice_jax.files import read_jsonl

OPS = {"vq": vq, "lattice": lattice, "delta": delta, "recurrence": recurrence}


class OpBench:
  """One op at the widths and heads of `head`, its first if empty; of its cases those that have one of `words`."""

  def __init__(
    self, op: str, head: str, *, batch: int, words: tuple[str, ...], rounds: int, max_gb: float, out: Path,
    say: Callable[[str], None]):
    shapes = OPS[op].SHAPES
    self._name, self._op, self._head = op, OPS[op], head or next(iter(shapes))
    if self._head not in shapes:
      raise ValueError(f"--head={head} is none of {op}; use one of {', '.join(shapes)}.")
    self._batch, self._words, self._rounds, self._max_gb = batch, words, rounds, max_gb
    self._out, self._say = out, say

  def check_modes(self, modes: Sequence[str]) -> None:
    unknown = set(modes) - set(self._op.MODES)
    if unknown:
      raise ValueError(f"--modes={','.join(unknown)} is none of {self._name}'s: {', '.join(self._op.MODES)}.")

  def compare(self, lengths: Sequence[int], mode: str, machine: dict[str, Any]) -> None:
    """Measures length by length: a table for each, one plot and the JSON lines of all."""
    for length in lengths:
      results = self._measure([length], mode)
      write_records(self._out / "bench.jsonl", results, machine)
      text = format_table(results, self._op.BASELINES)
      self._say(f"\n{self._head}, T = {length:,}, {mode}\n\n{text}")
    records = read_jsonl(self._out / "bench.jsonl")
    records = records_like(records, records[-1])
    out = self._out / f"{self._head}_{mode.replace('+', '_')}.png"
    plot_records(records, f"{self._head}, {mode}", out)
    self._say(f"wrote {out}")
    if hasattr(self._op, "write_summary"):
      self._op.write_summary(self._out)

  def print_scaling(self, lengths: Sequence[int], mode: str, machine: dict[str, Any]) -> None:
    """Measures all lengths as one group; the JSON lines go to a file of their own."""
    results = self._measure(lengths, mode)
    write_records(self._out / "scaling.jsonl", results, machine)
    self._say(f"\n{self._head}, {mode}\n\n{format_scaling(results)}")

  def _measure(self, lengths: Sequence[int], mode: str) -> list[Measured]:
    cases = [
      case for length in lengths for case in self._op.cases(self._head, length, mode, self._batch)
      if not self._words or any(word in case.name for word in self._words)]
    if not cases:
      known = [case.name for case in self._op.cases(self._head, lengths[0], mode, self._batch)]
      raise ValueError(f"--cases={','.join(self._words)} is in no name; {mode} has {', '.join(known)}.")
    return measure(cases, rounds=self._rounds, max_bytes=int(self._max_gb * GIGA))
