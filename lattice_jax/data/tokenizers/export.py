"""Our tokenizers as files that `transformers` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from lattice_jax.config import DataConfig
from lattice_jax.data.tokenizers.backend import FastBackend, starts_with
from lattice_jax.data.tokenizers.pretrained import PretrainedTokenizer
from lattice_jax.data.tokenizers.sentencepiece_backend import SentencePieceBackend
from lattice_jax.data.tokenizers.special_tokens import SpecialTokens
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, model_path

_SPECIAL = ("<pad>", "<eos>", "<unk>")  # ids 0, 1, 2 of our own tokenizers


def export_tokenizer(tokenizer: Tokenizer, data: DataConfig, folder: Path) -> list[str]:
  """Writes the tokenizer into `folder` and returns the names of the files.

  A sentencepiece model is written both unchanged and as a tokenizer.json.

  Raises ValueError if `transformers` does not know this kind of tokenizer.
  """
  if isinstance(tokenizer, ByteTokenizer):
    tokenizer = PretrainedTokenizer("bytes", _bytes_as_pieces(), _roles(*_SPECIAL[:2]))
  if isinstance(tokenizer, PretrainedTokenizer):
    return tokenizer.save(folder)
  if not data.tokenizer.startswith("bpe_"):
    raise ValueError(f"data.tokenizer={data.tokenizer} cannot be exported; bytes, bpe_* and pretrained ones can.")
  model = proto.ModelProto.FromString(model_path(data).read_bytes())
  pad, eos = (model.pieces[id].piece for id in (tokenizer.pad_id, tokenizer.eos_id))
  pieces = SentencePieceBackend(model, tokenizer.start_ids, finds_special=False)
  return PretrainedTokenizer(data.tokenizer, pieces, _roles(pad, eos)).save(folder)


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
  """The bos, eos and pad ids of config.json."""
  if not isinstance(tokenizer, PretrainedTokenizer):
    return {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
  stops = list(tokenizer.stop_ids)
  return {
    "bos_token_id": tokenizer.bos_id, "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
    "pad_token_id": tokenizer.pad_id}


def _roles(pad: str, eos: str) -> SpecialTokens:
  """Our models read eos before a text, so it is also bos. The unknown token is ordinary text."""
  return SpecialTokens({"pad_token": pad, "bos_token": eos, "eos_token": eos})


def _bytes_as_pieces() -> FastBackend:
  """Byte-level BPE without merges: byte b has id b + 3, and a text starts with eos."""
  vocab = {token: id for id, token in enumerate((*_SPECIAL, *_byte_names()))}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
  tokenizer.post_processor = starts_with(_SPECIAL[1], 1)
  tokenizer.encode_special_tokens = True  # a special token that a text spells out is ordinary text
  return FastBackend(tokenizer)


def _byte_names() -> list[str]:
  """Byte-level BPE's character for each byte: the byte itself if it is visible, else the next character from 256 on."""
  visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
  others = iter(range(256, 512))
  return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]
