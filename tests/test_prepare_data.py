import contextlib
import dataclasses
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lattice_jax.data.builders.enwik8 import Enwik8
from lattice_jax.data.prepare.enwik8 import prepare_original, write_records
from lattice_jax.data.published import SAMPLES, Original, prepared_path
from tests.data.prepare.server import serve_with

RAW = bytes(range(256)) * 40
SCRIPT = Path(__file__).parent.parent / "scripts" / "prepare_data.py"


def zip_of(name, raw):
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w") as archive:
    archive.writestr(name, raw)
  return packed.getvalue()


def tiny(url="http://127.0.0.1:1/tiny.zip"):
  return Original(name="tiny", size=len(RAW), sha256=hashlib.sha256(RAW).hexdigest(), url=url)


def silent(line):
  del line


@contextlib.contextmanager
def serve(body, *, cut_first_at=None, ranges=True):
  """A local server of one file; the first answer may break off. Yields the URL and the ranges that were asked for."""
  asked = []

  def respond(handler):
    wanted = handler.headers["Range"]
    asked.append(wanted)
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and ranges else 0
    if start >= len(body):
      handler.send_response(416)
      handler.end_headers()
      return
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(len(body) - start))
    handler.end_headers()
    handler.wfile.write(body[start:cut_first_at if len(asked) == 1 else None])

  with serve_with(respond) as address:
    yield f"{address}/tiny.zip", asked


def files_under(folder):
  return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "zip"])
def test_a_local_copy_is_verified_and_installed_once(tmp_path, packed):
  origin = tmp_path / "given"
  origin.write_bytes(zip_of("folder/tiny", RAW) if packed else RAW)
  lines = []
  target = prepare_original(tiny(), tmp_path / "data", lines.append, origin=origin)
  assert target == prepared_path(tmp_path / "data", tiny()) and target.read_bytes() == RAW
  assert files_under(tmp_path / "data") == ["tiny"]
  modified = target.stat().st_mtime_ns
  prepare_original(tiny(), tmp_path / "data", lines.append)
  assert target.stat().st_mtime_ns == modified
  assert lines == [f"tiny: 10,240 bytes, verified, {where}at {target}" for where in ("", "already ")]


@pytest.mark.parametrize(("given", "message"), [
  (RAW[:-1], r"given is not tiny: expected 10,240 bytes, found 10,239\.$"),
  (RAW[::-1], r"given is not tiny: expected sha256 \w{64}, found \w{64}\.$"),
  (zip_of("tiny", RAW[::-1]), r"given is not tiny: expected sha256 \w{64}, found \w{64}\.$"),
  (zip_of("tiny", RAW + b"x"), r"given is not tiny: expected 10,240 bytes, found 10,241\.$"),
  (zip_of("enormous", RAW), r"given holds no file named tiny; it holds enormous\.$"),
  (zip_of("tiny", RAW).replace(RAW[:99], RAW[1:100]), r"given is damaged \(.*\); fetch it again\.$"),
], ids=["short", "other-bytes", "zip-other-bytes", "zip-long", "zip-other-name", "zip-damaged"])
def test_anything_else_is_refused_in_one_sentence_and_leaves_nothing(tmp_path, given, message):
  origin = tmp_path / "given"
  origin.write_bytes(given)
  with pytest.raises(ValueError, match=message):
    prepare_original(tiny(), tmp_path / "data", silent, origin=origin)
  assert files_under(tmp_path / "data") == []


def test_a_wrong_file_in_place_is_replaced(tmp_path):
  target = prepared_path(tmp_path, tiny())
  target.parent.mkdir()
  target.write_bytes(RAW[:-1])
  origin = tmp_path / "given"
  origin.write_bytes(RAW)
  lines = []
  prepare_original(tiny(), tmp_path, lines.append, origin=origin)
  assert target.read_bytes() == RAW
  assert "expected 10,240 bytes, found 10,239. It will be replaced." in lines[0]


def test_download_and_install(tmp_path):
  with serve(zip_of("tiny", RAW)) as (url, asked):
    target = prepare_original(tiny(url), tmp_path, silent)
  assert target.read_bytes() == RAW and asked == [None]
  assert files_under(tmp_path) == ["tiny"]


@pytest.mark.parametrize("ranges", [True, False], ids=["server-resumes", "server-starts-over"])
def test_a_broken_download_goes_on_where_it_stopped(tmp_path, ranges):
  with serve(zip_of("tiny", RAW), cut_first_at=4000, ranges=ranges) as (url, asked):
    with pytest.raises(ValueError, match=r"stopped at 4,000 of [\d,]+ bytes; run `python scripts/prepare_data.py tiny"):
      prepare_original(tiny(url), tmp_path, silent)
    target = prepare_original(tiny(url), tmp_path, silent)
  assert target.read_bytes() == RAW and asked == [None, "bytes=4000-"]


