"""The machine of a report, in words."""

from __future__ import annotations

import platform
from pathlib import Path

import jax


def describe_machine() -> str:
  """Processors or accelerator, and Python."""
  device, info = jax.devices()[0], Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  name = f"{len(models)} × {models[0]}" if device.platform == "cpu" and models else device.device_kind
  return f"{name}, Python {platform.python_version()}"
