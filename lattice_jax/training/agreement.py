"""What must be the same on every host before anything is read or computed: code, config and command."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path

import jax

import lattice_jax
from lattice_jax.config import Config
from lattice_jax.fields import leaves
from lattice_jax.processes import check_agreement

_CODE = ("lattice_jax", "pallas_kernels")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
_VARIABLES = ("LATTICE_JAX_IMPL", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")  # change what is compiled


def check_command(config: Config, **arguments: object) -> None:
  """Raises ValueError, in every process, if this run was started in different ways; every process must call it.

  arguments: values of flags that are no part of the config, by the name of the flag.
  """
  if jax.process_count() == 1:
    return
  check_agreement(
    {"the code": code_digest()} |
    {f"the version of {name}": importlib.metadata.version(name) for name in _PACKAGES} |
    {f"the environment variable {name}": str(os.environ.get(name)) for name in _VARIABLES} |
    {f"the config's {path}": repr(value) for path, _, value in leaves(config)} |
    {f"--{name}": str(value) for name, value in arguments.items()} |
    {"the number of devices": str(jax.local_device_count())})


@functools.cache
def code_digest() -> str:
  """Of every Python file of the packages that are running, by its place in them."""
  root, digest = Path(lattice_jax.__file__).parents[1], hashlib.sha256()
  for package in _CODE:
    for path in sorted((root / package).rglob("*.py")):
      digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
  return digest.hexdigest()
