"""Rows at the paper's size: the commands, what a training would take, and results from workdirs that exist."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lattice_jax.config import Config
from lattice_jax.config_text import read_config
from lattice_jax.metrics import read_metric_lines
from lattice_jax.preflight.account import SECONDS_AN_HOUR, work
from lattice_jax.preflight.held import everything_held
from lattice_jax.preflight.machine import abstract_mesh, find_machine
from lattice_jax.preflight.report import figure
from lattice_jax.reproduce.fingerprint import is_same_experiment
from lattice_jax.reproduce.readers import median_speed
from lattice_jax.reproduce.registry import find_row, find_table
from lattice_jax.reproduce.rows import Paper, Program, Row, Table, Train
from lattice_jax.run_file import read_config as read_run_config
from lattice_jax.run_file import read_run
from lattice_jax.source_code import ROOT

RUNS = "runs/reproduce_paper"
TOPOLOGY = "v5e:8x8"
# How a launcher starts train.py with these arguments.
LAUNCHERS = {
  "none": "python train.py {arguments}",
  "tpu_pod": "bash scripts/launch/tpu_pod.sh train --name=NAME --zone=ZONE -- {arguments}",
  "slurm": "sbatch --nodes=NODES scripts/launch/slurm.sh {arguments}",
  "sky": 'sky jobs launch scripts/launch/sky.yaml --env BUCKET=gs://BUCKET --env ARGUMENTS="{arguments}"'}


@dataclass(frozen=True)
class Estimate:
  """What a training takes, by formula. state_bytes: of a chip, for everything that it holds before an update."""

  topology: str
  parameters: int
  state_bytes: int
  usable_bytes: int | None
  update_flops: float
  hours: float
  chips: int

  def text(self, *, utilisation: float, price: float | None) -> str:
    usable = f" of {figure(self.usable_bytes / 1e9)}" if self.usable_bytes else ""
    cost = f", {self.hours * self.chips * price:,.0f} at {price:g} for a chip-hour" if price else ""
    return (
      f"{self.parameters:,} parameters; on {self.topology} parameters, optimizer, memory and batch take "
      f"{figure(self.state_bytes / 1e9)}{usable} GB of a chip; {figure(self.update_flops / 1e12)} TFLOP an update; "
      f"{figure(self.hours)} hours, {figure(self.hours * self.chips)} chip-hours{cost} at {utilisation:.0%} of the "
      "chips' peak, an assumption. By formula: what the program needs beside its state is not known.")


@dataclass(frozen=True)
class Made:
  """A row's figure of one run at the paper's size, and what made it. chip_hours: of its updates."""

  figure: float
  run: str
  commit: str | None
  machine: str
  chip_hours: float


def estimate(config: Config, topology: str, *, utilisation: float) -> Estimate:
  """Raises ValueError where the config does not fit the machine's number of chips."""
  machine = find_machine(topology)
  mesh = abstract_mesh(config, machine)
  held, done = everything_held(config, mesh), work(config)
  parameters = sum(math.prod(one.shape) for one in held if one.path.startswith("params/"))
  seconds = config.train.steps * done.done_flops / (machine.chips * machine.chip.peak_flops * utilisation)
  return Estimate(
    topology, parameters, sum(one.device_bytes for one in held), machine.chip.usable_bytes, done.flops,
    seconds / SECONDS_AN_HOUR, machine.chips)


def config_of(make: Train) -> Config:
  return read_config(str(ROOT / make.config), make.overrides)


def workdir_of(table: Table, row: Row, seen: dict[Train, str]) -> str:
  """Rows of the same training share its workdir, which the first of them names."""
  return seen.setdefault(row.paper.make, f"{RUNS}/{table.name}/{row.name}")


def train_command(make: Train, workdir: str, launcher: str) -> str:
  start = [f"--init_from={make.init_from}"] if make.init_from else []
  words = [f"--config={make.config}", *(f"--config.{text}" for text in make.overrides), f"--workdir={workdir}", *start]
  return LAUNCHERS[launcher].format(arguments=shlex.join(words))


