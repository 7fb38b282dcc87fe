"""What a program does at its start and at its end: compilation cache, several hosts, errors as one sentence.

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
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import logging as absl_logging

from lattice_jax import peers
from lattice_jax.domains import Number
from lattice_jax.shown import first_line

INITIALIZATION_TIMEOUT = 300  # seconds that processes wait for each other
CLOSING_TIMEOUT = 5  # seconds that a run which failed has to close what it opened
LEAVING_TIMEOUT = 4  # seconds that a process which ends with an error then waits for the others to end too


class Stop(Exception):
  """Ends the program with this sentence and exit status."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


def enable_compilation_cache() -> None:
  """Keeps compiled programs under ~/.cache/lattice_jax, or the folder LATTICE_JAX_CACHE names; empty turns it off."""
  folder = os.environ["LATTICE_JAX_CACHE"] if "LATTICE_JAX_CACHE" in os.environ else "~/.cache/lattice_jax"
  if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  path = Path(folder).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # a home that cannot be written to costs compile time only
  import jax

  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def initialize_distributed(requested: bool) -> None:
  """Joins the processes of a run on several hosts, where `--distributed` asks for it.

  Cloud TPU, Slurm and the like tell JAX who takes part; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID do. LATTICE_JAX_HEARTBEAT: seconds without a sign of life after which a process counts as dead.
  """
  if not requested:
    return
  import jax

  if peers.HEARTBEAT_VARIABLE in os.environ:
    _environment_integer(peers.HEARTBEAT_VARIABLE, lowest=1)
  peers.tell_of_the_dead(_end_without_peer)
  # of the three JAX itself reads only the address
  known = {
    argument: _environment_integer(name)
    for argument, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID"))
    if name in os.environ}
  try:
    jax.distributed.initialize(
      initialization_timeout=INITIALIZATION_TIMEOUT, heartbeat_timeout_seconds=peers.heartbeat_timeout(), **known)
  except ValueError as error:
    raise ValueError(
      f"--distributed: it is not known which processes take part ({first_line(error)}); set JAX_COORDINATOR_ADDRESS, "
      "JAX_NUM_PROCESSES and JAX_PROCESS_ID where the cluster does not tell.") from error
  except RuntimeError as error:
    raise ValueError(
      f"--distributed: the processes did not find each other within {INITIALIZATION_TIMEOUT} s "
      f"({first_line(error)}); start the same command on every host.") from error


def _environment_integer(name: str, lowest: int = 0) -> int:
  try:
    return Number(int, lowest).parse(os.environ[name])
  except ValueError as error:
    raise ValueError(f"{name}={os.environ[name]} {error}") from error




def _os_sentence(error: OSError) -> str:
  """What the system refused, without its number."""
  return f"{error.filename}: {error.strerror}." if error.filename is not None else f"{error.strerror or error}."


def program() -> str:
  """The name of the command that runs."""
  called = Path(sys.argv[0])
  return called.parent.name if called.name == "__main__.py" else called.name


def within(seconds: float, action: Callable[[], object]) -> None:
  """Does the last thing before an end, or gives it up after so long.

  A thread of a library may wait for minutes for what will never come. What goes wrong here comes of what went wrong
  before, so it is not told.
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
  """Orbax warns of what is intended, and logs at length what becomes one sentence here."""
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  # the process that removes the batches of workers which were ended says how many; it takes over these options
  sys.warnoptions.append("ignore:resource_tracker:UserWarning")
  show = sys.unraisablehook

  def show_others(unraisable: Any) -> None:
    # where one file of a checkpoint fails, TensorStore says of each of the others that nobody waits for it
    if str(unraisable.exc_value) != "Event loop is closed":
      show(unraisable)

  sys.unraisablehook = show_others


def git_commit() -> str | None:
  """The commit of the code, with «+» where files differ from it; None outside a git checkout."""
  root = Path(__file__).resolve().parents[1]

  def git(*words: str) -> str:
    return subprocess.run(
      ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()

  try:
    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
  except (OSError, subprocess.SubprocessError):
    return None


def leave(error: BaseException) -> NoReturn:
  """Says why, and ends the process whatever threads are alive: at its own end Python would wait for them."""
  jax = sys.modules["jax"] if "jax" in sys.modules else None  # a mistake on the command line need not wait for it
  has_peers = jax is not None and jax.distributed.is_initialized()
  if has_peers:
    peers.wait_for_news(error)
  sentence, status = _last_sentence(error)
  if sentence is None:
    traceback.print_exception(error)
  else:
    _say(sentence)
  if has_peers:
    within(LEAVING_TIMEOUT, jax.distributed.shutdown)  # waits for the others, who may have a sentence to say too
  end_process(status)


def _end_without_peer(sentence: str) -> NoReturn:
  _say(sentence)
  end_process(1)


def _say(sentence: str) -> None:
  with contextlib.suppress(OSError):  # nobody reads it
    sys.stdout.flush()
    sys.stderr.write(f"{program()}: {sentence}\n")
    sys.stderr.flush()


def end_process(status: int) -> NoReturn:
  for worker in multiprocessing.active_children():
    worker.kill()  # else it would outlive this process, and hold its output open
  os._exit(status)


def _last_sentence(error: BaseException) -> tuple[str | None, int]:
  """(what a user is told, exit status); None where the whole traceback is wanted, or nobody expected the error."""
  if isinstance(error, KeyboardInterrupt):
    return "aborted.", 130
  if isinstance(error, Stop):
    return str(error), error.status
  if isinstance(error, (ValueError, OSError)):
    sentence = _os_sentence(error) if isinstance(error, OSError) else str(error)
    return None if "LATTICE_JAX_TRACEBACK" in os.environ else sentence, 2
  return None, 1
