"""Set-up of every test process: CPU with 8 devices, a compilation cache, checked annotations, no network."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import mmap
import os
import pathlib
import random
import socket
import sys

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"

# The environment, so that commands started by tests inherit it. They see one device; tests see eight.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.6")
# Compiling is most of the work here, and most of that would be optimising programs that run once: LLVM's passes, fused
# loops, and parts of a program compiled side by side. Tests of what users run:
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= bash scripts/test.sh
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jax").startswith("0.10."):  # a flag that XLA does not know ends the process
  os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest

import tests.typecheck

jax.config.update("jax_num_cpu_devices", 8)
# Commands that tests start compile the same programs again and again. Here few are, and writing one takes long.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
jaxtyping.install_import_hook("lattice_jax", f"{tests.typecheck.__name__}.check")
import lattice_jax.commands.run
import lattice_jax.formats.locate
import lattice_jax.runtime  # behind the hook, which checks what is imported from here on

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=20, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish():
  """Tracing makes so many objects that Python's collector, as it is, takes 6 % of the time of the laws.

  So it looks at what imports and collection made no more, and at the rest more rarely.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(35_000, 10, 10)


@pytest.fixture(autouse=True)
def _seed():
  random.seed(0)
  np.random.seed(0)


@pytest.fixture(autouse=True, scope="module")
def _little_memory():
  """Compiled programs stay in memory: some 6 GB a process after half of the tests, and each holds memory maps.

  Linux gives a process 65,530 of those, and without one XLA's compiler crashes.
  """
  yield
  maps, pages = (pathlib.Path(f"/proc/self/{name}") for name in ("maps", "statm"))
  if not maps.exists():
    return
  resident = int(pages.read_text().split()[1]) * mmap.PAGESIZE
  if maps.read_bytes().count(b"\n") > 25_000 or resident > 3 * 2**30:
    jax.clear_caches()
    gc.collect()
    # what the C library keeps of freed memory
    getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: None)(0)


@pytest.fixture
def optimized():
  """Programs compiled as for users: two that differ round alike only then."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def _commands_leave_the_process_as_it_is(monkeypatch):
  """A command changes the process that it runs in and then ends it, and here all tests run in one."""
  monkeypatch.setattr(lattice_jax.commands.run, "quieten_checkpoints", lambda: None)
  monkeypatch.setattr(lattice_jax.runtime, "end_process", sys.exit)
  environment = dict(os.environ)
  yield
  for name in {*environment, *os.environ} - {"PYTEST_CURRENT_TEST"}:
    if name not in environment:
      del os.environ[name]
    elif name not in os.environ or os.environ[name] != environment[name]:
      os.environ[name] = environment[name]


@pytest.fixture(autouse=True)
def _no_optional_package(monkeypatch):
  """Packages of pretrained weights are no requirement, so a test that needs one would fail elsewhere."""
  for name in lattice_jax.formats.locate.PACKAGES:
    monkeypatch.setitem(lattice_jax.formats.locate.PACKAGES, name, ("not_there_in_tests", f"package-of-{name}"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
  """Only this machine may be called."""
  connect = socket.socket.connect

  def connect_here(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
      raise ConnectionError(f"a test tried to reach {address}; tests run without a network.")
    return connect(self, address)

  monkeypatch.setattr(socket.socket, "connect", connect_here)
