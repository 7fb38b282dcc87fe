"""The tokenizer and chat template of a pretrained model, from the files of a folder or the header of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lattice_jax.data.published import decode_text
from lattice_jax.data.tokenizers.added_tokens import load_tokenizer
from lattice_jax.data.tokenizers.backend import Backend, FastBackend
from lattice_jax.data.tokenizers.chat_template import render
from lattice_jax.data.tokenizers.gguf_bpe import bpe_of_gguf
from lattice_jax.data.tokenizers.sentencepiece_backend import sentencepiece_of_folder, sentencepiece_of_gguf
from lattice_jax.data.tokenizers.special_tokens import (
  EXTRA,
  SpecialTokens,
  folder_special_tokens,
  header_special_tokens,
)
from lattice_jax.formats.gguf_file import GGUFFile

_SEPARATOR = "<|endoftext|>"  # between documents, in models that put nothing at the start of a text
# The defaults of tokenizer_config.json: text unchanged, and prompts padded at their start.
_USUAL = {"clean_up_tokenization_spaces": False, "padding_side": "left"}


class PretrainedTokenizer:
  """A `Tokenizer` with the ids of the model. Special tokens that a text spells out become their ids.

  start_ids: the model's bos, or nothing. `eos_id`, the first input of every document, is the bos, or else the separator
  between the documents that the model was trained on.
  """

  banned_ids = ()

  def __init__(self, name: str, pieces: Backend, special: SpecialTokens):
    """Raises ValueError if the backend lacks the token for bos or eos."""
    self.name = name
    self.pieces = pieces
    self._special = special
    self.vocab_size = pieces.vocab_size
    self.bos_id, eos_id, pad_id = (self._id(role) for role in ("bos_token", "eos_token", "pad_token"))
    self.start_ids = (self.bos_id,) if self.bos_id in pieces.start_ids else ()
    self.stop_ids = tuple(dict.fromkeys([*special.stops, *([] if eos_id is None else [eos_id])]))
    starts = [*self.start_ids, pieces.id_of(_SEPARATOR), *self.stop_ids, 0]
    self.eos_id = next(id for id in starts if id is not None)
    self.pad_id = self.eos_id if pad_id is None else pad_id

  def encode(self, raw: bytes) -> np.ndarray:
    """Raises ValueError if the bytes are not UTF-8."""
    text = decode_text(raw, "the text", "convert it")
    return np.array(self.pieces.encode(text), np.uint16 if self.vocab_size <= 2**16 else np.uint32)

  def decode(self, ids: np.ndarray) -> bytes:
    return self.pieces.decode(np.asarray(ids).tolist()).encode("utf-8")

  def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
    """The messages as the model was trained to read them, up to where its answer begins.

    Raises ValueError if the model has no chat template, or if the template fails.
    """
    if self._special.template is None:
      raise ValueError(f"the model {self.name} has no chat template; give a plain prompt.")
    try:
      return render(self._special.template, messages, self._special.for_template())
    except ValueError as error:
      raise ValueError(f"the chat template of {self.name} failed: {error}.") from error

  def save(self, folder: Path) -> list[str]:
    """Writes the files that `transformers` reads, with tokenizer_config.json, and returns their names."""
    files, facts = self.pieces.save(folder)
    roles = {role: token for role, token in self._special.roles.items() if self._id(role) is not None}
    config = _USUAL | dict(self._special.config) | facts | roles | {
      EXTRA: list(self._special.extra), "add_bos_token": bool(self.start_ids), "chat_template": self._special.template}
    config = {name: value for name, value in config.items() if value not in (None, [])}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    return [*files, "tokenizer_config.json"]

  def _id(self, role: str) -> int | None:
    if role not in self._special.roles:
      return None
    token = self._special.roles[role]
    id = self.pieces.id_of(token)
    if id is None and role in ("bos_token", "eos_token"):
      raise ValueError(
        f"the tokenizer of {self.name} has no token {token!r}, which its files say is its {role}; get the file that "
        "adds it, such as added_tokens.json, too.")
    return id


def read_pretrained_tokenizer(name: str, path: Path) -> PretrainedTokenizer:
  """The tokenizer of a folder or GGUF file. Raises ValueError if it is missing or of an unknown kind."""
  if not path.is_dir():
    file = GGUFFile.open(path)
    is_sentencepiece = file.text("tokenizer.ggml.model") == "llama"
    pieces = sentencepiece_of_gguf(file) if is_sentencepiece else FastBackend(bpe_of_gguf(file))
    return PretrainedTokenizer(name, pieces, header_special_tokens(file))
  special, added = folder_special_tokens(path)
  if (path / "tokenizer.json").is_file():
    tokenizer = load_tokenizer(path / "tokenizer.json", added)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = special.splits_special
    return PretrainedTokenizer(name, FastBackend(tokenizer), special)
  if (path / "tokenizer.model").is_file():
    return PretrainedTokenizer(name, sentencepiece_of_folder(path / "tokenizer.model", added, special.config), special)
  raise ValueError(
    f"{path} holds neither tokenizer.json nor tokenizer.model, without which the model cannot read or write text; get "
    "one of them too.")
