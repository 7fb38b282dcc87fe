"""The tokenizer and chat template of a pretrained model: tokenizer.json, or what a GGUF file's header says."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import tokenizers

from lattice_jax.data.gguf_tokenizer import gguf_tokenizer, special_token
from lattice_jax.data.pieces import FastPieces, Pieces, gguf_pieces
from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.formats.safetensors_folder import read_json

_SEPARATOR = "<|endoftext|>"  # between documents, in models that put nothing at the start of a text


@dataclass(frozen=True)
class SpecialTokens:
  """bos, eos: as strings; None where the model has none. stops: ids that end an answer. template: Jinja, or None."""

  bos: str | None
  eos: str | None
  stops: tuple[int, ...]
  template: str | None


class PretrainedTokenizer:
  """A `data.tokenizers.Tokenizer` with the ids of the model. Special tokens that a text spells out become their ids.

  start_ids: the model's bos, or nothing. Where a document needs a first input, `eos_id` is the bos, or else the
  separator of the documents that the model was trained on.
  """

  banned_ids = ()

  def __init__(self, name: str, pieces: Pieces, special: SpecialTokens):
    self.name = name
    self.pieces = pieces
    self._special = special
    self.vocab_size = pieces.vocab_size
    self.bos_id = self._id(special.bos)
    self.start_ids = (self.bos_id,) if self.bos_id in pieces.start_ids else ()
    self.stop_ids = special.stops or tuple(id for id in (self._id(special.eos),) if id is not None)
    starts = [*self.start_ids, self._id(_SEPARATOR), *self.stop_ids, 0]
    self.eos_id = next(id for id in starts if id is not None)
    self.pad_id = self.eos_id

  def encode(self, raw: bytes) -> np.ndarray:
    """Raises ValueError where the bytes are not UTF-8."""
    try:
      text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"the text is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}; convert it.") from error
    return np.array(self.pieces.encode(text), np.uint16 if self.vocab_size <= 2**16 else np.uint32)

  def decode(self, ids: np.ndarray) -> bytes:
    return self.pieces.decode(np.asarray(ids).tolist()).encode("utf-8")

  def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
    """The messages as the model was trained to read them, up to where it answers.

    The template is run in a sandbox. Raises ValueError where there is none, or where it fails.
    """
    if self._special.template is None:
      raise ValueError(f"the model {self.name} has no chat template; give a plain prompt.")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals |= {"raise_exception": _refuse, "strftime_now": datetime.datetime.now().strftime}
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
      return environment.from_string(self._special.template).render(
        messages=messages, add_generation_prompt=True, bos_token=self._special.bos or "",
        eos_token=self._special.eos or "")
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
      raise ValueError(f"the chat template of {self.name} failed: {str(error).rstrip('.')}.") from error

  def save(self, folder: Path) -> list[str]:
    """Writes the pieces and tokenizer_config.json as `transformers` reads them; the names of the files."""
    file, reader = self.pieces.save(folder)
    config = {
      "tokenizer_class": reader, "clean_up_tokenization_spaces": False,
      "bos_token": self._special.bos, "eos_token": self._special.eos, "chat_template": self._special.template}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    return [file, "tokenizer_config.json"]

  def _id(self, token: str | None) -> int | None:
    return None if token is None else self.pieces.id_of(token)


def read_pretrained_tokenizer(name: str, path: Path) -> PretrainedTokenizer:
  """The tokenizer of a folder or GGUF file. Raises ValueError where it is missing or of a kind that is not known."""
  if path.is_dir():
    return PretrainedTokenizer(name, *_from_folder(path))
  file = GGUFFile(path)
  is_sentencepiece = file.text("tokenizer.ggml.model") == "llama"
  pieces = gguf_pieces(file) if is_sentencepiece else FastPieces(gguf_tokenizer(file))
  bos, eos = (special_token(file.fields, role) for role in ("bos", "eos"))
  template = file.fields.get("tokenizer.chat_template")
  return PretrainedTokenizer(name, pieces, SpecialTokens(bos, eos, (), _text(template)))


def _from_folder(path: Path) -> tuple[Pieces, SpecialTokens]:
  file = path / "tokenizer.json"
  if not file.is_file():
    raise ValueError(f"{path} holds no tokenizer.json; the model cannot read or write text without: get it too.")
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
  # the library raises plain Exception for whatever it does not understand
  except Exception as error:
    raise ValueError(f"{file} is not a tokenizer that the tokenizers library reads ({error}); get it again.") from error
  tokenizer.no_truncation()
  tokenizer.no_padding()
  config = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
  stops = [id for id in _stop_ids(path) if isinstance(id, int)]
  return FastPieces(tokenizer), SpecialTokens(
    _text(config.get("bos_token")), _text(config.get("eos_token")), tuple(stops), _template(path, config))


def _stop_ids(path: Path) -> list[Any]:
  """generation_config.json may name several; config.json mostly one."""
  for file in ("generation_config.json", "config.json"):
    content = read_json(path / file) if (path / file).is_file() else {}
    if content.get("eos_token_id") is not None:
      ids = content["eos_token_id"]
      return ids if isinstance(ids, list) else [ids]
  return []


def _template(path: Path, config: Mapping[str, Any]) -> str | None:
  """A string, a list of named ones, or a file of its own."""
  file = path / "chat_template.jinja"
  if file.is_file():
    return file.read_text(encoding="utf-8")
  template = config.get("chat_template")
  if isinstance(template, list):
    named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    template = named.get("default")
  return template if isinstance(template, str) else None


def _text(token: Any) -> str | None:
  """Files say a token as a string, or as an object with `content`."""
  token = token.get("content") if isinstance(token, dict) else token
  return token if isinstance(token, str) else None


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)
