"""eval.py --weights_budget: the text that resident weights write, a line about what it cost, and no more than texts."""

from __future__ import annotations

import pytest
from absl import flags
from absl.testing import flagsaver

from lattice_jax.commands import eval as eval_command
from lattice_jax.evaluation.loaded_model import load_pretrained_model
from lattice_jax.inference.streaming import report
from tests.models.tiny_files import LLAMA, make_tensors, write_folder

SIZES = LLAMA | {"vocab_size": 259, "max_position_embeddings": 256, "num_hidden_layers": 4}
ON_BYTES = ["data.tokenizer=bytes", "data.source=synthetic"]
BUDGET = 340_000


@pytest.fixture
def folder(tmp_path):
  return write_folder(tmp_path / "tiny", SIZES, make_tensors(SIZES))


def load(folder, budget=None):
  return load_pretrained_model(
    str(folder), workdir=folder.parent / "run", dtype="float32", overrides=ON_BYTES, budget=budget)


def test_a_streamed_model_writes_what_a_resident_one_does(folder):
  resident, streamed = load(folder), load(folder, BUDGET)
  assert streamed.describe() == resident.describe().replace(
    "pretrained", "pretrained and streamed through 340 kB").replace("on 8 cpu devices", "on 1 cpu device")
  (text,), (wanted,) = (
    model.draw_texts(["ab"], length=5, temperature=0.0).texts for model in (streamed, resident))
  assert text == wanted
  plan = streamed.streamed.usage.plan
  assert plan.streamed_bytes and streamed.streamed.usage.pool.peak <= BUDGET


def test_results_are_called_by_the_content_of_the_files(folder, tmp_path):
  first, again = load(folder, BUDGET), load(folder, 2 * BUDGET)
  assert first.name_of("sample") == again.name_of("sample")
  other = write_folder(tmp_path / "other", SIZES, make_tensors(SIZES, seed=1))
  assert load(other, BUDGET).name_of("sample")[0] != first.name_of("sample")[0]


def test_it_does_no_more_than_write_texts(folder):
  with pytest.raises(ValueError, match="whose weights are streamed only writes texts; load it without a budget"):
    load(folder, BUDGET).evaluate()


def test_the_command_prints_what_streaming_cost(folder, capsys, monkeypatch):
  monkeypatch.setattr(report, "read_bandwidth", lambda model, cold: 2e9)
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(
    pretrained=str(folder), weights_budget=BUDGET, prompt=["ab"], generate=3, temperature=0.0, set=ON_BYTES,
    workdir=str(folder.parent / "run")):
    eval_command.main()
  said = capsys.readouterr().out
  assert "streamed through 340 kB" in said and "tokens per second" in said
  head, _, line = said.strip().splitlines()[-3:]
  assert head.startswith("| budget | counted | layers that stay | read a token | tokens/s | at most, page cache |")
  assert line.startswith("| 340 kB | ") and " of 4 | " in line and "(2.00 GB/s)" in line
