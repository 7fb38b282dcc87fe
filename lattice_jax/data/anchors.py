"""From a rule and a tokenizer to the `Marker` that says which tokens are anchors, and the marks of training."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

from lattice_jax.config import AnchorsConfig, DataConfig
from lattice_jax.data.hashing import hashed_at
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.marks import CLOSER, DOT, ENDS, FORBIDS, LETTER, SPACE, WORD, Marker, Rule, parse_rule
from lattice_jax.types import MARK_ANCHOR, Segment

# Behind these a full stop ends no sentence. Words that often end one, such as "no", are left out.
_ABBREVIATIONS = frozenset((
  "mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "cf", "fig", "figs", "al", "inc", "ltd", "jr", "sr", "approx",
  "ca", "vol", "pp", "gen", "col", "sgt", "capt", "lt", "rev", "hon", "mt", "jan", "feb", "aug", "sept", "oct", "nov",
  "dec"))
_LENGTHS, _DROPOUT, _CAUSAL = range(3)  # streams of random numbers
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
    return Marker(class_A=class_A)
  texts = token_texts(tokenizer)
  spelled = rule.name == "punctuation" and max(map(len, texts)) == 1
  if rule.name == "line":
    class_A = np.array([ENDS * (b"\n" in raw) for raw in texts], np.uint8)
  else:
    _check_characters(anchors.characters)
    classify = _class_of_byte if spelled else _class_of_text
    class_A = np.array([classify(raw, anchors.characters) for raw in texts], np.uint8)
  if not (class_A & (ENDS | DOT)).any():
    what = "line end" if rule.name == "line" else f"one of {anchors.characters}"
    raise ValueError(
      f"data.anchors.rule={anchors.rule} marks nothing: no token of data.tokenizer={tokenizer.name} is a {what}; use "
      "every:16, or another tokenizer.")
  return Marker(class_A=class_A, spelled=spelled)


@dataclass(frozen=True)
class TrainingMarks:
  """The marks of training: those of the marker, changed as `data.anchors` says, as a function of the step and the row.

  What is drawn depends on `data.seed` and on the sequence, or the place in it, alone.
  """

  data: DataConfig
  marker: Marker

  def of_update(self, step: int, rows: tuple[int, int], segment: Segment) -> np.ndarray:
    """int8 [B, T] of rows [first, last) of update `step`; `segment` has the marks of the marker."""
    data, anchors, marks_BT = self.data, self.data.anchors, segment.marks_BT
    group, update = divmod(step, data.seq_len // data.update_len)
    sequence_B1 = group * data.batch + np.arange(*rows)[:, None]
    if anchors.random_every:
      every_B1 = 2 + hashed_at(sequence_B1, data.seed, _LENGTHS) % np.uint64(anchors.random_every - 1)
      is_anchor_BT = (segment.positions_BT + 1) % every_B1.astype(np.int64) == 0
      marks_BT = np.where(segment.valid_BT & is_anchor_BT, np.int8(MARK_ANCHOR), marks_BT & ~np.int8(MARK_ANCHOR))
    if anchors.dropout:
      place_BT = sequence_B1 * data.seq_len + update * data.update_len + np.arange(data.update_len)
      is_dropped_BT = _uniform(place_BT, data.seed, _DROPOUT) < anchors.dropout
      marks_BT = np.where(is_dropped_BT, marks_BT & ~np.int8(MARK_ANCHOR), marks_BT)
    if anchors.causal_share:
      is_causal_B1 = _uniform(sequence_B1, data.seed, _CAUSAL) < anchors.causal_share
      marks_BT = np.where(is_causal_B1, np.int8(0), marks_BT)
    return marks_BT


def _uniform(places: np.ndarray, *key: int) -> np.ndarray:
  """Numbers in [0, 1) that depend on place and key alone."""
  return (hashed_at(places, *key) >> np.uint64(11)).astype(np.float64) / 2.0**53


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
  """The text of every id inside a text; special ids have none."""
  before = np.asarray(tokenizer.encode(b"0"))[-1:]  # a tokenizer may strip the start of a text
  start = tokenizer.decode(before)

  def text_of(id: int) -> bytes:
    text = tokenizer.decode(np.append(before, id))
    return text[len(start):] if text.startswith(start) else tokenizer.decode(np.array([id]))

  return [text_of(id) for id in range(tokenizer.vocab_size)]


def token_id(tokenizer: Tokenizer, token: str) -> int | None:
  """The id of a token of a pretrained tokenizer, such as an added one; None where there is none."""
  pieces = getattr(tokenizer, "pieces", None)
  return None if pieces is None else pieces.id_of(token)


def _ids_of(rule: Rule, tokenizer: Tokenizer) -> list[int]:
  if rule.name == "token":
    id = token_id(tokenizer, rule.token)
    if id is None:
      raise ValueError(
        f"data.anchors.rule=token:{rule.token}: data.tokenizer={tokenizer.name} has no such token; use one that has "
        "it, or data.anchors.rule=punctuation.")
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
