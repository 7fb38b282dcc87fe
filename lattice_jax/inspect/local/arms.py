"""Ways to spend the same bytes on a long text: a larger window, a summary of what is far, tokens that stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lattice_jax.memories.local.maps_file import FittedMaps
from lattice_jax.ops.far_summary import FarSummary, Features, Matching, Mean, Moments, summary_bytes

SINKS = 4  # first tokens that all arms keep
CALL = 8  # tokens that leave a window at a time
LAG = 32  # tokens of a partition whose scores LagKV compares
WINDOW, MEAN, DIAGONAL, MOMENTS, MATCHING = "window", "mean", "moments, diagonal", "moments", "attention matching"
PICKS, BOTH, FEATURES = "LagKV", "moments + LagKV", "trained features"
NAMES = (WINDOW, MEAN, DIAGONAL, MOMENTS, MATCHING, BOTH, PICKS, FEATURES)
# (what loses less, what loses more); the first three are what is claimed.
PAIRS = (
  (MATCHING, MOMENTS), (MOMENTS, MEAN), (MEAN, WINDOW), (MOMENTS, DIAGONAL), (BOTH, MOMENTS), (BOTH, PICKS),
  (MATCHING, BOTH), (MATCHING, PICKS), (MATCHING, FEATURES), (FEATURES, MOMENTS), (FEATURES, MEAN))
CLAIMS = 3
_FLOAT = 4  # bytes; all is float32
_PER_PICK = 2 * 4  # bytes beside key and value: score and position


@dataclass(frozen=True)
class Heads:
  """Of one layer: key/value heads, query heads that share one, widths."""

  heads: int
  group: int
  key_dim: int
  value_dim: int

  @property
  def token_bytes(self) -> int:
    """Key and value of one token in one head."""
    return _FLOAT * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class Arm:
  """rule: what becomes of tokens that leave; None: they are lost. picks: tokens of a head that stay for their score.

  maps: which of several fitted ones make the features of the rule; None where it needs none.
  """

  name: str
  rule: FarSummary | None = None
  picks: int = 0
  maps: int | None = None

  @property
  def setting(self) -> str:
    """What was chosen, for a table."""
    parts = [str(self.rule)] if self.rule is not None else []
    parts += [f"{self.picks} picks"] if self.picks else []
    parts += [f"maps {self.maps + 1}"] if self.maps is not None else []
    return ", ".join(parts) or "–"

  def far_bytes(self, heads: Heads) -> int:
    """Of one head, beside the sinks and the window: every array at its full size."""
    summary = 0 if self.rule is None else summary_bytes(self.rule, 1, heads.key_dim, heads.value_dim)
    return summary + self.picks * (heads.token_bytes + _PER_PICK)

  def window(self, budget: int, heads: Heads) -> int:
    """Tokens of the window for which the bytes of `budget` tokens leave room; negative if they do not even hold it."""
    return (budget * heads.token_bytes - self.far_bytes(heads)) // heads.token_bytes - SINKS

  @property
  def least_window(self) -> int:
    """A token is scored by the partition after its own, which must have come before the token leaves."""
    return 2 * LAG if self.picks else CALL


def candidates(name: str, budget: int, heads: Heads, fitted: Sequence[FittedMaps] = ()) -> list[Arm]:
  """The settings of an arm that fit into the bytes of `budget` tokens, the simplest first. fitted: maps of features."""
  return [arm for arm in _settings(name, budget, heads, fitted) if arm.window(budget, heads) >= arm.least_window]


def _settings(name: str, budget: int, heads: Heads, fitted: Sequence[FittedMaps]) -> Iterator[Arm]:
  if name == WINDOW:
    yield Arm(name)
  if name == MEAN:
    yield from (Arm(name, Mean(blocks=blocks)) for blocks in (1, 4, 16))
  if name == DIAGONAL:
    yield from (Arm(name, Moments(blocks=blocks, cross=False, curvature=curvature))
                for blocks, curvature in ((1, 1.0), (1, 0.5), (4, 0.5)))
  if name == MOMENTS:
    yield from (Arm(name, Moments(blocks=blocks, curvature=curvature))
                for blocks, curvature in ((1, 1.0), (1, 0.5), (2, 0.5)))
  if name == MATCHING:
    for span, slots, blocks in ((32, 8, 4), (32, 16, 4), (32, 16, 8), (64, 16, 8)):
      yield Arm(name, Matching(group=heads.group, blocks=blocks, slots=slots, span=span, stride=4))
  if name == FEATURES:
    yield from (Arm(name, Features(maps.summary.features), maps=number) for number, maps in enumerate(fitted))
  for share in (8, 4):
    if name == PICKS:
      yield Arm(name, picks=budget // share)
    if name == BOTH:
      yield Arm(name, Moments(curvature=0.5), picks=budget // share)
