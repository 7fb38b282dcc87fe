"""The death of one of several processes is one sentence of the others, and their end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from lattice_jax.members import Membership, check_alone, describe_absence
from lattice_jax.processes import describe_death

ROOT = pathlib.Path(__file__).parents[1]
PAGES = """E1129 00:33:28.046438   21755 coordination_service.cc:1549] [1058290697516801493] Use error polling: \
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
{tasks}
The tasks have crashed. Check the task logs for an earlier error, or scheduler events.
F1129 00:33:28 client.h:80] Terminating process because the JAX distributed service detected fatal errors.
"""


@pytest.mark.parametrize(("text", "start"), [
  (PAGES.format(tasks="1"), "process 1 has ended"),
  (PAGES.format(tasks="3\n12"), "processes 3, 12 have ended"),
  (PAGES.format(tasks="/job:jax_worker/replica:0/task:7"), "process 7 has ended"),
  ("F1 client.h:80] UNAVAILABLE: Failed to send RPC to coordination service. Either the leader", "process 0 has ended"),
])
def test_pages_of_the_service_name_the_process(text, start):
  assert describe_death(text).startswith(start)


def test_a_process_that_counts_as_dead_itself_names_the_others():
  assert describe_death(PAGES.format(tasks="0\n1"), own=1).startswith("process 0 has ended")
  assert describe_death(PAGES.format(tasks="1"), own=1).startswith("this process, 1, gave no sign of life")


def test_pages_of_something_else_say_nothing():
  assert describe_death("F1129 00:33:28 pjrt.cc:1] Check failed: buffer != nullptr") is None


TORN = """
import os, sys, threading, time
from lattice_jax import processes

def end(sentence, status):
  print(sentence, file=sys.stderr, flush=True)
  os._exit(status)

def name_it():
  time.sleep(0.5)
  os.write(2, sys.argv[1].encode())

processes._intercept_aborts(end, processes.describe_death)
os.write(2, b"terminate called after throwing an instance of 'gloo::EnforceNotMet'\\n  what():  8 vs 4\\n")
threading.Thread(target=name_it).start()
os.abort()
"""


@pytest.mark.parametrize(("pages", "start"), [
  (PAGES.format(tasks="3"), "process 3 has ended or cannot"), ("", "another process has ended or cannot")])
def test_a_message_that_a_death_tears_waits_for_its_name(pages, start):
  """Gloo ends the process from a thread of its own, before anyone knows whose messages no longer come."""
  done = subprocess.run(
    [sys.executable, "-c", TORN, pages], cwd=ROOT, capture_output=True, text=True, timeout=60,
    env=os.environ | {"LATTICE_JAX_HEARTBEAT": "1"}, check=False)
  assert done.returncode == 1 and done.stderr.startswith(start) and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(("members", "has_answered", "start"), [
  (Membership("host:1", 4, 0), True, "not all of the 4 processes have come"),
  (Membership("host:1", 4, 2), True, "process 0 answers at host:1, but others"),
  (Membership("host:1", 4, 2), False, "process 0 does not answer at host:1"),
  (Membership(), False, "process 0 does not answer, or"),
])
def test_processes_that_do_not_meet_say_which_is_missing(members, has_answered, start):
  text = "F1 client.h:80] DEADLINE_EXCEEDED\n\nRPC: /xla.coordination.CoordinationService/RegisterTask"
  sentence = describe_absence(text, members, 45, has_answered)
  assert sentence.startswith(f"--distributed: the processes did not find each other within 45 s: {start}")
  assert describe_absence(PAGES, members, 45, has_answered) is None


def test_what_is_given_stands_before_the_environment(monkeypatch):
  for name, value in (("COORDINATOR_ADDRESS", "a:1"), ("NUM_PROCESSES", "3"), ("PROCESS_ID", "2")):
    monkeypatch.setenv(f"JAX_{name}", value)
  assert Membership().with_environment() == Membership("a:1", 3, 2)
  assert Membership(process=0).with_environment() == Membership("a:1", 3, 0)
  assert Membership("b:2", 4, 1).with_environment() == Membership("b:2", 4, 1)


@pytest.mark.parametrize("address", ["10.0.0.1", "host:port", ":8476", "host:"])
def test_an_address_without_port_is_refused(address):
  with pytest.raises(ValueError, match="must be HOST:PORT"):
    Membership(address, 2, 0).with_environment()


@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_name_the_one_that_was_killed_and_end(victim):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, "-m", "tests.peer_run"], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env=os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)})
    for number in (0, 1)]
  try:
    assert any(line == "talked\n" for line in processes[victim].stdout)
    processes[victim].send_signal(signal.SIGKILL)
    _, errors = processes[1 - victim].communicate(timeout=90)
  finally:
    for process in processes:
      process.kill()
      process.communicate()
  assert processes[1 - victim].returncode == 1
  assert errors.startswith(f"peer_run.py: process {victim} has ended") and errors.count("\n") == 1, errors


@pytest.mark.parametrize(("hosts", "refused"), [(None, False), ("localhost", False), ("t-0,t-1,t-2,t-3", True)])
def test_a_host_of_a_tpu_slice_is_not_left_to_wait_for_the_others(hosts, refused, monkeypatch):
  if hosts is None:
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
  else:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts)
  with pytest.raises(ValueError, match="one of the 4 hosts of a TPU slice") if refused else contextlib.nullcontext():
    check_alone()
