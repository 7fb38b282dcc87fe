"""What every command does at its door: the compilation cache, several hosts, and errors as one sentence.

JAX is imported where it is used: neither --help nor a misspelt flag need wait for it.
"""

from __future__ import annotations

import contextlib
import inspect
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

from absl import flags
from absl import logging as absl_logging

from lattice_jax import peers, usage
from lattice_jax.arguments import COUNT, POSITIVE, define
from lattice_jax.config_flags import as_flags
from lattice_jax.domains import Number, did_you_mean, short
from lattice_jax.shown import first_line

_CPU_DEVICES = define(
  "cpu_devices", POSITIVE, None, "Without accelerator: devices to simulate; one a core is faster than one for all.")

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
    _environment_integer(peers.HEARTBEAT_VARIABLE, POSITIVE)
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


def _environment_integer(name: str, domain: Number = COUNT) -> int:
  try:
    return domain.parse(os.environ[name])
  except ValueError as error:
    raise ValueError(f"{name}={os.environ[name]} {error}") from error


def parse_flags(argv: list[str]) -> list[str]:
  """The arguments that are no flags, after all flags are set; raises ValueError for flags that cannot be."""
  try:
    argv = [*argv[:1], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
    return flags.FLAGS(as_flags(argv) if "set" in flags.FLAGS else argv)
  except flags.CantOpenFlagFileError as error:
    reason = str(error).rpartition("] ")[2]
    raise ValueError(f"--flagfile cannot be read ({reason}).") from error
  except flags.UnrecognizedFlagError as error:
    hint = did_you_mean(error.flagname, list(flags.FLAGS), quote="--{}".format)
    raise ValueError(f"unknown flag --{error.flagname}.{hint}") from error
  except flags.Error as error:
    text = re.sub(r"^flag (--\w+=.*): (must|is|names) ", lambda said: f"{short(said[1])} {said[2]} ",
                  " ".join(str(error).split()))
    missing = re.fullmatch(r"Missing value for flag (--\w+)", text)
    raise ValueError(f"{missing[1]} has no value; write {missing[1]}=VALUE." if missing else text) from error


def run_main(main: Callable[[list[str]], None], argv: list[str]) -> None:
  """Calls `main`; a user's mistake becomes one sentence on stderr and exit status 2, never a traceback."""
  if asks_for_help(argv):
    sys.stdout.write(usage.of_command(inspect.getmodule(main).__doc__))
    return
  quieten_checkpoints()
  try:
    arguments = parse_flags(argv)[1:]
    if _CPU_DEVICES.value is not None:
      import jax

      jax.config.update("jax_num_cpu_devices", _CPU_DEVICES.value)
    main(arguments)
  except (Exception, KeyboardInterrupt) as error:
    leave(error)


def run_script(main: Callable[[], int | None]) -> None:
  """As `run_main`, for a script that reads its own arguments; `main` returns the exit status."""
  try:
    status = main()
  except (Exception, KeyboardInterrupt) as error:
    leave(error)
  if status:
    sys.exit(status)


def asks_for_help(argv: list[str]) -> bool:
  return any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in argv[1:])


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
