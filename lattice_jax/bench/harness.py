"""Compiles benchmark cases, times them in turn, and records what ran.

Machines get slower and faster, so that times of different cases are comparable only within one round: every claim is
the median over rounds of a ratio, with its 20 and 80 % quantiles.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lattice_jax.runtime import git_commit

MIN_SECONDS = 0.05  # of one sample; shorter calls are repeated within it
GIGA = 1 << 30


@dataclass(frozen=True)
class BenchCase:
  """One implementation at one size.

  fn: arrays → arrays. arguments: made once, shared by the cases of a group, never donated. tokens: per call.
  exact: computes the result of fn without rounding; given if the error of fn is to be reported.
  count: numbers about the call that are no times, by name, such as the rounds it takes.
  """

  name: str
  group: dict[str, Any]  # what the compared cases have in common: op, T, mode …
  fn: Callable[..., Any]
  arguments: tuple[Any, ...]
  tokens: int
  exact: Callable[[], Any] | None = None
  count: Callable[[], dict[str, float]] | None = None


@dataclass
class Measured:
  """seconds: one per round; empty if the case does not fit. temp_bytes: XLA's buffers besides inputs and outputs.

  program: loops and calls in the compiled HLO, to prove which implementation ran. error: norm of the difference from
  the exact array over the norm of the exact array, for the worst of the results. counts: what the case counts.
  """

  case: BenchCase
  compile_seconds: float
  temp_bytes: int
  program: dict[str, int]
  seconds: list[float]
  error: float | None = None
  counts: dict[str, float] = field(default_factory=dict)

  def record(self) -> dict[str, Any]:
    """The content of one JSON line."""
    times = dict(zip(("q20", "median", "q80"), quantiles(self.seconds), strict=True)) if self.seconds else {}
    speed = {"tokens_per_second": self.case.tokens / times["median"]} if times else {}
    error = {} if self.error is None else {"error": self.error}
    return {
      **self.case.group, "case": self.case.name, **times, **speed, **error, **self.counts,
      "rounds": len(self.seconds),
      "temp_bytes": self.temp_bytes, "compile_seconds": self.compile_seconds, "program": self.program}


def describe_machine() -> dict[str, Any]:
  """The fields that every record carries."""
  device = jax.devices()[0]
  return {
    "device": device.device_kind if device.platform != "cpu" else _cpu_name(), "jax": jax.__version__,
    "commit": git_commit()}


def measure(cases: Sequence[BenchCase], *, rounds: int, max_bytes: int) -> list[Measured]:
  """Times the cases of one group in turn, `rounds` times each after a warm-up.

  A case whose buffers would exceed `max_bytes` is compiled and reported, but not run.
  """
  measured, programs = [], []
  for case in cases:
    start = time.perf_counter()
    compiled = jax.jit(case.fn).lower(*case.arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    measured.append(Measured(case, seconds, memory.temp_size_in_bytes, _describe(compiled.as_text()), []))
    fits = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes <= max_bytes
    programs.append(compiled if fits else None)
  running = [(result, program) for result, program in zip(measured, programs, strict=True) if program is not None]
  for result, program in running:
    result.error = _error(result.case, program)
    result.counts = result.case.count() if result.case.count else {}
  repeats = [_repeats(program, result.case.arguments) for result, program in running]
  for _ in range(rounds):
    for (result, program), count in zip(running, repeats, strict=True):
      result.seconds.append(_sample(program, result.case.arguments, count))
  return measured


def ratios(results: Sequence[Measured], baseline: str) -> Iterator[tuple[str, tuple[float, float, float]]]:
  """Yields (case, quantiles of baseline seconds ÷ its seconds) for every case that ran, if the baseline ran."""
  base = next((result for result in results if result.case.name == baseline), None)
  if base is None or not base.seconds:
    return
  for result in results:
    if result.seconds:
      yield result.case.name, quantiles(np.divide(base.seconds, result.seconds))


def quantiles(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
  """The 20, 50 and 80 % quantiles."""
  low, middle, high = np.quantile(np.asarray(values), [0.2, 0.5, 0.8]).tolist()
  return low, middle, high


def _error(case: BenchCase, program: Any) -> float | None:
  if case.exact is None:
    return None
  pairs = zip(jax.tree.leaves(program(*case.arguments)), jax.tree.leaves(case.exact()), strict=True)
  return max(float(np.linalg.norm(np.ravel(got - want)) / np.linalg.norm(np.ravel(want)))
             for got, want in ((np.asarray(got, np.float64), want) for got, want in pairs))


def _repeats(program: Any, arguments: tuple[Any, ...]) -> int:
  first = _sample(program, arguments, 1)  # touches memory for the first time
  return 1 if first > 1 else max(1, round(MIN_SECONDS / _sample(program, arguments, 1)))


def _sample(program: Any, arguments: tuple[Any, ...], count: int) -> float:
  start = time.perf_counter()
  for _ in range(count):
    jax.block_until_ready(program(*arguments))
  return (time.perf_counter() - start) / count


def _describe(hlo: str) -> dict[str, int]:
  return {"while": hlo.count(" while("), "custom-call": hlo.count(" custom-call("), "dot": hlo.count(" dot(")}


def _cpu_name() -> str:
  info = Path("/proc/cpuinfo")
  lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return f"{len(names)} × {names[0]}" if names else platform.processor() or "CPU"
