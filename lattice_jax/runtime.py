"""What a program does when it starts and ends: the compilation cache, several hosts, and errors as one sentence.

JAX is imported where it is used: neither --help nor a misspelt flag need wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import logging as absl_logging

from lattice_jax import failures, processes
from lattice_jax.failures import PeerFailure
from lattice_jax.members import Membership
from lattice_jax.shown import first_line

CLOSING_TIMEOUT = 5  # seconds in which a run that failed must close what it opened
LEAVING_TIMEOUT = 4  # seconds that a process which ends with an error waits for the others to end too

_ending = threading.Lock()  # held by the thread that says why a process of several ends


class Stop(Exception):
  """Ends the program with one sentence and an exit status."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


def enable_compilation_cache(shared: str | None = None) -> None:
  """Keeps compiled programs in the folder LATTICE_JAX_CACHE, which may be gs://…; an empty name turns it off.

  shared: the folder without that variable, in a run on several hosts: only process 0 writes compiled programs, so
  that in folders of their own the others would compile again at every start. None: ~/.cache/lattice_jax.
  """
  folder = os.environ["LATTICE_JAX_CACHE"] if "LATTICE_JAX_CACHE" in os.environ else shared or "~/.cache/lattice_jax"
  if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  if "://" not in folder:
    folder = str(Path(folder).expanduser())
    try:
      Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
      return  # where the home folder cannot be written to, only compile time is lost
  import jax

  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def initialize_distributed(members: Membership) -> None:
  """Joins the processes of a run on several hosts."""
  processes.join(members, _end_without_peer)


def _os_sentence(error: OSError) -> str:
  """What the operating system refused, without the error number."""
  return f"{error.filename}: {error.strerror}." if error.filename is not None else f"{error.strerror or error}."


def program() -> str:
  """The name of the running command."""
  called = Path(sys.argv[0])
  return called.parent.name if called.name == "__main__.py" else called.name


def within(seconds: float, action: Callable[[], object]) -> None:
  """Runs the last action before the program ends, and gives it up after so many seconds.

  A library's thread may wait minutes for something that never comes. An error raised here follows from the one that
  ends the program, so it is not reported.
  """
  def act() -> None:
    with contextlib.suppress(Exception):
      action()

  thread = threading.Thread(target=act, daemon=True)
  thread.start()
  thread.join(seconds)


def show_log() -> None:
  """What the library logs, such as the implementation of each op, as lines on stdout."""
  logger, handler = logging.getLogger("lattice_jax"), logging.StreamHandler(sys.stdout)
  # on a terminal a clock may run on the line
  handler.setFormatter(logging.Formatter("\r\033[K%(message)s" if sys.stdout.isatty() else "%(message)s"))
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False


def quieten_checkpoints() -> None:
  """Silences Orbax, which warns about things that are intended and logs errors that become one sentence here."""
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  # the process that cleans up after terminated data workers counts what they left; it inherits these options
  sys.warnoptions.append("ignore:resource_tracker:UserWarning")
  show = sys.unraisablehook

  def show_others(unraisable: Any) -> None:
    # when one file of a checkpoint fails, TensorStore reports for each of the others that nobody waits for it
    if str(unraisable.exc_value) != "Event loop is closed":
      show(unraisable)

  sys.unraisablehook = show_others


def git_commit() -> str | None:
  """The commit of the code, with "+" where files differ from it; None where no checkout tracks it."""
  here = Path(__file__).resolve()

  def git(*words: str) -> str:
    return subprocess.run(
      ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", here.name)  # an installed package may lie inside another project's checkout
    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
  except (OSError, subprocess.SubprocessError):
    return None


def leave(error: BaseException) -> NoReturn:
  """Reports the error and ends the process whatever threads are alive; Python's own exit would wait for them."""
  has_peers = processes.are_joined()
  if has_peers:
    processes.await_abort(error)
    _wait_if_ending()
  sentence, status = _last_sentence(error)
  if sentence is None:
    traceback.print_exception(error)
  else:
    _say(sentence)
  if has_peers:
    if not isinstance(error, (Stop, PeerFailure)):  # these are raised in every process
      failures.publish(sentence or f"it failed with {first_line(error)}; the traceback stands there.", status)
    within(LEAVING_TIMEOUT, processes.shut_down)
  end_process(status)


def _end_without_peer(sentence: str, status: int) -> NoReturn:
  _wait_if_ending()
  _say(sentence)
  end_process(status)


def _wait_if_ending() -> None:
  """Returns to the first thread that ends this process; any later one waits here for the end."""
  if not _ending.acquire(blocking=False):
    time.sleep(2 * LEAVING_TIMEOUT)
    end_process(1)


def _say(sentence: str) -> None:
  with contextlib.suppress(OSError):  # the reader has closed the pipe
    sys.stdout.flush()
    sys.stderr.write(f"{program()}: {sentence}\n")
    sys.stderr.flush()


def end_process(status: int) -> NoReturn:
  """Ends the process at once, and its workers with it."""
  for worker in multiprocessing.active_children():
    worker.kill()  # otherwise it would outlive this process and keep its output open
  os._exit(status)


def _last_sentence(error: BaseException) -> tuple[str | None, int]:
  """(the sentence for the user, exit status); None where a traceback is wanted or the error is not a user's mistake."""
  if isinstance(error, KeyboardInterrupt):
    return "aborted.", 130
  if isinstance(error, Stop):
    return str(error), error.status
  if isinstance(error, (ValueError, OSError)):
    sentence = _os_sentence(error) if isinstance(error, OSError) else str(error)
    return None if "LATTICE_JAX_TRACEBACK" in os.environ else sentence, 2
  return None, 1
