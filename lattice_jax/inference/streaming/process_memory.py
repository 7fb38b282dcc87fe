"""How much memory the process has, by what the system could do with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class ProcessMemory:
  """Bytes of this process in memory: anonymous ones, which only swap could take away, and pages of files, which the
  system can forget and read again. None where the system does not tell.
  """

  anonymous: int | None = None
  file: int | None = None

  @classmethod
  def now(cls) -> ProcessMemory:
    try:
      lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
      return cls()
    kilobytes = {name: value.split()[0] for name, value in (line.split(":", 1) for line in lines) if "Rss" in name}
    return cls(*(1024 * int(kilobytes[name]) if name in kilobytes else None for name in ("RssAnon", "RssFile")))

  def most(self, other: ProcessMemory) -> ProcessMemory:
    """Of two times the one with more anonymous memory."""
    return max(self, other, key=lambda memory: memory.anonymous or 0)
