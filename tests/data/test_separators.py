"""What marks separators for a cache that keeps them: a rule of the config, or else the cache's own characters."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax.config import AnchorsConfig, CacheConfig
from lattice_jax.data.anchors import make_marker
from lattice_jax.data.separators import marker_of
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer, OwnTokenizer
from lattice_jax.evaluation.caches import parse_cache

NO_RULE, SEP = AnchorsConfig(), CacheConfig(policy="sep", keep=4)


class Words(OwnTokenizer):
  """A tokenizer of whole pieces, not all of which are text."""

  name, pieces = "words", (b"0", b".", b" .", b".\n", b"\n\n", b"\t", b".\"", b"a.", b" a", b"", b"-", b"\xe3\x80\x82")
  vocab_size = len(pieces)

  def encode(self, raw):
    return np.array([self.pieces.index(raw)])

  def decode(self, ids):
    return b"".join(self.pieces[id] for id in ids)


def marked(marker, tokenizer):
  return {bytes(tokenizer.decode(np.array([id]))) for id in range(len(marker.class_A)) if marker.class_A[id]}


def test_tokens_made_of_the_characters_alone_are_separators():
  assert marked(marker_of(NO_RULE, [SEP], Words()), Words()) == {b".", b" .", b".\n", b"\n\n", b"\t"}
  own = parse_cache(r"sep:keep=4,characters=-\n")
  assert marked(marker_of(NO_RULE, [own], Words()), Words()) == {b"\n\n", b"-"}
  bytes_of = ByteTokenizer()
  assert marked(marker_of(NO_RULE, [CacheConfig(), SEP], bytes_of), bytes_of) == {bytes([c]) for c in b".,?!;: \t\n"}


def test_a_rule_goes_first_and_caches_that_need_none_get_none():
  rule, tokenizer = AnchorsConfig(rule="line"), ByteTokenizer()
  assert marker_of(rule, [SEP], tokenizer) is make_marker(rule, tokenizer)
  assert marker_of(NO_RULE, [CacheConfig(policy="lagkv", keep=4)], tokenizer) is None


def test_what_marks_nothing_or_two_things_is_refused():
  own = parse_cache("sep:keep=4,characters=;")
  message = r"no token of data\.tokenizer=words is made of model\.cache\.sep\.characters=';'"
  with pytest.raises(ValueError, match=message):
    marker_of(NO_RULE, [own], Words())
  with pytest.raises(ValueError, match="the caches that are compared have different separators"):
    marker_of(NO_RULE, [SEP, own], Words())


@pytest.mark.parametrize("characters", ["", ".a", "3", "…", r"\r"])
def test_characters_that_are_no_separators_are_refused(characters):
  with pytest.raises(ValueError, match=r"cache\.sep\.characters=.* must be punctuation and white space of ASCII"):
    parse_cache(f"sep:keep=4,characters={characters}")
