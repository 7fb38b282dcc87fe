"""Recorded units are functions of their number: stretches of a text, lines of a file, canaries with far needles."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.evaluation.rollout.recorded import open_recording
from tests.evaluation.rollout.toy import loaded

START = len(ByteTokenizer().start_ids)
SIZES = {"split": "test", "prompt_len": 20, "answer_len": 6, "canary_len": 120, "seed": 0}


def test_units_are_stretches_of_one_document_each_from_any_place():
  model = loaded()
  source, _ = model.read_split("test")
  recording = open_recording(model, "synthetic", **SIZES)
  text, starts = np.asarray(source.tokens), []
  for number in range(40):
    unit = recording.unit_at(number)
    again = recording.unit_at(number)
    assert unit.prompt_T[:START].tolist() == list(ByteTokenizer().start_ids)
    ids_T = np.concatenate([unit.prompt_T[START:], unit.answer_T])
    assert (ids_T == np.concatenate([again.prompt_T[START:], again.answer_T])).all()
    assert (len(ids_T), len(unit.answer_T), unit.name) == (26, 6, f"synthetic/test/{number:06d}")
    found = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(text, 26) == ids_T).all(1))
    assert len(found), "the unit is no stretch of the text"
    documents = np.searchsorted(source.offsets, [found, found + 25], side="right")
    assert (documents[0] == documents[1]).any()
    starts.append(int(found[0]))
  assert len(set(starts)) > 30 and recording.count is None and recording.longest >= 120 + 6
  other = open_recording(model, "synthetic", **SIZES | {"seed": 1})
  assert (other.unit_at(0).prompt_T != recording.unit_at(0).prompt_T).any()


def test_canaries_ask_for_what_stands_far_from_the_end():
  recording, tokenizer = open_recording(loaded(), "synthetic", **SIZES), ByteTokenizer()
  places = []
  for number in range(30):
    canary = recording.canary_at(number)
    prompt, answer = (tokenizer.decode(ids_T).decode(errors="replace") for ids_T in (canary.prompt_T, canary.answer_T))
    assert len(canary.prompt_T) == 120 and prompt.endswith("The pass key is") and answer.strip().isdigit()
    assert [tokenizer.decode(np.array([token])).strip() != b"" for token in canary.answer_T] == canary.scored_T.tolist()
    places.append(prompt.index(f"The pass key is{answer}") / len(prompt))
  assert len({round(place, 3) for place in places}) > 15 and max(places) < 0.75
  assert recording.canary_at(3).name == "canary/000003"


def write(path, records):
  path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
  return str(path)


def test_a_file_gives_its_units_in_order_with_their_answers_cut(tmp_path):
  path = write(tmp_path / "asked.jsonl", [
    {"prompt": "What?", "answer": "That is long", "id": "q7"}, {"prompt": "Who?", "answer": "She", "more": 1}])
  recording = open_recording(loaded(), path, **SIZES)
  first, second = (recording.unit_at(number) for number in range(recording.count))
  assert (first.name, second.name) == ("q7", "asked.jsonl/000002")
  texts = [ByteTokenizer().decode(ids_T) for ids_T in (first.answer_T, second.prompt_T[START:])]
  assert texts == [b"That i", b"Who?"]


def test_the_fingerprint_is_of_the_units(tmp_path):
  first, second = (
    open_recording(loaded(), write(tmp_path / f"{answer}.jsonl", [{"prompt": "a", "answer": answer}]), **SIZES)
    for answer in ("b", "c"))
  assert first.fingerprint != second.fingerprint
  assert first.fingerprint == open_recording(loaded(), str(tmp_path / "b.jsonl"), **SIZES).fingerprint


@pytest.mark.parametrize(("records", "sentence"), [
  ([{"prompt": "a"}], "line 1 of {path} is no recorded unit; each line is a JSON object with the texts prompt"),
  ([{"prompt": "a", "answer": "b"}, "{"], "line 2 of {path} is no recorded unit"),
  ([{"prompt": "a", "answer": ""}], "line 1 of {path} is no recorded unit"),
  ([{"prompt": "a", "answer": 3}], "line 1 of {path} is no recorded unit"),
  (["[]"], "line 1 of {path} is no recorded unit"),
  ([], "{path} holds no unit"),
  ([{"prompt": "a", "answer": "b", "id": 1}] * 2, "{path} holds two units of the same id"),
  ([{"prompt": "a" * 300, "answer": "b"}], "the longest unit and answer have 302 tokens, more than the 192"),
], ids=["no answer", "no JSON", "empty answer", "number", "list", "empty", "same id", "long"])
def test_a_file_that_holds_something_else_is_refused(tmp_path, records, sentence):
  path = write(tmp_path / "asked.jsonl", records)
  with pytest.raises(ValueError) as refused:
    open_recording(loaded(), path, **SIZES)
  assert str(refused.value).startswith(sentence.format(path=path))


def test_what_does_not_fit_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"the prompts .* cannot be read \(No such file or directory\)"):
    open_recording(loaded(), str(tmp_path / "none.jsonl"), **SIZES)
  with pytest.raises(ValueError, match="no document of synthetic/test has 1,000,006 tokens"):
    open_recording(loaded(), "synthetic", **SIZES | {"prompt_len": 10**6})
  with pytest.raises(ValueError, match="more than the 64 that toy was made for; use smaller --prompt_len"):
    open_recording(loaded(context_len=64), "synthetic", **SIZES)
