"""Two codes a byte, taken apart on the device and on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops.packed_weight import PackedWeight, packed_leaves, unpack_codes, with_codes
from lattice_jax.ops.stored_weight import StoredWeight

RANDOM = np.random.default_rng(0)


def packed(num_rows=5, num_blocks=3, zero=0):
  scale, offset = (RANDOM.normal(size=(num_rows, num_blocks)).astype(np.float16) for _ in range(2))
  pairs = RANDOM.integers(0, 256, (num_rows, 16 * num_blocks), dtype=np.uint8)
  return PackedWeight(pairs, scale, None if zero else offset, zero)


def codes_by_hand(weight):
  codes = np.zeros((len(weight.pair_NJ), 2 * weight.pair_NJ.shape[1]), np.int8)
  for row, pairs in enumerate(weight.pair_NJ):
    for place, pair in enumerate(pairs):
      block, j = divmod(place, 16)
      codes[row, 32 * block + j] = int(pair) % 16 - weight.zero
      codes[row, 32 * block + 16 + j] = int(pair) // 16 - weight.zero
  return codes


@pytest.mark.parametrize("zero", [0, 8])
def test_codes_are_the_halves_of_the_bytes_in_the_order_of_their_block(zero):
  weight = packed(zero=zero)
  wanted = codes_by_hand(weight)
  np.testing.assert_array_equal(jax.jit(PackedWeight.codes)(jax.tree.map(jnp.asarray, weight)), wanted)
  for steps in (16, 48, 1 << 10):  # the last is more than there is
    codes = np.full(wanted.shape, 99, np.int8)
    unpack_codes(weight.pair_NJ, codes, np.empty(steps, np.uint8), zero=zero)
    np.testing.assert_array_equal(codes, wanted)


def test_a_tree_gets_the_codes_of_its_packed_matrices_in_their_order():
  one, other = packed(), packed(2, 1, zero=8)
  plain = StoredWeight(np.ones((2, 32), np.float32))
  tree = {"a": one, "b": {"gain": np.ones(3), "c": plain}, "d": other}
  assert [leaf is given for leaf, given in zip(packed_leaves(tree), (one, other), strict=True)] == [True, True]
  assert not packed_leaves(tree["b"])
  whole = with_codes(tree, [jnp.asarray(codes_by_hand(leaf)) for leaf in (one, other)])
  assert whole["b"]["c"].code_NK is plain.code_NK
  floats = codes_by_hand(one).reshape(5, 3, 32) * np.float32(one.scale_NS)[..., None]
  floats += np.float32(one.offset_NS)[..., None]
  rows = jax.tree.map(jnp.asarray, whole["a"]).rows(jnp.arange(5))
  np.testing.assert_allclose(rows, floats.reshape(5, 96), rtol=1e-5)
  assert whole["d"].offset_NS is None and whole["d"].scale_NS is other.scale_NS
