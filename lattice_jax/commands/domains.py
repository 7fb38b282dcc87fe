"""What only a command line can say: values with commas between them, texts with escapes, prompts out of files."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.domains import AnyText, Domain, Number, Place, Text

POSITIVE, COUNT = Number(int, 1), Number(int, 0)

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}
_LONGEST = 16 << 20  # bytes of a prompt; a device file has no end


@dataclass(frozen=True)
class Storage(Place):
  """A folder on this machine, or of a bucket of Google Cloud Storage."""

  def convert(self, value: Any) -> str:
    value = Text.convert(self, value)
    if re.fullmatch(r"gs://[^/]+(/[^/]+)+/?", value):
      return value.rstrip("/")
    if value.startswith("gs://"):
      raise ValueError("must be gs://BUCKET/FOLDER.")
    if re.match(r"[a-z0-9]+://", value):
      raise ValueError("must be a folder or gs://BUCKET/FOLDER: Orbax writes to no other kind of bucket; mount this "
                       "one (for S3, with Mountpoint) and give the path.")
    return super().convert(value)

  def describe(self) -> str:
    return "folder on this machine, or gs://BUCKET/FOLDER"


@dataclass(frozen=True)
class Several(Domain):
  """One or more values of the same domain, separated by commas."""

  of: Domain
  kind: type = tuple

  def convert(self, value: Any) -> tuple[Any, ...]:
    return tuple(self.of.convert(item) for item in value)

  def parse(self, text: str) -> tuple[Any, ...]:
    try:
      return tuple(self.of.parse(part) for part in text.split(","))
    except ValueError as error:
      raise ValueError(f"must be values with commas between them, each of which {error}") from error

  def describe(self) -> str:
    return f"{self.of.describe()}, …"


@dataclass(frozen=True)
class EscapedText(AnyText):
  """A text with escapes, which a shell passes on as they stand."""

  def parse(self, text: str) -> str:
    """Raises ValueError for an unknown escape."""
    return re.sub(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.?))", _character, _checked(text), flags=re.DOTALL)

  def describe(self) -> str:
    return "text with escapes"


@dataclass(frozen=True)
class PromptText(AnyText):
  """A prompt as it stands, or - for the content of standard input."""

  def parse(self, text: str) -> str:
    """Raises ValueError if standard input holds no text."""
    if text != "-":
      return _checked(text)
    return _prompt(sys.stdin.buffer.read(_LONGEST + 1) if sys.stdin else b"", "standard input")

  def describe(self) -> str:
    return "text, or -"


@dataclass(frozen=True)
class PromptFile(AnyText):
  """A prompt as the content of a file."""

  def parse(self, text: str) -> str:
    """Raises ValueError if the file holds no text."""
    try:
      with Path(Place().parse(text)).open("rb") as file:
        return _prompt(file.read(_LONGEST + 1), "it")
    except OSError as error:
      raise ValueError(f"it cannot be read ({error.strerror}); give a file of text in UTF-8.") from error

  def describe(self) -> str:
    return "file in UTF-8"


def _character(escape: re.Match[str]) -> str:
  code, letter = escape[1] or escape[2], escape[3]
  if code is None and letter not in _ESCAPES:
    raise ValueError(
      rf'the escape \{letter} is not known; \n, \t, \r, \\, \", \xNN and \uNNNN with hexadecimal digits N are, and '
      r"\\ is a backslash.")
  return _ESCAPES[letter] if code is None else _checked(chr(int(code, 16)))


def _checked(text: str) -> str:
  """Refuses half characters, as which Python passes on bytes of the command line that are not UTF-8."""
  if any("\ud800" <= character <= "\udfff" for character in text):
    raise ValueError("it is not a text in UTF-8; give one, or a file by --prompt_file.")
  return text


def _prompt(raw: bytes, name: str) -> str:
  if len(raw) > _LONGEST:
    raise ValueError(f"{name} holds more than {_LONGEST:,} bytes, which is no prompt; give a shorter one.")
  try:
    text = raw.decode("utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{name} is not a text in UTF-8: byte {raw[error.start]:#04x} at offset {error.start:,}; convert it.") from error
  if "\0" in text:
    raise ValueError(f"{name} holds a zero byte at offset {raw.index(0):,}, so it is no text; give a file of text.")
  text = text.removesuffix("\n").removesuffix("\r")
  if not text:
    raise ValueError(f"{name} is empty; give a prompt, or leave the flag out for a text without one.")
  return text
