"""`wandb sweep` and `wandb agent`, the real client in processes of its own, against a stand-in of W&B's server."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from lattice_jax.metrics import read_metric_lines
from lattice_jax.sweep.sweep_file import read_sweep
from tests.sweep import wandb_trial
from tests.sweep.wandb_server import ENTITY, KEY, PROJECT, Server

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # processes of their own, each of which imports W&B
METRIC = "eval_validation_cold/bits_per_byte"
# the agent asks the server every five seconds; here there is nothing to spare
AGENT = "import wandb.wandb_agent as a; a.Agent.POLL_INTERVAL = 0.5; from wandb.cli.cli import cli; cli()"


@pytest.fixture
def server():
  with Server() as found:
    yield found


def environment(server, folder, **changes):
  folder.mkdir(exist_ok=True)
  (folder / "python").unlink(missing_ok=True)
  (folder / "python").symlink_to(sys.executable)  # the agent's ${interpreter} is the first python on the path
  outside = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
  return outside | {
    "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY, "WANDB_PROJECT": PROJECT,
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "0.2",  # seconds; by default a server hears from a run every 15
    "WANDB_ERROR_REPORTING": "false", "WANDB_DIR": str(folder), "NETRC": str(folder / "none"),
    "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **changes}


def create_sweep(server, file, folder):
  """The id that `wandb sweep` prints."""
  done = subprocess.run(
    [sys.executable, "-m", "wandb", "sweep", str(file)], cwd=ROOT, env=environment(server, folder), capture_output=True,
    text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  assert f"wandb agent {ENTITY}/{PROJECT}/" in done.stderr
  return re.search(r"sweep with ID: (\S+)", done.stderr)[1]


def start_agent(server, sweep, folder):
  with (folder / "agent.txt").open("w") as said:
    return subprocess.Popen(
      [sys.executable, "-c", AGENT, "agent", f"{ENTITY}/{PROJECT}/{sweep}"], cwd=ROOT,
      env=environment(server, folder), stdout=said, stderr=subprocess.STDOUT)


def until(is_so, agent, folder):
  for _ in range(4000):
    if is_so():
      return
    assert agent.poll() is None, (folder / "agent.txt").read_text()
    time.sleep(0.1)
  raise AssertionError(f"it did not happen: {(folder / 'agent.txt').read_text()}")


def end(agent, folder):
  try:
    assert agent.wait(500) == 0, (folder / "agent.txt").read_text()
  finally:
    if agent.poll() is None:
      for child in children_of(agent):  # trials are in groups of their own, and would outlive it
        os.kill(child, signal.SIGKILL)
      agent.kill()


def test_the_shipped_file_is_the_same_sweep_online_as_offline(server, tmp_path):
  file = ROOT / "configs" / "sweeps" / "lattice_slots.yaml"
  sweep = create_sweep(server, file, tmp_path)
  known, offline = server.sweeps[sweep], read_sweep(file)
  assert (known["program"], known["method"], known["metric"]["name"]) == (
    offline.program, offline.method, offline.metric)
  assert {name: tuple(entry["values"]) for name, entry in known["parameters"].items()} == {
    parameter.name: parameter.choices() for parameter in offline.parameters}
  assert server.unknown == []


def test_an_agent_runs_resumes_and_stops_trials(server, tmp_path):
  (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({
    "program": str(wandb_trial.PATH), "method": "grid", "metric": {"name": METRIC, "goal": "minimize"},
    "early_terminate": {"type": "hyperband", "min_iter": 2},
    "parameters": {"level": {"values": [1, 9]}, "patience": {"value": 3}},
    "command": ["${env}", "${interpreter}", "${program}", "${args}", f"--workdir={tmp_path}/runs/{{run_id}}"]}))
  sweep = create_sweep(server, tmp_path / "sweep.yaml", tmp_path)
  agent = start_agent(server, sweep, tmp_path)
  good, bad = f"{sweep[:4]}0000", f"{sweep[:4]}0001"
  workdir = tmp_path / "runs" / good
  until(lambda: (workdir / "waits").exists(), agent, tmp_path)
  os.kill(json.loads((workdir / "waits").read_text())["pid"], signal.SIGTERM)  # its machine is taken away
  end(agent, tmp_path)
  assert server.commands == [("run", good), ("resume", good), ("run", bad), ("stop", bad), ("exit", "")]
  # one run, in one folder, which went on behind its third step
  rows = [row for _, row in sorted(server.runs[good].rows.items())]
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and [row["_step"] for row in rows] == list(range(6))
  lines = read_metric_lines(workdir / "metrics.jsonl")
  assert [line["step"] for line in lines if "split" in line] == [1, 2, 3, 4, 5, 6]
  assert json.loads((workdir / "wandb.json").read_text())["id"] == good
  assert server.runs[good].sweep == sweep and server.runs[good].exit_code == 0
  # the other one was stopped where it stood, and is not run again
  assert len(server.runs[bad].rows) == 3 and server.runs[bad].exit_code != 0 and server.runs[bad].starts == 1
  assert server.unknown == []


@pytest.mark.thorough
def test_an_agent_resumes_a_training_from_its_checkpoint(server, tmp_path):
  workdirs = f"--workdir={tmp_path}/runs/{{run_id}}"
  (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({
    "program": "train.py", "method": "grid", "metric": {"name": METRIC, "goal": "minimize"},
    "parameters": {"config": {"value": "configs/quickstart.py:smoke"}, "config.train.seed": {"values": [1]}},
    "command": ["${env}", "${interpreter}", "${program}", "${args}", "--config.train.steps=200",
                "--config.train.log_every=5", "--config.train.save_every=1000",
                "--config.train.writers=stdout,jsonl,wandb", workdirs]}))
  sweep = create_sweep(server, tmp_path / "sweep.yaml", tmp_path)
  agent = start_agent(server, sweep, tmp_path)
  until(lambda: any(run.rows for run in server.runs.values()), agent, tmp_path)
  os.kill(child_of(agent, "train.py"), signal.SIGTERM)
  end(agent, tmp_path)
  (run,) = server.runs.values()
  assert server.commands == [("run", run.id), ("resume", run.id), ("exit", "")]
  resumed = re.search(r"resumed from the checkpoint of step (\d+)", (tmp_path / "agent.txt").read_text())
  assert 0 < int(resumed[1]) < 200
  lines = read_metric_lines(tmp_path / "runs" / run.id / "metrics.jsonl")
  assert [line["step"] for line in lines if "split" not in line] == list(range(1, 201))
  reports = [row["step"] for _, row in sorted(run.rows.items()) if "train/loss" in row]
  assert reports == sorted(set(reports)) and reports[-1] == 200
  assert run.values_of(METRIC) == [line["bits_per_byte"] for line in lines if "split" in line]


def child_of(agent, word):
  """The process that the agent started with this word in its command."""
  for child in children_of(agent):
    if word in pathlib.Path(f"/proc/{child}/cmdline").read_text():
      return child
  raise AssertionError(f"the agent has no child with {word}")


def children_of(process):
  return list(map(int, pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
