"""How a pretrained model cuts text into pieces: by the `tokenizers` library, or by sentencepiece's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto

from lattice_jax.formats.gguf_file import GGUFFile

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # of a piece, in both formats


@runtime_checkable
class Pieces(Protocol):
  """vocab_size: one more than the largest id. start_ids: what stands before a text."""

  vocab_size: int
  start_ids: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Special tokens that the text spells out become their ids; nothing is added."""

  def decode(self, ids: Sequence[int]) -> str:
    """Special tokens give nothing."""

  def id_of(self, token: str) -> int | None:
    """None where there is no such token."""

  def save(self, folder: Path) -> tuple[str, str]:
    """(the file that was written, the class that reads it in `transformers`)."""


class FastPieces:
  """`tokenizers`: what a tokenizer.json holds."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self.tokenizer = tokenizer
    self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    self.start_ids = tuple(tokenizer.encode("", add_special_tokens=True).ids)

  def encode(self, text: str) -> list[int]:
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    return self.tokenizer.decode(list(ids), skip_special_tokens=True)

  def id_of(self, token: str) -> int | None:
    return self.tokenizer.token_to_id(token)

  def save(self, folder: Path) -> tuple[str, str]:
    self.tokenizer.save(str(folder / "tokenizer.json"))
    return "tokenizer.json", "PreTrainedTokenizerFast"


class SentencePieces:
  """A sentencepiece model. The library knows no special tokens in a text, so the text is cut at them before.

  Each part between them is a text of its own, with a space in front where the model adds one, as in llama.cpp.
  """

  def __init__(self, model: proto.ModelProto, *, adds_bos: bool):
    """Raises ValueError where the library finds the model contradictory."""
    self._model = model
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    except RuntimeError as error:
      raise ValueError(f"sentencepiece cannot read it ({error})") from error
    self.vocab_size = len(model.pieces)
    self.start_ids = (model.trainer_spec.bos_id,) if adds_bos and model.trainer_spec.bos_id >= 0 else ()
    control = [piece.piece for piece in model.pieces if piece.type == _CONTROL]
    longest_first = sorted(filter(None, control), key=len, reverse=True)
    self._control = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

  def encode(self, text: str) -> list[int]:
    parts = self._control.split(text) if self._control else [text]
    ids = []
    for index, part in enumerate(parts):  # every second one is a special token
      ids += [self._processor.piece_to_id(part)] if index % 2 else self._processor.encode(part)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    return self._processor.decode(list(ids))

  def id_of(self, token: str) -> int | None:
    id = self._processor.piece_to_id(token)
    return id if self._processor.id_to_piece(id) == token else None

  def save(self, folder: Path) -> tuple[str, str]:
    (folder / "tokenizer.model").write_bytes(self._model.SerializeToString())
    return "tokenizer.model", "LlamaTokenizer"


def gguf_pieces(file: GGUFFile) -> SentencePieces:
  """The sentencepiece model that a GGUF file, which calls it «llama», holds piece by piece.

  Raises:
    ValueError: the header contradicts itself.
  """
  fields = file.fields
  tokens, scores, types = (fields.get(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
  if not isinstance(tokens, list) or not (isinstance(scores, np.ndarray) and isinstance(types, np.ndarray)):
    raise ValueError(f"{file.path} holds a tokenizer without tokens, scores or types; get the file again.")
  if not len(tokens) == len(scores) == len(types) or not set(types.tolist()) <= set(range(_NORMAL, _BYTE + 1)):
    raise ValueError(f"{file.path} holds a tokenizer whose tokens, scores and types do not fit; get the file again.")
  model = proto.ModelProto()
  for token, score, kind in zip(tokens, scores.tolist(), types.tolist(), strict=True):
    model.pieces.add(piece=token, score=score, type=kind)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.byte_fallback = bool((types == _BYTE).any())
  for role, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
    setattr(trainer, f"{role}_id", _special_id(fields, f"{theirs}_token_id", len(tokens)))
  normalizer.name = "identity"
  normalizer.add_dummy_prefix = _says(fields, "add_space_prefix", True)
  normalizer.remove_extra_whitespaces = _says(fields, "remove_extra_whitespaces", False)
  rules = fields.get("tokenizer.ggml.precompiled_charsmap")
  if isinstance(rules, np.ndarray):
    normalizer.precompiled_charsmap = rules.tobytes()
  try:
    return SentencePieces(model, adds_bos=_says(fields, "add_bos_token", True))
  except ValueError as error:
    raise ValueError(f"{file.path} holds a tokenizer that cannot be: {error}; get the file again.") from error


def _special_id(fields: dict[str, Any], name: str, num_tokens: int) -> int:
  id = fields.get(f"tokenizer.ggml.{name}")
  return id if isinstance(id, int) and 0 <= id < num_tokens else -1


def _says(fields: dict[str, Any], name: str, default: bool) -> bool:
  """What the header says; files of this kind leave out what is usual."""
  says = fields.get(f"tokenizer.ggml.{name}")
  return default if says is None else bool(says)
