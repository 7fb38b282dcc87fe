"""Our tokenizers as the files that `transformers` reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from lattice_jax.config import DataConfig
from lattice_jax.data.pieces import FastPieces
from lattice_jax.data.pretrained_tokenizer import PretrainedTokenizer, SpecialTokens
from lattice_jax.data.tokenizers import ByteTokenizer, Tokenizer, model_path

_SPECIAL = ("<pad>", "<eos>", "<unk>")  # ids 0, 1, 2 of our own tokenizers


def export_tokenizer(tokenizer: Tokenizer, data: DataConfig, folder: Path) -> list[str]:
  """Writes the tokenizer into `folder`; the names of the files.

  A sentencepiece model is copied as it is: no tokenizer.json cuts text in exactly its way.

  Raises:
    ValueError: the tokenizer is of a kind that `transformers` does not know.
  """
  if isinstance(tokenizer, ByteTokenizer):
    tokenizer = _bytes_as_pieces()
  if isinstance(tokenizer, PretrainedTokenizer):
    return tokenizer.save(folder)
  if not data.tokenizer.startswith("bpe_"):
    raise ValueError(f"data.tokenizer={data.tokenizer} cannot be exported; bytes, bpe_* and pretrained ones can.")
  shutil.copyfile(model_path(data), folder / "tokenizer.model")
  return ["tokenizer.model (of sentencepiece)"]


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
  """bos, eos and pad of config.json. Ours read eos before a text, so it is their bos too."""
  if not isinstance(tokenizer, PretrainedTokenizer):
    return {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
  stops = list(tokenizer.stop_ids)
  return {
    "bos_token_id": tokenizer.bos_id, "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
    "pad_token_id": tokenizer.pad_id}


def _bytes_as_pieces() -> PretrainedTokenizer:
  """Byte-level BPE without merges: byte b is b + 3, and a text starts with eos."""
  names = _byte_names()
  vocab = {token: id for id, token in enumerate((*_SPECIAL, *names))}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
  eos = _SPECIAL[1]
  tokenizer.post_processor = processors.TemplateProcessing(
    single=[eos, "$A"], pair=[eos, "$A", eos, "$B"], special_tokens=[(eos, 1)])
  return PretrainedTokenizer("bytes", FastPieces(tokenizer), SpecialTokens(eos, eos, (), None))


def _byte_names() -> list[str]:
  """The character that byte-level BPE has for each byte: itself where it can be seen, else the next from 256 on."""
  seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
  others = iter(range(256, 512))
  return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]
