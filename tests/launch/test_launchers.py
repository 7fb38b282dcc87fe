"""The launchers' dry runs: the commands and manifests that would go to a cloud, and the flags of train.py in them."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import fastjsonschema
import pytest
import yaml

from scripts.launch.cost import misfits, seconds
from scripts.launch.slices import find_slice, slices

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "scripts" / "launch"
CONFIG = "--config=configs/vq_enwik8.py"
SHELL_OF_SKY = "#!/bin/bash\n"


def run(*command, status=0, **environment):
  done = subprocess.run(
    list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, check=False)
  assert done.returncode == status, done.stderr
  return done.stdout if status == 0 else done.stderr


def pod(*arguments, status=0):
  return run("bash", LAUNCH / "tpu_pod.sh", "--name=pod", "--zone=us-a", "--dry_run", *arguments, status=status)


@functools.cache
def flags_of_train():
  """By name; as its own process tells them, because two commands cannot define theirs in one."""
  return set(re.findall(r"^ *--(?:\[no\])?(\w+)", run(sys.executable, ROOT / "train.py", "--help"), flags=re.MULTILINE))


def assert_train_knows(command):
  """Every flag of train.py in a command line is one, and it joins the processes."""
  words = shlex.split(command)
  given = [word[2:].partition("=")[0] for word in words[words.index("train.py") + 1:] if word.startswith("--")]
  assert "distributed" in given
  assert [name for name in given if name not in flags_of_train() and not name.startswith("config.")] == []


@pytest.mark.parametrize(("type", "version"), [
  ("v4-32", "tpu-ubuntu2204-base"), ("v5litepod-64", "v2-alpha-tpuv5-lite"), ("v5p-128", "v2-alpha-tpuv5"),
  ("v6e-64", "v2-alpha-tpuv6e")])
def test_a_slice_gets_the_software_of_its_generation(type, version):
  made = shlex.split(pod("create", f"--type={type}", "--spot"))
  assert made == [
    "gcloud", "compute", "tpus", "tpu-vm", "create", "pod", "--zone=us-a", f"--accelerator-type={type}",
    f"--version={version}", "--spot"]


def test_the_pod_trains_with_the_arguments_on_every_worker():
  started, followed = pod("train", "--", CONFIG, "--workdir=runs/a b").splitlines()
  words = shlex.split(started)
  assert "--worker=all" in words and "--worker=all" in shlex.split(followed)
  command = next(word for word in words if word.startswith("--command="))
  assert_train_knows(command.partition(" > train.log")[0].partition("nohup ")[2])
  assert "--workdir=runs/a b" in shlex.split(command)


def test_the_pod_is_installed_and_stopped():
  archive, copied, installed = map(shlex.split, pod("install", "--gcs", "--data=enwik8").splitlines())
  assert archive[:2] == ["git", "archive"] and copied[4] == "scp" and "--worker=all" in copied
  assert "'jax[tpu]==" in installed[-1] and "gcsfs==" in installed[-1] and "prepare_data.py enwik8" in installed[-1]
  assert "--worker=0" in shlex.split(pod("stop")) and "delete" in shlex.split(pod("delete"))


@pytest.mark.parametrize(("arguments", "sentence"), [
  ((), "no step"), (("create",), "create needs --type"), (("create", "--type=v9-8"), "--type=v9-8 is not known"),
  (("create", "train"), "two steps"), (("train",), "train needs the arguments"),
  (("create", "--typ=a"), "unknown argument"),
])
def test_the_pods_mistakes_are_one_sentence(arguments, sentence):
  errors = pod(*arguments, status=2)
  assert errors.startswith("tpu_pod.sh: ") and sentence in errors and errors.count("\n") == 1


def test_slurm_starts_one_task_a_gpu():
  command = run("bash", LAUNCH / "slurm.sh", CONFIG, "--workdir=runs/a", DRY_RUN="1")
  assert command.startswith("srun ")
  assert_train_knows(command)
  settings = [line.split()[1] for line in (LAUNCH / "slurm.sh").read_text().splitlines() if line.startswith("#SBATCH")]
  assert {"--ntasks-per-node=8", "--gpus-per-node=8", "--signal=TERM@300", "--requeue"} <= set(settings)
  assert "differ" in run(
    "bash", LAUNCH / "slurm.sh", CONFIG, status=2, DRY_RUN="1", SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_PER_NODE="h100:4")


def sky_task():
  return yaml.safe_load((LAUNCH / "sky.yaml").read_text())


def test_sky_runs_a_process_a_node():
  task = sky_task()
  assert set(task) == {"name", "resources", "num_nodes", "workdir", "envs", "setup", "run"}
  given = {
    **{name: str(value) for name, value in task["envs"].items() if value is not None}, "BUCKET": "gs://b",
    "PYTHON": "echo", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
  command = run("bash", "-c", task["run"], **given)
  assert_train_knows(command)
  assert {"--coordinator=10.0.0.1:8476", "--num_processes=2", "--process=1", "--checkpoints=gs://b/run1"} <= set(
    command.split())


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sh", "setup of sky.yaml", "run of sky.yaml"])
def test_shellcheck_finds_nothing(tmp_path, script):
  path = LAUNCH / script
  if script.endswith(".yaml"):
    path = tmp_path / "section.sh"
    path.write_text(SHELL_OF_SKY + sky_task()[script.split()[0]])
  shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
  run(shellcheck, path)


def jobset(**changes):
  """The manifest; the script runs in this process."""
  from scripts.launch import jobset as script

  values = {
    "type": "v5litepod-64", "image": "image:1", "name": "vq", "checkpoints": "gs://b/vq", "arguments": CONFIG,
    "queue": "tpus"} | changes
  return script, ["jobset.py", *(f"--{name}={value}" for name, value in values.items())]


@pytest.fixture
def manifest(monkeypatch, capsys):
  def manifest(**changes):
    script, arguments = jobset(**changes)
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    text = capsys.readouterr().out
    assert "*id" not in text  # an alias of YAML, which some readers do not take
    return yaml.safe_load(text)

  return manifest


@pytest.mark.parametrize(("type", "hosts", "resource"), [
  ("v4-32", 4, {"google.com/tpu": 4}), ("v5litepod-4", 1, {"google.com/tpu": 4}),
  ("v6e-256", 64, {"google.com/tpu": 4}), ("h100-16", 2, {"nvidia.com/gpu": 8})])
def test_the_manifest_is_a_jobset_with_a_pod_a_host(manifest, type, hosts, resource):
  made = manifest(type=type)
  fastjsonschema.compile(json.loads((pathlib.Path(__file__).parent / "jobset.json").read_text()))(made)
  assert made["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}
  job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert (job["parallelism"], job["completions"], job["completionMode"]) == (hosts, hosts, "Indexed")
  container, = job["template"]["spec"]["containers"]
  assert container["resources"]["limits"] == resource
  assert_train_knows(shlex.join(container["command"]))
  environment = {entry["name"]: entry for entry in container["env"]}
  if "nvidia.com/gpu" in resource:
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"] == "vq-workers-0-0.vq:8476"
    assert environment["JAX_NUM_PROCESSES"]["value"] == str(hosts)
  else:
    assert "JAX_COORDINATOR_ADDRESS" not in environment


@pytest.mark.parametrize(("change", "sentence"), [
  ({"type": "v5litepod-63"}, "--type=v5litepod-63 is not one of"), ({"name": "VQ"}, "--name=VQ must be"),
  ({"checkpoints": "s3://b/vq"}, "Orbax writes to no other kind of bucket"),
  ({"restarts": "-1"}, "--restarts=-1 must be")])
def test_the_manifests_mistakes_are_one_sentence(manifest, change, sentence):
  with pytest.raises(ValueError, match=sentence):
    manifest(**change)


def test_slices_fill_their_hosts():
  for slice in slices().values():
    assert slice.chips % slice.hosts == 0 and slice.chips // slice.hosts in (4, 8)
    topology = slice.selector.get("cloud.google.com/gke-tpu-topology")
    if topology:
      assert slice.chips == eval(topology.replace("x", "*"))


def test_hours_follow_from_operations_and_peak():
  """197e12 operations a second and chip: 64 chips at half of that need 1000 s for this."""
  assert seconds(197e12 * 64 * 0.5 * 1000, find_slice("v5litepod-64"), 0.5) == pytest.approx(1000)


def test_what_does_not_run_on_a_slice_as_it_is_is_said():
  (sentence,) = misfits(("vq_enwik8", "full_enwik8"), find_slice("v5litepod-64"))
  assert sentence.startswith("full_enwik8 does not run on v5litepod-64 as it is: data.batch=32 ")
  assert "use a multiple of 64" in sentence


@pytest.mark.parametrize(("script", "first", "last"), [
  ("tpu_pod.sh", "Trains on a slice", "runs none"), ("slurm.sh", "Trains under Slurm", "must be the same.")])
def test_the_shells_launchers_say_how_they_are_used(script, first, last):
  said = run("bash", LAUNCH / script, "--help").strip()
  assert said.startswith(first) and said.endswith(last) and "SBATCH" not in said
