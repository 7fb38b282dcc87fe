"""Where the checkpoints of a run lie: in its workdir, or in a bucket that every host sees."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from etils import epath

from lattice_jax.run_file import FILE
from lattice_jax.shown import first_line, shown

FOLDER = "checkpoints"
UNREADABLE_FOLDER = "unreadable_checkpoints"
FIELD = "checkpoints"  # of run.json, where they do not lie in the workdir
_BUCKET = "gs://"
_PACKAGE, _REQUIREMENT = "gcsfs", "gcsfs==2026.10.1"  # what etils reads buckets with; its version follows fsspec's


def checkpoint_folder(workdir: Path, place: str | None = None) -> epath.Path:
  """The folder that `place`, the value of --checkpoints, names; without it that of the workdir.

  Raises ValueError for a bucket if the package that reads it is not installed.
  """
  if place is None:
    return epath.Path((workdir / FOLDER).absolute())
  if not place.startswith(_BUCKET):
    return epath.Path(Path(place).absolute())
  try:
    importlib.import_module(_PACKAGE)
  except ImportError as error:  # the package itself, or one that it needs
    raise ValueError(
      f"--checkpoints={place} needs the package {_PACKAGE}, which is not installed ({first_line(error)}); run pip "
      f"install {_REQUIREMENT}, or name a folder of a shared file system.") from error
  return epath.Path(place)


def stored_folder(workdir: Path) -> epath.Path:
  """Where the run of a workdir keeps its checkpoints, as its run.json says."""
  try:
    run = json.loads((workdir / FILE).read_bytes())
  except (OSError, ValueError, RecursionError):  # readers of run.json say what is wrong with it
    run = {}
  place = run[FIELD] if isinstance(run, dict) and FIELD in run else None
  if not (place is None or (isinstance(place, str) and place.isprintable() and place)):
    raise ValueError(
      f"{workdir / FILE} says {FIELD}={shown(place)}, which is no folder; restore it, or start another workdir.")
  return checkpoint_folder(workdir, place)


def unreadable_folder(folder: epath.Path) -> epath.Path:
  """Where checkpoints that cannot be read are set aside: beside the others."""
  return folder.parent / (UNREADABLE_FOLDER if folder.name == FOLDER else f"{folder.name}_{UNREADABLE_FOLDER}")


def is_bucket(folder: epath.Path) -> bool:
  return str(folder).startswith(_BUCKET)
