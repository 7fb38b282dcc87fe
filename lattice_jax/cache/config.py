"""The section `model.cache`: fields that several policies read, and a section for each policy that has its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lattice_jax.cache.policies.registry import NAMES, POLICIES
from lattice_jax.fields import at_least, choice, fraction, positive, section, within


@dataclass(frozen=True)
class _SharedFields:
  """The fields of `CacheConfig` that several policies read."""

  policy: str = choice("full", NAMES, "which tokens stay")
  sinks: int = at_least(0, 16, "first tokens of a document, which are never dropped")
  lag: int = positive(128, "tokens of a partition")
  keep: int = at_least(0, 0, "tokens of a partition that stay, for each key/value head")
  ratio: float = within(0, 1, 0.0, "keep as a part of lag: 0.25 keeps a quarter of each partition")
  tokens: int = at_least(
    0, 0, "all that is kept: of \"window\" at any time, else of a document of text_len tokens")
  text_len: int = at_least(0, 0, "tokens of a document, for the budget `tokens`")
  skip_layers: int = at_least(
    0, 0, "first layers (of each block of the pattern) that keep every token; all have room for as many")
  budget: str = choice(
    "fixed", ("fixed", "memory", "drift"), "fixed: of every partition alike; memory, drift: as it needs to hold that")
  drift: float = fraction(0.0, "of the budget \"drift\": part of a partition's deviation that may be dropped at most")
  call_len: int = at_least(
    0, 0, "tokens of a call at most, for which the cache then has room; 0 = room for whole documents")

  @property
  def own(self) -> Any:
    """The section of its policy; None where the policy has none."""
    return getattr(self, self.policy, None)


CacheConfig = dataclasses.make_dataclass(
  "CacheConfig",
  [(name, record.section, section(record.section, record.doc)) for name, record in POLICIES.items() if record.section],
  bases=(_SharedFields,), frozen=True, namespace={"__module__": __name__})
CacheConfig.__doc__ = """What the memory "attention" keeps of the tokens that it has read.

Policies that compress keep the first `sinks` tokens, `keep` of every partition of `lag` tokens once the next partition
is complete, and all later tokens; h2o, snapkv and tova as many, chosen from all such partitions together
(docs/cache_policies.md). Their budget is one of `keep`, `ratio` and `tokens`; with `budget` "memory" it is what
partitions keep on average at most, with "drift" it may be left out (lattice_jax/cache/online.py).
"""


_OF_WINDOW = {"sinks", "tokens"}
_OF_PARTITIONS = _OF_WINDOW | {"lag", "keep", "ratio", "text_len", "skip_layers", "call_len"}
_READ = {  # by what a policy chooses
  "nothing": set(), "recent": _OF_WINDOW, "all": _OF_PARTITIONS, "partition": _OF_PARTITIONS | {"budget", "drift"}}


def unread_fields(policy: str) -> set[str]:
  """Names of the shared fields that mean nothing to this policy."""
  return {field.name for field in dataclasses.fields(_SharedFields)} - _READ[POLICIES[policy].chooses]


def own_fields(policy: str) -> set[str]:
  """Names of the fields that only this policy reads."""
  section = POLICIES[policy].section
  return {field.name for field in dataclasses.fields(section)} if section else set()
