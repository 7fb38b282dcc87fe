"""Which arm answers whom: the hook by which a rollout decides, and learns what each arm did."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

CONTROL, TREATMENT = "control", "treatment"
REFUSED = "refused"  # why a text ended that was never begun, as the arm had no room or has failed


@dataclass(frozen=True)
class Route:
  """arm: whose answer the client gets. shadows: arms that write a text of their own beside it, for comparison only.

  note: what the router wants to have back.
  """

  arm: str
  shadows: tuple[str, ...] = ()
  note: Any = None


@dataclass(frozen=True)
class Outcome:
  """What one arm made of a request.

  ids: of its text. finish: why it ended, as in `request`, or REFUSED. first_seconds: from the request to the first ids;
  next_seconds, longest_seconds: between later ones and those before, the median and the longest; None where there were
  none. cache_bytes: of the memory of its row.
  """

  ids: tuple[int, ...]
  finish: str
  first_seconds: float | None
  next_seconds: float | None
  longest_seconds: float | None
  cache_bytes: int


@dataclass(frozen=True)
class Answered:
  """A request of which every arm has ended. unit: by which it was routed. outcomes: by arm.

  An arm that should have shadowed it and had no room is missing; one that has failed has REFUSED. Of a request that
  the arm refused prompt_ids are empty.
  """

  request_id: str
  unit: str
  route: Route
  prompt_ids: tuple[int, ...]
  outcomes: Mapping[str, Outcome]


@runtime_checkable
class Router(Protocol):
  """What a rollout has to offer."""

  def route(self, unit: str) -> Route:
    """The arm for a unit, such as a user. Called on the event loop, which serves nobody until it returns."""

  def record(self, answered: Answered) -> None:
    """Called once for each request, in a thread of its own, which may take its time."""

  def close(self) -> None:
    """Called once, after the last request was recorded."""


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

  def record(self, answered: Answered) -> None:
    """Keeps nothing."""

  def close(self) -> None:
    """Has nothing to end."""
