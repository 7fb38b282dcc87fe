"""Compiles an update of a config for a whole slice: memory per chip, and communication between the chips."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lattice_jax.config import Config
from lattice_jax.inspect.hlo import collective_bytes, count_collectives, count_kernels, square_buffers
from lattice_jax.sharding import batch_sharding, check_batch
from lattice_jax.training.state import abstract_state, make_optimizer
from lattice_jax.training.step import make_program
from lattice_jax.types import Batch, abstract_segment

_WIDEST = 8000  # a quarter of 32,000 codes of text: mesh.model=4


def compile_update(config: Config, mesh: Mesh) -> jax.stages.Compiled:
  """The program of `train.steps_per_dispatch` updates, which takes over (donates) its state."""
  check_batch(config, mesh)
  with jax.set_mesh(mesh):
    state = abstract_state(config, mesh)
    program = make_program(config, make_optimizer(config), mesh, state)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return program.lower(state, abstract_batches(config, mesh), number, number).compile()


def memory_facts(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes of one chip: at the peak; of arguments, those in them that results take over; of what lies beside them."""
  memory = compiled.memory_analysis()
  return {
    "peak_bytes": memory.peak_memory_in_bytes, "argument_bytes": memory.argument_size_in_bytes,
    "alias_bytes": memory.alias_size_in_bytes, "temp_bytes": memory.temp_size_in_bytes}


def compile_step(config: Config, mesh: Mesh) -> dict[str, Any]:
  """Facts of the compiled program of `compile_update`."""
  begin = time.perf_counter()
  compiled = compile_update(config, mesh)
  text = compiled.as_text()
  return {
    "config": config.name, "chips": mesh.size, "mesh": dict(mesh.shape), "batch": config.data.batch,
    "seq_len": config.data.seq_len, "update_len": config.data.update_len, "seconds": time.perf_counter() - begin,
    **memory_facts(compiled),
    "collectives": count_collectives(text), "collective_bytes": sum(collective_bytes(text).values()),
    "kernels": count_kernels(text),
    "pairs": square_buffers(text, config.data.update_len, config.mesh.seq) if _is_long(config) else []}


def _is_long(config: Config) -> bool:
  """Whether T is larger than a model's widths, so that an axis of that length is one of tokens."""
  return config.data.update_len > _WIDEST


def step_failures(record: dict[str, Any], most_bytes: float) -> list[str]:
  """What is wrong with a compiled update of which a chip may need so many bytes."""
  failures = []
  if record["peak_bytes"] >= most_bytes:
    failures.append(f"a chip needs {record['peak_bytes']:,} bytes, and {most_bytes:,.0f} are allowed")
  if record["pairs"]:
    failures.append(f"all pairs of tokens are in memory: {', '.join(record['pairs'][:3])}")
  if not record["kernels"]:
    failures.append("no Pallas kernel is in the program")
  return failures


def abstract_batches(config: Config, mesh: Mesh | AbstractMesh) -> Batch:
  """Shapes and shardings of the batches of one call."""
  stacked = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))
  shape = (config.train.steps_per_dispatch, config.data.batch, config.data.update_len)

  def tokens(dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=stacked)

  return Batch(
    tokens(jnp.int32), tokens(jnp.int32), tokens(jnp.float32), abstract_segment(tokens),
    jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=NamedSharding(mesh, PartitionSpec())))
