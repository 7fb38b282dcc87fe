"""The published files that a named corpus must consist of, the shipped samples, and checks of both."""

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
  """A published file. `url` is the file, or a zip that contains it as `name`."""

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


@dataclass(frozen=True)
class BookSet:
  """A published set of books, one file each: `folder/SPLIT/ID.txt`, with `folder/metadata.csv`.

  books: the number of books in each split.
  words: the published word counts, the denominators of word perplexity.
  bucket: the storage bucket that holds them.
  """

  name: str
  books: dict[str, int]
  words: dict[str, int]
  bucket: str


PG19 = BookSet(
  name="pg19",
  books={"train": 28_602, "validation": 50, "test": 100},
  words={"train": 1_973_136_207, "validation": 3_007_061, "test": 6_966_499},
  bucket="deepmind-gutenberg",
)


@dataclass(frozen=True)
class ImageSet:
  """A published set of 64 × 64 images in zips of npz files.

  zips: the files of each published split.
  images: the number of images in each.
  train_images: how many of the published training images are for training. The others are for validation, and the
    published validation images for testing, as in Transformer-VQ.
  """

  name: str
  zips: dict[str, tuple[Original, ...]]
  images: dict[str, int]
  train_images: int


def _imagenet_zip(part: str, size: int, sha256: str) -> Original:
  name = f"Imagenet64_{part}_npz.zip"
  return Original(name, size, sha256, url=f"http://www.image-net.org/data/downsample/{name}")


IMAGENET64 = ImageSet(
  name="imagenet64",
  zips={
    "train": (
      _imagenet_zip(
        "train_part1", 6_783_426_789, "9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1"),
      _imagenet_zip(
        "train_part2", 6_780_506_068, "9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30")),
    "validation": (
      _imagenet_zip("val", 529_522_927, "e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8"),)},
  images={"train": 1_281_167, "validation": 50_000},
  train_images=1_200_000,
)


def counts_in_words(counts: dict[str, int]) -> str:
  """As in "28,602 train, 50 validation"."""
  return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def prepared_path(root: str | Path, original: Original) -> Path:
  """Where `scripts/prepare_data.py` puts the file."""
  return Path(root) / original.name / original.name


def prepare_command(root: str | Path, name: str) -> str:
  """The command that puts the file at `prepared_path`."""
  return f"python scripts/prepare_data.py {name}" + ("" if str(root) == "data" else f" --path {root}")


def check_original(original: Original, size: int, sha256: str, where: str | Path) -> None:
  """Raises ValueError if size or checksum is not the published one."""
  if size != original.size:
    raise ValueError(f"{where} is not {original.name}: expected {original.size:,} bytes, found {size:,}.")
  if sha256 != original.sha256:
    raise ValueError(f"{where} is not {original.name}: expected sha256 {original.sha256}, found {sha256}.")


def decode_text(
    raw: bytes, where: Path | str, advice: str = "fetch the file again, or convert it with `iconv -t UTF-8`") -> str:
  """The text of these bytes. Raises ValueError, which names `where`, if they are not UTF-8."""
  try:
    return raw.decode("utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{where} is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start:,}; {advice}.") from error


def sha256_of_file(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
  """The checksum of a file, which is read again only if it has changed."""
  status = path.stat()
  return _sha256_cached(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _sha256_cached(path: Path, size: int, modified_ns: int) -> str:
  del size, modified_ns  # part of the cache key
  return sha256_of_file(path)


@functools.lru_cache(maxsize=4)
def read_sample(file: str, samples: Path = SAMPLES) -> bytes:
  """A shipped file such as "enwiki_sample/enwiki.xml.xz", uncompressed and checked against MANIFEST.tsv."""
  rows = {row["path"]: row for row in _manifest(samples)}
  if file not in rows:
    raise ValueError(f"{samples / 'MANIFEST.tsv'} does not list {file}; restore the folder from the repository.")
  row = rows[file]
  try:
    with lzma.open(samples / file) if file.endswith(".xz") else (samples / file).open("rb") as opened:
      raw = opened.read(int(row["bytes_uncompressed"]) + 1)  # one byte too many shows that it is too long
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
