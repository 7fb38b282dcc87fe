"""Counts of instruction bundles and of spilled vector registers in TPU kernels, read from libtpu's dumps."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

DUMP = "final_hlo-static-per-bundle-utilization"
# Column of a file → field of a record: stores of spilled registers, and loads that bring them back.
_COLUMNS = {"VSTORE:SPILL": "spills", "VLOAD:FILL": "fills"}


@contextlib.contextmanager
def dumping() -> Iterator[Path]:
  """Yields the folder to which libtpu writes its dumps, provided that it is loaded inside the context."""
  with tempfile.TemporaryDirectory() as folder:
    os.environ["LIBTPU_INIT_ARGS"] = (
      f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={DUMP}")
    yield Path(folder)


def take(folder: Path, kernels: Collection[str]) -> dict[str, Any]:
  """Total bundles, spills and fills of these kernels, each counted once even in a loop; empties the folder."""
  found = {"bundles": 0} | dict.fromkeys(_COLUMNS.values(), 0)
  for path in folder.iterdir():
    # 1795417091546015406-lattice_forward.1-00-final_hlo-….txt
    if path.name.endswith(f"{DUMP}.txt") and path.name.split("-", 1)[1].rsplit("-", 6)[0] in kernels:
      lines = path.read_text(encoding="utf-8").splitlines()
      names = [name.strip() for name in lines[1].split(",")]
      rows = [[int(number) for number in line.split()] for line in lines[4:] if line]
      found["bundles"] += len(rows)
      for column, field in _COLUMNS.items():
        found[field] += sum(row[names.index(column)] for row in rows)
    path.unlink()
  return found
