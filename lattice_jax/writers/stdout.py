"""The progress lines on the terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from lattice_jax.files import Record
from lattice_jax.writers.base import Writer

_CLEAR = "\r\033[K"  # to the start of the line, then erase it


class StdoutWriter(Writer):
  """One aligned line a report; bits are counted by `unit`."""

  def __init__(self, unit: str):
    self._unit = unit
    self._start = ""  # printed before a line; erases the clock that may be running there

  def note(self, text: str) -> None:
    print(f"{self._start}{text}", flush=True)

  @contextlib.contextmanager
  def busy(self, what: str) -> Iterator[None]:
    """Prints a line; on a terminal, a clock that disappears when the block ends."""
    if not sys.stdout.isatty():
      self.note(f"{what} …")
      yield
      return
    start, is_done = time.perf_counter(), threading.Event()

    def tick() -> None:
      while True:
        print(f"{_CLEAR}{what} … {time.perf_counter() - start:.0f} s", end="", flush=True)
        if is_done.wait(1):
          return

    clock = threading.Thread(target=tick, daemon=True)
    self._start = _CLEAR
    clock.start()
    try:
      yield
    finally:
      is_done.set()
      clock.join()
      self._start = ""
      print(_CLEAR, end="", flush=True)

  def report(self, record: Record) -> None:
    width = len(str(record["total"]))
    mfu = "" if record["mfu"] is None else f"  mfu {record['mfu']:6.1%}"
    print(
      f"step {record['step']:>{width}}/{record['total']}  loss {_number(record['loss'], 4)}  "
      f"bits/{self._unit} {_number(record['bits_per_byte'], 4)}  grad {_number(record['grad_norm'], 3)}  "
      f"{_count(record['tokens_per_second'])} tok/s  wait {record['time_data_wait']:6.1%}{mfu}  "
      f"eta {_duration(record['time_left'])}", flush=True)

  def evaluation(self, record: Record) -> None:
    perplexity = f", {record['word_perplexity']:.2f} word perplexity" if "word_perplexity" in record else ""
    accuracy = f", {record['accuracy']:.2%} right" if "accuracy" in record else ""
    targets = "answers" if "accuracy" in record else "tokens"
    print(
      f"eval {record['split']} at step {record['step']}: bits/{self._unit} {record['bits_per_byte']:.4f}{perplexity}"
      f"{accuracy} over {record['tokens']} {targets} ({record['protocol']}) in {record['time_eval']:.1f} s", flush=True)


def _number(value: float, digits: int) -> str:
  return f"{value:{digits + 4}.{digits}f}"


def _count(value: float) -> str:
  for unit, size in (("M", 1e6), ("k", 1e3)):
    if value >= size:
      return f"{value / size:6.2f}{unit}"
  return f"{value:6.1f} "


def _duration(seconds: float) -> str:
  hours, rest = divmod(round(seconds), 3600)
  return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
