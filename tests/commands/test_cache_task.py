"""eval.py --task: what the flags ask for, where it goes, and what they say to mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from lattice_jax.commands import cache_flags, cache_task
from lattice_jax.commands.flags import parse_flags
from lattice_jax.config import CacheConfig, Config, DataConfig, ModelConfig
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.evaluation.retrieval.plan import AnswerFile
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.sharding import make_mesh

CONFIG = Config(
  model=ModelConfig(pattern=("attention",), dim=8, layers=1, attention=AttentionConfig(heads=1, kv_heads=1)),
  data=DataConfig(source="synthetic", seq_len=64, update_len=64))
LAGKV = "lagkv:sinks=2,lag=16,keep=4"


@pytest.fixture(autouse=True)
def _flags():
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver():
    yield


def make_loaded(workdir):
  mesh = make_mesh(CONFIG.mesh)
  return LoadedModel(
    workdir=workdir, config=CONFIG, overrides=(), params={}, buffers={}, step=None, mesh=mesh, context_len=2048)


def ask(workdir, monkeypatch, **values):
  """(what was asked for, paths), without a model; the marker of each is added to `markers`."""
  asked, markers = [], values.pop("markers", [])

  def run_plan(plan, subject, folder, *, report):
    markers.append(subject.marker)
    asked.append((plan, subject, folder))
    return AnswerFile(folder / "answers.jsonl", subject.key)

  def compare(model, variables, caches, tokens_BT, prompt_len, *, marker, report):
    markers.append(marker)
    asked.append((caches, tokens_BT, prompt_len))
    return []

  monkeypatch.setattr(cache_task, "run_plan", run_plan)
  monkeypatch.setattr(cache_task, "compare", compare)
  monkeypatch.setattr(cache_task, "write_comparisons", lambda folder, result: [folder / "compare.md"])
  parse_flags(["eval.py", *(
    f"--{name}={','.join(value) if isinstance(value, list) else value}"
    for name, value in values.items() if name != "cache")])
  if "cache" in values:
    flags.FLAGS.cache = values["cache"]
  return asked, cache_task.run_task(make_loaded(workdir), "test", report=print)


def test_a_task_gets_the_full_cache_and_all_that_were_named(tmp_path, monkeypatch):
  ((plan, subject, folder),), paths = ask(
    tmp_path, monkeypatch, task="needles", cache=[LAGKV, "full"], peers=["knorm"], lengths=["128", "256"],
    answers=["7", "16"], depths=["0", "0.5"], trials=4, rows=2, examples=1, task_seed=3)
  assert list(plan.caches_of(128)) == ["full", LAGKV, f"knorm like {LAGKV}"]
  assert plan.caches["full"] == CacheConfig()
  assert (plan.task, plan.lengths, plan.answers, plan.depths) == ("needles", (128, 256), (7, 16), (0.0, 0.5))
  assert (plan.trials, plan.batch, plan.examples, plan.seed) == (4, 2, 1, 3)
  assert len(subject.text_ids) > 1000 and subject.marker is None
  assert folder.parent == tmp_path and folder.name == f"needles_{subject.key}"
  assert paths == [folder / "report.md", folder / "table.jsonl", folder / "examples.md"]


def test_texts_are_stretches_of_documents_that_the_seed_decides(tmp_path, monkeypatch):
  values = {"task": "text", "cache": [LAGKV], "lengths": ["100", "200"], "trials": 3}
  asked, paths = ask(tmp_path, monkeypatch, **values)
  assert [(tokens_BT.shape, prompt_len) for _, tokens_BT, prompt_len in asked] == [((3, 100), 50), ((3, 200), 100)]
  folder = paths[0].parents[1]
  assert folder.parent == tmp_path and folder.name.startswith("text_")
  assert paths == [folder / length / "compare.md" for length in ("100", "200")]
  again, same = ask(tmp_path, monkeypatch, **values)
  np.testing.assert_array_equal(again[0][1], asked[0][1])
  assert same == paths
  other, others = ask(tmp_path, monkeypatch, **values, task_seed=1)
  assert (other[0][1] != asked[0][1]).any() and not {*others} & {*paths}
  assert not {*ask(tmp_path, monkeypatch, **values | {"cache": ["window:tokens=40"]})[1]} & {*paths, *others}


@pytest.mark.parametrize("values", [
  {"cache": ["sep:keep=4"]}, {"cache": [LAGKV], "peers": ["sep"]}, {"task": "text", "cache": ["sep:keep=4"]},
  {"task": "text", "cache": [LAGKV], "peers": ["sep"]}], ids=str)
def test_a_cache_that_keeps_separators_is_told_them(values, tmp_path, monkeypatch):
  markers = []
  ask(tmp_path, monkeypatch, markers=markers, **{"task": "passkey", "trials": 1} | values)
  assert [(marker.class_A > 0).sum() for marker in markers] == [len(".,?!;: \t\n")]


@pytest.mark.parametrize(("values", "message"), [
  ({"lengths": ["1k"]}, "--lengths=1k must be values with commas between them, each of which must be a whole number"),
  ({"depths": []}, "--depths= must be values with commas"),
  ({"task": "text", "trials": 0}, "--trials=0 must be positive"),
  ({"depths": ["0.5", "1.5"]}, "--depths=0.5,1.5 must be values with commas between them, each of which must"),
  ({"answers": ["0"]}, "--answers=0 must be values with commas between them, each of which must be positive"),
  ({"task": "passkeys"}, "--task=passkeys is not one of passkey, needles, .* Did you mean 'passkey'"),
  ({"lengths": ["4096"]}, "--lengths=4096 is more than the 2,048 tokens that run was made for"),
  ({"cache": ["lagvk"]}, "Did you mean 'lagkv'"), ({"task": "text", "lengths": ["2047"]}, "no document of the split")],
  ids=str)
def test_a_mistake_is_answered_in_one_sentence(values, message, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=message):
    ask(tmp_path, monkeypatch, **{"task": "passkey"} | values)


def test_outside_of_a_task_one_cache_changes_the_config():
  flags.FLAGS.cache = [LAGKV]
  assert cache_flags.cache_overrides()[:2] == ["model.cache.policy=lagkv", "model.cache.sinks=2"]
  flags.FLAGS.cache = [LAGKV, "full"]
  with pytest.raises(ValueError, match="--cache was given several times; only a --task compares caches"):
    cache_flags.cache_overrides()
  flags.FLAGS.task = "passkey"
  assert cache_flags.cache_overrides() == []
