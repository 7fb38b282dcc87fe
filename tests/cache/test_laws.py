"""Caches that drop tokens as the state of softmax attention: the laws of a memory that apply to them.

Exempt are L1, L2 and L13, because what is dropped depends on where a call ends, and L11, which is L2 at other sizes.
L9 asks of them that bf16 keeps the same tokens too: in its scene no two scores are nearer than rounding.
The window with sinks is exempt from nothing and has a row of its own in the contract's table.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from lattice_jax.config import CacheConfig
from lattice_jax.memories.registry import find_memory
from tests.contract import laws
from tests.contract.memories import GROUPED, MODEL, Row

LAWS = {
  "L4": laws.past_forgotten_after_reset, "L4 id": laws.returning_id_is_new, "L5": laws.padding_ignored,
  "L6": laws.rows_independent, "L7": laws.state_constant, "L8": laws.matches_reference,
  "L9": laws.bfloat16_accurate}
# Peers that choose within partitions differ by a score alone, through which no gradient goes: knorm stands for them in
# more than L6, and those of `streams.WITHOUT_LAWS` are held to L4 and L5 as caches, without a layer around them.
CASES = [
  *(("lagkv", law) for law in LAWS), *((peer, law) for peer in ("h2o", "tova", "knorm") for law in ("L4", "L5", "L6")),
  ("h2o", "L9"), ("snapkv", "L5"), *((peer, "L6") for peer in ("snapkv", "local", "keydiff", "random"))]


def row_of(policy: str) -> Row:
  """Partitions of four tokens: most rows of the laws' scenes have several."""
  cache = CacheConfig(policy=policy, sinks=2, lag=4, keep=2, observe=3, pool=3)
  model = replace(MODEL, pattern=("attention",), attention=GROUPED, cache=cache)
  sums = ("mass_BHS",) if policy == "h2o" else ()
  return Row(f"attention with {policy}", find_memory("attention"), model, accumulators=sums)


ROWS = {policy: row_of(policy) for policy in dict(CASES)}


@pytest.mark.parametrize(
  ("policy", "law"), [pytest.param(*case, marks=pytest.mark.xdist_group(f"cache-{case[0]}")) for case in CASES])
def test_law_holds(policy, law):
  LAWS[law](ROWS[policy])
