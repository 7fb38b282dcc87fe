"""The folder of a trial: {run_id} in it stands for WANDB_RUN_ID."""

from __future__ import annotations

import os


def fill_run_id(workdir: str) -> str:
  """Replaces {run_id} by WANDB_RUN_ID, so that every trial of a sweep has a folder of its own."""
  if "{run_id}" not in workdir:
    return workdir
  if not os.environ.get("WANDB_RUN_ID"):
    raise ValueError(
      f"--workdir={workdir} is filled from the environment variable WANDB_RUN_ID, which is not set; `wandb agent` sets "
      "it, or set it yourself, or give a --workdir without {run_id}.")
  return workdir.replace("{run_id}", os.environ["WANDB_RUN_ID"])
