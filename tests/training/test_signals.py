"""A signal is never lost, also not while several processes ask each other."""

from __future__ import annotations

import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from lattice_jax.training.signals import stop_request


def test_a_signal_that_comes_while_processes_agree_counts_at_the_next_time(monkeypatch):
  def gather(value):
    if value[0] == 0:
      os.kill(os.getpid(), signal.SIGTERM)
    return np.stack([value, np.zeros_like(value)])

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "process_allgather", gather)
  with stop_request(lambda name: None) as request:
    assert not request.is_agreed()
    assert request.is_agreed() and request.name == "SIGTERM"


def test_a_signal_to_another_process_is_known_here(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "process_allgather", lambda value: np.stack([value, [signal.SIGINT, 0.5]]))
  with stop_request(lambda name: None) as request:
    assert request.is_agreed(0.25) and request.name == "SIGINT"
    assert request.figures_PF.tolist() == [[0.25], [0.5]]


def test_a_signal_is_answered_at_once(monkeypatch):
  said = []
  with stop_request(said.append) as request:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert request.received == signal.SIGINT
  assert said == ["SIGTERM"]
