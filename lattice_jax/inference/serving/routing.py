"""Which arm answers whom: the hook by which a rollout decides, and learns what each arm did."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

CONTROL, TREATMENT = "control", "treatment"


@dataclass(frozen=True)
class Route:
  """arm: whose answer the client gets. shadows: arms that compute the same beside it, for comparison only."""

  arm: str
  shadows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
  """What one arm made of one request; of a shadowed request there is one for each arm, with the same `request_id`.

  unit: by which the arm was chosen. ids: of the text. finish: as in `request`. first_token_seconds: None where no
  token came. seconds: from the request to the end of its text.
  """

  request_id: str
  unit: str
  arm: str
  is_shadow: bool
  prompt_len: int
  ids: tuple[int, ...]
  finish: str
  first_token_seconds: float | None
  seconds: float


class Router(Protocol):
  """Both are called on the event loop, which serves nobody until they return."""

  def route(self, unit: str) -> Route:
    """The arm for a unit, such as a user."""

  def record(self, outcome: Outcome) -> None:
    """Called once for each arm of a request, when its text has ended, however that came."""


@dataclass(frozen=True)
class FixedRouter:
  """The treatment answers a fixed share of units, the same ones whenever it is asked; or it shadows the control.

  share: of units, from 0 to 1. shadow: control answers everybody, and the treatment computes the same for `share`.
  """

  share: float = 0.0
  shadow: bool = False

  def route(self, unit: str) -> Route:
    place = int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8], "big") / 2**64
    if place >= self.share:
      return Route(CONTROL)
    return Route(CONTROL, (TREATMENT,)) if self.shadow else Route(TREATMENT)

  def record(self, outcome: Outcome) -> None:
    """Keeps nothing."""
