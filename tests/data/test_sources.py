import dataclasses
import hashlib
import lzma

import numpy as np
import pytest

from lattice_jax.config import DataConfig
from lattice_jax.data.published import ENWIK8, SAMPLES, Original, prepared_path, read_sample
from lattice_jax.data.source import fingerprint
from lattice_jax.data.sources import SPLITS, byte_splits, load_source, read_original_split
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer

RAW = bytes(range(200))
TINY = Original(name="tiny", size=200, sha256=hashlib.sha256(RAW).hexdigest(), url="http://127.0.0.1/tiny.zip")


def put(tmp_path, raw):
  path = prepared_path(tmp_path, TINY)
  path.parent.mkdir()
  path.write_bytes(raw)
  return path


def test_enwiki_sample_splits_join_to_the_whole_text():
  data = DataConfig(source="enwiki_sample")
  sources = [load_source(data, split) for split in SPLITS]
  assert [source.num_bytes for source in sources] == [5_480_771, 304_487, 304_488]
  assert [source.num_documents for source in sources] == [1, 1, 1]
  text = b"".join(get_tokenizer(data).decode(source.tokens) for source in sources)
  assert text == read_sample("enwiki_sample/enwiki.xml.xz")


def test_enwik8_splits_are_the_customary_ones():
  assert byte_splits(ENWIK8.size) == {
    "train": (0, 90_000_000), "validation": (90_000_000, 95_000_000), "test": (95_000_000, 100_000_000)}


def test_synthetic_has_awkward_documents_and_repeats_itself():
  source = load_source(DataConfig(source="synthetic"), "validation")
  lengths = np.diff(source.offsets)
  assert {1, 2, 7, 33, 1777} <= set(lengths.tolist())
  assert source.fingerprint == load_source(DataConfig(source="synthetic"), "validation").fingerprint
  start = source.offsets[int(np.argmax(lengths))]
  document = source.tokens[start:start + lengths.max()]
  agreement = max((document[period:] == document[:-period]).mean() for period in range(3, 19))
  assert agreement > 0.8, "a model has nothing to learn from the synthetic documents"


def test_fingerprint_depends_on_split_and_name():
  fingerprints = {
    load_source(DataConfig(source=name), split).fingerprint for name in ("synthetic", "enwiki_sample")
    for split in SPLITS}
  assert len(fingerprints) == 6


def test_fingerprint_depends_on_where_its_parts_end():
  assert fingerprint("ab", "c") != fingerprint("a", "bc") != fingerprint("abc")


def test_unknown_source_and_split_are_refused_with_a_suggestion():
  with pytest.raises(ValueError, match=r"data.source='enwiki_sampel' is not one of .* Did you mean 'enwiki_sample'\?"):
    load_source(DataConfig(source="enwiki_sampel"), "train")
  with pytest.raises(ValueError, match=r"split 'valid' is not one of .* Did you mean 'validation'\?"):
    load_source(DataConfig(source="synthetic"), "valid")


def test_missing_enwik8_names_the_command(tmp_path):
  with pytest.raises(ValueError, match=rf"^enwik8 is not at .*; run `python scripts/prepare_data.py enwik8 --path "
                                       rf"{tmp_path}` \(add --from FILE if you have it already\)\.$"):
    load_source(DataConfig(source="enwik8", path=str(tmp_path)), "train")


def test_prepared_file_is_split_by_bytes(tmp_path):
  put(tmp_path, RAW)
  assert read_original_split(TINY, tmp_path, "train") == RAW[:180]
  assert read_original_split(TINY, tmp_path, "validation") == RAW[180:190]
  assert read_original_split(TINY, tmp_path, "test") == RAW[190:]


@pytest.mark.parametrize(("raw", "message"), [
  (RAW[:-1], r"tiny is not tiny: expected 200 bytes, found 199; run `python scripts/prepare_data.py tiny"),
  (RAW[::-1], r"tiny is not tiny: expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}; run `python scripts/prepare_data"),
], ids=["short", "other-bytes"])
def test_a_real_name_is_refused_to_another_file(tmp_path, raw, message):
  put(tmp_path, raw)
  with pytest.raises(ValueError, match=message):
    read_original_split(TINY, tmp_path, "train")


def test_a_file_that_is_replaced_is_checked_again(tmp_path):
  path = put(tmp_path, RAW)
  read_original_split(TINY, tmp_path, "train")
  path.write_bytes(RAW[::-1])
  with pytest.raises(ValueError, match="expected sha256"):
    read_original_split(TINY, tmp_path, "train")


def copied_samples(tmp_path, compressed):
  (tmp_path / "MANIFEST.tsv").write_bytes((SAMPLES / "MANIFEST.tsv").read_bytes())
  (tmp_path / "enwiki_sample").mkdir()
  (tmp_path / "enwiki_sample" / "enwiki.xml.xz").write_bytes(compressed)
  return tmp_path


@pytest.mark.parametrize(("compressed", "message"), [
  (lzma.compress(RAW), r"is damaged: expected 6,089,746 bytes of sha256 34c1\w+, found 200 bytes of"),
  (lzma.compress(RAW)[:-20], r"cannot be read \(.*\); restore it from the repository"),
], ids=["other-text", "truncated"])
def test_a_damaged_sample_is_refused(tmp_path, compressed, message):
  with pytest.raises(ValueError, match=message):
    read_sample("enwiki_sample/enwiki.xml.xz", copied_samples(tmp_path, compressed))


def test_source_repr_is_stable_and_small():
  source = load_source(DataConfig(source="synthetic"), "test")
  assert repr(source) == repr(load_source(DataConfig(source="synthetic"), "test"))
  assert repr(source).startswith("Source(synthetic test: 15560 tokens, 48 documents")
  assert dataclasses.is_dataclass(source)
