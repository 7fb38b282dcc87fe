"""--help and docs/configuration.md name all that a command can be given, without JAX."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from configs import common, recall, vq_imagenet64
from lattice_jax.commands import help
from lattice_jax.config import MEMORY_NAMES, Config
from lattice_jax.data.sources import SOURCES
from lattice_jax.fields import leaves

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = [path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "common"]
FLAGS = {
  "train.py": ("config", "workdir", "init_from", "profile", "distributed", "cpu_devices", "set"),
  "eval.py": ("workdir", "pretrained", "split", "task", "cache", "temperature", "seed", "output", "cpu_devices", "set")}


@pytest.mark.parametrize("word", ["--help", "-h"])
@pytest.mark.parametrize("command", FLAGS)
def test_help_names_all_that_can_be_given_and_needs_no_jax(command, word, tmp_path):
  (tmp_path / "jax.py").write_text("raise SystemExit('jax was imported')\n")
  done = subprocess.run(
    [sys.executable, command, f"--workdir={tmp_path / 'run'}", word], cwd=ROOT, capture_output=True, text=True,
    check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)})
  assert (done.returncode, done.stderr) == (0, "")
  starts = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
  assert {f.removeprefix("--[no]").removeprefix("--").rstrip("=") for f in starts} >= set(FLAGS[command])
  assert starts >= {path for path, *_ in leaves(Config())}
  assert (starts >= set(EXPERIMENTS)) == (command == "train.py")
  long = [line for line in done.stdout.splitlines() if len(line) > help.WIDTH]
  assert all(line.startswith("python ") for line in long), long
  assert "absl" not in done.stdout and " at 0x" not in done.stdout and not (tmp_path / "run").exists()


def test_a_field_is_printed_with_meaning_domain_and_default():
  entries = {entry.name: entry for _, section in help.sections() for entry in section}
  assert entries["optimizer.b2"] == help.Entry(
    "optimizer.b2", "of the slower average", "number in [0, 1); default 0.98")
  assert entries["mesh.data"].detail == "whole number ≥ 1, or -1; default -1"
  assert entries["mesh.rules"].detail == "pairs of names; default heads:model,value:model,mlp:model,vocab:model"
  assert all(name in entries["data.source"].meaning for name in SOURCES)


def test_variants_are_those_that_an_experiment_answers_to():
  assert common.variants(vq_imagenet64.get_config) == ("190m", "sample", "smoke")
  assert common.variants(recall.get_config) == (*MEMORY_NAMES, "returning", "short", "sample", "smoke")
  assert {entry.name for entry in help.experiments()} == set(EXPERIMENTS)
  assert all(entry.detail.endswith("smoke") for entry in help.experiments())


def test_the_page_of_the_configuration_is_up_to_date():
  page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
  assert page == help.markdown(), "run `python -m lattice_jax.commands.help > docs/configuration.md`"


def test_no_script_loads_jax_for_its_help(tmp_path):
  (tmp_path / "jax.py").write_text("raise SystemExit('jax was imported')\n")
  # pretrained_reference.py runs in an environment without this project
  scripts = set((ROOT / "scripts").glob("*.py")) - {ROOT / "scripts" / "pretrained_reference.py"}
  commands = [[str(script)] for script in sorted(scripts)]
  commands += [["scripts/bench.py", op] for op in ("peers", "streaming", "rounds")]
  for command in commands:
    done = subprocess.run(
      [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False,
      env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, ""), command