def test_a_download_that_was_complete_but_not_unpacked_is_used(tmp_path):
  part = prepared_path(tmp_path, tiny()).with_name("tiny.zip.part")
  part.parent.mkdir()
  part.write_bytes(zip_of("tiny", RAW))
  with serve(zip_of("tiny", RAW)) as (url, _):
    assert prepare_original(tiny(url), tmp_path, silent).read_bytes() == RAW


def test_a_bad_download_is_not_kept_to_be_resumed(tmp_path):
  with serve(zip_of("tiny", RAW[::-1])) as (url, _), pytest.raises(ValueError, match="expected sha256"):
    prepare_original(tiny(url), tmp_path, silent)
  assert files_under(tmp_path) == []


def test_without_a_network_the_error_suggests_a_local_copy(tmp_path):
  with pytest.raises(ValueError, match=r"^http://127.0.0.1:1/tiny.zip cannot be downloaded \(.*refused.*\); "
                                       r"fetch it on another machine and run `python .* tiny .*--from PATH`, or"):
    prepare_original(tiny(), tmp_path, silent)


@pytest.fixture
def enwik8(tmp_path, monkeypatch):
  """A small file under the name, and its records."""
  original = dataclasses.replace(tiny(), name="enwik8")
  monkeypatch.setattr(Enwik8, "original", original)
  (tmp_path / "given").write_bytes(RAW)
  prepare_original(original, tmp_path / "data", silent, origin=tmp_path / "given")
  return original, write_records(original, tmp_path / "data", silent)


def test_records_of_a_file_are_made_on_request_and_taken_in_its_place(tmp_path, enwik8):
  original, records = enwik8
  target = prepare_original(original, tmp_path / "again", silent, origin=records)
  assert target.read_bytes() == RAW and files_under(tmp_path / "again") == ["enwik8"]


def test_records_that_are_damaged_or_of_another_data_set_are_refused(tmp_path, enwik8):
  original, records = enwik8
  with pytest.raises(ValueError, match=r"samples holds no TFDS records; give the path of enwik8 or of its zip\.$"):
    prepare_original(original, tmp_path / "again", silent, origin=SAMPLES)
  larger = dataclasses.replace(original, size=100_000_000)
  with pytest.raises(ValueError, match=r"is not the published enwik8: expected 1,374 train, .* found 1 train, 1 valid"):
    prepare_original(larger, tmp_path / "again", silent, origin=records)
  damaged = next(records.glob("*validation*"))
  damaged.write_bytes(damaged.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"^record 0 of validation in .* cannot be read \(.*\); remove that folder and "):
    prepare_original(original, tmp_path / "again", silent, origin=records)
  assert files_under(tmp_path / "again") == []


def run_script(*arguments):
  return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60)


def test_script_refuses_a_wrong_file_in_one_line_without_traceback(tmp_path):
  origin = tmp_path / "enwik8"
  origin.write_bytes(RAW)
  done = run_script("enwik8", "--from", str(origin), "--path", str(tmp_path / "data"))
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr == f"prepare_data.py: {origin} is not enwik8: expected 100,000,000 bytes, found 10,240.\n"


@pytest.mark.parametrize(("arguments", "message"), [
  (["pg19", "--from", str(SAMPLES / "books_sample")],
   "books_sample is not pg19: expected 28,602 train, 50 validation, 100 test books as SPLIT/ID.txt, found 0 train, "),
  (["imagenet64", "--from", str(SAMPLES / "photos_sample")],
   "photos_sample is not imagenet64: expected Imagenet64_train_part1_npz.zip of 6,783,426,789 bytes, found none; "),
  (["photos_sample", "--tokenizer=bpe_paper:400"], "photos_sample is read as bytes; --tokenizer is for pg19 and"),
  (["enwiki_sample", "--from", "x"], "enwiki_sample is shipped with the code; run the command without --from and --tf"),
], ids=["pg19", "imagenet64", "tokenizer", "sample"])
def test_script_refuses_what_cannot_be(tmp_path, arguments, message):
  done = run_script(*arguments, "--path", str(tmp_path))
  assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and message in done.stderr
  assert files_under(tmp_path) == []


def test_script_says_where_the_sample_is():
  done = run_script("enwiki_sample")
  assert done.returncode == 0 and done.stdout.startswith("enwiki_sample: 6,089,746 bytes, verified, shipped at ")
