"""Every token stays."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.cache.policies.record import PolicyRecord, Records
from lattice_jax.fields import names, positive


@dataclass(frozen=True)
class FullConfig:
  """What the full cache notes for other policies that go on from its tokens."""

  records: tuple[str, ...] = names(
    (), "mass: attention that each token received; queries: the last ones; marks: of each token, such as separators",
    allowed=("mass", "queries", "marks"))
  observe: int = positive(32, "last queries that the record \"queries\" holds")


POLICY = PolicyRecord(
  doc="the policy \"full\": every token stays", chooses="nothing", section=FullConfig,
  records=lambda own: Records(
    mass="mass" in own.records, queries=own.observe if "queries" in own.records else 0, marks="marks" in own.records))
