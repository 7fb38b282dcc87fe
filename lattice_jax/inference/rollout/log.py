"""The log of a rollout: JSON lines that are only ever appended, each of which vouches for the one before."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lattice_jax.files import Record
from lattice_jax.processes import warn

_CHAIN = ', "chain": "'


class DecisionLog:
  """Opens or makes the file and holds it until `close`. `records` are those that it held when it was opened.

  A last line without its end was being written when the process was killed: it is removed, with a warning.

  Raises:
    ValueError: another process holds the file, it cannot be written to, or a line was changed, removed or added.
  """

  def __init__(self, path: Path):
    self.path = path
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
      raise ValueError(f"the log {path} cannot be opened ({error.strerror}); choose another place.") from error
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      os.close(self._file)
      raise ValueError(
        f"another process is writing the log {path}; let it end, or give this rollout a log of its own.") from error
    try:
      self._chain = ""
      self.records: list[Record] = self._read()
    except BaseException:
      self.close()
      raise

  def append(self, record: Record, *, is_safe: bool = False) -> None:
    """Writes a line, which is there even if the process is killed; with is_safe, even if the machine is.

    Raises ValueError where the system refuses it; the log is then as it was before.
    """
    body = json.dumps(record, allow_nan=False)
    chain = _link(self._chain, body)
    line = (body[:-1] + _CHAIN + chain + '"}\n').encode()
    size = os.fstat(self._file).st_size
    try:
      written = os.write(self._file, line)
      if written < len(line):
        raise OSError(0, "no space left")
      if is_safe:
        os.fsync(self._file)
    except OSError as error:
      os.ftruncate(self._file, size)
      raise ValueError(
        f"the log {self.path} cannot be written ({error.strerror}); free space, then record the unit again.") from error
    self._chain = chain

  def close(self) -> None:
    """Lets another process have the file."""
    if self._file >= 0:
      os.close(self._file)
      self._file = -1

  def _read(self) -> list[Record]:
    raw = self.path.read_bytes()
    *lines, rest = raw.split(b"\n")
    if rest:
      warn(f"the last line of {self.path} was cut off when its process was killed, and is left out")
      os.ftruncate(self._file, len(raw) - len(rest))
    return [self._parse(line, number) for number, line in enumerate(lines, start=1)]

  def _parse(self, line: bytes, number: int) -> dict[str, Any]:
    text = line.decode(errors="replace")
    body, _, chain = text.rpartition(_CHAIN)
    if chain != _link(self._chain, body + "}") + '"}':
      raise ValueError(
        f"line {number} of {self.path} was changed, or does not follow line {number - 1}; restore the file, or start "
        "the rollout anew with another log.")
    self._chain = chain[:-2]
    return json.loads(body + "}")


def _link(chain: str, body: str) -> str:
  """16 hexadecimal digits that depend on a line and on all lines before it."""
  return hashlib.sha256(f"{chain}\n{body}".encode()).hexdigest()[:16]
