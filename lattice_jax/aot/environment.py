"""What must stand in the environment before JAX and libtpu start, so that they compile for machines that are not there.

Needs no JAX, and is imported before it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# Looks for no chip, and lets several processes load libtpu at once.
VARIABLES = {
  "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_MIN_LOG_LEVEL": "3"}
_COMPILERS = {"tpu": "libtpu", "h100": "jax_cuda13_plugin"}
_ROOT = Path(__file__).resolve().parents[2]


def ensure_compiler(kind: str) -> None:
  """Goes on in the environment that scripts/aot.sh made for this compiler, "tpu" or "h100", if this one lacks it.

  Raises:
    ValueError: that environment is not there either.
  """
  if importlib.util.find_spec(_COMPILERS[kind]):
    return
  python = _ROOT / f".venv-aot-{kind}" / "bin" / "python"
  if not python.exists():
    raise ValueError(
      f"to compile for a machine that is not there takes {_COMPILERS[kind]}, which this Python lacks; "
      f"`bash scripts/aot.sh environment {kind}` makes {python.parents[1].name} with it, and the same command then "
      "uses that.")
  sys.stdout.flush()
  os.execv(python, [str(python), *sys.orig_argv[1:]])
