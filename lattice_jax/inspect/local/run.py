"""The report on local attention: its parts, the order in which they are measured, and the files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.inspect.local.context import Context, Sizes
from lattice_jax.inspect.local.errors import measure_errors
from lattice_jax.inspect.local.needle import measure_needle
from lattice_jax.inspect.local.plots import draw_errors, draw_needle
from lattice_jax.inspect.local.report import format_head, report_errors, report_needle
from lattice_jax.inspect.machine import describe_machine
from lattice_jax.inspect.page import write_page
from lattice_jax.memories.local.maps_file import FittedMaps
from lattice_jax.runtime import git_commit


@dataclass(frozen=True)
class Part:
  """measure: what goes into the JSON. draw: (that, folder) → name of a picture → PNG. report: (that, pictures) →
  paragraphs in Markdown; both read the JSON alone."""

  measure: Callable[[Context], Any]
  draw: Callable[[Any, Path], dict[str, Path]]
  report: Callable[[Any, dict[str, Path]], list[str]]


# A further part is a line here and a name in scripts/local.py.
PARTS = {
  "errors": Part(measure_errors, draw_errors, report_errors),
  "needle": Part(measure_needle, draw_needle, report_needle)}


def write_report(
  loaded: LoadedModel, out: Path, sizes: Sizes, *, split: str, parts: Sequence[str], command: str,
  report: Callable[[str], None], fitted: Sequence[FittedMaps] = (),
) -> list[Path]:
  """Measures the parts and writes report.json, README.md, local.html and pictures; returns the paths of these three.

  fitted: maps of features that are compared as well.

  Raises:
    ValueError: texts or budgets leave nothing to compare, or the split has no text of that length.
  """
  start, commit = time.perf_counter(), git_commit()
  context = Context(loaded, split, sizes, report, fitted)
  context.check()
  measured = {name: part.measure(context) for name, part in PARTS.items() if name in parts}
  facts = {
    "model": loaded.config.name, "workdir": None if loaded.step is None else str(loaded.workdir), "step": loaded.step,
    "source": loaded.config.data.source, "split": split, "command": command, "git_commit": commit,
    "sizes": vars(sizes), "machine": describe_machine(), "seconds": time.perf_counter() - start,
    "versions": ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "numpy"))}
  paths = [out / name for name in ("report.json", "README.md", "local.html")]
  write_text(paths[0], json.dumps({"facts": facts} | measured) + "\n")
  text = format_report({"facts": facts} | measured, out)
  write_text(paths[1], text)
  write_page(paths[2], text)
  return paths


def format_report(content: dict[str, Any], out: Path) -> str:
  """The text of a report, whose pictures are drawn into the folder."""
  paragraphs = format_head(content["facts"])
  for name, part in PARTS.items():
    if name in content:
      paragraphs += part.report(content[name], part.draw(content[name], out))
  return "\n\n".join(paragraphs) + "\n"
