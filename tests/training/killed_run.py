"""A program for tests: trains in a workdir and may be killed by itself, or signalled, after some update.

python -m tests.training.killed_run WORKDIR [SIGNAL STEP DELAY_SECONDS]
"""

from __future__ import annotations

import os
import pathlib
import sys
import threading

from lattice_jax import writers
from lattice_jax.commands.run import run_script
from tests.training import tiny

STEPS = 30


def make_config():
  return tiny.make_config(
    data__seq_len=64, data__update_len=16, train__steps=STEPS, train__save_every=4, train__eval_every=10,
    train__steps_per_dispatch=3, train__writers=("jsonl", "signal"), model__dropout=0.1)


class SignalWriter(writers.Writer):
  """Sends this process a signal a moment after an update was logged, whatever the process then does."""

  def __init__(self, number, step, delay):
    self._number, self._step, self._delay = number, step, delay

  def update(self, record):
    if record["step"] == self._step:
      threading.Timer(self._delay, os.kill, (os.getpid(), self._number)).start()


def main(arguments):
  from lattice_jax.training import loop

  number, step, delay = (int(arguments[1]), int(arguments[2]), float(arguments[3])) if arguments[1:] else (0, -1, 0.0)
  writers.WRITERS["signal"] = lambda info: SignalWriter(number, step, delay)
  loop.train(make_config(), pathlib.Path(arguments[0]))


if __name__ == "__main__":
  run_script(lambda: main(sys.argv[1:]))
