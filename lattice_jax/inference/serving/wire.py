"""The JSON of OpenAI's completions: requests, checked field by field, and what is answered.

No field is ignored: one that nothing here can do is refused, unless it has the value that asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from lattice_jax.domains import SEED, TEMPERATURE, TOP_K, TOP_P, Number, Switch, Text, checked, did_you_mean
from lattice_jax.shown import shown, shown_name

_MOST_STOPS, _LONGEST_STOP = 16, 1000
_ROLES = ("system", "developer", "user", "assistant")


class Refusal(Exception):
  """An answer that is an error: one sentence, and how OpenAI's clients tell it from others."""

  def __init__(
    self, message: str, *, status: int = 400, type: str = "invalid_request_error", param: str | None = None,
    code: str | None = None):
    super().__init__(message)
    self.status, self.type, self.param, self.code = status, type, param, code

  @property
  def body(self) -> dict[str, Any]:
    return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
  """A request as a client wrote it. prompt: text, or ids; `messages` stand in its place in a chat.

  length: None for the default; it was given in `length_field`. seed: None for any.
  """

  prompt: str | tuple[int, ...] = ""
  messages: tuple[Mapping[str, str], ...] = ()
  model: str | None = None
  length: int | None = None
  length_field: str = "max_tokens"
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int | None = None
  stops: tuple[str, ...] = ()
  stop_ids: tuple[int, ...] = ()
  echo: bool = False
  stream: bool = False
  include_usage: bool = False
  user: str | None = None


def parse_completion(body: bytes) -> Asked:
  """Raises Refusal, in one sentence that names the field."""
  fields = _read(body, {**_COMMON, "prompt": _prompt, "echo": _of(Switch())}, {"best_of": (1,), "suffix": ("",)})
  if "prompt" not in fields:
    raise Refusal("the field prompt is missing; give a text or a list of token ids.", param="prompt")
  return _asked(fields)


def parse_chat(body: bytes) -> Asked:
  """Raises Refusal, in one sentence that names the field."""
  fields = _read(
    body, {**_COMMON, "messages": _messages, "max_completion_tokens": _of(Number(int, 1))},
    {"logprobs": (False,), "tools": ([],), "tool_choice": ("none",), "functions": ([],),
     "response_format": ({"type": "text"},), "modalities": (["text"],)})
  if "messages" not in fields:
    raise Refusal("the field messages is missing; give a list of messages, each with role and content.",
                  param="messages")
  if "max_completion_tokens" in fields:
    if "max_tokens" in fields:
      raise Refusal("max_tokens and max_completion_tokens mean the same; give one of them.", param="max_tokens")
    fields |= {"max_tokens": fields.pop("max_completion_tokens"), "length_field": "max_completion_tokens"}
  return _asked(fields)


def _asked(fields: dict[str, Any]) -> Asked:
  names = {"max_tokens": "length", "stop": "stops", "stop_token_ids": "stop_ids", "stream_options": "include_usage"}
  if "stream_options" in fields and not fields.get("stream"):
    raise Refusal("stream_options are of streams; leave them out, or set stream to true.", param="stream_options")
  return Asked(**{names[name] if name in names else name: value for name, value in fields.items()})


def _read(
  body: bytes, readers: Mapping[str, Callable[[str, Any], Any]], neutral: Mapping[str, tuple[Any, ...]],
) -> dict[str, Any]:
  """The fields that were given and are not null. neutral: of a field that nothing here does, what asks for nothing."""
  neutral = _NEUTRAL | neutral
  fields = {}
  for name, value in _json_object(body).items():
    if name not in readers and name not in neutral:
      known = [*readers, *neutral]
      raise Refusal(f"there is no field {shown_name(name)}.{did_you_mean(name, known)}", param=name[:80])
    if value is None:
      continue
    if name in readers:
      fields[name] = readers[name](name, value)
    elif not any(_is_same(value, allowed) for allowed in neutral[name]):
      allowed = "".join(f", or set it to {json.dumps(value)}" for value in neutral[name][:1])
      raise Refusal(f"{name}={shown(value)} is not supported here; leave it out{allowed}.", param=name)
  return fields


