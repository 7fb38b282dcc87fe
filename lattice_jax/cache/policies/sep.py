"""SepLLM's choice (arXiv 2412.12094) in LagKV's frame: separators stay, the newest first, then the newest others.

Which tokens are separators comes with the text, as their mark MARK_ANCHOR, so all heads keep the same tokens. The
marks are those of `data.anchors.rule`; where there is no rule, those of `characters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord, Records
from lattice_jax.fields import text

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import Partitions


@dataclass(frozen=True)
class SepConfig:
  """What is a separator, unless `data.anchors.rule` says it."""

  characters: str = text(
    r".,?!;: \t\n", r"a token that is made of these alone is a separator; \t is a tab, \n the end of a line")


def score(own: SepConfig, partitions: Partitions) -> jax.Array:
  import jax.numpy as jnp

  from lattice_jax.types import MARK_ANCHOR

  del own
  is_separator_BHNL = (partitions.mark_BHNL[:, :, :-1] & MARK_ANCHOR) > 0
  lag = is_separator_BHNL.shape[-1]
  return (jnp.arange(lag) + lag * is_separator_BHNL).astype(jnp.float32)


def check(own: SepConfig) -> None:
  rest = own.characters.replace("\\t", "").replace("\\n", "")
  if not own.characters or "\\" in rest or not rest.isascii() or any(map(str.isalnum, rest)):
    raise ValueError(
      f"model.cache.sep.characters={own.characters!r} must be punctuation and white space of ASCII, with \\t for a tab "
      "and \\n for the end of a line, as in .?!\\n; for other tokens use data.anchors.rule=ids:N.")


POLICY = PolicyRecord(
  doc="the policy \"sep\"", chooses="partition", score=score, section=SepConfig, check=check,
  records=lambda own: Records(marks=True))
