"""How signals end a program that has nothing to save. Standard library only, so that a program can import it first."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def exit_on_signals() -> None:
  """From here on Ctrl-C and SIGTERM end the program with one sentence and status 128 + their number.

  Training replaces these handlers while it has something to save.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
  del frame
  sentence = (
    f"{Path(sys.argv[0]).name}: stopped by {signal.Signals(number).name}; nothing is lost, and the same command starts "
    "again or continues.\n")
  os.write(2, sentence.encode())
  os._exit(128 + number)  # an exception could be swallowed by a library that is being imported