def _is_same(value: Any, allowed: Any) -> bool:
  return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _json_object(body: bytes) -> dict[str, Any]:
  def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
      raise ValueError("a field stands in it twice")
    return fields

  try:
    value = json.loads(body.decode("utf-8"), parse_constant=refuse_constant, object_pairs_hook=unique)
  except RecursionError as error:
    raise Refusal("the body is nested too deeply; send one object of plain fields.") from error
  except ValueError as error:
    raise Refusal(f"the body is not JSON in UTF-8 ({str(error).partition(' (')[0][:100]}); send one object.") from error
  if not isinstance(value, dict):
    raise Refusal("the body must be a JSON object, with fields such as prompt.")
  return value


def _of(domain: Any) -> Callable[[str, Any], Any]:
  def read(name: str, value: Any) -> Any:
    try:
      return checked(domain, name, value)
    except ValueError as error:
      raise Refusal(str(error), param=name) from error

  return read


def _text(name: str, value: str) -> str:
  if any("\ud800" <= character <= "\udfff" for character in value):
    raise Refusal(f"{name} holds half a character, which no text in UTF-8 can; send the whole one.", param=name)
  return value


def _ids(name: str, value: Any) -> tuple[int, ...]:
  if not isinstance(value, list) or not all(type(id) is int and 0 <= id < 2**31 for id in value):
    raise Refusal(f"{name} must be a list of token ids.", param=name)
  return tuple(value)


def _prompt(name: str, value: Any) -> str | tuple[int, ...]:
  if isinstance(value, list) and value and isinstance(value[0], (str, list)):
    if len(value) > 1:
      raise Refusal(f"{name} holds {len(value):,} prompts, and a request has one; send one request for each.",
                    param=name)
    value = value[0]
  if isinstance(value, str):
    return _text(name, value)
  if not isinstance(value, list):
    raise Refusal(f"{name} must be a text or a list of token ids.", param=name)
  return _ids(name, value)


def _stop(name: str, value: Any) -> tuple[str, ...]:
  stops = [value] if isinstance(value, str) else value
  is_list = isinstance(stops, list) and all(isinstance(stop, str) for stop in stops)
  if not is_list or len(stops) > _MOST_STOPS or not all(0 < len(stop) <= _LONGEST_STOP for stop in stops):
    raise Refusal(
      f"{name} must be a text or a list of at most {_MOST_STOPS}, each of 1 to {_LONGEST_STOP:,} characters.",
      param=name)
  return tuple(_text(name, stop) for stop in stops)


def _stream_options(name: str, value: Any) -> bool:
  if not isinstance(value, dict) or set(value) - {"include_usage"}:
    raise Refusal(f"{name} must be an object that holds nothing but include_usage.", param=name)
  return _of(Switch())(f"{name}.include_usage", value["include_usage"]) if value else False


def _messages(name: str, value: Any) -> tuple[dict[str, str], ...]:
  if not isinstance(value, list) or not value:
    raise Refusal(f"{name} must be a list of at least one message, each with role and content.", param=name)
  return tuple(_message(f"{name}[{index}]", message) for index, message in enumerate(value))


def _message(name: str, message: Any) -> dict[str, str]:
  if not isinstance(message, dict) or set(message) != {"role", "content"}:
    raise Refusal(f"{name} must be an object with role and content, and nothing else.", param=name)
  role, content = message["role"], message["content"]
  if role not in _ROLES:
    raise Refusal(f"{name}.role={shown(role)} is not one of {', '.join(_ROLES)}.", param=name)
  if isinstance(content, list):
    are_texts = [
      isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text"
      and isinstance(part["text"], str) for part in content]
    content = "".join(part["text"] for part in content) if all(are_texts) else None
  if not isinstance(content, str):
    raise Refusal(f"{name}.content must be a text, or a list of parts of type text.", param=name)
  return {"role": role, "content": _text(f"{name}.content", content)}


_COMMON: dict[str, Callable[[str, Any], Any]] = {
  "model": _of(Text()), "max_tokens": _of(Number(int, 1)), "temperature": _of(TEMPERATURE), "top_p": _of(TOP_P),
  "top_k": _of(TOP_K), "seed": _of(SEED), "stop": _stop, "stop_token_ids": _ids, "stream": _of(Switch()),
  "stream_options": _stream_options, "user": _of(Text())}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "n": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "logprobs": (),
  "top_logprobs": (), "metadata": ({},), "store": (False,)}

