"""What every command does at its door: the compilation cache, several hosts, and errors as one sentence."""

from __future__ import annotations

import contextlib
import difflib
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from absl import logging as absl_logging

from lattice_jax import peers

_CPU_DEVICES = flags.DEFINE_integer(
  "cpu_devices", None, "Without accelerator: devices to simulate; one a core is faster than one for all.",
  lower_bound=1)

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
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def initialize_distributed(requested: bool) -> None:
  """Joins the processes of a run on several hosts, where `--distributed` asks for it.

  Cloud TPU, Slurm and the like tell JAX who takes part; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID do.
  """
  if not requested:
    return
  peers.tell_of_the_dead(_end_without_peer)
  # of the three JAX itself reads only the address
  known = {
    argument: _environment_integer(name)
    for argument, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID"))
    if name in os.environ}
  try:
    jax.distributed.initialize(
      initialization_timeout=INITIALIZATION_TIMEOUT, heartbeat_timeout_seconds=peers.HEARTBEAT_TIMEOUT, **known)
  except ValueError as error:
    raise ValueError(
      f"--distributed: it is not known which processes take part ({first_line(error)}); set JAX_COORDINATOR_ADDRESS, "
      "JAX_NUM_PROCESSES and JAX_PROCESS_ID where the cluster does not tell.") from error
  except RuntimeError as error:
    raise ValueError(
      f"--distributed: the processes did not find each other within {INITIALIZATION_TIMEOUT} s "
      f"({first_line(error)}); start the same command on every host.") from error


def _environment_integer(name: str) -> int:
  text = os.environ[name]
  if not text.isdecimal():
    raise ValueError(f"{name}={text!r} must be a whole number.")
  return int(text)


def first_line(error: BaseException, limit: int = 200) -> str:
  """The start of an error's message, for use inside a sentence."""
  text = str(error).strip().split("\n")[0] or type(error).__name__
  return text if len(text) <= limit else text[:limit] + "…"


def parse_flags(argv: list[str]) -> list[str]:
  """The arguments that are no flags, after all flags are set; raises ValueError for flags that cannot be."""
  try:
    arguments = flags.FLAGS(argv)
    if "config" in flags.FLAGS:
      getattr(flags.FLAGS.config, "to_dict", None)  # the stand-in for a file that could not be read raises here
    return arguments
  except flags.UnrecognizedFlagError as error:
    close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
    hint = f" Did you mean --{close[0]}?" if close else ""
    raise ValueError(f"unknown flag --{error.flagname}.{hint}") from error
  except (AttributeError, KeyError) as error:
    # the text is a quoted KeyError: \'dimm\'\nDid you mean "dim" instead of "dimm"?
    words = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'").strip("'")
    field, _, hint = words.partition("\n")
    name = field.strip("' ")
    raise ValueError(f"unknown config field {name!r}. {hint}".strip()) from error
  except (flags.Error, TypeError, OSError, ImportError) as error:
    raise ValueError(_last_words(str(error))) from error


def _last_words(text: str) -> str:
  """One sentence of a parser's message; where it quotes a traceback, what that ends with."""
  missing = re.search(r"failure to load: .*No such file or directory: '(.*)'", text, re.DOTALL)
  if missing:
    return f"--config={missing[1]}: there is no such file; configs/ holds them, as in --config=configs/quickstart.py."
  flag, has_traceback, traceback = text.partition("Traceback (most recent call last):")
  if has_traceback:
    text = flag.partition(": ")[0] + ": " + traceback.strip().splitlines()[-1].partition(": ")[2]
  text = text.replace("invalid literal for int() with base 10:", "must be a whole number, not")
  text = text.replace("could not convert string to float:", "must be a number, not")
  return " ".join(text.split())


def run_main(main: Callable[[list[str]], None], argv: list[str]) -> None:
  """Calls `main`; a user's mistake becomes one sentence on stderr and exit status 2, never a traceback."""
  quieten_checkpoints()
  try:
    arguments = parse_flags(argv)[1:]
    if _CPU_DEVICES.value is not None:
      jax.config.update("jax_num_cpu_devices", _CPU_DEVICES.value)
    main(arguments)
  except (Exception, KeyboardInterrupt) as error:
    leave(error)


def run_script(main: Callable[[], int | None]) -> None:
  """As `run_main`, for a script that reads its own arguments; `main` returns the exit status."""
  try:
    status = main()
  except OSError as error:
    leave(ValueError(str(error)))
  except (Exception, KeyboardInterrupt) as error:
    leave(error)
  if status:
    sys.exit(status)


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
  if jax.distributed.is_initialized():
    peers.wait_for_news(error)
  sentence, status = _last_sentence(error)
  if sentence is None:
    traceback.print_exception(error)
  else:
    _say(sentence)
  if jax.distributed.is_initialized():
    within(LEAVING_TIMEOUT, jax.distributed.shutdown)  # waits for the others, who may have a sentence to say too
  _end(status)


def _end_without_peer(sentence: str) -> NoReturn:
  _say(sentence)
  _end(1)


def _say(sentence: str) -> None:
  with contextlib.suppress(OSError):  # nobody reads it
    sys.stdout.flush()
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {sentence}\n")
    sys.stderr.flush()


def _end(status: int) -> NoReturn:
  for worker in multiprocessing.active_children():
    worker.kill()  # else it would outlive this process, and hold its output open
  os._exit(status)


def _last_sentence(error: BaseException) -> tuple[str | None, int]:
  """(what a user is told, exit status); None where the whole traceback is wanted, or nobody expected the error."""
  if isinstance(error, KeyboardInterrupt):
    return "aborted.", 130
  if isinstance(error, Stop):
    return str(error), error.status
  if isinstance(error, ValueError):
    return None if "LATTICE_JAX_TRACEBACK" in os.environ else str(error), 2
  return None, 1
