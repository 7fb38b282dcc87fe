import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lattice_jax.data.hashing import hashed_integers, permutation, permuted


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


@given(st.integers(1, 300), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_permuted_places_are_a_permutation(count, seed, epoch):
  assert sorted(permuted(np.arange(count), count, seed, epoch)) == list(range(count))


def test_permuted_places_do_not_depend_on_those_beside_them():
  count = 10**9 + 7
  places = np.array([0, 5, count - 1, 123_456_789])
  together = permuted(places, count, 3, 1)
  assert together.tolist() == [permuted(np.array([place]), count, 3, 1)[0] for place in places]
  assert len(set(together)) == 4 and (together < count).all()


def test_permuted_sends_every_place_everywhere():
  """Over many keys each of six places is sent about equally often to each of six."""
  count, keys = 6, 3000
  table = np.zeros((count, count))
  for key in range(keys):
    table[np.arange(count), permuted(np.arange(count), count, 0, key)] += 1
  chi_square = ((table - keys / count) ** 2 / (keys / count)).sum()
  assert chi_square < 25 + 4 * np.sqrt(2 * 25)
