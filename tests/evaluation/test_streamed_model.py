"""eval.py --weights_budget: the text and the loss of resident weights, and a line about what it cost."""

from __future__ import annotations

import pytest
from absl import flags
from absl.testing import flagsaver

from lattice_jax.commands import eval as eval_command
from lattice_jax.evaluation.loaded_model import load_pretrained_model
from lattice_jax.inference.streaming import report
from lattice_jax.inference.streaming.budget import least_budget
from tests.models.tiny_files import LLAMA, make_tensors, write_folder

SIZES = LLAMA | {"vocab_size": 259, "max_position_embeddings": 256, "num_hidden_layers": 4}
ON_BYTES = ["data.tokenizer=bytes", "data.source=synthetic"]
BUDGET = 340_000


@pytest.fixture
def folder(tmp_path):
  return write_folder(tmp_path / "tiny", SIZES, make_tensors(SIZES))


def load(folder, budget=None, *overrides):
  return load_pretrained_model(
    str(folder), workdir=folder.parent / "run", dtype="float32", overrides=[*ON_BYTES, *overrides], budget=budget)


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


@pytest.mark.parametrize("protocol", ["cold", "carried"])
def test_the_loss_is_that_of_resident_weights_for_every_budget(folder, protocol):
  def evaluate(budget=None):
    model = load(folder, budget, "eval.max_batches=1").with_eval(
      split="test", protocol=protocol, seq_len=24, chunk_len=8, batch=8)
    result, = model.evaluate()
    return result, model.streamed

  wanted, _ = evaluate()
  whole, resident = evaluate(1 << 40)
  part, streamed = evaluate(least_budget(resident.usage.sizes, 1, depth=1))
  assert streamed.usage.plan.streamed_bytes and not resident.usage.plan.streamed_bytes
  assert streamed.usage.pool.peak <= streamed.budget and streamed._source() is None
  assert part.nll_per_token == whole.nll_per_token and part.tokens == wanted.tokens
  assert part.nll_per_token == pytest.approx(wanted.nll_per_token, rel=1e-5)


def test_the_command_prints_what_streaming_cost(folder, capsys, monkeypatch):
  monkeypatch.setattr(report, "read_bandwidth", lambda layers, cold: 2e9)
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(
    pretrained=str(folder), weights_budget=BUDGET, prompt=["ab"], generate=3, temperature=0.0, set=ON_BYTES,
    workdir=str(folder.parent / "run")):
    eval_command.main()
  said = capsys.readouterr().out
  assert "streamed through 340 kB" in said and "tokens per second" in said
  head, _, line = said.strip().splitlines()[-3:]
  assert head.startswith("| budget | counted | layers that stay | read a pass | tokens/s | at most, page cache |")
  assert line.startswith("| 340 kB | ") and " of 4 | " in line and "(2.00 GB/s)" in line


def test_the_command_evaluates_row_by_row(folder, capsys, monkeypatch):
  asked = []
  monkeypatch.setattr(report, "read_bandwidth", lambda layers, cold: 2e9)
  monkeypatch.setattr(
    eval_command, "print_streaming", lambda model, speed, *, tokens_per_pass: asked.append((speed, tokens_per_pass)))
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(
    pretrained=str(folder), weights_budget=1 << 30, seq_len=16, set=[*ON_BYTES, "eval.max_batches=1"],
    workdir=str(folder.parent / "run")):
    eval_command.main()
  assert "bits per byte" in capsys.readouterr().out
  ((speed, tokens_per_pass),) = asked
  assert speed > 0 and tokens_per_pass == 16
