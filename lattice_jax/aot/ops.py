"""Ops that are made of several calls of a kernel, as cases to compile: those of their memory's self-check."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from lattice_jax.aot.cases import KernelCase
from lattice_jax.memories.cases import Sizes
from lattice_jax.memories.registry import FOLDERS, find_memory
from pallas_kernels.specs import with_gradient

_SIZES = Sizes(tokens=2048, heads=8, width=128, dtype="bfloat16")


def op_cases() -> Iterator[KernelCase]:
  """Each op with its gradient; which kernels it calls depends on `dispatch.target_backend`."""
  for name in FOLDERS:
    if not find_memory(name).composes_kernels:
      continue
    for case in find_memory(name).cases(_SIZES):
      shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in case.inputs]

      def run(*inputs: jax.Array, case=case) -> jax.Array:
        return case.run(inputs, "pallas")

      yield f"{case.op}_{case.form}_gradient", with_gradient(run, len(shapes)), shapes
