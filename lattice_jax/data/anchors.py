"""From a rule and a tokenizer to the `Marker` that says which tokens are anchors, and added tokens in a text."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lattice_jax.anchor_rule import ANCHOR, Rule, parse_insert, parse_rule
from lattice_jax.config import AnchorsConfig
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.marks import (
  CLOSER,
  DOT,
  ENDS,
  FORBIDS,
  LETTER,
  SPACE,
  WORD,
  Marker,
  mark_tokens,
  nothing_read,
)

# Behind these a full stop ends no sentence. Words that often end one, such as "no", are left out.
_ABBREVIATIONS = frozenset((
  "mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "cf", "fig", "figs", "al", "inc", "ltd", "jr", "sr", "approx",
  "ca", "vol", "pp", "gen", "col", "sgt", "capt", "lt", "rev", "hon", "mt", "jan", "feb", "aug", "sept", "oct", "nov",
  "dec"))
_ADDRESSES = ("www", "http", "https")
_WEAK = ".,:"  # stand in numbers, abbreviations and addresses too
_CLOSERS = "\"')]}*_»”’"
_QUOTES = "\"')]}»”’"  # closers that may also stand before a stop, as in `").`


@functools.lru_cache(maxsize=8)  # the texts of a large vocabulary take a second to read
def make_marker(anchors: AnchorsConfig, tokenizer: Tokenizer) -> Marker | None:
  """What marks the tokens of this tokenizer by `anchors.rule`; None for the rule "none".

  punctuation: a token that is one of `anchors.characters`, alone or with others of them, quotes, brackets and white
  space around. A full stop, comma or colon alone is no end behind a digit, a single letter, "www" or a usual
  abbreviation ("3.14", "e.g.", "Mr."). What the two tokens before it do not show stays unknown: every stop in
  "lib.example.org" is one except that behind "www", "in 2019." and "plan A." are not, and an abbreviation that is
  several tokens is none. In tokens of one byte a stop is the white space behind it, so numbers and addresses hold
  none; abbreviations of several letters are not known there, nor quotes outside ASCII, and a text that ends without
  white space has no anchor at its end.

  Raises:
    ValueError: the tokenizer lacks the token or the ids, the rule marks nothing, or the characters are no punctuation.
  """
  rule = parse_rule(anchors.rule)
  if rule.name == "none":
    return None
  if rule.name == "every":
    return Marker(class_A=np.zeros(1, np.uint8), every=rule.every)
  if rule.name in ("ids", "token"):
    class_A = np.zeros(tokenizer.vocab_size, np.uint8)
    class_A[_ids_of(rule, tokenizer)] = ENDS
    copies = anchors.copies if rule.token == ANCHOR else 1
    return Marker(class_A=class_A, copies=copies, apart=parse_insert(anchors.insert).every or 1)
  texts = tokenizer.texts if isinstance(tokenizer, AnchorTokenizer) else token_texts(tokenizer)
  spelled = rule.name == "punctuation" and max(map(len, texts)) == 1
  if rule.name == "line":
    class_A = np.array([ENDS * (b"\n" in raw) for raw in texts], np.uint8)
  else:
    _check_characters(anchors.characters)
    classify = _class_of_byte if spelled else _class_of_text
    class_A = np.array([classify(raw, anchors.characters) for raw in texts], np.uint8)
  if not (class_A & (ENDS | DOT)).any():
    what = "a line end" if rule.name == "line" else f"one of {anchors.characters}"
    raise ValueError(
      f"data.anchors.rule={anchors.rule} marks nothing: no token of data.tokenizer={tokenizer.name} is {what}; use "
      "every:16, or another tokenizer.")
  return Marker(class_A=class_A, spelled=spelled)


class AnchorTokenizer:
  """A tokenizer that puts the token <AC> into every text that it encodes; it decodes to nothing.

  insert: "sentence", behind every sentence as the rule "punctuation" knows them; or "every:N", N tokens behind the one
    before. Neither splits a word: if no white space follows, "sentence" leaves it out, and "every:N" waits for some.

  copies: so many of them in each place.

  It has the id that the tokenizer gives it, else the first that is free.
  """

  def __init__(self, base: Tokenizer, insert: str, copies: int = 1):
    self.base = base
    self.name = f"{base.name}+{ANCHOR}:{insert}" + (f":{copies}" if copies > 1 else "")
    self.pad_id, self.eos_id = base.pad_id, base.eos_id
    self.start_ids, self.stop_ids, self.banned_ids = base.start_ids, base.stop_ids, base.banned_ids
    own_id = token_id(base, ANCHOR)
    self.anchor_id = base.vocab_size if own_id is None else own_id
    self.vocab_size = max(base.vocab_size, self.anchor_id + 1)
    self.texts = token_texts(base)
    self._every, self._copies = parse_insert(insert).every, copies
    self._marker = None if self._every else make_marker(AnchorsConfig(rule="punctuation"), base)
    shown = [raw.decode("utf-8", errors="replace") for raw in self.texts]
    self._starts_with_space = np.array([text[:1].isspace() for text in shown])
    self._ends_with_space = np.array([text[-1:].isspace() for text in shown])
    self._is_closer = np.array([bool(text) and not set(text) - set(_CLOSERS + ".?!") for text in shown])

  def encode(self, raw: bytes) -> np.ndarray:
    ids = self.base.encode(raw)
    ids = ids.astype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
    places = self._every_places(ids) if self._every else self._sentence_places(ids)
    return insert_anchors(ids, np.repeat(np.asarray(places, np.int64), self._copies), self.anchor_id)

  def decode(self, ids: np.ndarray) -> bytes:
    ids = np.asarray(ids)
    return self.base.decode(ids[ids != self.anchor_id])

  def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
    return self.base.chat(messages)

  def _is_boundary(self, ids: np.ndarray) -> np.ndarray:
    """[N + 1], whether white space or the end of the text is before or behind each place between tokens."""
    inside = self._ends_with_space[ids[:-1]] | self._starts_with_space[ids[1:]]
    return np.concatenate([[False], inside, [True]]) if len(ids) else np.array([False])

  def _sentence_places(self, ids: np.ndarray) -> list[int]:
    ids_BT = ids.astype(np.int32)[None]
    marks_T = mark_tokens(self._marker, ids_BT, nothing_read(self._marker, 1), np.arange(len(ids))[None])[0]
    is_boundary, places = self._is_boundary(ids), []
    for place in (np.flatnonzero(marks_T) + 1).tolist():
      while not is_boundary[place] and self._is_closer[ids[place]]:
        place += 1
      if is_boundary[place] and place not in places[-1:]:
        places.append(place)
    return places

  def _every_places(self, ids: np.ndarray) -> list[int]:
    boundaries, places, wanted = np.flatnonzero(self._is_boundary(ids)), [], self._every
    while (index := int(np.searchsorted(boundaries, wanted))) < len(boundaries):
      places.append(int(boundaries[index]))
      wanted = places[-1] + self._every
    return places


@functools.lru_cache(maxsize=4)
def with_anchors(base: Tokenizer, insert: str, copies: int) -> AnchorTokenizer:
  return AnchorTokenizer(base, insert, copies)


def insert_anchors(ids: np.ndarray, places: Sequence[int] | np.ndarray, anchor_id: int) -> np.ndarray:
  """The ids with an anchor behind the first `place` of them, for every place; one that is given twice gets two.

  Raises:
    ValueError: a place lies outside the sequence.
  """
  wrong = [place for place in places if not 0 <= place <= len(ids)]
  if wrong:
    raise ValueError(
      f"an anchor at place {wrong[0]} lies outside a sequence of {len(ids)} tokens; give places from 0 to {len(ids)}.")
  return np.insert(ids, np.asarray(places, np.int64), anchor_id)


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
  """The text of every id inside a text; special ids have none."""
  before = np.asarray(tokenizer.encode(b"0"))[-1:]  # a tokenizer may strip the start of a text
  start = tokenizer.decode(before)

  def text_of(id: int) -> bytes:
    text = tokenizer.decode(np.append(before, id))
    return text[len(start):] if text.startswith(start) else tokenizer.decode(np.array([id]))

  return [text_of(id) for id in range(tokenizer.vocab_size)]


def token_id(tokenizer: Tokenizer, token: str) -> int | None:
  """The id of a token of a pretrained tokenizer, or of the one that was added; None where there is none."""
  if isinstance(tokenizer, AnchorTokenizer):
    return tokenizer.anchor_id if token == ANCHOR else token_id(tokenizer.base, token)
  pieces = getattr(tokenizer, "pieces", None)
  return None if pieces is None else pieces.id_of(token)


def _ids_of(rule: Rule, tokenizer: Tokenizer) -> list[int]:
  if rule.name == "token":
    id = token_id(tokenizer, rule.token)
    if id is None:
      raise ValueError(
        f"data.anchors.rule=token:{rule.token}: data.tokenizer={tokenizer.name} has no such token; use one that has "
        f"it, data.anchors.insert, which adds {ANCHOR}, or data.anchors.rule=punctuation.")
    return [id]
  beyond = [id for id in rule.ids if id >= tokenizer.vocab_size]
  if beyond:
    raise ValueError(
      f"data.anchors.rule names the id {beyond[0]}, and data.tokenizer={tokenizer.name} has {tokenizer.vocab_size:,} "
      f"tokens; use ids below {tokenizer.vocab_size}.")
  return list(rule.ids)


def _check_characters(characters: str) -> None:
  wrong = [character for character in characters if character.isalnum() or character.isspace()]
  if wrong or not characters:
    raise ValueError(
      f"data.anchors.characters={characters!r} must be punctuation, as in .?! or .?!,; for white space use "
      "data.anchors.rule=line, for other tokens ids:N.")


def _class_of_byte(raw: bytes, characters: str) -> int:
  character = raw.decode("ascii", errors="ignore")
  if not character:
    return LETTER * bool(raw)  # part of a character outside ASCII
  if character in characters:
    return DOT if character in _WEAK else ENDS
  if character.isalnum():
    return LETTER | WORD
  return SPACE * character.isspace() | CLOSER * (character in _CLOSERS)


def _class_of_text(raw: bytes, characters: str) -> int:
  text = raw.decode("utf-8", errors="replace")
  stops, core = re.escape(characters), text.strip()
  quotes, closers = re.escape(_QUOTES), re.escape(_CLOSERS)
  if core in characters and core in _WEAK and len(core) == 1 and not text[-1:].isspace():
    return DOT
  if re.fullmatch(rf"[{quotes}]*[{stops}]+[{closers}]*", core):
    return ENDS
  word = re.fullmatch(rf"(\w*[^\W\d_]{{2}})[{stops}][{closers}]*", core)
  if word and word[1].lower() not in _ABBREVIATIONS:
    return ENDS
  letter = LETTER * text[-1:].isalnum()
  if text[-1:].isdigit() or core.lower() in _ADDRESSES or text.endswith("//"):
    return letter | FORBIDS
  is_short = (len(core) == 1 and core.isalpha()) or core.lower() in _ABBREVIATIONS
  if is_short and not text[-1:].isspace():
    return letter | (FORBIDS if text[:1].isspace() else WORD)
  return letter
