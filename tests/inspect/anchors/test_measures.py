"""What a report on anchors measures: losses by place, bytes of caches, prompts with answers, attention mass."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.data.anchors import AnchorTokenizer
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.evaluation.bootstrap import interval_of_mean, interval_of_ratio
from lattice_jax.inspect.anchors import attention, caches, losses, probes, prompts
from lattice_jax.inspect.anchors.readers import score
from lattice_jax.inspect.anchors.texts import places_of, to_batch, window_rows
from lattice_jax.marks import Marker
from lattice_jax.models.decoder import Decoder, init_state
from lattice_jax.types import whole_segment
from tests.inspect.anchors import tiny

TOKENIZER = ByteTokenizer()


def every(number):
  return Marker(class_A=np.zeros(1, np.uint8), every=number)


@pytest.fixture(scope="module")
def variables():
  return tiny.make_variables()


@pytest.fixture(scope="module")
def readers(variables):
  return [tiny.make_reader(variables, memory) for memory in ("attention", "anchor")]


def quiet(line):
  del line


def test_values_are_grouped_by_powers_of_two():
  assert [losses.bucket(value) for value in (0, 1, 2, 3, 4, 7, 8, 31, 32)] == [
    "0", "1", "2–3", "2–3", "4–7", "4–7", "8–15", "16–31", "32–63"]
  assert [losses.bucket(value, 32) for value in (0, 1, 31, 32, 63, 64, 127, 128, 511)] == [
    *["0–31"] * 3, *["32–63"] * 2, *["64–127"] * 2, "128–255", "256–511"]


def test_a_loss_at_one_place_shows_there_alone(readers):
  place_BT = np.tile(np.arange(4), (3, 2))
  same_BT = np.random.default_rng(0).random(place_BT.shape)
  more_BT = same_BT + (place_BT == 1) * np.array([[1.0], [2.0], [3.0]])
  counts_BT = np.arange(8)[None] >= np.zeros((3, 1))
  counts_BT[:, :4] = False
  groups = losses._by(place_BT, counts_BT, readers, {"attention": same_BT, "anchor": more_BT})
  assert [(group["bucket"], group["tokens"]) for group in groups] == [("0", 3), ("1", 3), ("2–3", 6)]
  np.testing.assert_allclose([group["above_full"]["anchor"][0] for group in groups], [0, 2, 0], atol=1e-9)
  _, low, high = groups[1]["above_full"]["anchor"]
  assert (low, high) == interval_of_mean(np.array([1.0, 2.0, 3.0])) and low < 2 < high
  np.testing.assert_allclose(groups[1]["nats"]["anchor"], more_BT[:, 5].mean())


def test_a_ratio_of_sums_weighs_each_pair_by_its_size():
  assert interval_of_ratio(np.array([6.0, 6.0]), np.array([3, 3])) == (2.0, 2.0)
  low, high = interval_of_ratio(np.array([0.0, 10.0]), np.array([9, 1]))
  assert (low, high) == (0.0, 10.0)
  assert interval_of_ratio(np.array([0.0, 4.0]), np.array([0, 2])) == (2.0, 2.0)
  with pytest.raises(ValueError, match="a ratio of nothing to nothing has no interval"):
    interval_of_ratio(np.zeros(2), np.zeros(2))


def test_a_text_is_read_the_same_with_and_without_the_cache(readers):
  batch, said = to_batch(window_rows(tiny.random_ids(3, 40)), TOKENIZER, every(5)), []
  text = losses.measure_text(readers, batch, TOKENIZER, every(5), chunk_len=16, rows=3, report=said.append)
  assert [(reading["reader"], reading["how"]) for reading in text["readings"]] == [
    ("attention", "one call, no cache"), ("attention", "full cache, 16 tokens a call"),
    ("anchor", "one call, no cache"), ("anchor", "reduced cache, 16 tokens a call"),
    ("anchor", "reduced cache, token by token")]
  assert all(reading["largest_difference"] < 1e-4 for reading in text["readings"] if "largest_difference" in reading)
  full_BT, masked_BT = (score(reader, batch, rows=3)[0].astype(np.float64) for reader in readers)
  first, _, masked, *_ = text["readings"]
  assert first["above_full"] == 0
  np.testing.assert_allclose(masked["nats_per_token"], masked_BT.mean(), rtol=1e-9)
  np.testing.assert_allclose(masked["above_full"], (masked_BT - full_BT).mean(), rtol=1e-9)
  np.testing.assert_allclose(masked["bits_per_byte"], masked_BT.mean() / np.log(2), rtol=1e-9)
  assert masked["bits_interval"][0] < masked["bits_per_byte"] < masked["bits_interval"][1]
  assert [(group["bucket"], group["tokens"]) for group in text["by_position"]] == [("0–31", 96), ("32–63", 24)]
  # positions 4, 9, 14 … of the inputs, which begin with the end of text
  assert text["segments"] == {"anchors": 24, "mean_len": pytest.approx((4 + 5 * 7) / 8), "largest_len": 5}
  assert len(said) == 4


def test_a_cache_that_says_other_things_is_a_fault(monkeypatch, readers):
  batch = to_batch(window_rows(tiny.random_ids(1, 20)), TOKENIZER, every(5))
  real = losses.score
  monkeypatch.setattr(losses, "score", lambda *inputs, chunk_len=0, **options: (
    real(*inputs, chunk_len=chunk_len, **options)[0] + 3e-4 * (chunk_len == 1), None))
  with pytest.raises(RuntimeError, match=r"anchor, reduced cache, token by token: losses are 3.0e-04 nats a token"):
    losses.measure_text(readers, batch, TOKENIZER, every(5), chunk_len=10, rows=1, report=quiet)


def test_segments_of_ten_save_nine_tenths_of_the_bytes(readers):
  """Of the live arrays, with slots for the anchors of this text; and the formula is what is kept."""
  measured = caches.measure_caches(
    *readers, tiny.random_ids(1, 2048)[0], TOKENIZER, {"every:10": every(10)}, chunk_len=512, steps=3, report=quiet)
  (rule,) = measured["rules"]
  assert rule["saved"] == 1 - rule["live_bytes"] / rule["full_bytes"] >= 0.89
  assert (rule["read"], rule["anchors"], rule["largest_len"]) == (2045, 204, 10)
  # the first token, 204 anchors, and the tokens since
  keys_and_values = 2 * 2 * 1 * 16 * 4
  assert rule["kept"] == 1 + 204 + 5 and rule["kept_bytes"] == keys_and_values * 210
  assert (rule["reach"], rule["max_segment"]) == (204, 11)
  assert keys_and_values * (1 + 204 + 11) <= rule["live_bytes"] <= 1.1 * keys_and_values * (1 + 204 + 11)
  assert rule["configured_bytes"] > rule["full_bytes"] > keys_and_values * 2048
  assert [(row["what"], row["repeats"]) for row in measured["times"]] == [
    ("full cache", 1), ("anchor cache", 1), ("no cache, the prefix read again", 3)]


def test_slots_for_one_text_leave_its_mask_as_it_is(readers):
  ids_T = np.append(1, tiny.random_ids(1, 63)[0]).astype(np.int32)
  for number in (7, 30):  # below the largest segment, and above it
    sized = caches._sized(readers[1], ids_T, TOKENIZER, every(number))
    assert 0 < sized.model.anchor.reach < 12 and sized.model.anchor.max_segment <= 12
    batch = to_batch(window_rows(ids_T[None, 1:]), TOKENIZER, every(number))
    own_BT, sized_BT = (score(reader, batch, rows=1, chunk_len=21)[0] for reader in (readers[1], sized))
    np.testing.assert_allclose(own_BT, sized_BT, rtol=1e-5)
  bounded = dataclasses.replace(readers[1], model=dataclasses.replace(
    readers[1].model, anchor=dataclasses.replace(readers[1].model.anchor, reach=3)))
  assert caches._sized(bounded, ids_T, TOKENIZER, every(7)).model.anchor.reach == 3
  grouped = dataclasses.replace(readers[1], model=dataclasses.replace(
    readers[1].model, anchor=dataclasses.replace(readers[1].model.anchor, fanout=3)))
  assert caches._sized(grouped, ids_T, TOKENIZER, every(7)) is grouped


@pytest.mark.parametrize("kind", [prompts.WORDS, prompts.LETTERS])
def test_a_code_word_is_asked_for_so_many_sentences_later(kind):
  answers = set()
  for distance in prompts.DISTANCES:
    row = prompts.recall_prompt(TOKENIZER, kind, distance, 2, 0, is_shown=True)
    text, asked = TOKENIZER.decode(row.ids).decode(), TOKENIZER.decode(row.ids[slice(*row.asked)]).decode()
    lines = text.split("\n")
    assert text.endswith(asked) and lines[-1] == f"The code word of the day is{asked}"
    assert lines[-1 - distance] == f"{lines[-1]}." and len(set(lines)) == len(lines) == distance + 2
    absent = TOKENIZER.decode(
      prompts.recall_prompt(TOKENIZER, kind, distance, 2, 0, is_shown=False).ids).decode().split("\n")
    assert (len(absent), absent[-1]) == (len(lines), lines[-1]) and absent[:-1].count(lines[-1 - distance]) == 0
    answers.add(asked)
  assert len(answers) == 1
  assert asked.isupper() == (kind == prompts.LETTERS)
  other = prompts.recall_prompt(TOKENIZER, kind, 1, 3, 0, is_shown=True)
  assert TOKENIZER.decode(other.ids[slice(*other.asked)]).decode() != asked


def test_each_demonstration_ends_in_its_only_anchor():
  for task, shots in itertools.product(prompts.TASKS, prompts.SHOTS):
    row = prompts.demonstration_prompt(TOKENIZER, task, shots, 1, 0)
    lines = TOKENIZER.decode(row.ids).decode().split("\n")
    assert len(lines) == shots + 1 and all(" -> " in line for line in lines)
    assert TOKENIZER.decode(row.ids[row.marks > 0]) == b"\n" * shots
    assert lines[-1].endswith("->" + TOKENIZER.decode(row.ids[slice(*row.asked)]).decode())
    if task == "pairs" and shots:
      assert lines[-1] in lines[:-1]
    elif shots:
      most = TOKENIZER.decode(prompts.demonstration_prompt(TOKENIZER, task, 8, 1, 0).ids).decode().split("\n")
      assert lines == most[-shots - 1:], "the same question, after the last of the same demonstrations"


def test_an_added_anchor_ends_a_demonstration():
  tokenizer = AnchorTokenizer(TOKENIZER, "every:4")
  row = prompts.demonstration_prompt(tokenizer, "opposites", 4, 1, 0)
  assert (row.ids[row.marks > 0] == tokenizer.anchor_id).all()
  assert (row.ids == tokenizer.anchor_id).sum() == (row.marks > 0).sum() == 4


def test_answers_count_where_they_are_asked_for_alone(monkeypatch, readers):
  """A model that is right about capitals, and loses one nat on each of them."""
  def score_capitals(reader, batch, *, rows, has_answers):
    del rows
    assert has_answers
    is_capital_BT = (batch.targets_BT >= ord("A") + 3) & (batch.targets_BT <= ord("Z") + 3)
    return np.where(is_capital_BT, 1.0 + reader.is_masked, 7.0), is_capital_BT

  monkeypatch.setattr(probes, "score", score_capitals)
  readers = [dataclasses.replace(reader, model=dataclasses.replace(
    reader.model, anchor=dataclasses.replace(reader.model.anchor, max_segment=512))) for reader in readers]
  records = probes.measure_recall(readers, TOKENIZER, every(5), trials=2, rows=4, seed=0, report=quiet)
  assert len(records) == 2 * 6 * 2
  for record in records:
    is_letters = record["kind"] == prompts.LETTERS
    # the space before the letters is no capital
    assert record["token_accuracy"] == (pytest.approx(6 / 7) if is_letters else 0) and record["exact"] == 0
    wanted = (6 * (1 + (record["reader"] == "anchor")) + 7) / 7 if is_letters else 7
    np.testing.assert_allclose(record["nats_per_token"], wanted)
  by_distance = [record["segments"] for record in records if record["reader"] == "anchor"]
  assert by_distance[1] < by_distance[2] < by_distance[5] and by_distance[0] > 0
  tasks = probes.measure_demonstrations(readers, TOKENIZER, trials=2, rows=4, seed=0, report=quiet)
  assert [record["segments"] for record in tasks if record["reader"] == "anchor"] == [*prompts.SHOTS] * 4
  assert [(record["task"], record["shots"]) for record in tasks[::2]] == list(
    itertools.product(prompts.TASKS, prompts.SHOTS))


def test_an_answer_is_right_if_all_of_it_is():
  is_asked_BT = np.array([[0, 1, 1], [0, 1, 1]], bool)
  right_BT = np.array([[0, 1, 1], [1, 1, 0]], bool)
  record = probes._record(is_asked_BT, np.array([[9.0, 1, 2], [9, 3, 4]]), right_BT, np.array([[0, 1, 1], [0, 2, 2]]))
  assert (record["exact"], record["token_accuracy"], record["nats_per_token"], record["segments"]) == (
    0.5, 0.75, 2.5, 1.5)


def test_attention_mass_is_where_the_mask_says(readers):
  batch = to_batch(window_rows(tiny.random_ids(2, 30)), TOKENIZER, every(5))
  model, segment = readers[1].model, jax.tree.map(jnp.asarray, batch.segment)
  found = attention._groups(model, places_of(model.anchor, segment))
  groups = {name: np.asarray(is_here_BTS[0]) for name, is_here_BTS in found.items()}
  is_anchor_T = np.arange(30) % 5 == 4
  seg_T = np.cumsum(is_anchor_T) - is_anchor_T
  for i, j in itertools.product(range(30), repeat=2):
    found = [name for name, is_here_BTS in groups.items() if is_here_BTS[i, j]]
    if is_anchor_T[i] or i == 0 or j > i:
      assert not found
    elif j == 0:
      assert found == [attention.FIRST]
    elif seg_T[i] == seg_T[j]:
      assert found == [attention.OWN]
    else:
      assert found == ([losses.bucket(int(seg_T[i] - seg_T[j]))] if is_anchor_T[j] else [])
  measured = attention.measure_attention(readers[1], batch, TOKENIZER)
  assert measured["columns"] == [attention.OWN, attention.FIRST, "1", "2–3", "4–7"] and measured["layers"] == [0, 1]
  assert np.shape(measured["by_layer"]) == (2, 5)
  text = measured["text"]
  assert text["places"] == [0, 4, 9, 14, 19, 24, 29] and text["names"][0] == attention.START
  mass_TN = np.array(text["mass"])
  assert mass_TN[0, 0] == 1 and (mass_TN[:9, 2:] == 0).all() and (mass_TN[10:14, 1] > 0).all()
  assert mass_TN[14, 1] == 0, "an anchor sees no other"


def test_training_and_evaluation_keep_no_queries(variables):
  def read(variables):
    return Decoder(tiny.MODEL).apply(
      variables, jnp.ones((1, 2), jnp.int32), init_state(tiny.MODEL, 1), whole_segment(1, 2), mutable=["buffers"])[1]

  assert "intermediates" not in jax.eval_shape(read, variables) and set(variables) == {"params", "buffers"}


def test_each_layer_has_its_own_mass(variables, readers):
  """Queries of zero read everything in sight alike, and only in their own layer."""
  batch = to_batch(window_rows(tiny.random_ids(1, 20)), TOKENIZER, every(5))
  even = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf.at[1].set(0) if "query" in jax.tree_util.keystr(path) else leaf, variables)
  before, after = (
    attention.measure_attention(dataclasses.replace(readers[1], variables=given), batch, TOKENIZER)["by_layer"]
    for given in (variables, even))
  np.testing.assert_allclose(after[0], before[0], atol=1e-6)
  assert abs(after[1][0] - before[1][0]) > 1e-4
  np.testing.assert_allclose(after[1][1], np.mean(_first_shares(20)), atol=1e-6)


def _first_shares(length):
  """1 over how many keys each token sees that is no anchor and not the first."""
  shares = []
  for time in range(1, length):
    if time % 5 == 4:
      continue
    number = time // 5
    # its own segment so far, the anchors before, and the first token, which is in the first segment anyway
    shares.append(1 / (time % 5 + 1 + number + (number > 0)))
  return shares


def test_mass_is_the_mean_softmax_of_the_heads():
  q_BTQK, k_BTHK = (np.random.default_rng(seed).normal(size=(1, 3, heads, 2)).astype(np.float32)
                    for seed, heads in ((0, 4), (1, 2)))
  is_seen_BTS = np.tril(np.ones((1, 3, 3), bool))
  mass_BTS = np.asarray(attention._mass(q_BTQK, k_BTHK, is_seen_BTS))
  weights = []
  for head in range(4):
    score_TS = q_BTQK[0, :, head] @ k_BTHK[0, :, head // 2].T / 2**0.5
    exp_TS = np.exp(score_TS) * is_seen_BTS[0]
    weights.append(exp_TS / exp_TS.sum(1, keepdims=True))
  np.testing.assert_allclose(mass_BTS[0], np.mean(weights, axis=0), atol=1e-6)
  queries_BTS = np.zeros((1, 3, 3), bool)
  queries_BTS[0, 1:, 0] = True
  np.testing.assert_allclose(attention._mean_mass(mass_BTS, queries_BTS), mass_BTS[0, 1:, 0].mean(), rtol=1e-6)
