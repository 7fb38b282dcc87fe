"""Files of every format that is read, damaged or made to harm, by the hundred: each is read rightly or one sentence."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lattice_jax.config import DataConfig
from lattice_jax.data.builders import imagenet64
from lattice_jax.data.builders.pg19 import Pg19Books
from lattice_jax.data.builders.records import Records, check_prepared, find_prepared
from lattice_jax.data.corpus import DOCUMENTS, INFO, TOKENS, read_corpus
from lattice_jax.data.corpus_writer import Document, write_corpus
from lattice_jax.data.photos import decode_photo
from lattice_jax.data.prepare.books import prepare_books
from lattice_jax.data.prepare.enwik8 import prepare_original
from lattice_jax.data.published import Original, prepared_path
from lattice_jax.data.source import SPLITS
from tests.data.originals import BOOKS, SPLIT_IDS, image_zip, images, write_books
from tests.data.test_corpus import BOOKS as CORPUS_BOOKS
from tests.data.test_corpus import TEXTS, silent

RAW = bytes(range(256)) * 40
TINY = Original(name="tiny", size=len(RAW), sha256=hashlib.sha256(RAW).hexdigest(), url="http://127.0.0.1:1/tiny.zip")
METHODS = {
  "stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
BOMB = bytes(20 << 20)


@pytest.fixture(autouse=True)
def _no_bomb_unfolds():
  """None of these files is larger than a megabyte."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  yield
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "a gigabyte was needed"


def sentence_of(action, *arguments):
  """What the action raises, which must be one sentence for a user; None where it works."""
  try:
    action(*arguments)
  except ValueError as error:
    text = str(error)
    assert "\n" not in text and 20 < len(text) < 1000 and text.endswith("."), text
    assert not any(word in text for word in ("Traceback", "object at 0x", "Error(")), text
    return text
  return None


def damaged(raw, count):
  """Copies of which one has a byte changed, or the end cut off, at places all over."""
  places = np.linspace(0, len(raw) - 1, count).astype(int).tolist()
  for number, place in enumerate(places):
    yield raw[:place] + bytes([raw[place] ^ (0xFF if number % 2 else 1 << number % 8)]) + raw[place + 1:]
    yield raw[:place]


def zip_of(members, method=zipfile.ZIP_DEFLATED):
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w", method) as archive:
    for name, raw in members:
      archive.writestr(name, raw)
  return packed.getvalue()


def patched(raw, *, flags=None, method=None, size=None):
  """Both headers of the only member of a zip changed."""
  raw = bytearray(raw)
  for start, shift in ((0, 0), (raw.index(b"PK\x01\x02"), 2)):
    if flags is not None:
      struct.pack_into("<H", raw, start + shift + 6, flags)
    if method is not None:
      struct.pack_into("<H", raw, start + shift + 8, method)
    if size is not None:
      struct.pack_into("<I", raw, start + shift + 22, size)
  return bytes(raw)


def install(tmp_path, raw):
  (tmp_path / "given").write_bytes(raw)
  prepare_original(TINY, tmp_path / "data", silent, origin=tmp_path / "given")


@pytest.mark.parametrize("method", METHODS)
def test_damaged_zips_give_the_file_or_a_sentence(tmp_path, method):
  sentences = []
  for raw in damaged(zip_of([("folder/tiny", RAW)], METHODS[method]), 40):
    sentences.append(sentence_of(install, tmp_path, raw))
    target = prepared_path(tmp_path / "data", TINY)
    assert (sentences[-1] is None) == target.is_file()
    target.unlink(missing_ok=True)
  assert sum(sentence is not None for sentence in sentences) > 40


