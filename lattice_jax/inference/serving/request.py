"""What an engine is asked, what it answers to, and why it may say no."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lattice_jax.inference.sampling import Sampling
from lattice_jax.inference.serving.programs import BROKEN, NO_TOKEN, STOPPED

# Why a text ended, beside the three reasons of `generate.GeneratedRow`: its reader left, the server stopped, a fault,
# logits that are NaN or infinite.
STOP, LENGTH, CONTEXT = "stop", "length", "context"
CANCELLED, ABORTED, FAILED, NOT_FINITE = "cancelled", "abort", "error", "not_finite"


class QueueFull(Exception):
  """So many requests wait already that no other may."""


class Closed(Exception):
  """The engine takes no more requests."""


@dataclass(frozen=True)
class EngineOptions:
  """rows: texts that are written at once. max_len: the most tokens of a prompt and its text together.

  chunk_len: tokens of a prompt read in one call. chunks: such calls between two blocks. block_len: tokens of each row
  drawn in one call, a block. queue: requests that may wait for a row.
  """

  rows: int = 16
  max_len: int = 2048
  chunk_len: int = 64
  chunks: int = 1
  block_len: int = 1
  queue: int = 256

  def __post_init__(self) -> None:
    """Raises ValueError where a number is below 1."""
    for name, value in vars(self).items():
      if value < 1:
        raise ValueError(f"{name}={value} must be at least 1.")


@dataclass(frozen=True, eq=False)
class Request:
  """One text to be written, and how it is drawn; see `generate.GenerateOptions`.

  ids: all that is read first, the model's start ids among them. length: the most tokens of the text. stop_ids: beside
  those of the engine.
  """

  ids: np.ndarray
  length: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0
  stop_ids: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    """Raises ValueError for a sampling out of range."""
    Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@runtime_checkable
class Listener(Protocol):
  """Who hears of a request; called from the engine's thread, which waits for it."""

  def on_tokens(self, ids: list[int]) -> bool:
    """New ids of the text. True ends the text: these are its last."""

  def on_end(self, finish: str) -> None:
    """Called once; nothing follows."""


class Meter:
  """What an engine reports of its work; this one counts nothing. Called from the engine's thread.

  Seconds are those that a reader of the stream sees.
  """

  def first_token(self, seconds: float) -> None:
    """From the request to the first ids of its text."""

  def gap(self, seconds: float) -> None:
    """Between ids of a text and those that follow them."""

  def ended(self, finish: str, prompt_len: int, num_tokens: int) -> None:
    """A request was answered, or ended otherwise."""


@dataclass(eq=False)
class Ticket:
  """A request that the engine has taken; the engine's thread writes all fields but `is_cancelled`.

  allowed: tokens that its text may have. ordered: tokens that the device was asked for. count: tokens drawn so far.
  submitted, latest: when it came, and when something last came of it.
  """

  request: Request
  listener: Listener
  allowed: int
  wake: Callable[[], Any]
  row: int | None = None
  ordered: int = 0
  count: int = 0
  finish: str | None = None
  is_cancelled: bool = False
  submitted: float = field(default_factory=time.perf_counter)
  latest: float | None = None

  @property
  def goes_on(self) -> bool:
    """Whether the device has still to draw tokens of it."""
    return self.finish is None and self.ordered < self.allowed

  def cancel(self) -> None:
    """Frees its row at the next step, from whatever thread."""
    self.is_cancelled = True
    self.wake()

  def take(self, drawn: list[int]) -> tuple[list[int], str | None]:
    """(the ids of a block that are the text's, why it ends with them or None)."""
    new: list[int] = []
    for id in drawn:
      if id == STOPPED or id in self.request.stop_ids:
        return new, STOP
      if id == BROKEN:
        return new, NOT_FINITE
      if id == NO_TOKEN:
        break
      new.append(id)
      self.count += 1
      if self.count == self.allowed:
        return new, LENGTH if self.allowed == self.request.length else CONTEXT
    return new, None


def check_request(request: Request, *, vocab: int, max_len: int) -> None:
  """Raises ValueError where the prompt is empty, holds unknown ids, or leaves no room; or no token is asked for."""
  ids = np.asarray(request.ids)
  if not ids.size:
    raise ValueError("the prompt is empty, and this model starts a text with no token of its own; give a prompt.")
  outside = ids[(ids < 0) | (ids >= vocab)]
  if outside.size:
    raise ValueError(
      f"the prompt holds token {outside[0]}, outside the vocabulary of {vocab}; give ids from 0 to {vocab - 1}.")
  if ids.size >= max_len:
    raise ValueError(
      f"the prompt has {ids.size:,} tokens, and the context holds {max_len:,} of prompt and text together; shorten the "
      "prompt.")
  if request.length < 1:
    raise ValueError(f"a text of {request.length} tokens was asked for; ask for at least 1.")
