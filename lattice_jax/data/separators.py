"""Marks for cache policies that keep separators, where `data.anchors` has no rule."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from lattice_jax.config import AnchorsConfig, CacheConfig
from lattice_jax.data.anchors import make_marker, token_texts
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.marks import ENDS, Marker


def marker_of(anchors: AnchorsConfig, caches: Iterable[CacheConfig], tokenizer: Tokenizer) -> Marker | None:
  """What marks the tokens that memories and `caches` keep: the rule, or without one the caches' own characters.

  None where there is no rule and no cache needs one.

  Raises:
    ValueError: as `make_marker`, the caches have different characters, or no token is made of them.
  """
  marker = make_marker(anchors, tokenizer)
  wanted = list(dict.fromkeys(cache.own.characters for cache in caches if hasattr(cache.own, "characters")))
  if marker is not None or not wanted:
    return marker
  if len(wanted) > 1:
    raise ValueError(
      f"the caches that are compared have different separators, model.cache.sep.characters={wanted[0]!r} and "
      f"{wanted[1]!r}, and a text is read once for all of them; give all the same, or compare them in two runs.")
  return _separators(wanted[0], tokenizer)


@functools.lru_cache(maxsize=8)  # the texts of a large vocabulary take a second to read
def _separators(characters: str, tokenizer: Tokenizer) -> Marker:
  """Marks the tokens that are made of these characters alone, such as "." and "\\n\\n"."""
  allowed = frozenset(characters.replace("\\t", "\t").replace("\\n", "\n").encode())
  class_A = np.array([ENDS * bool(raw and allowed.issuperset(raw)) for raw in token_texts(tokenizer)], np.uint8)
  if not class_A.any():
    raise ValueError(
      f"model.cache.policy='sep' keeps separators, and no token of data.tokenizer={tokenizer.name} is made of "
      f"model.cache.sep.characters={characters!r} alone; use other characters, or a rule such as "
      "data.anchors.rule=punctuation.")
  return Marker(class_A=class_A)
