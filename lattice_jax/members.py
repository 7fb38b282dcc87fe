"""Which processes take part in a run of several, and what to say when they do not find each other."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from dataclasses import dataclass

from lattice_jax.domains import Number

JOIN_TIMEOUT = 40  # seconds that processes wait for each other at the start
JOIN_VARIABLE = "LATTICE_JAX_JOIN_TIMEOUT"  # changes it, where hosts start minutes apart
_UNREGISTERED = "CoordinationService/RegisterTask"


@dataclass(frozen=True)
class Membership:
  """Which processes take part, as far as the user says; None is left to the cluster."""

  coordinator: str | None = None
  count: int | None = None
  process: int | None = None

  @property
  def is_whole(self) -> bool:
    return None not in (self.coordinator, self.count, self.process)

  def with_environment(self) -> Membership:
    """This, completed by JAX's environment variables, of which JAX itself reads only the address.

    Raises ValueError for an address that JAX would report by a traceback.
    """
    def integer(name: str) -> int | None:
      return _integer(name) if name in os.environ else None

    coordinator = self.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None and not re.fullmatch(r"\S+:\d{1,5}", coordinator):
      raise ValueError(
        f"--coordinator={coordinator} must be HOST:PORT, an address of process 0 and a free port there, such as "
        "10.0.0.2:8476.")
    return Membership(
      coordinator,
      integer("JAX_NUM_PROCESSES") if self.count is None else self.count,
      integer("JAX_PROCESS_ID") if self.process is None else self.process)


def check_alone() -> None:
  """Raises ValueError on a host of a TPU slice of several, where a process that joins no other waits for them for ever.

  Other clusters may start many runs that have nothing to do with one another, so theirs are not asked.
  """
  hosts = [name for name in (os.environ.get("TPU_WORKER_HOSTNAMES") or "").split(",") if name]
  if len(hosts) > 1:
    raise ValueError(
      f"this is one of the {len(hosts)} hosts of a TPU slice (TPU_WORKER_HOSTNAMES), whose chips work together only; "
      "add --distributed, and start the same command on every host.")


def listen(address: str | None, timeout: int) -> threading.Event:
  """An event that is set once something answers at the address; JAX does not say who was missing."""
  answered = threading.Event()
  host, _, port = (address or "").rpartition(":")

  def ask() -> None:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
      with contextlib.suppress(OSError, OverflowError), socket.create_connection((host, int(port)), timeout=2):
        answered.set()
        return
      time.sleep(1)

  if host:
    threading.Thread(target=ask, daemon=True).start()
  return answered


def describe_absence(text: str, members: Membership, timeout: int, has_answered: bool) -> str | None:
  """One sentence for what the service prints when processes do not find each other; None for anything else.

  has_answered: whether process 0 was there.
  """
  if _UNREGISTERED not in text:
    return None
  start = f"--distributed: the processes did not find each other within {timeout} s"
  if members.process == 0:
    missing = f"not all of the {members.count} processes have come to this one, process 0"
  elif members.coordinator is None:
    missing = "process 0 does not answer, or others have not come"
  elif has_answered:
    missing = f"process 0 answers at {members.coordinator}, but others have not come"
  else:
    missing = f"process 0 does not answer at {members.coordinator}"
  return (
    f"{start}: {missing}; start the same command on every host within that time, or set {JOIN_VARIABLE} to more "
    "seconds.")


def seconds(variable: str, otherwise: int) -> int:
  """What an environment variable says, a whole number above 0."""
  return _integer(variable, lowest=1) if variable in os.environ else otherwise


def _integer(name: str, lowest: int = 0) -> int:
  try:
    return Number(int, lowest).parse(os.environ[name])
  except ValueError as error:
    raise ValueError(f"{name}={os.environ[name]} {error}") from error
