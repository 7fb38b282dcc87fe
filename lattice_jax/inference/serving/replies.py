"""The JSON by which OpenAI's completions and chats are answered, whole or in events."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from lattice_jax.inference.serving.front import Piece
from lattice_jax.inference.serving.request import CONTEXT, FAILED, LENGTH
from lattice_jax.inference.serving.wire import Refusal

DONE = b"data: [DONE]\n\n"


def failure() -> Refusal:
  """What a client hears when its text ended by a fault of the server."""
  return Refusal("the server failed while it wrote this text; its log says why.", status=500, type="server_error")


@dataclass(frozen=True)
class Reply:
  """The frame of one answer. request_id: without the prefix of its kind."""

  request_id: str
  model: str
  prompt_len: int
  is_chat: bool
  created: int = field(default_factory=lambda: int(time.time()))

  @property
  def id(self) -> str:
    return f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.request_id}"

  def whole(self, text: str, last: Piece) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
    return self._frame(
      "chat.completion" if self.is_chat else "text_completion", [self._choice(said, last.finish)], self._usage(last))

  def opening(self) -> bytes:
    """The event before all others of a chat."""
    return self._event({"delta": {"role": "assistant", "content": ""}}, None)

  def event(self, text: str, finish: str | None = None) -> bytes:
    said = {"delta": {"content": text} if text else {}} if self.is_chat else {"text": text}
    return self._event(said, finish)

  def closing(self, last: Piece, *, with_usage: bool) -> bytes:
    """The events behind the last piece."""
    if last.finish == FAILED:
      return to_event(failure().body) + DONE
    return (to_event(self._frame(self._chunk, [], self._usage(last))) if with_usage else b"") + DONE

  @property
  def _chunk(self) -> str:
    return "chat.completion.chunk" if self.is_chat else "text_completion"

  def _event(self, said: dict[str, Any], finish: str | None) -> bytes:
    return to_event(self._frame(self._chunk, [self._choice(said, finish)]))

  def _choice(self, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
    # OpenAI has one word for both limits
    return {"index": 0, **said, "logprobs": None, "finish_reason": LENGTH if finish == CONTEXT else finish}

  def _frame(self, kind: str, choices: list[Any], usage: dict[str, int] | None = None) -> dict[str, Any]:
    frame = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
    return frame | ({"usage": usage} if usage else {})

  def _usage(self, last: Piece) -> dict[str, int]:
    return {
      "prompt_tokens": self.prompt_len, "completion_tokens": last.num_tokens,
      "total_tokens": self.prompt_len + last.num_tokens}


def to_event(value: Any) -> bytes:
  """A server-sent event."""
  return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
