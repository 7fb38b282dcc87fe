"""What a report reads of a workdir: run.json, metrics.jsonl, results of eval.py and texts that the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lattice_jax.files import Record, read_object
from lattice_jax.inspect.names import folder_names, known_run
from lattice_jax.metrics import read_metric_lines
from lattice_jax.run_file import FILE

_METRICS = "metrics.jsonl"
_RESULTS = ("eval_*.json", "sample_*.txt", "*/*/compare.jsonl", "*/table.jsonl", "*/audit.json", "*/report.json",
            "codebook.json")  # any of these is worth a report, without metrics too


@dataclass(frozen=True)
class Run:
  """A workdir. description: run.json; empty for a pretrained model. updates, evaluations: lines of metrics.jsonl."""

  name: str
  path: Path
  description: dict[str, Any]
  updates: list[Record]
  evaluations: list[Record]

  @property
  def unit(self) -> str:
    return self.description["unit"] if "unit" in self.description else "byte"

  @cached_property
  def config(self) -> dict[str, Any]:
    """The fields of the config by dotted name."""
    return flatten(self.description["config"]) if "config" in self.description else {}

  @property
  def memories(self) -> list[str]:
    """The pattern of the model; empty where no config is known."""
    return self.config["model.pattern"] if "model.pattern" in self.config else []

  @cached_property
  def results(self) -> list[tuple[str, dict[str, Any]]]:
    """(file name, content) of the files that eval.py wrote, oldest checkpoint first."""
    found = [(path.name, read_object(path)) for path in sorted(self.path.glob("eval_*.json"))]
    return sorted(found, key=lambda item: item[1]["step"] or 0 if "step" in item[1] else 0)

  @cached_property
  def samples(self) -> list[tuple[str, str]]:
    """(file name, text) of what the model wrote."""
    return [(path.name, path.read_text(encoding="utf-8", errors="replace"))
            for path in sorted(self.path.glob("sample_*.txt"))]


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
  """(the runs, sentences on what was left out). A folder that holds workdirs, as that of a sweep does, stands for them.

  Raises:
    ValueError: a folder is missing or is no workdir, it has no line of metrics, or its run.json is damaged.
  """
  workdirs, notes = [], []
  for path in paths:
    if not path.is_dir():
      raise ValueError(f"there is no folder {path}; give the workdir of a run, or the folder of a sweep.")
    inside = [] if _is_workdir(path) else sorted(folder.parent for folder in path.glob(f"*/{FILE}"))
    if not inside:
      _check(path)
      workdirs.append(path)
      continue
    silent = [folder for folder in inside if not _has_content(folder)]
    if len(silent) == len(inside):
      raise ValueError(f"none of the {len(inside)} runs in {path} has done an update; wait for the first.")
    notes += [f"{folder} has done no update yet, and is left out." for folder in silent]
    workdirs += [folder for folder in inside if folder not in silent]
  workdirs = list({workdir.resolve(): workdir for workdir in workdirs}.values())
  return [_read(name, path) for name, path in zip(folder_names(workdirs), workdirs, strict=True)], notes


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
  """The leaves of nested objects by dotted path; a list is a leaf."""
  if not isinstance(tree, dict):
    return {path: tree}
  return {name: leaf for key, part in tree.items()
          for name, leaf in flatten(part, f"{path}.{key}" if path else key).items()}


def _is_workdir(path: Path) -> bool:
  return (path / FILE).exists() or (path / _METRICS).exists()


def _has_results(path: Path) -> bool:
  return any(True for pattern in _RESULTS for _ in path.glob(pattern))


def _has_content(path: Path) -> bool:
  metrics = path / _METRICS
  return (metrics.exists() and metrics.stat().st_size > 0) or _has_results(path)


def _check(path: Path) -> None:
  if _has_content(path):
    return
  if _is_workdir(path):
    raise ValueError(f"{path} has done no update yet: {_METRICS} has no line; wait for the first.")
  raise ValueError(
    f"{path} holds no {_METRICS}, nor a result of eval.py; give the workdir of a run, or the folder of a sweep.")


def _read(name: str, path: Path) -> Run:
  lines = read_metric_lines(path / _METRICS)
  if not lines and not _has_results(path):
    raise ValueError(f"{path}/{_METRICS} has no whole line; wait for the first update.")
  return Run(
    name=name, path=path, description=known_run(path), updates=[line for line in lines if "split" not in line],
    evaluations=[line for line in lines if "split" in line])
