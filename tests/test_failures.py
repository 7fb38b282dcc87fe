"""What one process fails with, the others end with."""

from __future__ import annotations

import queue
import threading
import types

import pytest

from lattice_jax import failures


class Service:
  """The part of JAX's connection that is used: a table that all processes see."""

  def __init__(self, process):
    self.table, self.process_id, self.num_processes, self.client = {}, process, 3, self

  def key_value_set(self, key, value):
    self.table[key] = value

  def key_value_dir_get(self, folder):
    return [(key, value) for key, value in self.table.items() if key.startswith(folder)]


@pytest.fixture
def service(monkeypatch):
  """Of process 1, which asks without rest."""
  service = Service(1)
  monkeypatch.setattr(failures, "_service", lambda: service)
  monkeypatch.setattr(failures, "_stopped", threading.Event())
  monkeypatch.setattr(failures, "_asking", [])
  monkeypatch.setattr(failures, "_ASK_SECONDS", 0.01)
  yield service
  failures.stop_watching()


def publish_as(service, process, *failure):
  table = types.SimpleNamespace(client=service, process_id=process)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(failures, "_service", lambda: table)
    patch.setattr(failures, "_stopped", threading.Event())
    failures.publish(*failure)


@pytest.mark.parametrize("process", [0, 1])
def test_the_sentence_of_another_process_arrives_with_its_status(service, process):
  service.process_id, said = process, queue.Queue()
  failures.watch(lambda *end: said.put(end) or failures._stopped.set())
  publish_as(service, 2, "its disk is full", 2)
  assert said.get(timeout=10) == ("process 2 of 3: its disk is full", 2)


def test_a_process_does_not_end_by_its_own_sentence(service):
  said = []
  failures.watch(lambda *end: said.append(end))
  publish_as(service, 1, "my disk is full", 2)
  failures._asking[0].join(0.2)
  assert said == [] and failures._asking[0].is_alive()


def test_a_process_that_ends_asks_no_more(service):
  """Asking a connection that is closed crashes."""
  failures.watch(lambda *end: None)
  failures.stop_watching()
  assert not failures._asking[0].is_alive()
