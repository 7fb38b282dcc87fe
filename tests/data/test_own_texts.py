"""One's own texts: which files are read, how they are split, and what is refused."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import os

import numpy as np
import pytest

from lattice_jax.config import DataConfig
from lattice_jax.data import own_texts
from lattice_jax.data.loader import eval_batches, train_batches
from lattice_jax.data.sources import SPLITS, load_source, read_raw
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer, model_path
from tests.training.tiny import make_config

LINES = "".join(f"Line {number} of a book, ähnlich wie diese.\n" for number in range(400))


def data_of(path, tmp_path, **fields):
  return DataConfig(source=f"text:{path}", path=str(tmp_path / "data"), **fields)


def write_book(tmp_path, text=LINES):
  (tmp_path / "book.txt").write_text(text, encoding="utf-8")
  return tmp_path / "book.txt"


def write_folder(tmp_path, count=40):
  folder = tmp_path / "texts"
  for number in range(count):
    (folder / f"part{number % 3}").mkdir(parents=True, exist_ok=True)
    (folder / f"part{number % 3}" / f"{number}.txt").write_text(f"text {number} " * (number + 1), encoding="utf-8")
  return folder


def raw_of(data):
  return {split: read_raw(data, split) for split in SPLITS}


@pytest.mark.parametrize("text", [LINES, LINES.replace(" ", "").replace("\n", ""), "日本語" * 500],
                         ids=["lines", "no-space", "wide"])
def test_one_file_is_cut_into_stretches_that_share_nothing_and_leave_nothing(tmp_path, text):
  data = data_of(write_book(tmp_path, text), tmp_path)
  raw = raw_of(data)
  size = len(text.encode())
  assert len(raw["validation"]) == len(raw["test"]) == 1 and len(raw["train"]) <= 3
  for split, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
    assert sum(map(len, raw[split])) == pytest.approx(share * size, abs=50)
  starts = {split: [text.encode().index(part) for part in raw[split]] for split in SPLITS}
  if text == LINES:  # every stretch can be found, for no line stands twice
    order = sorted((start, part) for split in SPLITS for start, part in zip(starts[split], raw[split], strict=True))
    assert b"".join(part for _, part in order) == text.encode()
    assert all(part[-1:] in b" \n" for _, part in order)
  assert sum(len(part) for parts in raw.values() for part in parts) == size
  for parts in raw.values():
    assert all(part.decode() for part in parts), "a character was cut"


def test_several_files_are_documents_of_one_split_each(tmp_path):
  data = data_of(write_folder(tmp_path), tmp_path)
  titles = {split: load_source(data, split).texts.titles for split in SPLITS}
  assert [len(titles[split]) for split in SPLITS] == [36, 2, 2]
  assert sorted(title for split in SPLITS for title in titles[split]) == sorted(
    f"part{number % 3}/{number}.txt" for number in range(40))


@pytest.mark.parametrize("files", [1, 40])
def test_the_seed_draws_the_split(tmp_path, files):
  path = write_book(tmp_path) if files == 1 else write_folder(tmp_path)
  drawn = [raw_of(data_of(path, tmp_path, seed=seed))["test"] for seed in range(4)]
  assert drawn[0] == raw_of(data_of(path, tmp_path))["test"]
  assert len({tuple(parts) for parts in drawn}) > 1


def test_packed_files_and_markdown_count_and_hidden_or_other_ones_do_not(tmp_path):
  folder = tmp_path / "texts"
  (folder / ".git").mkdir(parents=True)
  for name, raw in {
      "a.txt": b"a plain text", "b.md": b"# a title", "c.txt.xz": lzma.compress(b"packed by xz"),
      "d.md.gz": gzip.compress(b"packed by gzip"), "e.pdf": b"%PDF", "f.xz": b"no text", ".hidden.txt": b"hidden",
      ".git/g.txt": b"hidden too", "h.txt": b"", "i.txt": b"\xef\xbb\xbfwith a mark"}.items():
    (folder / name).write_bytes(raw)
  raw = raw_of(data_of(folder, tmp_path))
  assert sorted(part for parts in raw.values() for part in parts) == [
    b"# a title", b"a plain text", b"packed by gzip", b"packed by xz", b"with a mark"]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe_lossless:320", "bpe_paper:320"])
def test_any_tokenizer_reads_it_and_words_are_counted(tmp_path, tokenizer):
  path = write_book(tmp_path)
  data = data_of(path, tmp_path, tokenizer=tokenizer)
  for split, parts in raw_of(data).items():
    source = load_source(data, split)
    assert source.tokens[source.offsets[1:] - 1].tolist() == [1] * len(parts), "every stretch ends with eos"
    assert source.texts.num_words.tolist() == [len(part.decode().split()) for part in parts]
    if tokenizer != "bpe_paper:320":
      assert get_tokenizer(data).decode(source.tokens) == b"".join(parts)
  if tokenizer != "bytes":
    assert model_path(data).is_relative_to(tmp_path / "data/texts")
    assert [path.name for path in model_path(data).parent.iterdir()] == [model_path(data).name]
    other = data_of(path, tmp_path, tokenizer=tokenizer, seed=1)
    assert model_path(other) != model_path(data), "it would have been trained on what is the test split now"


def test_a_text_that_changed_in_any_split_is_another(tmp_path):
  path = write_book(tmp_path)
  data = data_of(path, tmp_path)
  before = {split: load_source(data, split).fingerprint for split in SPLITS}
  assert {split: load_source(data, split).fingerprint for split in SPLITS} == before and len(set(before.values())) == 3
  held = raw_of(data)["test"][0]
  path.write_bytes(path.read_bytes().replace(held, held.upper()))
  assert raw_of(data)["train"] == raw_of(dataclasses.replace(data))["train"]
  assert not set(before.values()) & {load_source(data, split).fingerprint for split in SPLITS}


@pytest.mark.parametrize("rows", ["sequences", "packed", "documents"])
def test_training_and_evaluation_read_it(tmp_path, rows):
  config = make_config(
    data__source=f"text:{write_folder(tmp_path)}", data__rows=rows, data__seq_len=32, data__update_len=32)
  source = load_source(config.data, "train")
  batch = next(train_batches(config, source, start_step=3))
  halves = [next(train_batches(config, source, start_step=3, host=host, num_hosts=2)) for host in range(2)]
  assert np.array_equal(np.concatenate([half.targets_BT for half in halves]), batch.targets_BT)
  held = load_source(config.data, "test")
  scored = sum(
    float(chunk.batch.weights_BT.sum())
    for chunk in eval_batches(held, get_tokenizer(config.data), protocol="carried", seq_len=32, chunk_len=16, batch=2))
  assert scored == len(held.tokens)


def write(path, raw):
  path.write_bytes(raw)
  return path


@pytest.mark.parametrize(("make", "message"), [
  (lambda at: "", r"^data.source=text: names no text; give a file or a folder, as in data.source=text:book.txt\.$"),
  (lambda at: at / "nothing.txt", r"nothing.txt does not exist; give a text file or a folder of \*.txt, \*.md\.$"),
  (lambda at: at, r"the folder holds no texts; put files named \*.txt or \*.md there; they may be compressed"),
  (lambda at: "/dev/zero", r"/dev/zero is neither a file nor a folder; give"),
  (lambda at: write(at / "a.txt", b""), r"holds 0 bytes of text, too few to split; give it more text\.$"),
  (lambda at: write(at / "a.txt", b"short"), r"holds 5 bytes of text, too few to split"),
  (lambda at: write(at / "a.txt", b"Caf\xe9 " * 99), r"a.txt is not UTF-8: byte 0xe9 at offset 3; "),
  (lambda at: write(at / "a.txt", "wide".encode("utf-16")), r"a.txt is not UTF-8: byte 0xff at offset 0; "),
  (lambda at: write(at / "a.txt", b"zero\0" * 99), r"a.txt is not a text: it holds a zero byte at offset 4; leave it"),
  (lambda at: write(at / "a.txt.gz", b"no gzip"), r"a.txt.gz cannot be read \(Not a gzipped file .*\); get it again"),
  (lambda at: write(at / "a.gz", gzip.compress(LINES.encode()[:999])[:-20]), r"a.gz cannot be read \(Compressed file"),
  (lambda at: write(at / "a.xz", lzma.compress(b"text")[:-20]), r"a.xz cannot be read \(Compressed file ended before"),
  (lambda at: write(at / "a.xz", b"no xz"), r"a.xz cannot be read \(.*\); get it again, or give another path\.$"),
  (lambda at: write(at / "a.xz", lzma.compress(bytes(2000))), r"with .*a.xz the texts exceed 0.0 GB, and they"),
  (lambda at: at / ("n" * 300), r"cannot be read \(File name too long\)"),
], ids=["no-name", "missing", "no-texts", "device", "empty", "short", "latin-1", "utf-16", "zeros", "no-gzip",
        "cut-gzip", "cut-xz", "no-xz", "bomb", "long-name"])
def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, make, message):
  monkeypatch.setattr(own_texts, "MAX_BYTES", 1500)
  with pytest.raises(ValueError, match=message) as caught:
    load_source(data_of(make(tmp_path), tmp_path), "train")
  assert "\n" not in str(caught.value)


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path):
  path = os.fsencode(tmp_path) + b"/texts/b\xfcch\n.txt"
  os.mkdir(os.path.dirname(path))
  with open(path, "wb") as file:
    file.write(LINES.encode())
  source = load_source(data_of(tmp_path / "texts", tmp_path), "test")
  assert source.texts.titles[0].startswith("b\N{REPLACEMENT CHARACTER}ch\N{REPLACEMENT CHARACTER}.txt")
  with pytest.raises(ValueError, match=r"b\\xfcch\\n.txt' is not UTF-8, so run.json cannot record it; rename"):
    load_source(data_of(os.fsdecode(path), tmp_path), "test")


def test_the_name_without_a_path_is_suggested():
  with pytest.raises(ValueError, match=r"Did you mean 'text:PATH'\?$"):
    load_source(DataConfig(source="text"), "train")