@pytest.mark.parametrize(("raw", "message"), [
  (patched(zip_of([("tiny", RAW)]), flags=1), r"given: tiny is encrypted; unpack it with its password, and give what"),
  (patched(zip_of([("tiny", RAW)]), flags=0x40), r"given is damaged \(strong encryption \(flag bit 6\)\); fetch it"),
  (patched(zip_of([("tiny", RAW)]), flags=0x20), r"given is damaged \(compressed patched data \(flag bit 5\)\); fetch"),
  (patched(zip_of([("tiny", RAW)]), method=9),
   r"given: tiny is compressed by method 9, deflate64, and only stored, deflate, bzip2, lzma can be read; unpack it"),
  (patched(zip_of([("tiny", RAW)]), method=93), r"given: tiny is compressed by method 93, and only stored, "),
  (patched(zip_of([("tiny", RAW)], zipfile.ZIP_STORED), method=8), r"given is damaged \(Error -3 while decompressing"),
  (patched(zip_of([("tiny", RAW)], zipfile.ZIP_STORED), method=12), r"given is damaged \(Invalid data stream\); fetch"),
  (patched(zip_of([("tiny", RAW)], zipfile.ZIP_STORED), method=14), r"given is damaged \("),
  (zip_of([("a/tiny", RAW), ("b/tiny", RAW)]), r"given holds 2 files named tiny; it holds a/tiny, b/tiny\.$"),
  (zip_of([(f"part{number}", RAW) for number in range(9)]),
   r"given holds no file named tiny; it holds part0, part1, part2, part3, part4 and 4 others\.$"),
  (zip_of([("x" * 5000, b"")]), r"given holds no file named tiny; it holds x{80}\.$"),
  (zip_of([]), r"given holds no file named tiny; it holds \.$"),
  (zip_of([("tiny", BOMB)]), r"given is not tiny: expected 10,240 bytes, found 20,971,520\.$"),
  *((patched(zip_of([("tiny", BOMB)], METHODS[method]), size=len(RAW)), r"given is (damaged|not tiny)")
    for method in ("deflate", "bzip2", "lzma")),
], ids=[
  "encrypted", "strongly", "patched", "deflate64", "method-93", "not-deflate", "not-bzip2", "not-lzma", "two", "others",
  "long-name", "nothing", "bomb", "bomb-that-lies-deflate", "bomb-that-lies-bzip2", "bomb-that-lies-lzma"])
def test_unusual_zips_are_named(tmp_path, raw, message):
  with pytest.raises(ValueError, match=message):
    install(tmp_path, raw)
  assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def npy(array=None, *, shape="(2,)", descr="'<i8'", content=b""):
  """An array as numpy saves it, or a header that says anything."""
  if array is not None:
    saved = io.BytesIO()
    np.save(saved, array)
    return saved.getvalue()
  header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
  header += b" " * (-(len(header) + 11) % 64) + b"\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


class Harmful:
  def __reduce__(self):
    return Path("harm").touch, ()


PICKLE = npy(descr="'|O'", shape="(1,)", content=pickle.dumps([Harmful()]))
PIXELS, LABELS = images(2, 0)


def unpack(path, raw):
  path.write_bytes(raw)
  target = io.BytesIO()
  imagenet64._unpack(path, imagenet64._Unpacked(target, [], []))
  return target.getvalue()


def images_zip(**arrays):
  members = {"data": npy(PIXELS), "labels": npy(LABELS)} | arrays
  return zip_of([("a.npz", zip_of([(f"{name}.npy", raw) for name, raw in members.items() if raw is not None]))])


def test_damaged_zips_of_images_give_the_images_or_a_sentence(tmp_path):
  whole = image_zip(a=(PIXELS, LABELS))
  assert unpack(tmp_path / "x.zip", whole) == PIXELS.tobytes()
  for raw in damaged(whole, 100):
    sentence_of(unpack, tmp_path / "x.zip", raw)


@pytest.mark.parametrize(("arrays", "message"), [
  ({"labels": PICKLE}, "holds pickled objects, which are not loaded because they can run code"),
  ({"data": PICKLE}, "holds pickled objects, which are not loaded because they can run code"),
  ({"labels": None}, r"a.npz holds no array labels; fetch it again\.$"),
  ({"data": None}, r"a.npz holds no array data; fetch it again\.$"),
  ({"labels": npy(LABELS[None])}, r"a.npz holds labels of int64 \(1, 2\), not numbers"),
  ({"labels": npy(LABELS.astype(str))}, r"a.npz holds labels of <U\d+ \(2,\), not numbers"),
  ({"labels": npy(np.arange(3))}, r"holds uint8 \(2, 12288\), not uint8 \(3, 12288\)"),
  ({"labels": npy(shape="(10**12,)")}, "is damaged"),
  ({"labels": npy(shape="(1000000000000,)")}, r"the array labels of int64 \(1000000000000,\) has 0 bytes"),
  ({"labels": npy(shape="(-1,)")}, r"has the shape \(-1,\)"),
  ({"labels": npy(np.zeros(20 << 20, np.uint8))}, "the array labels says it has 20,[0-9,]+ bytes, more than 16,7"),
  ({"labels": b"no array"}, "is damaged"), ({"labels": b""}, "is damaged"),
  ({"data": npy(shape="(2, 12288)", descr="'|u1'", content=b"x")}, "does not hold the 2 images that it declares"),
  ({"data": npy(shape="(2, 12288)", descr="'|u1'", content=BOMB)}, "does not hold the 2 images that it declares"),
], ids=[
  "pickled-labels", "pickled-pixels", "no-labels", "no-pixels", "axes", "texts", "fewer-images", "expression", "huge",
  "negative", "bomb", "no-array", "nothing", "cut", "pixels-bomb"])
