"""A user's own texts as a corpus: `data.source=text:PATH`, where PATH is a file or a folder.

Every file is one document in UTF-8. In a folder and all its subfolders these are the files *.txt and *.md, also with
.xz or .gz appended, in the order of their names and without hidden ones. A single file may have any name.

`data.seed` draws the splits, which share no byte. Of three or more documents, one in twenty, but at least one, is for
validation, as many are for test, and the others for training. One or two documents are each cut into twenty stretches,
at white space if possible: one for validation, one for test, and the others, adjacent ones joined, for training.
"""

from __future__ import annotations

import codecs
import functools
import gzip
import lzma
import os
import re
import zlib
from pathlib import Path

from lattice_jax.config import DataConfig
from lattice_jax.data.hashing import permutation
from lattice_jax.data.published import decode_text, sha256_of_file
from lattice_jax.data.source import SPLITS, Document, fingerprint
from lattice_jax.domains import Place

PREFIX = "text:"
SUFFIXES = (".txt", ".md")
MAX_BYTES = 1 << 30  # of all texts together, uncompressed, because they are held in memory
_OPEN = {".xz": lzma.open, ".gz": gzip.open}
_PARTS = 20  # of which validation and test get one each
_SPLITTING = 2  # the key of the hash that draws the splits
_SPACE = re.compile(rb"\s")


def is_own_text(source: str) -> bool:
  return source.startswith(PREFIX)


def read_own_texts(data: DataConfig, split: str) -> list[Document]:
  """The documents of a split, or stretches of documents.

  Raises ValueError if there is no text at the path, a text is not UTF-8, or there is too little or too much text.
  """
  path, files = _find(data.source)
  documents, size = [], 0
  for file in files:
    raw = _read(file, MAX_BYTES - size)
    size += len(raw)
    if raw:
      documents.append(Document(_title(path, file), raw))
  chosen = _whole(documents, data.seed) if len(documents) >= len(SPLITS) else _stretches(documents, data.seed)
  if not all(chosen.values()):
    raise ValueError(f"data.source={data.source} holds {size:,} bytes of text, too few to split; give it more text.")
  return chosen[split]


def texts_key(data: DataConfig) -> str:
  """A key of the content of all files and of their split, which names what is made from them."""
  path, files = _find(data.source)
  try:
    known = tuple((_title(path, file), file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _key(known, data.seed)
  except OSError as error:
    raise _unreadable(path, error) from error


def texts_folder(data: DataConfig) -> Path:
  """The folder of the tokenizers that were trained on these texts."""
  name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(data.source.removeprefix(PREFIX)).stem)
  return Path(data.path) / "texts" / f"{name}-{texts_key(data)[:12]}"


@functools.lru_cache(maxsize=4)
def _key(files: tuple[tuple[str, Path, int, int], ...], seed: int) -> str:
  """Size and time are part of the cache's key, so that changed files are read again."""
  return fingerprint(str(seed), *(part for name, file, _, _ in files for part in (name, sha256_of_file(file))))


def _find(source: str) -> tuple[Path, list[Path]]:
  """(path, files)."""
  name = source.removeprefix(PREFIX)
  if not name:
    raise ValueError(f"data.source={source} names no text; give a file or a folder, as in data.source=text:book.txt.")
  if os.fsencode(name).decode(errors="ignore") != name:
    raise ValueError(f"data.source={os.fsencode(source)} is not UTF-8, so run.json cannot record it; rename the file.")
  try:
    path = Path(Place().parse(name))
  except ValueError as error:
    raise ValueError(f"data.source={source} {error}") from error
  try:
    if path.is_dir():
      files = _in_folder(path)
      if not files:
        raise ValueError(
          f"data.source={source}: the folder holds no texts; put files named *{' or *'.join(SUFFIXES)} there; they "
          "may be compressed as .xz or .gz.")
      return path, files
    if path.is_file():
      return path, [path]
    found = "is neither a file nor a folder" if path.exists() else "does not exist"
  except OSError as error:
    raise _unreadable(path, error) from error
  raise ValueError(f"data.source={source}: {path} {found}; give a text file or a folder of *{', *'.join(SUFFIXES)}.")


def _in_folder(folder: Path) -> list[Path]:
  def refuse(error: OSError) -> None:
    raise error  # os.walk would silently skip a folder that cannot be listed

  files = []
  for parent, folders, names in os.walk(folder, onerror=refuse):
    folders[:] = [name for name in folders if not name.startswith(".")]
    for name in names:
      inner = Path(name).stem if Path(name).suffix in _OPEN else name
      if not name.startswith(".") and inner.endswith(SUFFIXES):
        files.append(Path(parent, name))
  return sorted(files)


def _title(path: Path, file: Path) -> str:
  """The file's path below the folder, or its own name, made printable on one line."""
  name = path.name if file == path else file.relative_to(path).as_posix()
  shown = os.fsencode(name).decode("utf-8", errors="replace")
  return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown)


def _read(file: Path, room: int) -> bytes:
  opened = _OPEN[file.suffix] if file.suffix in _OPEN else open
  try:
    with opened(file, "rb") as stream:
      raw = stream.read(room + 1)
  except (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError) as error:
    raise _unreadable(file, error) from error
  if len(raw) > room:
    raise ValueError(
      f"with {file} the texts exceed {MAX_BYTES / 1e9:.1f} GB, and they are held in memory; give fewer of them.")
  raw = raw.removeprefix(codecs.BOM_UTF8)
  decode_text(raw, file)
  if b"\0" in raw:
    raise ValueError(f"{file} is not a text: it holds a zero byte at offset {raw.index(0):,}; leave it out.")
  return raw


def _unreadable(path: Path, error: Exception) -> ValueError:
  reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
  return ValueError(f"{path} cannot be read ({reason}); get it again, or give another path.")


def _whole(documents: list[Document], seed: int) -> dict[str, list[Document]]:
  order = permutation(len(documents), seed, _SPLITTING).tolist()
  held = max(1, len(documents) // _PARTS)
  drawn = {"validation": order[:held], "test": order[held:2 * held], "train": order[2 * held:]}
  return {split: [documents[number] for number in sorted(numbers)] for split, numbers in drawn.items()}


def _stretches(documents: list[Document], seed: int) -> dict[str, list[Document]]:
  chosen: dict[str, list[Document]] = {split: [] for split in SPLITS}
  for number, (title, raw) in enumerate(documents):
    cuts = [0, *(_cut(raw, part) for part in range(1, _PARTS)), len(raw)]
    validation, test = permutation(_PARTS, seed, _SPLITTING, number)[:2].tolist()
    split_of = ["validation" if part == validation else "test" if part == test else "train" for part in range(_PARTS)]
    first = 0
    for last in range(1, _PARTS + 1):
      if last == _PARTS or split_of[last] != split_of[first]:
        stretch = raw[cuts[first]:cuts[last]]
        part_title = f"{title} {100 * first // _PARTS}–{100 * last // _PARTS} %"
        chosen[split_of[first]] += [Document(part_title, stretch)] if stretch else []
        first = last
  return chosen


def _cut(raw: bytes, part: int) -> int:
  """Where a stretch begins: after the first white space in it, or if there is none, at its first character."""
  place, end = (len(raw) * number // _PARTS for number in (part, part + 1))
  space = _SPACE.search(raw, place, end)
  if space:
    return space.end()
  while place < len(raw) and raw[place] & 0xC0 == 0x80:  # inside a character
    place += 1
  return place
