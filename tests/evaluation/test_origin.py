"""Results are keyed by everything that made them: nothing replaces, or is reported as, what something else made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from lattice_jax.commands import cache_task
from lattice_jax.config import AnchorsConfig
from lattice_jax.evaluation import loaded_model
from lattice_jax.evaluation.loaded_model import load_pretrained_model, load_run, model_name
from lattice_jax.evaluation.origin import code_fingerprint, keyed_name, origin_key
from lattice_jax.evaluation.retrieval.plan import AnswerFile
from lattice_jax.inference.generate import Timing
from lattice_jax.inference.text import Written
from tests.commands.test_cache_task import make_loaded
from tests.evaluation.test_loaded_model import evaluate_stub, workdir  # noqa: F401
from tests.models.tiny_files import LLAMA, make_tensors, write_folder

SIZES = LLAMA | {"vocab_size": 259, "max_position_embeddings": 256, "num_hidden_layers": 1}
ON_BYTES = ("data.tokenizer=bytes", "data.source=synthetic")


@pytest.fixture(autouse=True)
def _flags(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(
    task="passkey", lengths=(128,), answers=(3,), depths=(0.5,), trials=1, rows=1, examples=0):
    yield


def choose(name, *overrides, dtype="float32"):
  return load_pretrained_model(name, workdir=None, dtype=dtype, overrides=[*ON_BYTES, *overrides])


def ask(loaded, told=None):
  """The folder with all that was ever answered, line by line."""
  report, *_ = cache_task.run_task(loaded, "test", report=(told if told is not None else []).append)
  return report.parent, [json.loads(line) for line in (report.parent / "answers.jsonl").read_text().splitlines()]


def test_a_model_is_called_by_all_of_its_name(tmp_path):
  assert model_name("m/Llama-3.1-8B") == "Llama-3.1-8B"
  assert model_name("m/Llama-3.1-8B/") == "Llama-3.1-8B"
  assert model_name("m/SmolLM2-1.7B.Q4_1.gguf") == "SmolLM2-1.7B.Q4_1"
  assert model_name("smollm2") == "smollm2"
  assert model_name(".") == tmp_path.name


def test_answers_of_one_model_are_never_those_of_another(tmp_path):
  for name, seed in (("m/Llama-3.1-8B", 0), ("m/Llama-3.2-1B", 1), ("n/Llama-3.1-8B", 1)):
    (tmp_path / name).mkdir(parents=True)
    write_folder(tmp_path / name, SIZES, make_tensors(SIZES, seed))
  old, told = tmp_path / "runs" / "Llama-3.1-8B" / "passkey" / "answers.jsonl", []
  old.parent.mkdir(parents=True)
  old.write_text('{"task": "passkey"}\n')  # as it was written before answers had keys
  first, second = ask(choose("m/Llama-3.1-8B"), told), ask(choose("m/Llama-3.2-1B"))
  assert "answers.jsonl does not say which model answered, so nothing of it is used" in told[0]
  assert old.read_text() == '{"task": "passkey"}\n'
  assert first[0].parts[:2] == ("runs", "Llama-3.1-8B") and second[0].parts[:2] == ("runs", "Llama-3.2-1B")
  assert first[1][0]["nll"] != second[1][0]["nll"]
  same_name = ask(choose("n/Llama-3.1-8B"))
  assert same_name[0].parent == first[0].parent and same_name[0] != first[0]
  assert same_name[1][0]["nll"] == second[1][0]["nll"]
  assert ask(choose("m/Llama-3.1-8B")) == first  # which asks nothing again
  (first[0] / "answers.jsonl").write_text((same_name[0] / "answers.jsonl").read_text())
  with pytest.raises(ValueError, match=r"holds answers of another model, text or version \(key \w+, not \w+\)"):
    ask(choose("m/Llama-3.1-8B"))
  names = {
    choose("m/Llama-3.1-8B", *overrides, dtype=dtype).name_of("passkey", text="", **facts)[0]
    for overrides, dtype, facts in (
      ((), "float32", {}), ((), "bfloat16", {}), (("model.attention.rope_theta=50.0",), "float32", {}),
      (("model.cache.lagkv.epsilon=1.0",), "float32", {}), ((), "float32", {"seed": 1}),
      ((), "float32", {"code": "x"}))}
  assert len(names) == 6


def test_lines_that_do_not_say_what_made_them_are_refused(tmp_path):
  line = {"task": "passkey", "length": 128, "answer": 3, "depth": 0.5, "cache": "full", "seed": 0, "trials": [0]}
  (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
  with pytest.raises(ValueError, match=r"do not name their origin; move it away, or choose another --workdir"):
    AnswerFile(tmp_path / "answers.jsonl", "0")


def test_every_change_of_an_evaluation_has_a_file_of_its_own(workdir):  # noqa: F811
  loaded = load_run(workdir, step=None, overrides=[]).with_eval(split="test", max_batches=2, batch=8)
  config, result = loaded.config, evaluate_stub(seq_len=64)
  saved = {
    "as it is": (loaded, result), "step": (load_run(workdir, step=3, overrides=[]), result),
    "config": (dataclasses.replace(loaded, config=dataclasses.replace(
      config, model=dataclasses.replace(config.model, dtype="bfloat16"))), result),
    "anchors": (dataclasses.replace(loaded, config=dataclasses.replace(
      config, data=dataclasses.replace(config.data, anchors=AnchorsConfig(rule="every:4")))), result),
    "part": (loaded.with_eval(max_batches=3), result), "rows of a part": (loaded.with_eval(batch=4), result)}
  for name, value in (("chunk_len", 16), ("seq_len", 32), ("split", "train"), ("protocol", "carried"),
                      ("fingerprint", "other")):
    saved[name] = loaded, dataclasses.replace(result, **{name: value})
  written = {name: one.save(found, None).name for name, (one, found) in saved.items()}
  assert len(set(written.values())) == len(written)
  assert written["step"].startswith("eval_test_cold_step3_") and written["seq_len"].startswith("eval_test_cold_T32_")
  assert load_run(workdir, step=7, overrides=[]).with_eval(
    split="test", batch=8, max_batches=2).save(result, None).name == written["as it is"]
  whole = loaded.with_eval(max_batches=0)
  assert whole.save(result, None) == whole.with_eval(batch=4).save(result, None)  # the result does not depend on it


def test_every_change_of_a_text_has_a_file_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setattr(loaded_model, "write_texts", lambda *inputs, **options: Written(("",), ("stop",), (0,), Timing()))
  loaded = make_loaded(tmp_path)
  options = ({}, {"seed": 1}, {"temperature": 0.0}, {"stop_strings": ["#"]})
  paths = [loaded.write_texts(["abc"], length=2, **some)[1] for some in options]
  assert len(set(paths)) == len(paths) and all(path.exists() for path in paths)
  assert loaded.write_texts(["abc"], length=2)[1] == paths[0]


def test_weights_are_told_apart_by_what_they_hold():
  weight, loaded = jax.numpy.arange(64.0).reshape(8, 8), make_loaded(None)
  changes = [weight, 2 * weight, -weight, weight.T, weight[::-1], weight.at[3, 3].add(1e-6), weight + 1]
  found = [dataclasses.replace(loaded, params={"a": change}).origin["weights"] for change in changes]
  found.append(dataclasses.replace(loaded, params={"b": weight}).origin["weights"])
  assert len(set(found)) == len(found)


def test_a_name_is_short_and_ends_in_its_key():
  origin = {"weights": "x"}
  name = keyed_name(["eval", "a=b,c d/e", *["long"] * 60], origin)
  assert name.startswith("eval_a=b-c-d-e_long_") and name.endswith("_" + origin_key(origin)) and len(name) < 120
  assert origin_key(origin) != origin_key(origin | {"step": 1})


def test_the_code_fingerprint_covers_prompts_and_every_policy(monkeypatch):
  read, read_bytes = set(), Path.read_bytes
  monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path.name) or read_bytes(path))
  assert len(code_fingerprint()) == 32
  assert {"prompts.py", "policy.py", "lagkv.py", "snapkv.py"} <= read
