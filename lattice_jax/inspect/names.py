"""Names that tell runs and results apart in one plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattice_jax import run_file

# Settings of a result that a legend names if they differ.
_FACETS = {"step": "step {}", "seq_len": "windows of {:,}", "chunk_len": "{:,} a call", "dtype": "{}"}


def run_names(workdirs: Sequence[Path]) -> list[str]:
  """The runs' memories if these are all different, else the shortest ends of their paths that are."""
  runs = list(dict.fromkeys(path.resolve() for path in workdirs))
  memories = [_memory(run) for run in runs]
  if len(runs) > 1 and len(set(memories)) == len(runs) and None not in memories:
    names = dict(zip(runs, memories, strict=True))
    return [names[path.resolve()] for path in workdirs]
  return folder_names(workdirs)


def folder_names(workdirs: Sequence[Path]) -> list[str]:
  """The shortest ends of the paths that tell the runs apart."""
  runs = list(dict.fromkeys(path.resolve() for path in workdirs))
  longest = max(len(run.parts) for run in runs)
  depth = next(depth for depth in range(1, longest + 1) if len({run.parts[-depth:] for run in runs}) == len(runs))
  return ["/".join(path.resolve().parts[-depth:]) for path in workdirs]


def result_names(names: Sequence[str], results: Sequence[dict[str, Any]], figure: str, form: str) -> list[str]:
  """For each result its run, split, protocol and `figure`, and those other settings in which the results differ."""
  varying = [name for name in _FACETS if len({_facet(result, name) for result in results}) > 1]
  return [
    f"{name}: " + ", ".join([
      result["split"], result["protocol"], *filter(None, (_facet(result, facet) for facet in varying)),
      *result["overrides"], form.format(result[figure])])
    for name, result in zip(names, results, strict=True)]


def known_run(workdir: Path) -> dict[str, Any]:
  """The content of a workdir's run.json; empty if there is none, as for a pretrained model."""
  return run_file.read_run(workdir) if (workdir / run_file.FILE).exists() else {}


def _facet(result: dict[str, Any], name: str) -> str | None:
  return _FACETS[name].format(result[name]) if name in result and result[name] is not None else None


def _memory(workdir: Path) -> str | None:
  """Such as "lattice" or "window+lattice"; None if no run.json describes the run."""
  found: Any = known_run(workdir)
  for name in ("config", "model", "pattern"):
    found = found[name] if isinstance(found, dict) and name in found else None
  return "+".join(map(str, found)) if isinstance(found, list) else None
