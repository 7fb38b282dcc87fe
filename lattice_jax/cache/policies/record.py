"""What the cache has to know of a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Records(NamedTuple):
  """What a policy notes while tokens arrive.

  mass: the attention that each slot has received. queries: how many of the last to keep. marks: those of each token.
  """

  mass: bool = False
  queries: int = 0
  marks: bool = False


@dataclass(frozen=True, eq=False)
class PolicyRecord:
  """A policy. Its functions take `own`, an instance of `section`.

  doc: of its section, for --help.
  chooses: what competes for the places that its budget leaves, which decides the laws that it obeys:
    "nothing": all tokens stay.
    "recent": the sinks and the last tokens stay. No law is excepted.
    "partition": the tokens of a partition compete once, and its picks stay for good. What stays does not depend on how
      tokens arrive, but attention before a compression sees more than after it; a budget may be decided online.
    "all": the tokens of all partitions compete anew whenever one falls due, by the attention that they received.
  score: (own, views.Partitions) → [B, H, N-1, L] of "partition", (own, views.WholeCache) → [B, H, S] of "all"; float32,
    the higher the sooner a token stays. No gradient passes.
  section: the dataclass of the fields that only this policy reads, `model.cache.NAME`; None where it has none.
  check: raises ValueError where they contradict one another.
  records: what it has to note while tokens arrive.
  """

  doc: str
  chooses: str
  score: Callable[[Any, Any], Any] | None = None
  section: type | None = None
  check: Callable[[Any], None] = lambda own: None
  records: Callable[[Any], Records] = lambda own: Records()

  @property
  def compresses(self) -> bool:
    """Whether it compresses partitions, of which a budget says how much stays."""
    return self.chooses in ("partition", "all")

  @property
  def exempt_from(self) -> tuple[str, ...]:
    """Laws of a memory that it need not obey, because what attention sees depends on where a call ends."""
    return ("L1", "L2", "L11", "L13") if self.compresses else ()
