"""The section of `config.ModelConfig` that describes caches.

Names that a field may have stand here where the code that answers to them lies above the config; tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.fields import at_least, choice, fraction, names, positive, seed, within

POLICIES = ("full", "window", "lagkv", "local", "knorm", "keydiff", "random", "h2o", "snapkv", "tova")
BUDGETS = ("fixed", "memory", "drift")
RECORDS = ("mass", "queries")


@dataclass(frozen=True)
class CacheConfig:
  """What the memory "attention" keeps of the tokens it has read (lattice_jax/cache).

  Policies other than full and window keep the first `sinks` tokens, `keep` of every partition of `lag` tokens once the
  next partition is complete, and all later tokens; h2o, snapkv and tova as many, chosen from all such partitions
  together (docs/cache_policies.md). Their budget is one of `keep`, `ratio` and `tokens`; with `budget`
  "memory" it is what partitions keep on average at most, with "drift" it may be left out (lattice_jax/cache/online.py).
  """

  policy: str = choice("full", POLICIES, "which tokens stay")
  sinks: int = at_least(0, 16, "first tokens of a document, which are never dropped")
  window: int = at_least(0, 0, "of \"window\": tokens a query sees beside the sinks, itself included")
  lag: int = positive(128, "tokens of a partition")
  keep: int = at_least(0, 0, "tokens of a partition that stay, for each key/value head")
  ratio: float = within(0, 1, 0.0, "keep as a part of lag: 0.25 keeps a quarter of each partition")
  tokens: int = at_least(
    0, 0, "all that is kept: of \"window\" at any time, else of a document of text_len tokens")
  text_len: int = at_least(0, 0, "tokens of a document, for the budget `tokens`")
  skip_layers: int = at_least(
    0, 0, "first layers (of each block of the pattern) that keep every token; all have room for as many")
  budget: str = choice("fixed", BUDGETS, "fixed: of every partition alike; memory, drift: as it needs to hold that")
  drift: float = fraction(0.0, "of the budget \"drift\": part of a partition's deviation that may be dropped at most")
  call_len: int = at_least(
    0, 0, "tokens of a call at most, for which the cache then has room; 0 = room for whole documents")
  observe: int = positive(32, "of \"snapkv\": last queries, whose attention is the score")
  pool: int = positive(7, "of \"snapkv\": neighbouring slots that share a score; odd")
  value_weight: float = at_least(
    0, 1.0, "of the values' score in \"lagkv\" and \"local\", beside the keys'")
  epsilon: float = positive(1e-6, "of \"lagkv\" and \"local\": least range of a channel")
  seed: int = seed(0, "of \"random\"")
  records: tuple[str, ...] = names(
    (), "what \"full\" notes for other policies that go on from its tokens", allowed=RECORDS)
