import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lattice_jax.data.hashing import hashed_integers, permutation


def test_hash_is_the_published_splitmix64():
  """The generator with seed 0, whose first outputs are published with it; the stream of data rests on them."""
  assert hashed_integers(3).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.integers(0, 50), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_permutation_holds_every_number_once(count, seed, epoch):
  assert sorted(permutation(count, seed, epoch)) == list(range(count))


def test_permutations_differ_by_every_part_of_the_key():
  orders = [tuple(permutation(20, *key)) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0), (-1, 0, 0))]
  assert len(set(orders)) == len(orders)


def test_permutation_is_the_same_for_ever():
  np.testing.assert_array_equal(permutation(6, 0, 0), [0, 2, 5, 4, 3, 1])
