import collections
import gc
import hashlib
import shutil

import pytest

from lattice_jax.data.prepare import bucket
from lattice_jax.data.prepare.bucket import fetch_books
from lattice_jax.data.prepare.download import fetch_original, require_space, verify_original
from lattice_jax.data.published import Original
from tests.data.originals import BOOKS, book_files
from tests.data.prepare.server import bucket as bucket_answers
from tests.data.prepare.server import serve

RAW = bytes(range(256)) * 40
RETRY = "python scripts/prepare_data.py tiny"


def original(url):
  return Original("tiny.zip", len(RAW), hashlib.sha256(RAW).hexdigest(), f"{url}/tiny.zip")


def silent(line):
  del line


def files_under(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_published_file_is_fetched_verified_and_not_fetched_again(tmp_path):
  with serve(lambda path: (200, RAW)) as (url, asked):
    for _ in range(2):
      path = fetch_original(original(url), tmp_path, silent, retry=RETRY)
  assert path == tmp_path / "tiny.zip" and files_under(tmp_path) == {"tiny.zip": RAW} and asked == ["/tiny.zip"]


def test_another_file_under_the_published_url_is_refused_and_not_kept(tmp_path):
  with serve(lambda path: (200, RAW[::-1])) as (url, _), pytest.raises(
      ValueError, match=r"tiny.zip.part is not tiny.zip: expected sha256 \w{64}, found \w{64}\.$"):
    fetch_original(original(url), tmp_path, silent, retry=RETRY)
  assert files_under(tmp_path) == {}


def test_a_file_of_another_size_is_refused_before_it_is_read(tmp_path):
  (tmp_path / "tiny.zip").write_bytes(RAW[:-1])
  with pytest.raises(ValueError, match=r"tiny.zip is not tiny.zip: expected 10,240 bytes, found 10,239\.$"):
    verify_original(original(""), tmp_path / "tiny.zip", silent)


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
  usage = collections.namedtuple("usage", "total used free")
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 10**10 - 1_234_000, 1_234_000))
  require_space(tmp_path / "not" / "there", 1_234_000, "preparing tiny")
  with pytest.raises(ValueError, match=rf"^preparing tiny needs 13.2 GB at {tmp_path}/not/there, and 1.2 MB are free; "
                                       r"make room, or give --path a folder on a larger disk\.$"):
    require_space(tmp_path / "not" / "there", 13_200_000_000, "preparing tiny")
  with serve(bucket_answers("books", book_files())) as (url, _), pytest.raises(ValueError, match=r"needs .* are free;"):
    monkeypatch.setattr(bucket, "STORAGE_URL", url)
    fetch_books(BOOKS, tmp_path / "books", silent, retry=RETRY, extra_bytes_ratio=10_000.0)
  assert files_under(tmp_path) == {}


@pytest.fixture
def impatient(monkeypatch):
  monkeypatch.setattr(bucket, "RETRY_PAUSE", 0.0)


def get_books(folder, answer, monkeypatch, report=silent):
  with serve(answer) as (url, asked):
    monkeypatch.setattr(bucket, "STORAGE_URL", url)
    fetch_books(BOOKS, folder, report, retry=RETRY, extra_bytes_ratio=1.0)
  return [path for path in asked if path.startswith("/books/")]


def test_books_are_listed_page_by_page_and_fetched_once(tmp_path, monkeypatch, impatient):
  extra = {**book_files(), "train/": b"", "README.md": b"x", "metadata.csv.old": b"y"}
  assert len(get_books(tmp_path, bucket_answers("books", extra), monkeypatch)) == len(book_files())
  assert files_under(tmp_path) == book_files()
  assert get_books(tmp_path, bucket_answers("books", extra), monkeypatch) == []


def test_missing_and_wrong_books_only_are_fetched_again(tmp_path, monkeypatch, impatient):
  answer = bucket_answers("books", book_files())
  get_books(tmp_path, answer, monkeypatch)
  (tmp_path / "train/10.txt").write_bytes(book_files()["train/10.txt"][::-1])
  (tmp_path / "train/12.txt").write_bytes(b"half")
  (tmp_path / "test/30.txt").unlink()
  (tmp_path / "test/30.txt.part").write_bytes(b"ha")
  assert sorted(get_books(tmp_path, answer, monkeypatch)) == [
    "/books/test/30.txt", "/books/train/10.txt", "/books/train/12.txt"]
  assert files_under(tmp_path) == book_files()


def failing(answer, path, statuses):
  """The bucket, but for the first answers to one path."""
  left = list(statuses)

  def with_failures(asked):
    return (left.pop(0), b"") if asked == path and left else answer(asked)

  return with_failures


def test_a_fault_that_passes_is_tried_again(tmp_path, monkeypatch, impatient):
  answer = failing(bucket_answers("books", book_files()), "/books/train/10.txt", [503, 500])
  assert get_books(tmp_path, answer, monkeypatch).count("/books/train/10.txt") == 3
  assert files_under(tmp_path) == book_files()


@pytest.mark.parametrize("statuses", [[503] * 3, [404]], ids=["unavailable", "not-found"])
def test_a_fault_that_stays_is_one_sentence_and_the_next_run_goes_on(tmp_path, monkeypatch, impatient, statuses):
  bucket_of_books = bucket_answers("books", book_files())
  answer = failing(bucket_of_books, "/books/train/10.txt", statuses)
  with pytest.raises(ValueError, match=rf"^http://127.*/books/train/10.txt cannot be downloaded \({statuses[0]} .*\); "
                                       rf"fetch it on another machine and run `{RETRY} --from PATH`, or run `{RETRY}`"):
    get_books(tmp_path, answer, monkeypatch)
  fetched = get_books(tmp_path, bucket_of_books, monkeypatch)
  assert "/books/train/10.txt" in fetched and files_under(tmp_path) == book_files()
  gc.collect()  # a connection left open would be reported now, in this test


def test_a_book_that_comes_wrong_is_not_kept(tmp_path, monkeypatch, impatient):
  bucket_of_books = bucket_answers("books", book_files())

  def answer(path):
    return (200, b"<html>log in</html>") if path == "/books/test/31.txt" else bucket_of_books(path)

  with pytest.raises(ValueError, match=r"/test/31.txt has 19 bytes with md5 \w{32}, not 18 with \w{32}; run the "):
    get_books(tmp_path, answer, monkeypatch)
  assert not (tmp_path / "test/31.txt").exists()


def test_without_a_network_the_error_names_the_bucket_and_the_way_out(tmp_path, monkeypatch, impatient):
  monkeypatch.setattr(bucket, "STORAGE_URL", "http://127.0.0.1:1")
  with pytest.raises(ValueError, match=r"^http://127.0.0.1:1/books cannot be downloaded \(.*refused.*\); fetch it on "):
    fetch_books(BOOKS, tmp_path, silent, retry=RETRY, extra_bytes_ratio=1.0)
