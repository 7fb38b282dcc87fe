"""Compiles Pallas kernels one by one for given arguments and targets, and checks the results."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from lattice_jax.aot import bundles
from lattice_jax.aot.targets import Target, one_device
from lattice_jax.inspect.hlo import count_kernels, kernel_names, square_buffers, vmem_of_kernels

# (name, function, arguments as shapes)
KernelCase = tuple[str, Callable[..., Any], Sequence[jax.ShapeDtypeStruct]]

# How many spills (case, target) may have: on this target the registers have no room for all bf16 parts that the code
# search splits at a time, but strips of half as many codes would take half as long again. The same is true of the delta
# rule: an fp32 product of [64, 128] by [128, 128] in a kernel of its own spills 15, and in two halves spills none, but
# has 1.4 times as many bundles.
_SPILLS_ALLOWED = {("nearest_code", "v6e"): 20, ("nearest_code_4096", "v6e"): 35} | {
  (f"delta_{name}", "v6e"): spills for name, spills in {
    "gated_8_heads_d128": 58, "gated_8_heads_d128_gradient": 173,
    "kimi_8_heads_d128": 246, "kimi_8_heads_d128_gradient": 624,
    "kimi_4_heads_k64_v64_f32": 206, "kimi_4_heads_k64_v64_f32_gradient": 523,
    "gated_odd_k40_v93_chunk_32": 2, "gated_odd_k40_v93_chunk_32_gradient": 3,
    "kimi_one_token_k37_v128": 16, "kimi_one_token_k37_v128_gradient": 31}.items()}

# Arrays may have two axes as long as a shorter sequence for other reasons.
_LONG = 1024


def compile_case(case: KernelCase, target: Target, dumps: Path | None = None) -> dict[str, Any]:
  """Returns one line of the table; its `failures` say what is wrong and are empty if nothing is.

  dumps: the folder to which libtpu writes, see `bundles`.
  """
  name, function, shapes = case
  sharding = one_device(target)
  arguments = [jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding) for shape in shapes]
  record: dict[str, Any] = {"case": name, "target": target.name}
  begin = time.perf_counter()
  try:
    with printed_by_compilers() as printed:
      compiled = jax.jit(function).lower(*arguments).compile()
  # whatever a compiler refuses becomes a line of the table, and the other cases still run
  except Exception as error:
    return record | {"failures": [f"does not compile: {' '.join(str(error).split())[:300]}"]}
  record["seconds"] = round(time.perf_counter() - begin, 2)
  text = compiled.as_text()
  record |= {"kernels": count_kernels(text), "temp_bytes": compiled.memory_analysis().temp_size_in_bytes}
  record |= _resources_of_hopper("".join(printed)) if target.platform == "cuda" else _vmem(text)
  if dumps:
    record |= bundles.take(dumps, kernel_names(text))
  return record | {"failures": _failures(record, target, square_buffers(text, _length(shapes)))}


def _length(shapes: Sequence[jax.ShapeDtypeStruct]) -> int:
  """Tokens of the longest sequence; arrays of tokens have the shape [B, T, …]."""
  return max(_LONG, *(shape.shape[1] for shape in shapes if len(shape.shape) > 1))


def _vmem(text: str) -> dict[str, Any]:
  used = vmem_of_kernels(text)
  return {"vmem_bytes": max(used)[0] if used else 0, "vmem_limit_bytes": max((limit for _, limit in used), default=0)}


def _resources_of_hopper(printed: str) -> dict[str, Any]:
  """What ptxas printed about all kernels of a program; empty if it is not installed."""
  spills = [int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", printed)]
  registers = [int(number) for number in re.findall(r"Used (\d+) registers", printed)]
  return {"registers": max(registers), "spill_bytes": sum(spills)} if registers else {}


def _failures(record: dict[str, Any], target: Target, squares: list[str]) -> list[str]:
  failures = []
  if not record["kernels"]:
    failures.append("no Pallas kernel is in the program")
  if squares:
    failures.append(f"all pairs of tokens are in memory: {', '.join(squares[:3])}")
  if "vmem_limit_bytes" in record and record["vmem_limit_bytes"] > target.fast_bytes:
    failures.append(f"a kernel asks for {record['vmem_limit_bytes']:,} bytes of VMEM, a core has {target.fast_bytes:,}")
  if record.get("spill_bytes"):
    failures.append(f"registers are spilled: {record['spill_bytes']} bytes")
  if record.get("spills"):
    key = record["case"], target.name
    allowed = _SPILLS_ALLOWED[key] if key in _SPILLS_ALLOWED else 0
    if record["spills"] > allowed:
      failures.append(f"vector registers are spilled: {record['spills']} times, {allowed} are allowed")
  return failures


@contextlib.contextmanager
def printed_by_compilers() -> Iterator[list[str]]:
  """Captures what compilers in this process write to the terminal; filled in when the context ends."""
  printed: list[str] = []
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "printed"
    originals = [os.dup(number) for number in (1, 2)]
    with path.open("wb") as file:
      for number in (1, 2):
        os.dup2(file.fileno(), number)
    try:
      yield printed
    finally:
      for number, original in zip((1, 2), originals, strict=True):
        os.dup2(original, number)
        os.close(original)
      printed.append(path.read_text(encoding="utf-8", errors="replace"))
