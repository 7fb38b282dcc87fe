"""Several processes as one program: how they start, agree, fail and end together.

When a process dies, JAX's coordination service notices. In the other processes it prints pages of text to standard
error and then aborts them, from a thread that Python does not know. Here those pages are captured instead of shown, and
the abort becomes an exit with one sentence.

JAX and NumPy are imported where they are used: a mistake on the command line need not wait for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lattice_jax import failures
from lattice_jax.failures import PeerFailure
from lattice_jax.members import JOIN_TIMEOUT, JOIN_VARIABLE, Membership, describe_absence, listen, seconds
from lattice_jax.shown import first_line

# Seconds without a sign of life after which a process counts as dead. JAX's default is 100, and all would wait that
# long. A separate thread sends the signs every few seconds, however long a compilation or a read takes.
HEARTBEAT_TIMEOUT = 8
HEARTBEAT_VARIABLE = "LATTICE_JAX_HEARTBEAT"  # changes it, where a network or a host may be silent for longer
# Seconds that a process which is done waits for the others to be done. JAX's default is 300.
SHUTDOWN_TIMEOUT = 45
_CAPTURE_SECONDS = 0.2  # given to the reader to receive what was printed before an abort
_MESSAGE_BYTES = 512

_SERVICE = re.compile(r"coordination[_ ]service|JAX distributed service|terminate called .*'gloo::")
_TORN = "'gloo::"  # of what a thread of Gloo throws when a process dies in the middle of a message
_SILENT = re.compile(r"stopped sending heartbeats\):\n((?:\S*\d+\n)+)")
_BROKEN = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): ")
_OF_FILES = "os_error_code"  # in TensorStore's errors, whose form is the same
_NO_LEADER = "Failed to send RPC to coordination service"

_kept_alive: list[Any] = []  # objects that must live as long as the process


def join(given: Membership, end: Callable[[str, int], None]) -> None:
  """Connects this process to the others of the run; calls `end` with (sentence, exit status) if one fails later.

  What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, then from the cluster,
  which JAX knows by itself: Cloud TPU, GKE, Slurm, Open MPI. Raises ValueError where none of these says it, or the
  processes do not find each other in time.
  """
  import jax

  heartbeat, timeout = _heartbeat_timeout(), seconds(JOIN_VARIABLE, JOIN_TIMEOUT)
  members = given.with_environment()
  # its handler of SIGTERM would replace the one that ends a run in order
  jax.config.update("jax_enable_preemption_service", False)
  answered = listen(members.coordinator, timeout)
  _intercept_aborts(
    end, lambda text: describe_absence(text, members, timeout, answered.is_set()) or describe_death(
      text, failures.own_process()))
  try:
    jax.distributed.initialize(
      members.coordinator, members.count, members.process, initialization_timeout=timeout,
      heartbeat_timeout_seconds=heartbeat, shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
      cluster_detection_method="deactivate" if members.is_whole else None)
  except ValueError as error:
    raise ValueError(
      f"--distributed: it is not known which processes take part ({first_line(error)}); give --coordinator=HOST:PORT, "
      "--num_processes and --process where the cluster does not tell.") from error
  except RuntimeError as error:
    raise ValueError(
      f"--distributed: the processes did not find each other within {timeout} s ({first_line(error)}); start the same "
      "command on every host.") from error
  failures.watch(end)


def are_joined() -> bool:
  """Whether `join` has connected this process to others."""
  jax = sys.modules["jax"] if "jax" in sys.modules else None
  return jax is not None and jax.distributed.is_initialized()


def shut_down() -> None:
  """Ends the connection; waits for the other processes, which may still have an error to report."""
  import jax

  failures.stop_watching()
  jax.distributed.shutdown()


@contextlib.contextmanager
def propagate_failure() -> Iterator[None]:
  """Fails in every process if the block fails in any; every process must enter it.

  A process whose own block succeeded raises the error of the first that failed, as a PeerFailure. The block must
  not itself wait for other processes.
  """
  import jax

  failure: Exception | None = None
  try:
    yield
  except Exception as error:
    failure = error
  messages = _exchange_messages(failure) if jax.process_count() > 1 else {}
  if failure is not None:
    raise failure
  for process, message in messages.items():
    raise PeerFailure(f"process {process} of {jax.process_count()}: {message}")


def check_agreement(facts: dict[str, str]) -> None:
  """Raises ValueError, in every process, if a fact differs between processes; every process must call it."""
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return
  digests = np.stack([np.frombuffer(hashlib.sha256(fact.encode()).digest(), np.uint8) for fact in facts.values()])
  all_digests = multihost_utils.process_allgather(digests)
  for process, theirs in enumerate(all_digests):
    for name, is_same in zip(facts, (theirs == all_digests[0]).all(axis=1), strict=True):
      if not is_same:
        raise ValueError(
          f"{name} of process {process} differs from that of process 0; start every process with the same command on "
          "the same files.")


def warn(text: str) -> None:
  """Prints a sentence for the user to standard error, in the first process only."""
  import jax

  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def describe_death(text: str, own: int | None = None) -> str | None:
  """One sentence for the pages that the coordination service printed; None if they are about something else.

  own: the number of this process, which may be among those that count as dead.
  """
  silent = _SILENT.search(text)
  if silent:
    numbers = [number for number in re.findall(r"(\d+)\n", silent[1]) if int(number) != own]
    if not numbers:
      return (
        f"this process, {own}, gave no sign of life for longer than {HEARTBEAT_VARIABLE} allows, and counts as dead; "
        "start the same command again on every host: it continues from the newest checkpoint.")
  elif _NO_LEADER in text:
    numbers = ["0"]  # the service runs in this process
  else:
    return None
  who = f"process {numbers[0]} has" if len(numbers) == 1 else f"processes {', '.join(numbers)} have"
  return (
    f"{who} ended or cannot be reached any more; the last lines printed there say why. Start the same command again on "
    "every host: it continues from the newest checkpoint.")


def await_abort(error: BaseException | None) -> None:
  """If processes could not talk, waits for the service, which aborts this process if another one has died."""
  if could_not_talk(error):
    time.sleep(2 * _heartbeat_timeout())


def could_not_talk(error: BaseException | None) -> bool:
  """Whether the error says, or was raised because of one that says, that processes could not talk to one another."""
  while error is not None and are_joined():
    if _BROKEN.match(str(error)) and _OF_FILES not in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _heartbeat_timeout() -> int:
  return seconds(HEARTBEAT_VARIABLE, HEARTBEAT_TIMEOUT)


def _exchange_messages(failure: Exception | None) -> dict[int, str]:
  """The error message of every process that failed, by its number."""
  import numpy as np
  from jax.experimental import multihost_utils

  message = np.zeros(_MESSAGE_BYTES, np.uint8)
  if failure is not None:
    text = np.frombuffer(first_line(failure, limit=_MESSAGE_BYTES).encode()[:_MESSAGE_BYTES], np.uint8)
    message[:len(text)] = text
  messages = multihost_utils.process_allgather(message)
  return {
    int(process): messages[process].tobytes().rstrip(b"\0").decode(errors="replace")
    for process in np.flatnonzero(messages.any(axis=1))}


def _intercept_aborts(end: Callable[[str, int], None], describe: Callable[[str], str | None]) -> None:
  """From here on an abort that `describe` has a sentence for calls `end`; call it before processes connect."""
  terminal = os.dup(2)
  sys.stderr = open(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
  reading, writing = os.pipe()
  os.dup2(writing, 2)
  os.close(writing)
  captured: list[str] = []
  threading.Thread(target=_capture, args=(reading, captured), daemon=True).start()

  def on_abort(number: int) -> None:
    del number
    time.sleep(_CAPTURE_SECONDS)
    text = "".join(captured)
    sentence = describe(text)
    if sentence is None and _TORN in text:
      sentence = _await_service(lambda: describe("".join(captured)))
    if sentence is not None:
      end(sentence, 1)
    sys.stderr.write(text)  # an abort for another reason continues when this returns

  # a handler of Python's would wait for the main thread, but the abort does not
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
  _kept_alive.append(handler)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def _await_service(describe: Callable[[], str | None]) -> str:
  """The sentence about the process that has died, which the coordination service names some seconds later."""
  end = time.monotonic() + 2 * _heartbeat_timeout()
  while time.monotonic() < end:
    if sentence := describe():
      return sentence
    time.sleep(_CAPTURE_SECONDS)
  return (
    "another process has ended or cannot be reached any more; the last lines printed there say why. Start the same "
    "command again on every host: it continues from the newest checkpoint.")


def _capture(reading: int, captured: list[str]) -> None:
  """Shows what native libraries print, up to the service's first line; that line and all later ones it captures."""
  with open(reading, encoding="utf-8", errors="replace") as lines:
    for line in lines:
      if captured or _SERVICE.search(line):
        captured.append(line)
      else:
        sys.stderr.write(line)
