"""Evaluation: its definition, and that batch, chunks, devices and hosts do not enter the value."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import AnchorsConfig, CacheConfig, DataConfig, EvalConfig, MeshConfig, ModelConfig
from lattice_jax.data.loader import EvalBatch, eval_batches
from lattice_jax.data.source import Source, Texts
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
from lattice_jax.evaluation import evaluator
from lattice_jax.evaluation.evaluator import EvaluationStopped, evaluate, evaluate_protocols
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.decoder import Decoder, abstract_variables, init_state, init_variables
from lattice_jax.sharding import make_mesh, param_shardings, unbox
from lattice_jax.types import whole_segment
from tests.thorough import further

MODEL = ModelConfig(
  dim=16, layers=1, block="gau", xent_chunk=64, attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4),
  vq=VQConfig(key_dim=4, value_dim=8, codes=5, block_len=8))
MODELS = {name: dataclasses.replace(MODEL, pattern=(name,)) for name in ("vq", "attention")}
DATA = DataConfig(seq_len=32, update_len=32)
LENGTHS = (37, 5, 64, 1, 90, 8, 32)
LONGEST = max(LENGTHS)
NUM_WORDS = np.array([7, 1, 12, 0, 18, 2, 6])
TEXTS = Texts(
  titles=tuple("abcdefg"), num_bytes=2 * np.array(LENGTHS), num_words=NUM_WORDS, total_words=50)  # 50: as published


@functools.lru_cache
def make_variables(name, seed=0):
  return jax.jit(lambda: unbox(init_variables(MODELS[name], jax.random.key(seed))))()


@pytest.fixture(scope="module")
def source():
  tokens = np.random.default_rng(0).integers(3, 259, sum(LENGTHS)).astype(np.uint16)
  return Source(
    tokens=tokens, offsets=np.cumsum([0, *LENGTHS]), num_bytes=2 * len(tokens), name="random", split="test",
    fingerprint="0", texts=TEXTS)


@functools.lru_cache
def plain_nats(name, source, protocol):
  """(nats, positions) of every token: all windows or documents in one plain call."""
  documents = [source.tokens[start:stop] for start, stop in itertools.pairwise(source.offsets)]
  pieces = documents if protocol == "carried" else [
    document[start:start + DATA.seq_len] for document in documents for start in range(0, len(document), DATA.seq_len)]
  inputs, targets = np.zeros((2, len(pieces), LONGEST), np.int32)
  for row, piece in enumerate(pieces):
    targets[row, :len(piece)] = piece
    inputs[row, :len(piece)] = [get_tokenizer(DATA).eos_id, *piece[:-1]]
  nll_BT, _ = jax.jit(lambda variables: Decoder(MODELS[name]).apply(
    variables, jnp.asarray(inputs), jnp.asarray(targets), init_state(MODELS[name], len(pieces)),
    whole_segment(*inputs.shape), method=Decoder.score))(make_variables(name))
  nats = np.concatenate([row[:len(piece)] for row, piece in zip(np.asarray(nll_BT, np.float64), pieces, strict=True)])
  return nats, np.concatenate([np.arange(len(piece)) for piece in pieces])


def run(source, name="vq", variables=None, model=None, mesh=None, should_stop=None, data=DATA, **options):
  variables = variables or make_variables(name)
  return evaluate(
    model or MODELS[name], variables["params"], variables["buffers"], source, get_tokenizer(DATA),
    eval=EvalConfig(**options), data=data, mesh=mesh, should_stop=should_stop)


@pytest.mark.parametrize(
  ("name", "protocol", "batch", "chunk_len"), [
    ("vq", "cold", 3, 0), ("vq", "carried", 8, 5), ("attention", "cold", 3, 7), ("attention", "carried", 8, 16),
    *further(("vq", "cold", 1, 7), ("vq", "cold", 8, 16), ("vq", "carried", 1, 32), ("vq", "carried", 3, 16))],
  ids=str)
def test_value_is_the_definition_whatever_the_batch_and_chunks(source, name, protocol, batch, chunk_len):
  nats, positions = plain_nats(name, source, protocol)
  result = run(source, name, protocol=protocol, batch=batch, chunk_len=chunk_len)
  assert result.tokens == len(source.tokens)
  np.testing.assert_allclose(result.bits_per_byte, nats.sum() / np.log(2) / source.num_bytes, rtol=1e-6)
  np.testing.assert_allclose(result.nll_per_token, nats.mean(), rtol=1e-6)
  assert result.buckets[-1].stop == positions.max() + 1
  for bucket in result.buckets:
    inside = (bucket.start <= positions) & (positions < bucket.stop)
    assert bucket.tokens == inside.sum()
    np.testing.assert_allclose(bucket.bits_per_byte, nats[inside].mean() / np.log(2) / 2, rtol=2e-6)


@pytest.mark.parametrize(("rule", "wanted"), [("none", len(".,?!;: \t\n")), ("every:3", 0)])
def test_a_cache_of_separators_reads_marked_texts(source, monkeypatch, rule, wanted):
  marks = []

  def noted(*args, marker, **options):
    for batch in eval_batches(*args, marker=marker, **options):
      segment = batch.batch.segment
      marks.append((marker, int((segment.marks_BT > 0).sum())))
      yield batch

  monkeypatch.setattr(evaluator, "eval_batches", noted)
  model = dataclasses.replace(MODELS["attention"], cache=CacheConfig(policy="sep", sinks=2, lag=4, keep=1))
  data = dataclasses.replace(DATA, anchors=AnchorsConfig(rule=rule))
  run(source, "attention", model=model, data=data, protocol="cold", batch=3, chunk_len=7)
  assert {(marker.class_A > 0).sum() for marker, _ in marks} == {wanted}
  assert sum(number for _, number in marks) > 5


def joined_hosts(num_hosts):
  """`eval_batches` as that many hosts read them, put together as the mesh does it."""
  def batches(*args, **options):
    del options["host"], options["num_hosts"]
    hosts = [eval_batches(*args, **options, host=host, num_hosts=num_hosts) for host in range(num_hosts)]
    for parts in zip(*hosts, strict=True):
      joined = jax.tree.map(lambda *rows: np.concatenate(rows) if rows[0].ndim else rows[0], *[p.batch for p in parts])
      yield EvalBatch(joined, parts[-1].positions_BT, parts[-1].documents_BT, parts[0].fresh)

  return batches


@pytest.mark.parametrize("protocol", ["cold", "carried"])
def test_value_is_the_same_from_the_shards_of_two_hosts(source, monkeypatch, protocol):
  monkeypatch.setattr(evaluator, "eval_batches", joined_hosts(2))
  result = run(source, protocol=protocol, batch=6, chunk_len=16)
  np.testing.assert_allclose(result.nll_per_token, plain_nats("vq", source, protocol)[0].mean(), rtol=1e-6)


@pytest.mark.parametrize("protocol", ["cold", "carried"])
def test_texts_are_evaluated_one_by_one_and_add_up(source, protocol):
  result = run(source, protocol=protocol, batch=3, chunk_len=0 if protocol == "cold" else 16)
  nats = np.add.reduceat(plain_nats("vq", source, protocol)[0], source.offsets[:-1])
  assert [(document.title, document.tokens) for document in result.documents] == list(
    zip("abcdefg", LENGTHS, strict=True))
  for document, nat, words in zip(result.documents, nats.tolist(), NUM_WORDS.tolist(), strict=True):
    np.testing.assert_allclose(document.bits_per_byte, nat / np.log(2) / document.num_bytes, rtol=1e-6)
    assert document.word_perplexity == (pytest.approx(np.exp(nat / words), rel=1e-4) if words else None)
  total_bits = sum(document.bits_per_byte * document.num_bytes for document in result.documents)
  np.testing.assert_allclose(total_bits, result.bits_per_byte * source.num_bytes, rtol=1e-12)
  assert (result.words, result.raw_words, result.is_whole) == (50, 46, True)
  np.testing.assert_allclose(result.word_perplexity, np.exp(nats.sum() / 50), rtol=1e-4)


def test_metrics_of_the_model_are_means_over_the_split(source):
  errors = [run(source, protocol="cold", batch=batch, chunk_len=chunk_len).metrics["quantization_error"]
            for batch, chunk_len in ((3, 0), (8, 16))]
  assert 0 < errors[0] < 4  # of keys of one length, over the square of it
  np.testing.assert_allclose(*errors, rtol=1e-5)


def test_a_corpus_of_no_texts_has_no_words(source):
  result = run(dataclasses.replace(source, texts=None, unit="dim"), batch=3)
  assert (result.words, result.raw_words, result.word_perplexity, result.documents) == (None, None, None, ())
  assert result.unit == "dim" and result.tokenizer == "bytes"


def test_a_stop_between_chunks_leaves_no_result(source):
  asked = []

  def stop_after(num_chunks):
    return lambda: asked.append(None) or len(asked) > num_chunks

  with pytest.raises(EvaluationStopped):
    run(source, should_stop=stop_after(2), batch=3)
  assert len(asked) == 3
  asked.clear()
  run(source, should_stop=stop_after(4), batch=3)  # eleven windows, three at a time
  assert len(asked) == 4


@pytest.mark.parametrize("protocol", ["cold", "carried"])
def test_value_is_the_same_on_eight_devices_with_sharded_parameters(source, protocol):
  config = MeshConfig(data=4, model=2)
  mesh = make_mesh(config)
  boxed = abstract_variables(MODELS["vq"])
  variables = jax.device_put(make_variables("vq"), param_shardings(boxed, mesh, config))
  assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(variables))
  result = run(source, variables=variables, mesh=mesh, protocol=protocol, batch=3, chunk_len=16)
  np.testing.assert_allclose(result.nll_per_token, plain_nats("vq", source, protocol)[0].mean(), rtol=1e-6)


def test_an_evaluation_compiles_once_and_a_second_one_never(source):
  other = jax.tree.map(lambda leaf: leaf * 1.5, make_variables("vq"))
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *args, **kwargs: compiled.append(event) if event.endswith("backend_compile_duration") else None)
  first = run(source, batch=4)
  assert len(compiled) == 2  # the step, and the maker of empty states
  compiled.clear()
  second = run(source, variables=other, batch=4)
  assert compiled == []
  assert second.bits_per_byte != first.bits_per_byte


def test_both_protocols_come_in_turn_and_one_evaluation_takes_one(source):
  variables = make_variables("vq")
  results = evaluate_protocols(
    MODELS["vq"], variables["params"], variables["buffers"], source, get_tokenizer(DATA), data=DATA,
    eval=EvalConfig(protocol="both", batch=3, chunk_len=16, max_batches=1))
  assert [result.protocol for result in results] == ["cold", "carried"]
  with pytest.raises(ValueError, match="both"):
    run(source, protocol="both")


def test_max_batches_evaluates_the_part_that_was_read(source):
  part = run(source, batch=2, max_batches=3)
  assert part.tokens == 6 * DATA.seq_len and part.split_tokens == len(source.tokens) and not part.is_whole
  np.testing.assert_allclose(part.bits_per_byte, part.nll_per_token / np.log(2) / 2, rtol=1e-9)
  np.testing.assert_allclose(part.word_perplexity, np.exp(part.nll_per_token * len(source.tokens) / 50), rtol=1e-9)
  assert [document.title for document in part.documents] == ["c", "g"]  # the texts of whole windows, read first
  # a batch is one of windows, however many calls they take: six whole ones, then those of 26 and of 8 tokens
  assert run(source, batch=8, chunk_len=16, max_batches=1).tokens == 6 * DATA.seq_len + 26 + 8


def test_a_token_cache_beyond_the_limit_is_refused_in_one_sentence():
  tokens = np.full(70_000, 3, np.uint8)
  source = Source(
    tokens=tokens, offsets=np.array([0, 70_000]), num_bytes=70_000, name="long", split="test", fingerprint="0")
  with pytest.raises(ValueError, match=r"would cache 70,000 tokens a row.*--protocol=cold"):
    run(source, "attention", protocol="carried")


def test_masking_the_compressive_cache_changes_only_positions_beyond_the_window(source):
  masked = dataclasses.replace(MODELS["vq"], vq=dataclasses.replace(MODELS["vq"].vq, cache=False))
  options = {"protocol": "carried", "batch": 3, "chunk_len": 16}
  with_cache, without = (run(source, model=model, **options).buckets for model in (MODELS["vq"], masked))
  for full, cut in zip(with_cache, without, strict=True):
    is_same = full.bits_per_byte == pytest.approx(cut.bits_per_byte, rel=1e-6)
    assert is_same == (full.stop <= MODELS["vq"].vq.block_len)
