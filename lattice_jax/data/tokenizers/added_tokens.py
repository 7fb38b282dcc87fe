"""The tokens that the files of a folder add to its tokenizer, with the ids that the files state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from lattice_jax.data.tokenizers.sandbox import call_in_sandbox
from lattice_jax.formats.safetensors_folder import read_json
from lattice_jax.shown import reason_of, short_json

# How the library finds a token in a text if the file does not say.
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
_MOST_IDS = 2**31


def stated_tokens(path: Path, config: Mapping[str, Any], special: set[str]) -> list[dict[str, Any]]:
  """The tokens of `config`'s added_tokens_decoder and of added_tokens.json, by id, in the form of a tokenizer.json.

  Raises ValueError if a token has two ids, an id has two tokens, or an entry has another form.
  """
  decoder, ids = config.get("added_tokens_decoder") or {}, optional_json(path / "added_tokens.json")
  if not isinstance(decoder, dict):
    raise ValueError(f"{path} says added_tokens_decoder={short_json(decoder)}; it must be an object of ids and tokens.")
  stated = [_of_decoder(id, token, path) for id, token in decoder.items()]
  flags = {token["content"]: token for token in stated}
  for content, id in ids.items():
    if not _is_id(id):
      raise ValueError(f"{path / 'added_tokens.json'} gives {content!r} the id {short_json(id)}; it must be a number.")
    plain = _FLAGS | {"content": content, "normalized": content not in special, "special": content in special}
    stated.append((flags[content] if content in flags else plain) | {"id": id})
  return _agreed(stated, path)


def load_tokenizer(file: Path, added: Sequence[Mapping[str, Any]]) -> tokenizers.Tokenizer:
  """The tokenizer of a tokenizer.json with its own added tokens and those in `added`, each with its stated id.

  Raises ValueError if the library cannot read it, the trial takes too long, or two statements contradict each other.
  """
  content = read_json(file)
  own = content["added_tokens"] if "added_tokens" in content else []
  if not isinstance(own, list) or not all(isinstance(token, dict) and _is_id(token.get("id")) for token in own):
    raise ValueError(f"{file} says added_tokens={short_json(own)}; it must be a list of tokens with their ids.")
  own = [_of_decoder(str(token["id"]), token, file) for token in own]
  theirs = {token["content"]: token for token in added}
  # tokenizer_config.json has the last word on how a token is found
  tokens = _agreed([*own, *added], file.parent)
  tokens = [theirs[token["content"]] if token["content"] in theirs else token for token in tokens]
  vocab = content["model"].get("vocab") if isinstance(content.get("model"), dict) else None
  if isinstance(vocab, dict):
    # the library renumbers added tokens consecutively, except those in the model's vocabulary
    by_id = {id: piece for piece, id in vocab.items() if isinstance(id, int)}
    _agreed([
      *tokens, *({"content": by_id[token["id"]], "id": token["id"]} for token in tokens if token["id"] in by_id),
      *({"content": token["content"], "id": vocab[token["content"]]} for token in tokens if token["content"] in vocab)],
      file.parent)
    vocab |= {token["content"]: token["id"] for token in tokens}
  content["added_tokens"] = tokens
  text = json.dumps(content, ensure_ascii=False)
  try:
    call_in_sandbox("trial", {"json": text})
    tokenizer = tokenizers.Tokenizer.from_str(text)
  # the library raises plain Exception for whatever it does not understand
  except Exception as error:
    raise ValueError(
      f"{file} is not a tokenizer that the tokenizers library reads ({reason_of(error)}); get it again.") from error
  wrong = next((token for token in tokens if tokenizer.token_to_id(token["content"]) != token["id"]), None)
  if wrong:
    raise ValueError(
      f"{file.parent} states the id {wrong['id']} for the added token {wrong['content']!r}, which cannot be: the "
      f"tokenizer has {tokenizer.get_vocab_size():,} tokens before it; correct the id.")
  return tokenizer


def optional_json(path: Path) -> dict[str, Any]:
  return read_json(path) if path.exists() else {}


def _is_id(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_IDS


def _of_decoder(id: str, token: Any, path: Path) -> dict[str, Any]:
  said = {name: token[name] for name in ("content", *_FLAGS) if name in token} if isinstance(token, dict) else {}
  is_token = all(isinstance(value, str if name == "content" else bool) for name, value in said.items())
  if not (id.isascii() and id.isdigit() and len(id) <= 10 and _is_id(int(id)) and is_token and said.get("content")):
    raise ValueError(f"{path} says of the added token {id[:20]!r} {short_json(token)}; it must be an id and a token.")
  return _FLAGS | said | {"id": int(id)}


def _agreed(tokens: Sequence[Mapping[str, Any]], path: Path) -> list[dict[str, Any]]:
  """Each token once, by id."""
  by_content: dict[str, dict[str, Any]] = {}
  by_id: dict[int, str] = {}
  for token in tokens:
    content, id = token["content"], token["id"]
    first = by_content.setdefault(content, dict(token))
    if first["id"] != id:
      raise ValueError(
        f"the files in {path} give the token {content!r} the ids {first['id']} and {id}; correct the one that is "
        "wrong.")
    if by_id.setdefault(id, content) != content:
      raise ValueError(
        f"the files in {path} give the id {id} to the tokens {by_id[id]!r} and {content!r}; correct the one that is "
        "wrong.")
  return sorted(by_content.values(), key=lambda token: token["id"])