def preflight_words(make: Train, topology: str, price: float | None, utilisation: float) -> list[str]:
  """The arguments of scripts/preflight.py for this training."""
  return [
    make.config, f"--topology={topology}", *(f"--config.{text}" for text in make.overrides),
    f"--utilisation={utilisation:g}", *([f"--price={price:g}"] if price else [])]


def commands_of(paper: Paper, workdir: str, launcher: str) -> list[str]:
  """What makes the row: training and evaluation, or a command."""
  if isinstance(paper.make, Program):
    return [shlex.join(["python", *paper.make.words])]
  found = [train_command(paper.make, workdir, launcher)]
  if paper.evaluate:
    found.append(shlex.join(["python", "eval.py", f"--workdir={workdir}", *paper.evaluate]))
  return found


def find_figures(table: Table, row: Row, runs: Sequence[Path]) -> list[Made]:
  """The row's figure of every run that was trained with its config, whatever the seed; [] where there is none.

  Raises ValueError where a run of this config cannot be read.
  """
  if row.paper is None or not isinstance(row.paper.make, Train):
    return []
  found = _figures(row.paper, runs)
  if not row.paper.over or not found:
    return found
  base = row_over(table, row)
  others = _figures(Paper(base.paper.make, metric=row.paper.metric), runs)
  if not others:
    return []
  mean = sum(other.figure for other in others) / len(others)
  return [replace(one, figure=one.figure / mean) for one in found]


def row_over(table: Table, row: Row) -> Row:
  """The row by whose figure this one's is divided, of its own table or of another."""
  other, _, name = row.paper.over.rpartition("/")
  return find_row(find_table(other) if other else table, name)


def _figures(paper: Paper, runs: Sequence[Path]) -> list[Made]:
  config, found = config_of(paper.make), []
  for run in runs:
    if not is_same_experiment(read_run_config(run), config):
      continue
    if paper.metric in ("speed", "time"):
      speed = median_speed(run)
      figures = [speed if paper.metric == "speed" else 1 / speed]
    else:
      figures = _evaluated(paper, run)
    found += [_made(figure, run) for figure in figures]
  return found


def _made(figure: float, run: Path) -> Made:
  facts = read_run(run, "git_commit", "devices")
  lines = read_metric_lines(run / "metrics.jsonl")
  updates = {line["step"]: line["time_step"] for line in lines if "time_step" in line}
  devices = facts["devices"]
  return Made(
    figure, str(run), facts["git_commit"], f"{len(devices)} × {devices[0]}",
    sum(updates.values()) * len(devices) / SECONDS_AN_HOUR)


def _evaluated(paper: Paper, run: Path) -> list[float]:
  """From the newest eval_*.json of the run's last step, of a whole split, that the row's evaluation would have made."""
  config = read_run_config(run)
  asked = [word.removeprefix("--").split("=", 1) for word in paper.evaluate]
  changes, flags = [value for name, value in asked if name == "set"], dict(asked)
  seq_len = int(flags["seq_len"]) if "seq_len" in flags else config.eval.seq_len or config.data.seq_len
  chunk_len = int(flags["chunk_len"]) if "chunk_len" in flags else config.eval.chunk_len or seq_len
  wanted = {
    "split": flags["split"], "protocol": "cold", "seq_len": seq_len, "chunk_len": min(chunk_len, seq_len),
    "overrides": changes, "step": config.train.steps}
  for path in sorted(run.glob("eval_*.json"), key=lambda path: -path.stat().st_mtime):
    result = json.loads(path.read_text(encoding="utf-8"))
    is_whole = result["tokens"] == result["split_tokens"]
    if is_whole and all(result[name] == value for name, value in wanted.items()):
      return [] if result[paper.metric] is None else [float(result[paper.metric])]
  return []
