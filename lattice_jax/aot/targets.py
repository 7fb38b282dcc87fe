"""Machines that programs are compiled for without access to them: TPU slices by libtpu, an H100 by CUDA's PJRT.

The environment must hold the pinned version of libtpu or of the CUDA plugin; scripts/aot.sh makes it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MIB = 1 << 20


@dataclass(frozen=True)
class Target:
  """fast_bytes: size of the memory that a kernel works in: a TPU core's VMEM, or a block's shared memory."""

  name: str
  platform: str
  topology: str
  fast_bytes: int


TPUS = (
  Target("v5e", "tpu", "v5e:2x2", 128 * MIB),
  Target("v5p", "tpu", "v5p:2x2x1", 64 * MIB),
  Target("v6e", "tpu", "v6e:2x2", 128 * MIB),
)
H100 = Target("h100", "cuda", "1", 232_448)

# What CUDA reports about an H100 SXM, in XLA's own format.
_H100_TEXT = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@functools.cache
def devices(platform: str, topology: str) -> tuple[jax.Device, ...]:
  """All chips of a slice such as v5e:16x16, or so many H100 of one host."""
  if platform == "cuda":
    description = topologies.get_topology_desc(
      platform="cuda", topology_name="h100", topology=f"1x1x{topology}", target_config=_H100_TEXT)
  else:
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
  return tuple(description.devices)


def one_device(target: Target) -> NamedSharding:
  """The sharding of arrays on the first chip."""
  mesh = Mesh(np.array(devices(target.platform, target.topology)[:1]), ("chip",))
  return NamedSharding(mesh, PartitionSpec())
