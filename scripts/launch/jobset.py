"""Prints the manifest of a training run on Kubernetes: a JobSet, which Kueue admits where a queue is given.

python scripts/launch/jobset.py --type=v5litepod-64 --image=IMAGE --name=vq --queue=tpus
    --checkpoints=gs://BUCKET/vq --arguments="--config=configs/vq_enwik8.py" | kubectl apply --filename=-

It is what xpk makes: one pod a host, placed together on one slice, all started again if one fails. The image holds this
checkout with its requirements, and `python` in it is theirs. `kubectl apply --dry-run=server` asks the cluster whether
it would take the manifest. Needs the JobSet controller, and Kueue for --queue. A pod that is evicted gets SIGTERM and
ten minutes to save.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lattice_jax.commands.arguments import Parser, count, of
from lattice_jax.commands.domains import Storage
from lattice_jax.commands.run import run_script
from scripts.launch.slices import Slice, find_slice

_JOB, _PORT = "workers", 8476
_JOIN_SECONDS = 1200  # nodes pull the image at different times
_GRACE_SECONDS = 600
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")  # pods' names, made from it, have at most 63 characters


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--type", required=True, help="slice, such as v4-32, v5litepod-64, v5p-128, v6e-64 or h100-16")
  parser.add_argument("--image", required=True, help="container with this checkout")
  parser.add_argument("--name", required=True, help="of the JobSet")
  parser.add_argument(
    "--checkpoints", required=True, type=of(Storage()), help="gs://BUCKET/FOLDER, or a folder that every pod sees")
  parser.add_argument("--arguments", required=True, help="of train.py, in one text; --workdir is added")
  parser.add_argument("--queue", help="Kueue's local queue")
  parser.add_argument("--restarts", type=count, default=100, help="at most; each goes on from the newest checkpoint")
  parser.add_argument("--service_account", help="of Kubernetes, for the bucket")
  arguments = parser.parse_args()
  if not _NAME.fullmatch(arguments.name):
    raise ValueError(
      f"--name={arguments.name} must be at most 32 of the characters a–z, 0–9 and -, with a letter first.")
  command = [
    "python", "train.py", "--distributed", f"--workdir=/tmp/runs/{arguments.name}",
    f"--checkpoints={arguments.checkpoints}", *shlex.split(arguments.arguments)]
  print(yaml.safe_dump(manifest(arguments, find_slice(arguments.type), command), sort_keys=False), end="")
  return 0


def manifest(arguments: Any, slice: Slice, command: list[str]) -> dict[str, Any]:
  """The JobSet."""
  metadata: dict[str, Any] = {"name": arguments.name}
  if arguments.queue:
    metadata["labels"] = {"kueue.x-k8s.io/queue-name": arguments.queue}
  metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
  job = {
    "parallelism": slice.hosts, "completions": slice.hosts, "completionMode": "Indexed", "backoffLimit": 0,
    "template": {"spec": _pod(arguments, slice, command)}}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata,
    "spec": {
      "failurePolicy": {"maxRestarts": arguments.restarts},
      "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
      "replicatedJobs": [{"name": _JOB, "replicas": 1, "template": {"spec": job}}]}}


def _pod(arguments: Any, slice: Slice, command: list[str]) -> dict[str, Any]:
  chips = {slice.resource: slice.chips // slice.hosts}
  container = {
    "name": "train", "image": arguments.image, "command": command, "env": _environment(arguments.name, slice),
    "resources": {"requests": chips, "limits": dict(chips)},
    "volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}]}
  if slice.is_tpu:
    container["ports"] = [{"containerPort": 8471}, {"containerPort": 8080}]  # between the TPUs' runtimes
  account = {"serviceAccountName": arguments.service_account} if arguments.service_account else {}
  return {
    **account, "restartPolicy": "Never", "terminationGracePeriodSeconds": _GRACE_SECONDS,
    "nodeSelector": slice.selector,
    "tolerations": [{"key": slice.resource, "operator": "Exists", "effect": "NoSchedule"}],
    "containers": [container],
    "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}]}  # data workers hand batches over through it


def _environment(name: str, slice: Slice) -> list[dict[str, Any]]:
  """On TPUs GKE tells JAX which pod it is in; elsewhere JobSet's names and indices do."""
  environment: list[dict[str, Any]] = [
    {"name": "PYTHONUNBUFFERED", "value": "1"}, {"name": "LATTICE_JAX_JOIN_TIMEOUT", "value": str(_JOIN_SECONDS)}]
  if slice.is_tpu:
    return environment
  index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
  return [
    *environment, {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-{_JOB}-0-0.{name}:{_PORT}"},
    {"name": "JAX_NUM_PROCESSES", "value": str(slice.hosts)}, {"name": "JAX_PROCESS_ID", "valueFrom": index}]


if __name__ == "__main__":
  run_script(main)