def test_arrays_that_are_no_images_are_one_sentence(tmp_path, arrays, message):
  with pytest.raises(ValueError, match=message):
    unpack(tmp_path / "x.zip", images_zip(**arrays))
  assert not Path("harm").exists()


def corpus(tmp_path):
  data = DataConfig(source="books_sample", path=str(tmp_path), tokenizer="bytes")
  return data, write_corpus(data, CORPUS_BOOKS, TEXTS, silent)


def rewrite_info(folder, **fields):
  (folder / INFO).write_text(json.dumps(json.loads((folder / INFO).read_text()) | fields))


def replace_file(folder, name, raw):
  """A file that its metadata vouch for."""
  (folder / name).write_bytes(raw)
  files = json.loads((folder / INFO).read_text())["files"]
  rewrite_info(folder, files=files | {name: [len(raw), hashlib.sha256(raw).hexdigest()]})


def test_metadata_of_prepared_data_that_cannot_be_are_refused(tmp_path):
  data, folder = corpus(tmp_path)
  whole = (folder / INFO).read_text()
  fields = json.loads(whole)
  strange = (None, True, -1, 2**80, 0.5, "x" * 3000, [], {}, [[1, 2]], {"train": 1}, {"train": [0, 10**12]}, [[[[]]]])
  tried = 0
  for name, right in fields.items():
    for value in strange:
      if value == right or (name, value) in (("official_words", None), ("origin", "x" * 3000)):
        continue
      (folder / INFO).write_text(json.dumps(fields | {name: value}))
      assert sentence_of(read_corpus, data, "train"), (name, value)
      tried += 1
    (folder / INFO).write_text(json.dumps({key: value for key, value in fields.items() if key != name}))
    assert sentence_of(read_corpus, data, "train"), name
  for text in ("", "[]", "null", "3", '"x"', "[" * 100_000, "\xff", '{"a": ' + "9" * 5000 + "}", "NaN"):
    (folder / INFO).write_text(text, encoding="latin-1")
    assert sentence_of(read_corpus, data, "train"), text[:80]
  for raw in damaged(whole.encode(), 60):
    (folder / INFO).write_bytes(raw)
    sentence_of(read_corpus, data, "train")
  assert tried > 120


@pytest.mark.parametrize(("changes", "message"), [
  ({"offsets": PICKLE}, "holds pickled objects"),
  ({"titles": PICKLE}, "holds pickled objects"),
  ({"offsets": None}, "holds no array offsets"),
  ({"num_words": None}, "holds no array num_words"),
  ({"offsets": npy(np.zeros(6, np.int64))}, "its documents do not cover the [0-9,]+ tokens one after another"),
  ({"offsets": npy(np.array([0, 1, 2, 3, 4, 2**62]))}, "its documents do not cover the"),
  ({"offsets": npy(np.array([-5, 1, 2, 3, 4, 9]))}, "its documents do not cover the"),
  ({"offsets": npy(np.array([], np.int64))}, "its documents do not cover the"),
  ({"offsets": npy(np.zeros(6))}, r"it holds float64 \(6,\) instead of a list of int64"),
  ({"num_bytes": npy(np.zeros((5, 1), np.int64))}, r"it holds int64 \(5, 1\) instead of a list of int64"),
  ({"num_bytes": npy(np.ones(4, np.int64))}, "it does not have a count of bytes and words for every document"),
  ({"num_words": npy(np.full(5, -1))}, "it does not have a count of bytes and words for every document"),
  ({"titles": npy(np.arange(5))}, "it does not have a title for every document"),
  ({"titles": npy(shape="(5,)", descr="'<U999999999'")}, "documents.npz"),
  ({"more": npy(np.zeros(9, np.uint8))}, None),
], ids=[
  "pickled-offsets", "pickled-titles", "no-offsets", "no-words", "zeros", "beyond", "before", "nothing", "floats",
  "axes", "fewer", "negative", "numbers", "long-titles", "one-more"])
