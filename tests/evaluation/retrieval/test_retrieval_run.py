"""Retrieval under caches on a tiny model: one shared reading equals separate ones; resuming, tables and plots."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.evaluation.cache_contents import cache_of_map, map_path
from lattice_jax.evaluation.retrieval.plan import AnswerFile, RetrievalPlan
from lattice_jax.evaluation.retrieval.prompts import TASKS, Haystack, PromptSizes
from lattice_jax.evaluation.retrieval.run import Subject, run_plan
from lattice_jax.evaluation.retrieval.summary import summarize, write_summary
from lattice_jax.inspect.retrieval_plots import plot_retrieval
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import unbox
from lattice_jax.types import whole_segment

MODEL = ModelConfig(
  dim=16, layers=2, pattern=("attention",), block="mlp", mlp_dim=16,
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=8, value_dim=8))
LAGKV = CacheConfig(policy="lagkv", sinks=2, lag=16, keep=4)
PLAN = RetrievalPlan(
  task="passkey", lengths=(230,), answers=(3, 4), depths=(0.0, 0.9), trials=3, seed=1, batch=2, examples=1,
  caches={"full": CacheConfig(), "lagkv": LAGKV}, peers=("window",))
TEXT = b"It was a dark and stormy night; the rain fell in torrents. " * 9


@functools.lru_cache
def subject():
  variables = jax.jit(lambda: unbox(init_variables(MODEL, jax.random.key(0))))()
  return Subject(
    model=MODEL, variables=variables, tokenizer=ByteTokenizer(), text_ids=ByteTokenizer().encode(TEXT),
    context_len=235, key="k")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("retrieval")
  told = []
  answers = run_plan(PLAN, subject(), folder, report=told.append)
  assert len(told) == 2 * 2 * 2  # sizes of answer, depths, batches
  assert len(answers.lines()) == 3 * len(told)
  return folder


def lines(folder, cache):
  return [line for line in AnswerFile(folder / "answers.jsonl", "k").lines() if line.cache == cache]


@functools.partial(jax.jit, static_argnums=2)
def all_logits(variables, tokens_BT, model):
  batch, length = tokens_BT.shape
  output = Decoder(model).apply(variables, tokens_BT, init_state(model, batch), whole_segment(batch, length))
  return jax.nn.log_softmax(Decoder(model).apply(variables, output.features_BTD, method=Decoder.logits))


def test_under_the_full_cache_an_answer_is_scored_as_in_one_call_over_prompt_and_answer(folder):
  for line in lines(folder, "full"):
    for index, trial in enumerate(line.trials):
      haystack = Haystack(ByteTokenizer(), subject().text_ids, trial=trial, seed=1)
      prompt = TASKS["passkey"](haystack, PromptSizes(230, line.answer, line.depth))
      whole = np.pad(np.concatenate([prompt.tokens, prompt.answer]), (0, 5 - len(prompt.answer)))
      logits_TA = all_logits(subject().variables, whole[None], MODEL)[0]
      said_TA = logits_TA[229:229 + len(prompt.answer)]
      nll_T = -said_TA[np.arange(len(said_TA)), prompt.answer]
      np.testing.assert_allclose(line.nll[index], nll_T, rtol=1e-5, atol=5e-5)
      assert line.right[index] == (said_TA.argmax(-1) == prompt.answer).tolist()
      assert line.scored[index] == [False] + [True] * line.answer
    assert (line.kept, line.needle_kept, line.per_partition) == (230, [1.0] * len(line.trials), 0)
    assert line.cache_bytes == 2 * 230 * (2 * 8 * 4 + 4)


@pytest.mark.thorough
def test_every_other_cache_keeps_as_many_tokens_and_scores_answers_differently(folder):
  kept = make_policy(LAGKV).length_after(230)
  def asked(line):
    return line.length, line.answer, line.depth, line.trials

  full = {asked(line): line for line in lines(folder, "full")}
  for cache in ("lagkv", "window like lagkv"):
    for line in lines(folder, cache):
      assert line.kept == kept
      assert line.nll != full[asked(line)].nll
      # what comes first is said by what has read the whole prompt
      assert [nll[0] for nll in line.nll] == [nll[0] for nll in full[asked(line)].nll]
      if cache == "window like lagkv":
        assert line.needle_kept == [float(line.depth > 0.5)] * len(line.trials)


def test_maps_say_which_part_of_each_stretch_every_head_kept(folder):
  for cache, kept in (("full", 230), ("lagkv", make_policy(LAGKV).length_after(230)), ("window like lagkv", 74)):
    shares_LHN = np.load(map_path(folder, cache, 230)).astype(np.float64)
    edges = np.linspace(0, 230, shares_LHN.shape[-1] + 1)
    assert shares_LHN.shape[:2] == (2, 1)
    np.testing.assert_allclose(shares_LHN @ np.histogram(np.arange(230), edges)[0], kept)
    is_kept_N = edges[1:] <= LAGKV.sinks
    is_kept_N |= edges[:-1] > 230 - (kept - LAGKV.sinks if "window" in cache else LAGKV.lag)
    assert (shares_LHN[..., is_kept_N] == 1).all()
  assert (np.diff(np.load(map_path(folder, "lagkv", 230)), axis=0) != 0).any()  # layers choose for themselves


def test_a_depth_asked_alone_gives_the_same_and_nothing_is_asked_twice(folder, tmp_path):
  alone = dataclasses.replace(PLAN, depths=(0.9,), answers=(4,))
  run_plan(alone, subject(), tmp_path, report=lambda line: None)
  known = {(line.cell, line.trials): line for line in AnswerFile(folder / "answers.jsonl", "k").lines()}
  for line in AnswerFile(tmp_path / "answers.jsonl", "k").lines():
    same = known[line.cell, line.trials]
    np.testing.assert_allclose(np.array(line.nll), np.array(same.nll), rtol=1e-5, atol=1e-4)
    assert (line.right, line.needle_kept, line.written) == (same.right, same.needle_kept, same.written)
  file = folder / "answers.jsonl"
  before = file.read_text()
  run_plan(PLAN, subject(), folder, report=pytest.fail)
  assert file.read_text() == before


def test_an_answer_beyond_the_context_is_refused(tmp_path):
  tight = dataclasses.replace(subject(), context_len=234)
  with pytest.raises(ValueError, match=r"tokens with answers of 5 are more than the 234 .* at most 229"):
    run_plan(PLAN, tight, tmp_path, report=pytest.fail)


def test_a_line_that_was_cut_is_asked_again(folder, tmp_path):
  whole = (folder / "answers.jsonl").read_text()
  (tmp_path / "answers.jsonl").write_text(whole[:-30])
  assert len(AnswerFile(tmp_path / "answers.jsonl", "k").lines()) == 23
  assert (tmp_path / "answers.jsonl").read_text() == whole[:whole[:-1].rindex("\n") + 1]
  (tmp_path / "answers.jsonl").write_text('{"step": 3}\n')
  with pytest.raises(ValueError, match=r"holds lines that are no answers, .*; move it away"):
    AnswerFile(tmp_path / "answers.jsonl", "k")


def test_a_trial_that_was_read_with_others_before_counts_once(folder, tmp_path):
  file = AnswerFile(tmp_path / "answers.jsonl", "k")
  first, last = (line for line in lines(folder, "full") if (line.answer, line.depth) == (3, 0.0))
  assert (first.trials, last.trials) == ((0, 1), (2,))
  for line in (first, last, dataclasses.replace(first, trials=(1, 2), kept=7)):
    file.add(line)
  plan, sizes = dataclasses.replace(PLAN, batch=3), PromptSizes(230, 3, 0.0)
  assert file.has(plan, sizes, "full", (0, 1, 2)) and not file.has(plan, sizes, "full", (2, 3))
  assert not file.has(dataclasses.replace(plan, examples=2), sizes, "full", (0, 1, 2))  # one was written
  for one in (file, AnswerFile(tmp_path / "answers.jsonl", "k")):
    found = {trial: line for line in one.lines() for trial in line.trials}
    assert [len(one.lines()), *sorted(found)] == [2, 0, 1, 2] and found[0].kept != found[1].kept == 7
    assert found[0].nll == first.nll[:1] and found[0].written == first.written


def test_tables_and_plots_are_of_all_that_was_asked(folder):
  paths = write_summary(folder, "passkey", AnswerFile(folder / "answers.jsonl", "k").lines())
  assert [path.name for path in paths] == ["report.md", "table.jsonl", "examples.md"]
  text = paths[0].read_text()
  assert "## 230 tokens, answer size 4" in text and "| window like lagkv | 74 |" in text
  rows = [json.loads(line) for line in paths[1].read_text().splitlines()]
  assert len(rows) == 3 * 2 + 3 * 2 * 2
  assert {row["trials"] for row in rows if row["depth"] is None} == {6}
  told = paths[2].read_text()
  assert told.count("## 230 tokens") == 2 * 2 and told.count("\n| cache | trial 0 |") == 2 * 2
  texts = lines(folder, "lagkv")[0].written
  assert texts and all(f"| `{text!r}` |" in told for text in texts)
  plots = plot_retrieval(folder, folder / "retrieval.png")
  assert [path.name for path in plots] == ["retrieval.png", "retrieval_depths.png", "retrieval_kept_230.png"]
  assert all(path.stat().st_size > 5000 for path in plots)
  assert {cache_of_map(path) for path in (folder / "kept").iterdir()} == {"full", "lagkv", "window like lagkv"}
  names = ["full", "lagkv:epsilon=1e-6", "lagkv:epsilon=1e+6", "window like lagkv:ratio=0.5,sinks=4"]
  assert [cache_of_map(map_path(folder, name, 64)) for name in names] == names
  with pytest.raises(ValueError, match=r"table\.jsonl does not exist"):
    plot_retrieval(folder / "nothing", folder / "x.png")


def test_a_cell_is_telling_where_the_full_cache_knows_the_answer(folder):
  line = lines(folder, "full")[0]
  for share, is_telling in ((1, True), (0, False)):
    full = dataclasses.replace(line, right=[[bool(share)] * len(right) for right in line.right])
    (summary, other) = summarize([full, dataclasses.replace(line, cache="lagkv")], by_depth=False)
    assert (summary.token_accuracy, summary.is_telling, other.is_telling) == (share, is_telling, is_telling)


def test_more_examples_than_rows_are_refused():
  with pytest.raises(ValueError, match=r"--examples=3 must be between 0 and the --rows=2 .* use --examples=2, or more"):
    dataclasses.replace(PLAN, examples=3)
