"""Results of the compile suite as JSON, and a page with tables of all of them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.markdown import markdown_table

KINDS = {"tpu": "TPU kernels", "h100": "Hopper kernels", "step": "Training steps",
         "large": "Training steps that compile for minutes (`bash scripts/test.sh --aot large`)"}
_COMPILERS = ("libtpu", "jax-cuda13-plugin")
_COLUMNS = {
  "update_len": "tokens per update", "seconds": "compiled in s", "kernels": "kernels", "vmem_bytes": "VMEM used MiB",
  "vmem_limit_bytes": "VMEM requested MiB", "registers": "registers", "spill_bytes": "spilled bytes",
  "bundles": "bundles", "spills": "spills", "fills": "fills",
  "temp_bytes": "temporary MiB", "argument_bytes": "arguments MiB",
  "peak_bytes": "peak MiB per chip", "collectives": "collectives", "collective_bytes": "collectives MiB"}
_MEBIBYTES = ("vmem_bytes", "vmem_limit_bytes", "temp_bytes", "argument_bytes", "peak_bytes", "collective_bytes")
_INTRODUCTION = """# Compiled without the hardware

`bash scripts/test.sh --aot` compiles every kernel with the real compilers of the targets, on a CPU, and fails if one
does not compile, requests more VMEM or shared memory than there is, spills registers, or holds all pairs of tokens in
memory. Nothing here was run, and no number is the run time of a kernel. VMEM used includes arrays that XLA keeps there
for the largest kernel of a program, besides what the kernel requested; temporary memory is what XLA holds around the
kernels. A bundle is one instruction of a TPU kernel, made of several operations; spills are stores of vector registers
for which there was no room, and fills are the loads that bring them back. All three are counted once, in a loop or not,
from what libtpu dumps with `--xla_jf_dump_to`. Only the code search and the delta rule may spill, on a
v6e, by as much as lattice_jax/aot/cases.py allows, which says why.
"""


def line(record: dict[str, Any]) -> str:
  """One record for the terminal."""
  facts = [f"{_COLUMNS[name]} {_show(name, record[name])}" for name in _COLUMNS if name in record]
  return f"{record['target']:>10} {record['case']}: {', '.join(facts)}"


def write(out: Path, kind: str, records: Sequence[dict[str, Any]]) -> None:
  """Updates `out`/KIND.json, which keeps the lines of other cases, and remakes README.md from all such files there."""
  out.mkdir(parents=True, exist_ok=True)
  path, versions = out / f"{kind}.json", {"jax": jax.__version__, "compilers": _versions()}
  by_case = {}
  if path.is_file():
    before = json.loads(path.read_text(encoding="utf-8"))
    if {name: before[name] for name in versions} == versions:
      by_case = {(record["target"], record["case"]): record for record in before["records"]}
  by_case |= {(record["target"], record["case"]): record for record in records}
  # whole or not at all: others may be compiling for another accelerator and read it for their page
  write_text(path, json.dumps(versions | {"records": list(by_case.values())}, indent=1) + "\n")
  write_page(out)


def write_page(out: Path) -> None:
  """Makes `out`/README.md from the JSON files there."""
  parts = [_INTRODUCTION]
  for name, title in KINDS.items():
    if (out / f"{name}.json").is_file():
      parts.append(_section(title, json.loads((out / f"{name}.json").read_text(encoding="utf-8"))))
  write_text(out / "README.md", "\n".join(parts))


def _section(title: str, found: dict[str, Any]) -> str:
  compilers = ", ".join(f"{name} {version}" for name, version in found["compilers"].items())
  return f"## {title}\n\njax {found['jax']}, {compilers}.\n\n{table(found['records'])}\n"


def table(records: Sequence[dict[str, Any]]) -> str:
  """Markdown."""
  columns = [name for name in _COLUMNS if any(name in record for record in records)]
  rows = [["case", "target", *(_COLUMNS[name] for name in columns), "holds"]]
  for record in records:
    cells = [_show(name, record[name]) if name in record else "" for name in columns]
    rows.append([record["case"], record["target"], *cells, "; ".join(record["failures"]) or "yes"])
  return markdown_table(rows, "ll" + "r" * len(columns) + "l")


def _show(name: str, value: Any) -> str:
  if isinstance(value, dict):
    return ", ".join(f"{count} {key}" for key, count in value.items()) or "none"
  if name in _MEBIBYTES:
    return f"{value / 2**20:,.1f}"
  return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def _versions() -> dict[str, str]:
  installed = {distribution.name for distribution in importlib.metadata.distributions()}
  return {name: importlib.metadata.version(name) for name in _COMPILERS if name in installed}
