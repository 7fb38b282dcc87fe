"""The special tokens of a pretrained model and their roles, as its files state them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.data.tokenizers.added_tokens import optional_json, stated_tokens
from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.shown import short_json

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = "additional_special_tokens"
_EXTRA_5 = "extra_special_tokens"  # the name in version 5; in version 4 an object of tokens with other roles
# Keys of tokenizer_config.json that an export writes in another form, or that name code, which is not read.
_NOT_HANDED_ON = (*ROLES, EXTRA, "added_tokens_decoder", "chat_template", "auto_map")
_ENDS_IN_HEADER = ("eos", "eot", "eom")
# Models end a turn, a message or a document with these, whatever else a header names.
_WELL_KNOWN_ENDS = (
  "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>",
  "<end_of_utterance>", "<EOT>", "▁<EOT>")
_HEADER_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_NONE = (-1, 2**32 - 1)  # ids that mean «no such token» in headers
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of pieces that are found in a text before it is split


@dataclass(frozen=True)
class SpecialTokens:
  """roles: the tokens of those of bos_token, eos_token … that exist. extra: special tokens without a role.

  stops: ids besides eos that end an answer. template: Jinja, or None. config: the other entries of
  tokenizer_config.json that `transformers` reads.
  """

  roles: Mapping[str, str] = field(default_factory=dict)
  extra: tuple[str, ...] = ()
  stops: tuple[int, ...] = ()
  template: str | None = None
  config: Mapping[str, Any] = field(default_factory=dict)

  @property
  def splits_special(self) -> bool:
    """Whether a special token that a text spells out is ordinary text."""
    return self.config.get("split_special_tokens") is True

  def for_template(self) -> dict[str, Any]:
    return dict(self.roles) | ({EXTRA: list(self.extra)} if self.extra else {})


def folder_special_tokens(path: Path) -> tuple[SpecialTokens, list[dict[str, Any]]]:
  """(special tokens of a folder's files, the tokens that they add to the tokenizer, by id).

  An added token is an object, as in the added_tokens of a tokenizer.json.

  Raises ValueError if a file is damaged, or two files contradict each other.
  """
  config, tokens_map = optional_json(path / "tokenizer_config.json"), optional_json(path / "special_tokens_map.json")
  roles = {}
  for role in ROLES:
    said = [_text(source.get(role), role, path) for source in (config, tokens_map)]
    texts = sorted({text for text in said if text is not None})
    if len(texts) > 1:
      raise ValueError(
        f"{path} says {role}={said[0]!r} in tokenizer_config.json and {said[1]!r} in special_tokens_map.json; correct "
        "the one that is wrong.")
    roles |= dict.fromkeys([role] if texts else [], *texts)
  extra = next(filter(None, (_extra(source, path) for source in (config, tokens_map))), ())
  for flag in ("add_bos_token", "split_special_tokens"):
    if config.get(flag) is not None and not isinstance(config[flag], bool):
      raise ValueError(f"{path} says {flag}={short_json(config[flag])}; it must be true or false.")
  rest = {name: value for name, value in config.items() if name not in _NOT_HANDED_ON}
  if isinstance(rest.get(_EXTRA_5), list):
    del rest[_EXTRA_5]
  special = SpecialTokens(roles, extra, _folder_stops(path), _template(path, config), rest)
  return special, stated_tokens(path, config, {*roles.values(), *extra})


def header_special_tokens(file: GGUFFile) -> SpecialTokens:
  """The special tokens of a GGUF file's header. Raises ValueError if the header is malformed."""
  tokens, types = header_tokens(file), file.fields.get("tokenizer.ggml.token_type")
  ids = {name: header_id(file, name) for name in (*_HEADER_ROLES.values(), *_ENDS_IN_HEADER)}
  roles = {role: tokens[ids[name]] for role, name in _HEADER_ROLES.items() if ids[name] is not None}
  whole = np.flatnonzero(np.isin(types, (CONTROL, USER_DEFINED))).tolist() if isinstance(types, np.ndarray) else []
  ends = [ids[name] for name in _ENDS_IN_HEADER]
  ends += [id for id in whole if id < len(tokens) and tokens[id] in _WELL_KNOWN_ENDS]
  stops = tuple(dict.fromkeys(id for id in ends if id is not None))
  return SpecialTokens(roles, (), stops, file.text("tokenizer.chat_template"))


def header_tokens(file: GGUFFile) -> list[str]:
  tokens = file.fields.get("tokenizer.ggml.tokens")
  if not isinstance(tokens, list) or not tokens:
    raise ValueError(f"{file.path} holds a tokenizer without tokens; get the file again.")
  return tokens


def header_id(file: GGUFFile, name: str) -> int | None:
  """The id of a role in the header, or None if there is none."""
  id, num_tokens = file.fields.get(f"tokenizer.ggml.{name}_token_id"), len(header_tokens(file))
  if id is None or (isinstance(id, int) and id in _NONE):
    return None
  if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < num_tokens:
    raise ValueError(
      f"{file.path} says tokenizer.ggml.{name}_token_id={short_json(id)}; it must be the id of one of its "
      f"{num_tokens:,} tokens: get the file again.")
  return id


def header_flag(file: GGUFFile, name: str) -> bool | None:
  says = file.fields.get(f"tokenizer.ggml.{name}")
  if says is not None and not isinstance(says, bool):
    raise ValueError(f"{file.path} says tokenizer.ggml.{name}={short_json(says)}; it must be true or false.")
  return says


def _text(token: Any, name: str, path: Path) -> str | None:
  """The text of a token, which files write as a string or as an object with `content`."""
  text = token.get("content") if isinstance(token, dict) else token
  if text is not None and not isinstance(text, str):
    raise ValueError(f"{path} says {name}={short_json(token)}; it must be a text, or an object whose content is one.")
  return text


def _extra(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
  renamed = config.get(_EXTRA_5)
  tokens = config.get(EXTRA) or (renamed if isinstance(renamed, list) else [])
  if not isinstance(tokens, list):
    raise ValueError(f"{path} says {EXTRA}={short_json(tokens)}; it must be a list of tokens.")
  return tuple(filter(None, (_text(token, EXTRA, path) for token in tokens)))


def _folder_stops(path: Path) -> tuple[int, ...]:
  """All ids in either file: generation_config.json mostly has more of them, and each file may be missing."""
  stops = []
  for file in ("generation_config.json", "config.json"):
    said = optional_json(path / file).get("eos_token_id")
    for id in said if isinstance(said, list) else [said]:
      if id is not None and (not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < 2**31):
        raise ValueError(f"{path / file} says eos_token_id={short_json(said)}; it must be an id, or a list of ids.")
      stops += [] if id is None else [id]
  return tuple(dict.fromkeys(stops))


def _template(path: Path, config: Mapping[str, Any]) -> str | None:
  """The template: a file of its own has precedence over a string, or a list with one named «default»."""
  file = path / "chat_template.jinja"
  if file.exists():
    try:
      return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise ValueError(f"{file} is not text in UTF-8; get it again.") from error
  template = config.get("chat_template")
  if isinstance(template, list):
    named = {
      entry["name"]: entry["template"] for entry in template
      if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)}
    if len(named) != len(template) or "default" not in named:
      raise ValueError(
        f"{path / 'tokenizer_config.json'} holds a list of chat templates that are not all texts under names of their "
        "own, one of them 'default'; correct it.")
    template = named["default"]
  if template is not None and not isinstance(template, str):
    raise ValueError(
      f"{path / 'tokenizer_config.json'} says chat_template={short_json(template)}; it must be a text, or a list of "
      "named ones.")
  return template
