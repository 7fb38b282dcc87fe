"""Attention to slots of a stack: blocks against the definition, with gradients; what each slot received."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops.attention import MASKED, Order, attend
from lattice_jax.ops.attention.keys import allowed
from lattice_jax.ops.attention.mass import received_mass
from lattice_jax.ops.attention.slots import Readers, SinksAndWindow, StackedSlots, attend_slots, equal_block, slots_seen
from lattice_jax.ops.documents import EMPTY
from tests.contract.harness import quick_jit
from tests.thorough import further

LAYERS, BATCH, HEADS, QUERIES, SLOTS, KEY, VALUE, LENGTH = 3, 2, 2, 4, 11, 6, 5, 7
USED = (10, 3)


def inputs():
  """Layer 1 is read; every head holds other positions of a document of 20 tokens, sinks first."""
  rng = np.random.default_rng(0)
  q, key, value = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (
    (BATCH, LENGTH, QUERIES, KEY), (LAYERS, BATCH, HEADS, SLOTS, KEY), (LAYERS, BATCH, HEADS, SLOTS, VALUE)))
  position = np.full((LAYERS, BATCH, HEADS, SLOTS), EMPTY, np.int32)
  for row, used in enumerate(USED):
    for head in range(HEADS):
      position[:, row, head, :used] = [0, 1, *sorted(rng.choice(np.arange(2, 20), used - 2, replace=False))]
  slots = StackedSlots(key, value, jnp.asarray(position), jnp.int32(1), jnp.asarray(USED, jnp.int32))
  index_BT = jnp.broadcast_to(20 + jnp.arange(LENGTH, dtype=jnp.int32), (BATCH, LENGTH))
  # the last tokens of row 1 are of another document
  return q, slots, Readers(index_BT, jnp.asarray([[True] * LENGTH, [True] * 4 + [False] * 3]))


def nothing():
  """Output and log-sum-exp where no other keys were seen."""
  return jnp.zeros((BATCH, LENGTH, QUERIES, VALUE)), jnp.full((BATCH, LENGTH, QUERIES), MASKED)


def something():
  """Those of other keys, which some of the queries have not seen."""
  rng = np.random.default_rng(2)
  out, lse = nothing()
  sees = jnp.asarray(rng.integers(2, size=lse.shape), bool)
  return jnp.where(sees[..., None], rng.normal(size=out.shape), 0), jnp.where(sees, rng.normal(size=lse.shape), MASKED)


@pytest.mark.parametrize(("block", "before"), [
  (1, something), (4, nothing), (4, something), (64, something), *further((1, nothing), (64, nothing))])
def test_blocks_of_slots_equal_the_definition_with_gradients(block, before):
  q, slots, readers = inputs()

  def run(impl, window):
    def loss(q, key, value, before):
      here = slots.replace(key_LBHSK=key, value_LBHSV=value)
      rule = SinksAndWindow(2, window) if window else None
      out, lse = attend_slots(q, here, readers, before, rule=rule, block=block, impl=impl)
      return jnp.sin(out).sum() + (jnp.where(lse > MASKED / 2, lse, 0.0) ** 2).sum(), (out, lse)

    return quick_jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(
      q, slots.key_LBHSK, slots.value_LBHSV, before())

  for window in (0, 9):
    jax.tree.map(
      lambda got, want: np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5), run("xla", window),
      run("reference", window))


def test_tokens_of_another_document_see_no_slot():
  _, lse = attend_slots(*inputs(), nothing())
  assert (np.asarray(lse)[1, 4:] == MASKED).all() and (np.asarray(lse)[1, :4] > MASKED / 2).all()


def test_attention_received_is_the_column_sum():
  q, slots, readers = inputs()
  _, lse = attend_slots(q, slots, readers, nothing())
  position_BHS = slots.position_LBHS[1]
  mass_BHS = received_mass(
    q, lse, slots.key_LBHSK[1], readers, lambda readers: slots_seen(readers, position_BHS, None))
  # every query that sees anything gives 1, in each of the heads that share a key
  np.testing.assert_allclose(mass_BHS.sum(-1), np.array([[7, 7], [4, 4]]) * QUERIES / HEADS, rtol=1e-5)
  assert (np.asarray(mass_BHS)[1, :, USED[1]:] == 0).all()


def test_blocks_of_queries_that_are_filled_up_receive_nothing_more():
  length = 130  # more than a block of queries, by two
  rng = np.random.default_rng(1)
  q, k, v = (jnp.asarray(rng.normal(size=(1, length, heads, KEY)), jnp.float32) for heads in (2, 1, 1))
  order = Order(index_BT=jnp.arange(length)[None], id_BT=jnp.zeros((1, length), jnp.int32))
  _, lse = attend(q, k, v, order, order)
  mass_BHS = received_mass(
    q, lse, jnp.moveaxis(k, 1, 2), order, lambda query: allowed(query, order, window=0)[:, None])
  score_HTS = np.einsum("thk,sk->hts", np.float64(q[0]), np.float64(k[0, :, 0])) / np.sqrt(KEY)
  odds_HTS = np.exp(score_HTS) * np.tri(length)
  np.testing.assert_allclose(mass_BHS[0, 0], (odds_HTS / odds_HTS.sum(-1, keepdims=True)).sum((0, 1)), rtol=1e-4)


@pytest.mark.parametrize("impl", ["xla", "reference"])
def test_what_stands_at_queries_that_see_no_slots_changes_nothing(impl):
  q, slots, readers = inputs()
  sees = readers.sees_BT[..., None, None]

  def loss(q, key, value):
    here = slots.replace(key_LBHSK=key, value_LBHSV=value)
    out, lse = attend_slots(q, here, readers, nothing(), block=4, impl=impl)
    return jnp.sin(out).sum() + jnp.where(sees[..., 0], lse, 0).sum(), (out, lse)

  run = quick_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  dirty = run(jnp.where(sees, q, jnp.nan), slots.key_LBHSK, slots.value_LBHSV)
  jax.tree.map(np.testing.assert_array_equal, dirty, run(q, slots.key_LBHSK, slots.value_LBHSV))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(dirty))


@pytest.mark.parametrize(
  ("num_slots", "expected"), [(5, 5), (512, 512), (772, 416), (1024, 512), (1060, 544), (3072, 512)])
def test_blocks_cover_the_slots_and_few_more(num_slots, expected):
  assert equal_block(num_slots, 512) == expected
  assert all(
    -(-slots // (length := equal_block(slots, 512))) * length < slots + 32 * max(1, round(slots / 512))
    for slots in range(1, 4000))
