"""Evaluation: its definition, and that batch, chunks and devices do not enter the value."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import AttentionConfig, DataConfig, EvalConfig, MeshConfig, ModelConfig, VQConfig
from lattice_jax.data.sources import Source
from lattice_jax.data.tokenizers import get_tokenizer
from lattice_jax.evaluation.evaluator import evaluate, evaluate_protocols
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import make_mesh, param_shardings, unbox
from lattice_jax.types import whole_segment

MODEL = ModelConfig(
  dim=16, layers=1, block="gau", xent_chunk=64, attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4),
  vq=VQConfig(key_dim=4, value_dim=8, codes=5, block_len=8))
MODELS = {name: dataclasses.replace(MODEL, pattern=(name,)) for name in ("vq", "attention")}
DATA = DataConfig(seq_len=32, update_len=32)
LENGTHS = (37, 5, 64, 1, 90, 8, 32)
LONGEST = max(LENGTHS)


@functools.lru_cache
def make_variables(name, seed=0):
  return jax.jit(lambda: unbox(init_variables(MODELS[name], jax.random.key(seed))))()


@pytest.fixture(scope="module")
def source():
  tokens = np.random.default_rng(0).integers(3, 259, sum(LENGTHS)).astype(np.uint16)
  return Source(
    tokens=tokens, offsets=np.cumsum([0, *LENGTHS]), num_bytes=2 * len(tokens), name="random", split="test",
    fingerprint="0")


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


def run(source, name="vq", variables=None, model=None, mesh=None, **options):
  variables = variables or make_variables(name)
  return evaluate(
    model or MODELS[name], variables["params"], variables["buffers"], source, get_tokenizer(DATA),
    eval=EvalConfig(**options), data=DATA, mesh=mesh)


@pytest.mark.parametrize(
  ("name", "protocol", "batch", "chunk_len"), [
    ("vq", "cold", 2, 0), ("vq", "cold", 1, 7), ("vq", "carried", 3, 16), ("vq", "carried", 8, 5),
    ("attention", "cold", 3, 7), ("attention", "carried", 8, 16)], ids=str)
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


def test_value_is_the_same_on_eight_devices_with_sharded_parameters(source):
  config = MeshConfig(data=4, model=2)
  mesh = make_mesh(config)
  boxed = jax.eval_shape(lambda: init_variables(MODELS["vq"], jax.random.key(0)))
  variables = jax.device_put(make_variables("vq"), param_shardings(boxed, mesh, config))
  assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(variables))
  result = run(source, variables=variables, mesh=mesh, protocol="carried", batch=3, chunk_len=16)
  np.testing.assert_allclose(result.nll_per_token, plain_nats("vq", source, "carried")[0].mean(), rtol=1e-6)


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


def test_max_batches_judges_the_part_that_was_read(source):
  part = run(source, batch=2, max_batches=3)
  assert part.tokens == 6 * DATA.seq_len
  np.testing.assert_allclose(part.bits_per_byte, part.nll_per_token / np.log(2) / 2, rtol=1e-9)


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
