"""Caches that drop tokens as the state of softmax attention: the laws of a memory that apply to them.

A policy's record says from which laws it is exempt, because what is dropped depends on where a call ends: L1, L2 and
L13, and L11, which is L2 at other sizes. L9 asks that bf16 keeps the same tokens too: in its scene no two scores are
nearer than rounding. The window with sinks is exempt from nothing and has a row of its own in the contract's table.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from lattice_jax.cache.config import CacheConfig
from lattice_jax.cache.policies.registry import NAMES, POLICIES
from lattice_jax.cache.policies.snapkv import SnapKVConfig
from lattice_jax.memories.registry import find_memory
from tests.contract import laws
from tests.contract.memories import GROUPED, MODEL, Row
from tests.contract.memories import ROWS as CONTRACT

LAWS = {
  "L4": laws.past_forgotten_after_reset, "L4 id": laws.returning_id_is_new, "L5": laws.padding_ignored,
  "L6": laws.rows_independent, "L7": laws.state_constant, "L8": laws.matches_reference,
  "L9": laws.bfloat16_accurate}
# Policies that choose within partitions differ by a score alone, through which no gradient goes: lagkv and knorm stand
# for them in more than L6. All of them are held to L4 and L5 as caches, without a layer around them (test_attend,
# test_policies).
ROWS = {
  "lagkv": tuple(LAWS), "local": ("L6",), "knorm": ("L4", "L5", "L6"), "keydiff": ("L6",), "random": ("L6",),
  "every": ("L6",), "sep": ("L4", "L5", "L6"), "h2o": ("L4", "L5", "L6", "L9"),
  "snapkv": ("L5", "L6"), "tova": ("L4", "L5", "L6")}


def row_of(policy: str) -> Row:
  """Partitions of four tokens: most rows of the laws' scenes have several."""
  cache = CacheConfig(policy=policy, sinks=2, lag=4, keep=2, snapkv=SnapKVConfig(observe=3, pool=3))
  model = replace(MODEL, pattern=("attention",), attention=GROUPED, cache=cache)
  sums = ("mass_BHS",) if POLICIES[policy].records(cache.own).mass else ()
  return Row(f"attention with {policy}", find_memory("attention"), model, accumulators=sums)


@pytest.mark.parametrize(("policy", "law"), [
  pytest.param(policy, law, marks=[
    pytest.mark.xdist_group(f"cache-{policy}"), *([pytest.mark.thorough] if law == "L9" else [])])
  for policy, names in ROWS.items() for law in names])
def test_law_holds(policy, law):
  LAWS[law](row_of(policy))


def test_every_policy_has_a_row_here_or_is_exempt_from_nothing_in_the_contract():
  exempt = {name: POLICIES[name].exempt_from for name in NAMES}
  assert [name for name in NAMES if exempt[name]] == list(ROWS)
  assert not [law for name, names in ROWS.items() for law in names if law.split()[0] in exempt[name]]
  whole = {row.model.cache.policy for row in CONTRACT if row.model.pattern == ("attention",)}
  assert {name for name in NAMES if not exempt[name]} <= whole