def test_documents_that_contradict_the_tokens_are_refused(tmp_path, changes, message):
  data, folder = corpus(tmp_path)
  with np.load(folder / DOCUMENTS) as arrays:
    members = {name: npy(array) for name, array in arrays.items()} | changes
  replace_file(folder, DOCUMENTS, zip_of(
    [(f"{name}.npy", raw) for name, raw in members.items() if raw is not None], zipfile.ZIP_STORED))
  if sentence_of(read_corpus, data, "train") or message:
    with pytest.raises(ValueError, match=rf"{message}.*; run `python scripts/prepare_data.py .*` to make it again\.$"):
      read_corpus(data, "train")
  assert not Path("harm").exists()


def test_arrays_and_tokens_that_the_metadata_vouch_for_are_checked_too(tmp_path):
  data, folder = corpus(tmp_path)
  size = (folder / TOKENS).stat().st_size
  replace_file(folder, TOKENS, np.full(size // 2, 999, np.uint16).tobytes())
  with pytest.raises(ValueError, match=r"tokens.bin is damaged: it holds token 999, and bytes has 259; run"):
    read_corpus(data, "train")
  with np.load(folder / DOCUMENTS) as arrays:
    bomb = zip_of([("offsets.npy", npy(np.zeros(10 << 20, np.int64))), *((f"{name}.npy", npy(array)) for name, array in
                   arrays.items() if name != "offsets")])
  replace_file(folder, DOCUMENTS, bomb)
  with pytest.raises(ValueError, match=r"the array offsets says it has 83,886,208 bytes, more than [\d,]+; run"):
    read_corpus(data, "train")
  for raw in damaged((folder / DOCUMENTS).read_bytes(), 60):
    replace_file(folder, DOCUMENTS, raw)
    assert sentence_of(read_corpus, data, "train")


def test_a_journal_that_cannot_be_is_not_gone_on_from(tmp_path):
  data, folder = corpus(tmp_path)
  whole = (folder / TOKENS).read_bytes()
  work = folder.with_name(folder.name + ".part")
  for line in ("[]", "null", "{}", "[1,2,3,4,5]", '["train","x",-5,1,1]', '["none","x",1,1,1]', '["train","x",1.5,1,1]',
               '["train",3,1,1,1]', "\xff\xff", "[" * 9999, '["train","x",true,1,1]'):
    class Stopped(list):
      def __getitem__(self, index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
      write_corpus(data, CORPUS_BOOKS | {"train": Stopped(CORPUS_BOOKS["train"])}, TEXTS, silent)
    with (work / "journal.jsonl").open("a", encoding="latin-1") as journal:
      journal.write(line + "\n")
    said = []
    write_corpus(data, CORPUS_BOOKS, TEXTS, said.append)
    assert (folder / TOKENS).read_bytes() == whole and not [line for line in said if "going on" in line]


def test_a_text_that_is_not_utf8_is_named(tmp_path):
  data = DataConfig(source="books_sample", path=str(tmp_path), tokenizer="bytes")
  with pytest.raises(ValueError, match=r"^'bad' of train is not UTF-8: byte 0xff at offset 2; "):
    write_corpus(data, CORPUS_BOOKS | {"train": [Document("bad", b"ab\xff")]}, TEXTS, silent)


@pytest.fixture
def books(tmp_path, monkeypatch):
  monkeypatch.setattr(Pg19Books, "book_set", BOOKS)
  return write_books(tmp_path / "raw")


def make_books(tmp_path, books):
  prepare_books(BOOKS, tmp_path / "data", silent, tokenizer="bytes", origin=books)


def test_a_title_may_hold_what_python_takes_for_a_line_end(tmp_path, books):
  wanted = "A\N{LINE SEPARATOR}B\N{NEXT LINE}C\x0bD\x0cE\x1cF\N{PARAGRAPH SEPARATOR}G"
  lines = (books / "metadata.csv").read_text().replace("Plain", wanted)
  (books / "metadata.csv").write_text(lines.replace("\n", "\r\n"), newline="")
  make_books(tmp_path, books)
  titles = read_corpus(DataConfig(source="pg19", path=str(tmp_path / "data"), tokenizer="bytes"), "train").texts.titles
  assert wanted in titles and len(titles) == len(SPLIT_IDS["train"]) - 1


@pytest.mark.parametrize(("line", "message"), [
  ("10,Again,1851,http://x", "metadata.csv, line 9, describes book 10 a second time; fetch the file again"),
  ("", "metadata.csv, line 9, is not a book's id, title, year and link: ''"),
  ("²,Title,1851,http://x", "metadata.csv, line 9, is not a book's id"),
  ("99999999999,Title,1851,http://x", "metadata.csv, line 9, is not a book's id"),
  ("11,A\rB,1851,http://x", "metadata.csv, line 9, is not a book's id"),
  ("11," + "x" * 200_000 + ",1851,http://x", "metadata.csv, line 9, is not a book's id"),
  ("11,Title", "metadata.csv, line 9, is not a book's id"),
], ids=["twice", "empty", "superscript", "long-id", "return", "long", "short"])
def test_a_line_of_metadata_that_is_none_is_named(tmp_path, books, line, message):
  with (books / "metadata.csv").open("a", newline="") as file:
    file.write(line + "\n")
  with pytest.raises(ValueError, match=message) as caught:
    make_books(tmp_path, books)
  assert "\n" not in str(caught.value)


def test_damaged_records_give_the_books_or_a_sentence(tmp_path, books):
  make_books(tmp_path, books)
  folder = find_prepared(tmp_path / "data/pg19/tfds")

  def read(split):
    records = Records(folder, split, lambda record: Document(record["book_title"].decode(), record["book_text"]))
    return [records[number] for number in range(len(records))]

  def check():
    check_prepared(folder, ("pg19_books",), BOOKS.books)

  read("train")
  check()
  for path in (folder / "dataset_info.json", folder / "features.json", *folder.glob("*-train.array_record*")):
    whole = path.read_bytes()
    for raw in damaged(whole, 12):
      path.write_bytes(raw)
      sentence_of(read, "train")
      sentence_of(check)
    path.write_bytes(whole)
  for text in ("{}", "[]", "null", "3", '{"name": 3, "fileFormat": [], "splits": [1]}', "[" * 99_999):
    (folder / "dataset_info.json").write_text(text)
    assert "dataset_info.json was not written by TFDS" in sentence_of(check)
    assert sentence_of(read, "train")


def png(width, height, content=b""):
  def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def test_damaged_photographs_give_an_image_or_a_sentence():
  saved = io.BytesIO()
  Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(saved, "PNG")
  assert decode_photo(saved.getvalue(), "photo.png").shape == (64, 64, 3)
  for raw in damaged(saved.getvalue(), 100):
    sentence_of(decode_photo, raw, "photo.png")


BLACK = zlib.compress(BOMB)


@pytest.mark.parametrize(("raw", "message"), [
  (png(60_000, 60_000, BLACK), r"^photo.png is not an image that can be read \(Image size \(3600000000 pixels\)"),
  (png(9_000, 9_000, BLACK), r"^photo.png is 9,000 × 9,000 pixels; a photograph has 64 or more each way and 67,"),
  (png(63, 64), r"^photo.png is 63 × 64 pixels; "), (png(64, 64), r"^photo.png is not an image that can be read \("),
  (png(0, 64), r"^photo.png is (not an image|0 × 64)"), (b"", r"^photo.png is not an image that can be read \("),
  (b"text", r"^photo.png is not an image that can be read \("),
], ids=["bomb", "large", "small", "empty-content", "no-width", "empty", "text"])
def test_what_is_no_photograph_is_one_sentence(raw, message):
  with pytest.raises(ValueError, match=message) as caught:
    decode_photo(raw, "photo.png")
  assert "\n" not in str(caught.value)


def test_every_split_of_a_whole_corpus_is_read(tmp_path):
  data, _ = corpus(tmp_path)
  assert [read_corpus(data, split).num_documents for split in SPLITS] == [3, 1, 1]
