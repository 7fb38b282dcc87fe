"""The sentencepiece models of pretrained models, from a tokenizer.model or from the header of a GGUF file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto

from lattice_jax.data.tokenizers.sandbox import call_in_sandbox
from lattice_jax.data.tokenizers.sentencepiece_to_json import as_fast_tokenizer
from lattice_jax.data.tokenizers.special_tokens import (
  CONTROL,
  UNKNOWN,
  USER_DEFINED,
  header_flag,
  header_id,
  header_tokens,
)
from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.shown import reason_of, short_json

_NORMAL, _BYTE = 1, 6  # the first and the last type of a piece, in both formats


class SentencePieceBackend:
  """A sentencepiece model. The library finds no special tokens in a text, so the text is split at them first.

  Each part between them is a text of its own, before which the model may add a space, as in llama.cpp.
  """

  def __init__(self, model: proto.ModelProto, start_ids: tuple[int, ...], *, finds_special: bool = True):
    """finds_special: whether a text can spell out special tokens.

    Raises ValueError if the library refuses the model; the message is the reason.
    """
    self.model = model
    raw = model.SerializeToString()
    try:
      call_in_sandbox("trial", {"model": base64.b64encode(raw).decode()})
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=raw)
    except (ValueError, RuntimeError) as error:
      raise ValueError(f"sentencepiece cannot read it ({reason_of(error)})") from error
    self.vocab_size = len(model.pieces)
    self.start_ids = start_ids
    self._finds_special = finds_special
    control = [piece.piece for piece in model.pieces if finds_special and piece.type in (CONTROL, UNKNOWN)]
    longest_first = sorted(filter(None, control), key=len, reverse=True)
    self._control = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

  def encode(self, text: str) -> list[int]:
    parts = self._control.split(text) if self._control else [text]
    ids = []
    for index, part in enumerate(parts):  # every second part is a special token
      ids += [self._processor.piece_to_id(part)] if index % 2 else self._processor.encode(part)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    return self._processor.decode([id for id in ids if id < self.vocab_size])

  def id_of(self, token: str) -> int | None:
    id = self._processor.piece_to_id(token)
    return id if self._processor.id_to_piece(id) == token else None

  def save(self, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Writes it unchanged and as a tokenizer.json, as versions of `transformers` differ in what the former means."""
    files, facts = as_fast_tokenizer(
      self.model, self.start_ids, finds_special=self._finds_special).save(folder)
    (folder / "tokenizer.model").write_bytes(self.model.SerializeToString())
    return ["tokenizer.model", *files], facts


def sentencepiece_of_folder(
    file: Path, added: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> SentencePieceBackend:
  """A tokenizer.model, extended by the tokens that other files of its folder add.

  A text starts with bos unless tokenizer_config.json says otherwise.

  Raises ValueError if the file is damaged, or the added tokens do not fit it.
  """
  try:
    model = proto.ModelProto.FromString(file.read_bytes())
  except (OSError, DecodeError) as error:
    raise ValueError(f"{file} is not a sentencepiece model; get its tokenizer.json, or it again.") from error
  for token in added:
    id, content, num_pieces = token["id"], token["content"], len(model.pieces)
    if id < num_pieces and model.pieces[id].piece == content:
      continue
    if id != num_pieces or content in {piece.piece for piece in model.pieces}:
      raise ValueError(
        f"{file.parent} gives the added token {short_json(content)} the id {id}, which cannot be: {file.name} with "
        f"what is added before has {num_pieces:,} tokens, each its own; correct the id.")
    model.pieces.add(piece=content, score=0.0, type=CONTROL if token["special"] else USER_DEFINED)
  start_ids = _start_ids(model, config.get("add_bos_token") is not False)
  try:
    return SentencePieceBackend(model, start_ids)
  except ValueError as error:
    raise ValueError(f"{file} is not a tokenizer: {error}; get its tokenizer.json, or it again.") from error


def sentencepiece_of_gguf(file: GGUFFile) -> SentencePieceBackend:
  """The sentencepiece model of a GGUF file, which calls it «llama» and lists its pieces.

  Raises ValueError if the header contradicts itself.
  """
  tokens = header_tokens(file)
  scores, types = (file.fields.get(f"tokenizer.ggml.{name}") for name in ("scores", "token_type"))
  if not (isinstance(scores, np.ndarray) and isinstance(types, np.ndarray)):
    raise ValueError(f"{file.path} holds a tokenizer without scores or types; get the file again.")
  if not len(tokens) == len(scores) == len(types) or not set(types.tolist()) <= set(range(_NORMAL, _BYTE + 1)):
    raise ValueError(f"{file.path} holds a tokenizer whose tokens, scores and types do not fit; get the file again.")
  model = proto.ModelProto()
  for token, score, kind in zip(tokens, scores.tolist(), types.tolist(), strict=True):
    model.pieces.add(piece=token, score=score, type=kind)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.byte_fallback = bool((types == _BYTE).any())
  for role, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
    id = header_id(file, theirs)
    setattr(trainer, f"{role}_id", -1 if id is None else id)
  normalizer.name = "identity"
  normalizer.add_dummy_prefix = _flag(file, "add_space_prefix", True)
  normalizer.remove_extra_whitespaces = _flag(file, "remove_extra_whitespaces", False)
  rules = file.fields.get("tokenizer.ggml.precompiled_charsmap")
  if isinstance(rules, np.ndarray):
    normalizer.precompiled_charsmap = rules.tobytes()
  start_ids = _start_ids(model, _flag(file, "add_bos_token", True))
  try:
    return SentencePieceBackend(model, start_ids)
  except ValueError as error:
    raise ValueError(f"{file.path} holds a tokenizer that cannot be: {error}; get the file again.") from error


def _start_ids(model: proto.ModelProto, adds_bos: bool) -> tuple[int, ...]:
  bos_id = model.trainer_spec.bos_id
  return (bos_id,) if adds_bos and 0 <= bos_id < len(model.pieces) else ()


def _flag(file: GGUFFile, name: str, usual: bool) -> bool:
  """The header's flag; files of this kind leave out usual ones."""
  says = header_flag(file, name)
  return usual if says is None else says
