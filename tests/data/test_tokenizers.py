import numpy as np
import pytest

from lattice_jax.config import DataConfig
from lattice_jax.data.tokenizers import get_tokenizer


def test_every_byte_survives_the_round_trip():
  tokenizer = get_tokenizer(DataConfig(tokenizer="bytes"))
  raw = bytes(range(256))
  ids = tokenizer.encode(raw)
  np.testing.assert_array_equal(ids, np.arange(3, 259))
  assert tokenizer.decode(ids) == raw
  assert ids.max() < tokenizer.vocab_size


def test_special_ids_decode_to_nothing():
  tokenizer = get_tokenizer(DataConfig(tokenizer="bytes"))
  assert tokenizer.decode(np.array([1, 3 + ord("a"), 0, 2, 3 + ord("b")])) == b"ab"


def test_unknown_tokenizer_is_refused_with_a_suggestion():
  with pytest.raises(ValueError, match=r"data.tokenizer='byte' is not one of bytes. Did you mean 'bytes'\?"):
    get_tokenizer(DataConfig(tokenizer="byte"))
