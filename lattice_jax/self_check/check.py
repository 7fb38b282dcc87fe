"""Compares implementations of an op with its definition: errors of results and gradients, and the time of both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lattice_jax.memories.cases import Case, Sizes
from lattice_jax.memories.registry import FOLDERS, find_memory

# RMS of the difference over RMS of the value, for each array. Gradients, which sum over all tokens, cancel more; bf16
# rounds every product of a token once or twice.
LIMITS = {("result", "float32"): 1e-5, ("gradient", "float32"): 1e-4,
          ("result", "bfloat16"): 2e-2, ("gradient", "bfloat16"): 5e-2}
DTYPES = ("float32", "bfloat16")
# Errors of arrays that are zero up to rounding are relative to this share of the largest array instead.
_FLOOR = 1e-2
CALLS = 3


@dataclass(frozen=True)
class Row:
  """Errors are the largest over arrays; times are of results and gradients. reason: why it did not run, or empty."""

  op: str
  form: str
  impl: str
  dtype: str
  result_error: float = 0.0
  gradient_error: float = 0.0
  milliseconds: float = 0.0
  reference_milliseconds: float = 0.0
  reason: str = ""

  @property
  def holds(self) -> bool:
    """True also if this device has no such implementation, which is no error. NaN is never within a limit."""
    return bool(self.reason) or (
      self.result_error <= LIMITS["result", self.dtype] and self.gradient_error <= LIMITS["gradient", self.dtype])


def make_cases(sizes: Sizes) -> Iterator[Case]:
  """Every memory's cases, once if memories share an op."""
  for make in dict.fromkeys(find_memory(name).cases for name in FOLDERS):
    yield from make(sizes)


def check(case: Case, impls: tuple[str, ...], dtype: str) -> Iterator[Row]:
  """Yields a row for each of `impls`."""
  (want, want_gradient), reference_ms = _run(case, "reference")
  for impl in impls:
    try:
      (got, gradient), ms = _run(case, impl)
    except ValueError as error:
      # dispatch raises this if a named implementation cannot run
      yield Row(case.op, case.form, impl, dtype, reason=str(error))
      continue
    yield Row(
      case.op, case.form, impl, dtype, largest_error(got, want), largest_error(gradient, want_gradient), ms,
      reference_ms)


def largest_error(got: Any, want: Any) -> float:
  """The largest relative error over the arrays of two trees; infinite if a value is not finite."""
  got, want = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (got, want))
  if not all(np.isfinite(leaf).all() for leaf in got):
    return float("inf")
  floor = _FLOOR * max(_rms(leaf) for leaf in want)
  return max(_rms(a - b) / max(_rms(b), floor, 1e-30) for a, b in zip(got, want, strict=True))


def _run(case: Case, impl: str) -> tuple[Any, float]:
  """((results, gradients of their weighted sum), median milliseconds of a few calls); the weights are fixed."""

  def results_and_gradients(inputs):
    results, pull = jax.vjp(lambda inputs: case.run(inputs, impl), inputs)
    return results, pull(jax.tree.map(_weights, results))

  # accelerators multiply fp32 with fewer bits unless told otherwise
  with jax.default_matmul_precision("highest"):
    compiled = jax.jit(results_and_gradients).lower(case.inputs).compile()
  found = jax.block_until_ready(compiled(case.inputs))
  seconds = []
  for _ in range(CALLS):
    begin = time.perf_counter()
    jax.block_until_ready(compiled(case.inputs))
    seconds.append(time.perf_counter() - begin)
  return found, 1000 * float(np.median(seconds))


def _weights(result: jax.Array) -> jax.Array:
  return jax.random.normal(jax.random.key(11), result.shape).astype(result.dtype)


def _rms(array: np.ndarray) -> float:
  return float(np.sqrt((array**2).mean())) if array.size else 0.0
