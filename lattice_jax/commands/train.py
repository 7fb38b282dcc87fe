"""The flags of train.py, and the call of the training loop. Needs no JAX until they have been read."""

from __future__ import annotations

import os
from pathlib import Path

from lattice_jax.commands.devices import simulate_devices
from lattice_jax.commands.domains import COUNT, POSITIVE, Storage
from lattice_jax.commands.flags import define, define_config, define_set
from lattice_jax.commands.run import CPU_DEVICES
from lattice_jax.commands.run_id import fill_run_id
from lattice_jax.domains import Place, Switch, Text
from lattice_jax.members import Membership, check_alone
from lattice_jax.runtime import enable_compilation_cache, initialize_distributed

COMPILED = "/compiled"  # programs, beside the checkpoints, which every host sees

CONFIG = define_config()
SET = define_set()
WORKDIR = define(
  "workdir", Place(), None, "Folder of the run; the same folder resumes it. {run_id} in it stands for WANDB_RUN_ID.")
CHECKPOINTS = define(
  "checkpoints", Storage(), None,
  "Folder of the checkpoints, gs://BUCKET/FOLDER or one that every host sees; else in the workdir.")
INIT_FROM = define(
  "init_from", Place(), None, "Start from smollm2, a folder of safetensors, a .gguf file, or a run's workdir.")
PROFILE = define("profile", Text(), None, "START:STOP, updates to trace with jax.profiler.")
DISTRIBUTED = define("distributed", Switch(), False, "Join the processes of several hosts.")
COORDINATOR = define(
  "coordinator", Text(), None, "HOST:PORT of process 0, where the cluster does not tell; with --distributed.")
NUM_PROCESSES = define("num_processes", POSITIVE, None, "Of the run, where the cluster does not tell.")
PROCESS = define("process", COUNT, None, "Number of this one, from 0, where the cluster does not tell.")


def main() -> None:
  """Trains as the flags say."""
  for flag in (CONFIG, WORKDIR):
    if not flag.value:
      raise ValueError(f"--{flag.name} is missing: python train.py --config=configs/quickstart.py --workdir=runs/a")
  from lattice_jax.config_text import read_config  # --help and misspelt flags need not wait for JAX

  for flag in (COORDINATOR, NUM_PROCESSES, PROCESS):
    if flag.value is not None and not DISTRIBUTED.value:
      raise ValueError(f"--{flag.name} has no effect without --distributed; leave it out, or ask for that too.")
  if not DISTRIBUTED.value:
    check_alone()
  config = read_config(CONFIG.value, SET.value)
  profile = parse_profile(PROFILE.value)
  workdir = fill_run_id(WORKDIR.value)
  print(f"{config.name}: {config.train.steps} steps, workdir {workdir}", flush=True)
  shared = f"{CHECKPOINTS.value or workdir}{COMPILED}" if DISTRIBUTED.value else None
  enable_compilation_cache(shared)
  if CPU_DEVICES.value is None and "JAX_NUM_CPU_DEVICES" not in os.environ and not DISTRIBUTED.value:
    simulate_devices(config)
  if DISTRIBUTED.value:
    initialize_distributed(Membership(COORDINATOR.value, NUM_PROCESSES.value, PROCESS.value))
  from lattice_jax.training import loop  # after the first line is out: this import takes seconds

  loop.train(
    config, Path(workdir), init_from=INIT_FROM.value, profile=profile, checkpoints=CHECKPOINTS.value)


def parse_profile(text: str | None) -> tuple[int, int] | None:
  """START:STOP as two numbers."""
  if text is None:
    return None
  try:
    start, stop = (COUNT.parse(part) for part in text.split(":"))
  except ValueError as error:
    raise ValueError(f"--profile={text} must be START:STOP, two updates, as in --profile=20:30.") from error
  if start >= stop:
    raise ValueError(f"--profile={text} must be START:STOP with START < STOP, as in --profile=20:30.")
  return start, stop
