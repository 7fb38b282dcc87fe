"""eval.py from a stored run: results, files, overrides, and what it says to mistakes."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config import CacheConfig, Config, DataConfig, ModelConfig
from lattice_jax.config_checks import check_config, to_dict
from lattice_jax.config_text import apply_overrides
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.evaluation import evaluator, loaded_model, result_tables
from lattice_jax.evaluation.answers import AnswerGroup
from lattice_jax.evaluation.loaded_model import for_reading, load_run
from lattice_jax.evaluation.result import DocumentResult, EvalResult
from lattice_jax.inference.generate import Timing
from lattice_jax.inference.text import Written
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import unbox

ROOT = Path(__file__).parents[2]
CONFIG = Config(
  name="tiny",
  model=ModelConfig(dim=16, layers=1, vq=VQConfig(key_dim=4, value_dim=8, codes=5, block_len=8)),
  data=DataConfig(source="synthetic", seq_len=64, update_len=64))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  run = {"config": to_dict(CONFIG)}
  (workdir / "run.json").write_text(json.dumps(run))
  variables = jax.jit(lambda: unbox(init_variables(CONFIG.model, jax.random.key(0))))()
  checkpoints = Checkpoints(workdir, keep_last=2)
  for step, scale in ((3, 1.0), (7, 2.0)):
    checkpoints.save(step, jax.tree.map(lambda leaf, scale=scale: scale * leaf, variables), run)
  checkpoints.wait()
  checkpoints.close()
  return workdir


def evaluate(workdir, *, overrides=(), step=None, **options):
  loaded = load_run(workdir, step=step, overrides=overrides)
  loaded = loaded.with_eval(**{"split": "test", "protocol": "cold", "batch": 8, "max_batches": 2} | options)
  (result,) = loaded.evaluate()
  return loaded, result


def test_result_is_written_with_all_that_makes_it_again(workdir):
  loaded, result = evaluate(workdir)
  path = loaded.save(result, None)
  written = json.loads(path.read_text())
  assert path == workdir / f"eval_test_cold_step7_{written['key']}.json"
  assert (written["step"], written["overrides"], written["seq_len"]) == (7, [], 64)
  assert (written["source"], written["fingerprint"]) == ("synthetic", result.fingerprint)
  assert (written["tokenizer"], written["unit"], written["documents"]) == ("bytes", "byte", [])
  assert written["git_commit"]
  assert written["bits_per_byte"] == result.bits_per_byte
  assert sum(bucket["tokens"] for bucket in written["buckets"]) == written["tokens"] == result.tokens


def test_an_override_changes_the_model_and_the_file_is_called_by_it(workdir):
  plain, masked = evaluate(workdir), evaluate(workdir, overrides=["model.vq.cache=False"])
  assert plain[1].bits_per_byte != masked[1].bits_per_byte
  assert masked[0].save(masked[1], None).name.startswith("eval_test_cold_step7_model.vq.cache=False_")
  assert plain[0].save(plain[1], workdir / "new" / "x.json") == workdir / "new" / "x.json"


def test_a_named_step_is_the_one_that_is_read(workdir):
  newest, named = load_run(workdir, step=None, overrides=[]), load_run(workdir, step=3, overrides=[])
  assert (newest.step, named.step) == (7, 3)
  for old, new in zip(*map(jax.tree.leaves, (named.params, newest.params)), strict=True):
    np.testing.assert_allclose(2 * np.asarray(old), new)


def test_a_text_starts_with_its_prompt_and_is_kept(workdir):
  shown = []
  loaded = load_run(workdir, step=None, overrides=[])
  written, path = loaded.write_texts(["abc"], length=8, seed=1, show=shown.append)
  (text,) = written.texts
  assert text.startswith("abc") and len(text) > 3
  assert "".join(shown) == text
  shown.clear()
  with pytest.raises(ValueError, match="chosen per prompt"):
    loaded.write_texts(["abc"], length=8, windows="per_prompt", show=shown.append)
  assert not shown  # a refusal stands on a line of its own
  assert path.parent == workdir and path.read_text() == text + "\n"
  lines = result_tables.format_written(written).splitlines()
  assert lines[0].endswith("8 tokens: as long as asked")
  assert [line.split("  ")[0] for line in lines[1:]] == ["time to first token", "tokens per second", "memory"]


def test_a_context_beyond_what_the_model_was_made_for_is_refused(workdir):
  loaded = dataclasses.replace(load_run(workdir, step=None, overrides=[]), context_len=10)
  with pytest.raises(ValueError, match="a context of 11 tokens is more than the 10 that tiny was made for"):
    loaded.write_texts(["abc"], length=8, limit=11)
  with pytest.raises(ValueError, match="row 0 has 11 tokens, and the context holds 10"):
    loaded.write_texts(["abcdefghij"], length=8)
  with pytest.raises(ValueError, match="windows of 11 tokens are more than the 10 that tiny was made for; use"):
    loaded.with_eval(seq_len=11)


def test_a_chat_starts_as_its_template_says_and_a_log_of_windows_lies_beside_the_text(workdir, monkeypatch):
  class Chatting(ByteTokenizer):
    def chat(self, messages):
      return f"<s>{messages[0]['content']}"

  asked = []

  def write_texts(model, variables, tokenizer, prompts, *, options, **others):
    asked.append((prompts, options.start_ids))
    log = ({"what": "prompt"}, {"what": "choose"}) if options.windows else ()
    return Written(texts=("",), finishes=("stop",), num_tokens=(0,), timing=Timing(), window_log=log)

  monkeypatch.setattr(loaded_model, "get_tokenizer", lambda data: Chatting())
  monkeypatch.setattr(loaded_model, "write_texts", write_texts)
  loaded = load_run(workdir, step=None, overrides=[])
  for is_chat in (True, False):
    loaded.write_texts(["hi"], length=8, is_chat=is_chat)
  assert asked == [(["<s>hi"], ()), (["hi"], Chatting.start_ids)]
  _, path = loaded.write_texts(["hi"], length=8, windows="per_prompt")
  assert path.with_suffix(".windows.jsonl").read_text() == '{"what": "prompt"}\n{"what": "choose"}\n'


def test_a_model_marks_what_it_reads_and_writes_by_its_rule(workdir, monkeypatch):
  plain, found = load_run(workdir, step=None, overrides=[]), []
  loaded = load_run(workdir, step=None, overrides=["data.anchors.rule=every:4"])
  monkeypatch.setattr(
    loaded_model, "write_texts",
    lambda *inputs, options, **others: found.append(options.marker) or Written((), (), (), Timing()))
  eval_batches = evaluator.eval_batches
  monkeypatch.setattr(
    evaluator, "eval_batches",
    lambda *inputs, marker, **others: found.append(marker) or eval_batches(*inputs, **others))
  for model in (plain, loaded):
    model.draw_texts(["abc"], length=2)
    model.with_eval(split="test", max_batches=1, batch=8).evaluate()
  assert found[:2] == [None, None] and [marker.every for marker in found[2:]] == [4, 4]
  assert plain.marker is None and loaded.marker.every == 4


def test_a_text_of_another_model_and_a_cache_that_is_never_asked_to_drop_are_refused(workdir):
  loaded = load_run(workdir, step=None, overrides=[]).with_eval(split="test", batch=8)

  def changed(**fields):
    return dataclasses.replace(loaded, config=dataclasses.replace(
      loaded.config, model=dataclasses.replace(loaded.config.model, **fields)))

  with pytest.raises(ValueError, match=r"holds token \d+, and the model has 40: data.tokenizer=bytes is another"):
    changed(vocab=40).evaluate()
  lagkv = changed(pattern=("attention",), cache=CacheConfig(policy="lagkv", lag=8, keep=2))
  for chunk_len in (0, 64, 100):
    with pytest.raises(ValueError, match=r"'lagkv' drops tokens between calls, and .* such as --chunk_len=128"):
      lagkv.with_eval(chunk_len=chunk_len).evaluate()


@pytest.mark.parametrize(
  ("override", "field", "value"), [
    ("model.vq.cache=false", "model.vq.cache", False), ("model.xent_chunk=7", "model.xent_chunk", 7),
    ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0), ("data.path=1", "data.path", "1"),
    ("model.pattern=vq,vq", "model.pattern", ("vq", "vq")), ("model.impl=reference", "model.impl", "reference")],
  ids=lambda value: value if isinstance(value, str) and "=" in value else "")
def test_an_override_takes_the_type_of_its_field(override, field, value):
  config = apply_overrides(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, layers=2)), [override])
  for name in field.split("."):
    config = getattr(config, name)
  assert config == value and type(config) is type(value)


def test_a_run_that_names_each_layer_to_train_the_last_ones_is_read_under_the_shortest_pattern():
  trained = dataclasses.replace(
    CONFIG, model=dataclasses.replace(CONFIG.model, layers=4, pattern=("vq",) * 4),
    optimizer=dataclasses.replace(CONFIG.optimizer, last_layers=2))
  check_config(trained)
  read = for_reading(trained)
  check_config(read)
  assert read.model == dataclasses.replace(trained.model, pattern=("vq",))


@pytest.mark.parametrize(
  ("options", "message"), [
    ({"overrides": ["model.vq.cach=False"]}, "Did you mean 'cache'"),
    ({"overrides": ["modle.vq.cache=False"]}, "Did you mean 'model'"),
    ({"overrides": ["model.vq.cache"]}, "must have the form"),
    ({"overrides": ["model.dim.x=1"]}, "a field and not a section"),
    ({"overrides": ["model.vq.cache=3"]}, r"model\.vq\.cache=3 must be true or false"),
    ({"overrides": ["model.vq.codes=6"]}, "not be what the checkpoint holds"),
    ({"step": 5}, "no checkpoint of step 5; it has 3, 7"),
    ({"seq_len": -1}, "seq_len=-1"), ({"chunk_len": -1}, "chunk_len=-1"), ({"batch": 0}, "batch=0"),
    ({"protocol": "warm"}, "eval.protocol='warm'")],
  ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_mistake_is_answered_in_one_sentence(workdir, options, message):
  with pytest.raises(ValueError, match=message) as error:
    evaluate(workdir, **options)
  assert "\n" not in str(error.value)


def test_what_cannot_be_written_is_named_with_what_helps(workdir):
  place = workdir / "run.json" / "x.json"
  with pytest.raises(ValueError, match=r"x\.json cannot be written: .*; free space or grant write permission there\.$"):
    result_tables.write_text(place, "")
  with pytest.raises(ValueError, match=r"permission there, or choose another --output\.$"):
    result_tables.write_result(place, evaluate_stub(bits_per_byte=2.2), {})


def test_comparison_lists_the_best_first():
  result = evaluate_stub(bits_per_byte=2.2)
  lines = result_tables.format_comparison([result], {"xz": 2.1, "gzip": 2.8}, "byte").splitlines()
  assert [line.split("  ")[0] for line in lines[1:]] == ["xz", "model, cold", "gzip"]
  assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(("changes", "expected"), [
  ({"unit": "dim"}, ["s, bytes tokenizer, test split, cold: windows of 8", "bits per dim  1.0000", "tokens  1\n"]),
  ({"split_tokens": 2000, "words": 7, "raw_words": 7, "word_perplexity": 1234.5},
   ["word perplexity, estimated  1,234.50", "words  7 (of the raw text)", "tokens  1 of 2,000"]),
  ({"words": 7, "raw_words": 8, "word_perplexity": None},
   ["word perplexity  \n", "words  7 (published; 8 in the text)"]),
  ({"documents": (DocumentResult("Emma", 9, 20, 1.5, 4, 99.0), DocumentResult("X", 9, 20, 2.5, 0, None))},
   ["text  bits per byte  word perplexity  words\n", "Emma  1.5000  99.00  4\n", "X  2.5000  0\n"]),
  ({"accuracy": 0.975, "tokens": 40, "split_tokens": 80, "answers": (
    AnswerGroup("pairs", 4, 4, 30, 1.0, 0.01), AnswerGroup("distance", 2, 3, 10, 0.9, 0.5))},
   ["accuracy  97.50%\nnats per answer  1.0000\nanswers  40 of 80\n",
    "\n\npairs  answers  accuracy  nats per answer\n4  30",
    "\n\ndistance  answers  accuracy  nats per answer\n2–3  10  90.00%  0.5000"]),
], ids=["images", "cut texts", "published words", "two texts", "a task"])
def test_result_is_printed_with_unit_tokenizer_and_words(changes, expected):
  printed = re.sub("  +", "  ", result_tables.format_result(evaluate_stub(**changes)))
  for words in expected:
    assert words in printed


def evaluate_stub(**changes):
  result = EvalResult(
    source="s", tokenizer="bytes", unit="byte", fingerprint="0", split="test", protocol="cold", seq_len=8, chunk_len=8,
    bits_per_byte=1.0, nll_per_token=1.0, tokens=1, split_tokens=1, words=None, raw_words=None, word_perplexity=None,
    seconds=1.0, compile_seconds=0.0, tokens_per_second=1.0, buckets=(), documents=(), accuracy=None, answers=(),
    metrics={})
  return dataclasses.replace(result, **changes)


def baselines(workdir, source):
  loaded = load_run(workdir, step=None, overrides=[f"data.source={source}"])
  return loaded.baselines("test")


def test_photographs_stand_beside_png_and_webp_and_texts_beside_their_raw_bytes(workdir):
  figures, unit = baselines(workdir, "photos_sample")
  assert unit == "dim"
  assert {name: round(bits, 2) for name, bits in figures.items()} == {
    "order-0": 7.93, "left residual": 5.27, "PNG": 4.77, "WebP lossless": 3.75}
  figures, unit = baselines(workdir, "synthetic")
  assert unit == "byte" and set(figures) == {"order-0", "gzip -9", "bz2 -9", "xz -9e"}


@pytest.mark.slow
def test_the_command_prints_a_table_and_ends_with_two_on_mistakes(workdir):
  def run(*flags):
    return subprocess.run(
      [sys.executable, ROOT / "eval.py", *flags], capture_output=True, text=True, cwd=ROOT, timeout=100)

  good = run(f"--workdir={workdir}", "--batch=8", "--split=test", "--output=" + str(workdir / "out.json"))
  assert good.returncode == 0, good.stderr
  bits = json.loads((workdir / "out.json").read_text())["bits_per_byte"]
  assert f"{bits:.4f}" in good.stdout
  assert good.stdout.count("op vq: xla (there is no Pallas kernel of it for cpu)\n") == 1
  for flags in ([f"--workdir={workdir}x"], ["--worker=1"], []):
    bad = run(*flags)
    assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1), bad.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_an_evaluation_is_one_sentence(workdir, number):
  command = [sys.executable, ROOT / "eval.py", f"--workdir={workdir}", "--split=train", "--batch=1"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert any("at step 7" in line for line in iter(process.stdout.readline, ""))  # behind what the ops say
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert errors.startswith(f"eval.py: stopped by {number.name}; nothing is lost") and errors.count("\n") == 1
