"""Results are keyed by everything that made them: nothing replaces, or is reported as, what something else made."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from lattice_jax.evaluation import cache_flags, command
from lattice_jax.evaluation.origin import code_fingerprint, keyed_name, origin_key
from lattice_jax.evaluation.recall.grid import AnswerFile
from lattice_jax.inference.generate import Timing
from lattice_jax.inference.text import Written
from tests.evaluation.test_cache_flags import make_task
from tests.evaluation.test_command import evaluate_stub, workdir  # noqa: F401
from tests.models.tiny_files import LLAMA, make_tensors, write_folder

SIZES = LLAMA | {"vocab_size": 259, "max_position_embeddings": 256, "num_hidden_layers": 1}
ON_BYTES = ("data.tokenizer=bytes", "data.source=synthetic")


@pytest.fixture(autouse=True)
def _flags(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(
    task="passkey", lengths=["128"], answers=["3"], depths=["0.5"], trials=1, rows=1, examples=0):
    yield


def choose(name, *overrides, dtype="float32"):
  return command.choose(None, name, step=None, dtype=dtype, overrides=[*ON_BYTES, *overrides])


def judge(task):
  """The folder with all that was ever answered, line by line."""
  report, *_ = cache_flags.judge(task, "test", report=lambda line: None)
  return report.parent, [json.loads(line) for line in (report.parent / "answers.jsonl").read_text().splitlines()]


def test_a_model_is_called_by_all_of_its_name(tmp_path):
  assert command.model_name("m/Llama-3.1-8B") == "Llama-3.1-8B"
  assert command.model_name("m/Llama-3.1-8B/") == "Llama-3.1-8B"
  assert command.model_name("m/SmolLM2-1.7B.Q4_1.gguf") == "SmolLM2-1.7B.Q4_1"
  assert command.model_name("smollm2") == "smollm2"
  assert command.model_name(".") == tmp_path.name


def test_answers_of_one_model_are_never_those_of_another(tmp_path):
  for name, seed in (("Llama-3.1-8B", 0), ("Llama-3.2-1B", 1), ("a/model", 0), ("b/model", 1)):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_folder(tmp_path / name, SIZES, make_tensors(SIZES, seed))
  (first, first_lines), (second, second_lines) = judge(choose("Llama-3.1-8B")), judge(choose("Llama-3.2-1B"))
  assert first.parts[:2] == ("runs", "Llama-3.1-8B") and second.parts[:2] == ("runs", "Llama-3.2-1B")
  assert first_lines[0]["nll"] != second_lines[0]["nll"]
  # of one name in two places, and beside one another in one workdir
  same, other = judge(choose("a/model")), judge(choose("b/model"))
  assert same[0].parent == other[0].parent and same[0] != other[0]
  assert [line["nll"] for line in same[1] + other[1]] == [line["nll"] for line in first_lines + second_lines]
  assert judge(choose("a/model")) == same  # which asks nothing again
  changed = judge(choose("a/model", "model.attention.rope_theta=50.0"))
  assert changed[0] != same[0] and changed[1][0]["nll"] != same[1][0]["nll"]
  for answers in (second / "answers.jsonl", other[0] / "answers.jsonl"):
    (first / "answers.jsonl").write_text(answers.read_text())
    with pytest.raises(ValueError, match=r"holds answers of another model, text or version \(key \w+, not \w+\)"):
      judge(choose("Llama-3.1-8B"))


def test_lines_that_do_not_say_what_made_them_are_refused(tmp_path):
  line = {"task": "passkey", "length": 128, "answer": 3, "depth": 0.5, "cache": "full", "seed": 0, "trials": [0]}
  (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
  with pytest.raises(ValueError, match=r"do not say what made them; move it away, or choose another --workdir"):
    AnswerFile(tmp_path / "answers.jsonl", "0")


def test_every_change_of_an_evaluation_has_a_file_of_its_own(workdir):  # noqa: F811
  task = command.load(workdir, step=None, overrides=[]).with_eval(split="test", max_batches=2, batch=8)
  config, result = task.config, evaluate_stub(seq_len=64)
  tasks = {
    "as it is": (task, result), "step": (command.load(workdir, step=3, overrides=[]), result),
    "config": (dataclasses.replace(task, config=dataclasses.replace(
      config, model=dataclasses.replace(config.model, dtype="bfloat16"))), result),
    "part": (task.with_eval(max_batches=3), result), "rows of a part": (task.with_eval(batch=4), result)}
  for name, value in (("chunk_len", 16), ("seq_len", 32), ("split", "train"), ("protocol", "carried"),
                      ("fingerprint", "other")):
    tasks[name] = task, dataclasses.replace(result, **{name: value})
  written = {name: one.write(found, None).name for name, (one, found) in tasks.items()}
  assert len(set(written.values())) == len(written)
  assert written["step"].startswith("eval_test_cold_step3_") and written["seq_len"].startswith("eval_test_cold_T32_")
  assert command.load(workdir, step=7, overrides=[]).with_eval(
    split="test", batch=8, max_batches=2).write(result, None).name == written["as it is"]
  whole = task.with_eval(max_batches=0)
  assert whole.write(result, None) == whole.with_eval(batch=4).write(result, None)  # the result does not depend on it


def test_every_change_of_a_text_has_a_file_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setattr(command, "write_texts", lambda *inputs, **options: Written(("",), ("stop",), (0,), Timing()))
  task = make_task(tmp_path)
  options = ({}, {"seed": 1}, {"temperature": 0.0}, {"stop_strings": ["#"]})
  paths = [task.write_texts(["abc"], length=2, **some)[1] for some in options]
  assert len(set(paths)) == len(paths) and all(path.exists() for path in paths)
  assert task.write_texts(["abc"], length=2)[1] == paths[0]


def test_weights_are_told_apart_by_what_they_hold():
  weight, task = jax.numpy.arange(64.0).reshape(8, 8), make_task(None)
  changes = [weight, 2 * weight, -weight, weight.T, weight[::-1], weight.at[3, 3].add(1e-6), weight + 1]
  found = [dataclasses.replace(task, params={"a": change}).origin["weights"] for change in changes]
  found.append(dataclasses.replace(task, params={"b": weight}).origin["weights"])
  assert len(set(found)) == len(found)


def test_a_name_is_short_and_ends_in_its_key():
  origin = {"weights": "x"}
  name = keyed_name(["eval", "a=b,c d/e", *["long"] * 60], origin)
  assert name.startswith("eval_a=b-c-d-e_long_") and name.endswith("_" + origin_key(origin)) and len(name) < 120
  assert origin_key(origin) != origin_key(origin | {"step": 1})
  assert len(code_fingerprint()) == 32
