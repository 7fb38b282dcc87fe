"""How many devices a machine without an accelerator pretends to have; apart from flags, which tests must not define."""

from __future__ import annotations

import os

from lattice_jax.commands.run import print_now
from lattice_jax.config import Config
from lattice_jax.config_checks import largest_divisor


def simulate_devices(config: Config) -> None:
  """One device a core, as far as they divide the rows of a micro-batch: XLA runs much of a program on one core alone.

  Without effect where there is an accelerator, or the config says how many devices share the rows.
  """
  import jax

  of_row = config.mesh.seq * config.mesh.model
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  if config.mesh.data != -1 or cores < of_row:
    return
  rows = config.data.batch // config.train.accumulate
  count = of_row * largest_divisor(rows, at_most=cores // of_row)
  if count > 1:
    jax.config.update("jax_num_cpu_devices", count)
    if jax.default_backend() == "cpu":
      print_now(f"{count} simulated devices, one a core; --cpu_devices=1 is one for all")
