import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_jax.config import DataConfig
from lattice_jax.data.plan import Placement, Plan
from tests.data.builders import numbered_source

ROW_MODES = ("sequences", "packed", "documents")


def data_config(rows, seq_len, update_len, batch, seed=0):
  return DataConfig(rows=rows, seq_len=seq_len, update_len=update_len, batch=batch, seed=seed)


def read(plan: Plan, steps: int, batch: int, first: int = 0) -> Placement:
  """The updates joined along time: every field [batch, steps · W]."""
  places = [plan.place(step, 0, batch) for step in range(first, first + steps)]
  return Placement(**{
    field: np.concatenate([getattr(place, field) for place in places], axis=1)
    for field in ("index_BT", "positions_BT", "ids_BT")})


@st.composite
def plans(draw, row_modes=ROW_MODES):
  lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
  update_len = draw(st.integers(1, 4))
  seq_len = update_len * draw(st.integers(1, 3))
  batch = draw(st.integers(1, 4))
  lengths[0] += max(seq_len, batch)  # long enough for one row
  data = data_config(draw(st.sampled_from(row_modes)), seq_len, update_len, batch, draw(st.integers(0, 3)))
  source = numbered_source(*lengths)
  return data, source, Plan(data, source)


def test_sequences_by_hand():
  """Eight tokens, sequences of four in updates of two, one row: the halves of a sequence follow each other."""
  plan = Plan(data_config("sequences", 4, 2, 1), numbered_source(8))
  seen = read(plan, steps=4, batch=1)
  first = seen.index_BT[0, 0]
  assert first in (0, 4)
  np.testing.assert_array_equal(seen.index_BT[0] // 4, [first // 4] * 4 + [1 - first // 4] * 4)
  np.testing.assert_array_equal(seen.index_BT[0] % 4, [0, 1, 2, 3, 0, 1, 2, 3])
  np.testing.assert_array_equal(seen.positions_BT[0], [0, 1, 2, 3, 0, 1, 2, 3])
  np.testing.assert_array_equal(seen.ids_BT[0], [0] * 4 + [1] * 4)


def test_packed_by_hand():
  """Documents A (3 tokens) and B (5) in rows of four: one document is cut and goes on in the other row."""
  source = numbered_source(3, 5)
  seen = read(Plan(data_config("packed", 4, 4, 2), source), steps=1, batch=2)
  rows = sorted(zip(seen.index_BT.tolist(), seen.positions_BT.tolist(), seen.ids_BT.tolist(), strict=True))
  if rows[0][0][0] == 0:  # A first
    assert rows == [([0, 1, 2, 3], [0, 1, 2, 0], [0, 0, 0, 1]), ([4, 5, 6, 7], [0, 1, 2, 3], [0, 0, 0, 0])]
  else:
    assert rows == [([3, 4, 5, 6], [0, 1, 2, 3], [0, 0, 0, 0]), ([7, 0, 1, 2], [0, 0, 1, 2], [0, 1, 1, 1])]


def test_documents_by_hand():
  """One document of nine tokens, two rows: each reads its half over and over; a new epoch is a new piece."""
  seen = read(Plan(data_config("documents", 3, 3, 2), numbered_source(9)), steps=3, batch=2)
  np.testing.assert_array_equal(seen.index_BT, [[0, 1, 2, 3, 0, 1, 2, 3, 0], [4, 5, 6, 7, 4, 5, 6, 7, 4]])
  np.testing.assert_array_equal(seen.positions_BT, [[0, 1, 2, 3, 0, 1, 2, 3, 0]] * 2)
  np.testing.assert_array_equal(seen.ids_BT, [[0, 0, 0, 0, 1, 1, 1, 1, 2]] * 2)


def test_documents_follow_each_other_in_a_row():
  """Three documents in one row: whole, in some order, memory running through updates of two tokens."""
  source = numbered_source(1, 4, 3)
  seen = read(Plan(data_config("documents", 2, 2, 1), source), steps=8, batch=1)
  for epoch_T in (slice(0, 8), slice(8, 16)):
    index_T = seen.index_BT[0, epoch_T]
    starts_T = np.flatnonzero(seen.reset_BT[0, epoch_T])
    assert sorted(len(piece) for piece in np.split(index_T, starts_T[1:])) == [1, 3, 4]
    assert sorted(index_T[starts_T]) == [0, 1, 5]


@given(plans())
def test_a_token_continues_its_piece_or_starts_one_under_a_new_id(drawn):
  data, source, plan = drawn
  seen = read(plan, steps=12, batch=data.batch)
  starts_BT = seen.reset_BT[:, 1:]
  new_id_BT = np.diff(seen.ids_BT, axis=1) != 0
  np.testing.assert_array_equal(starts_BT, new_id_BT)
  assert (np.diff(seen.index_BT, axis=1)[~starts_BT] == 1).all()
  assert (np.diff(seen.positions_BT, axis=1)[~starts_BT] == 1).all()
  assert seen.reset_BT[:, 0].all()
  assert (seen.ids_BT >= 0).all() and seen.ids_BT.dtype == np.int32
  if data.rows != "sequences":
    document_BT = source.document_of(seen.index_BT)
    assert (np.diff(document_BT, axis=1)[~starts_BT] == 0).all(), "a piece crossed a document boundary"


@given(plans(row_modes=("sequences", "packed")))
def test_an_epoch_of_rows_reads_no_token_twice_and_all_that_fill_a_row(drawn):
  data, source, plan = drawn
  per_epoch = len(source.tokens) // data.seq_len
  for epoch in range(2):
    examples = []
    for example in range(epoch * per_epoch, (epoch + 1) * per_epoch):
      group, row = divmod(example, data.batch)
      place = read(plan, plan.updates_per_sequence, data.batch, first=group * plan.updates_per_sequence)
      assert place.reset_BT[row, 0], "a row did not begin cold"
      examples.append(place.index_BT[row])
    index = np.concatenate(examples)
    assert len(index) == len(np.unique(index)) == per_epoch * data.seq_len


@given(plans(row_modes=("documents",)))
def test_an_epoch_of_lanes_reads_no_token_twice_and_drops_fewer_than_a_batch(drawn):
  data, source, plan = drawn
  lane_len = len(source.tokens) // data.batch
  seen = read(plan, -(-2 * lane_len // data.update_len), data.batch)
  for epoch in range(2):
    index = seen.index_BT[:, epoch * lane_len:(epoch + 1) * lane_len].ravel()
    assert len(index) == len(np.unique(index)) == lane_len * data.batch > len(source.tokens) - data.batch


@given(plans(row_modes=("packed", "documents")))
def test_packed_and_document_rows_restart_only_where_they_must(drawn):
  data, source, plan = drawn
  seen = read(plan, steps=12, batch=data.batch)
  time_T = np.arange(seen.index_BT.shape[1])
  period = data.seq_len if data.rows == "packed" else len(source.tokens) // data.batch
  must_BT = np.isin(seen.index_BT, source.offsets) | (time_T % period == 0)
  np.testing.assert_array_equal(seen.reset_BT, must_BT)


@given(plans(), st.integers(0, 40), st.data())
def test_any_division_among_hosts_gives_the_same_rows(drawn, step, draw):
  """Hosts may even come and go between updates: rows do not know who reads them."""
  data, _, plan = drawn
  whole = plan.place(step, 0, data.batch)
  cuts = sorted({0, data.batch, *draw.draw(st.lists(st.integers(0, data.batch), max_size=3))})
  parts = [plan.place(step, *rows) for rows in itertools.pairwise(cuts)]
  for field in ("index_BT", "positions_BT", "ids_BT"):
    np.testing.assert_array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))


@given(plans(), st.integers(0, 40))
def test_a_plan_that_begins_late_agrees_with_one_that_has_read_all_before(drawn, step):
  data, source, used = drawn
  read(used, steps=step + 1, batch=data.batch)
  late, early = Plan(data, source).place(step, 0, data.batch), used.place(step, 0, data.batch)
  for field in ("index_BT", "positions_BT", "ids_BT"):
    np.testing.assert_array_equal(getattr(late, field), getattr(early, field))


@pytest.mark.parametrize("rows", ROW_MODES)
def test_epochs_and_seeds_have_their_own_order(rows):
  source = numbered_source(*[4] * 30)
  first, second = (read(Plan(data_config(rows, 4, 4, 1), source), 30, 1, first=30 * epoch) for epoch in range(2))
  other_seed = read(Plan(data_config(rows, 4, 4, 1, seed=1), source), 30, 1)
  assert not np.array_equal(first.index_BT, second.index_BT)
  assert not np.array_equal(first.index_BT, other_seed.index_BT)
  assert set(first.index_BT.ravel()) == set(second.index_BT.ravel()) == set(range(120))


@pytest.mark.parametrize("rows", ROW_MODES)
def test_ids_stay_int32_and_change_far_beyond_two_thousand_million_pieces(rows):
  source = numbered_source(1, 2, 3, 2)
  plan = Plan(data_config(rows, 4, 4, 1), source)
  first = 2**31 - 3
  seen = read(plan, steps=6, batch=1, first=first)
  assert (seen.ids_BT >= 0).all()
  np.testing.assert_array_equal(np.diff(seen.ids_BT, axis=1) != 0, seen.reset_BT[:, 1:])


@pytest.mark.parametrize(("rows", "message"), [
  ("sequences", r"data.seq_len=16 is more than the 5 tokens of numbered train; use at most 5"),
  ("documents", r"data.batch=8 is more than the 5 tokens of numbered train; use at most 5"),
])
def test_a_corpus_shorter_than_a_row_is_refused(rows, message):
  with pytest.raises(ValueError, match=message):
    Plan(data_config(rows, 16, 16, 8), numbered_source(2, 3))
