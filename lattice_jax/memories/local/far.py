"""What is left of tokens that leave the windows, as `model.local.far` and `model.local.summary` say it."""

from __future__ import annotations

from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.ops.far_summary import FarSummary, Features, Matching, Mean, Moments


def find_fold(config: LocalConfig, group: int) -> FarSummary | None:
  """The rule that `model.local.far` names; None for "none". group: query heads that share a key.

  Raises:
    ValueError: the rule's fields contradict one another.
  """
  summary = config.summary
  given = {"span": summary.span} | ({"blocks": summary.blocks} if summary.blocks else {})
  try:
    match config.far:
      case "mean":
        return Mean(**given)
      case "moments":
        return Moments(**given, cross=summary.cross, curvature=summary.curvature, most=summary.most)
      case "features":
        return Features(summary.features)
      case "matching":
        return Matching(**given, group=group, slots=summary.slots, stride=summary.stride, ridge=summary.ridge)
  except ValueError as error:
    raise ValueError(str(error).replace("Matching.", "model.local.summary.")) from error
  return None


def far_block_len(fold: FarSummary, config: LocalConfig, length: int) -> int:
  """`attend_far`'s block: 0, its own choice, but the whole call where the order of tokens matters.

  Picks leave late, and into spans that were fitted already attention matching fits what comes together at once.
  """
  return length if config.picks and isinstance(fold, Matching) else 0


def far_multiply_adds(config: LocalConfig, group: int, key_dim: int, value_dim: int) -> float:
  """Of one query head that reads the summary, with its share of what the `group` that reads the same one costs."""
  rule = find_fold(config, group)
  if rule is None:
    return 0
  if isinstance(rule, Features):
    one_map = config.summary.hidden * (key_dim + rule.features)
    return rule.features * (value_dim + 1) + one_map + one_map / group
  tokens = rule.blocks * rule.slots + rule.span if isinstance(rule, Matching) else rule.blocks
  covariances = rule.blocks * key_dim * value_dim if isinstance(rule, Moments) and rule.cross else 0
  return tokens * (key_dim + value_dim) + covariances
