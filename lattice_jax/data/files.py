"""The files that a named corpus must consist of, and the check that they are those."""

from __future__ import annotations

import csv
import functools
import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class Original:
  """A published file under whose name results are reported. `url` is a zip that holds it as `name`."""

  name: str
  size: int
  sha256: str
  url: str


ENWIK8 = Original(
  name="enwik8",
  size=100_000_000,
  sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
  url="http://mattmahoney.net/dc/enwik8.zip",
)


def prepared_path(root: str | Path, original: Original) -> Path:
  """Where `scripts/prepare_data.py` puts the file."""
  return Path(root) / original.name / original.name


def prepare_command(root: str | Path, name: str) -> str:
  """What a user types to get the file to `prepared_path`."""
  return f"python scripts/prepare_data.py {name}" + ("" if str(root) == "data" else f" --path {root}")


def check_original(original: Original, size: int, sha256: str, where: str | Path) -> None:
  """Raises ValueError, in one sentence, unless size and checksum are the published ones."""
  if size != original.size:
    raise ValueError(f"{where} is not {original.name}: expected {original.size:,} bytes, found {size:,}.")
  if sha256 != original.sha256:
    raise ValueError(f"{where} is not {original.name}: expected sha256 {original.sha256}, found {sha256}.")


def sha256_of_file(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=4)
def read_sample(file: str, samples: Path = SAMPLES) -> bytes:
  """A shipped file such as "enwiki_sample/enwiki.xml.xz", uncompressed and checked against MANIFEST.tsv."""
  rows = {row["path"]: row for row in _manifest(samples)}
  if file not in rows:
    raise ValueError(f"{samples / 'MANIFEST.tsv'} does not list {file}; restore the folder from the repository.")
  row = rows[file]
  try:
    raw = (samples / file).read_bytes()
    if file.endswith(".xz"):
      raw = lzma.decompress(raw)
  except (OSError, lzma.LZMAError, EOFError) as error:
    raise ValueError(f"{samples / file} cannot be read ({error}); restore it from the repository.") from error
  found = hashlib.sha256(raw).hexdigest()
  if found != row["sha256_uncompressed"]:
    raise ValueError(
      f"{samples / file} is damaged: expected {int(row['bytes_uncompressed']):,} bytes of sha256 "
      f"{row['sha256_uncompressed']}, found {len(raw):,} bytes of {found}; restore it from the repository.")
  return raw


def sample_files(folder: str, samples: Path = SAMPLES) -> list[str]:
  """The shipped files in a folder such as "books_sample/train", in the order of MANIFEST.tsv."""
  return [row["path"] for row in _manifest(samples) if Path(row["path"]).parent == Path(folder)]


def _manifest(samples: Path) -> list[dict[str, str]]:
  with (samples / "MANIFEST.tsv").open(newline="") as rows:
    return list(csv.DictReader(rows, delimiter="\t"))
