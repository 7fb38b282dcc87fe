"""A small model, its engine, and what `generate` writes alone, for the tests of serving."""

from __future__ import annotations

import contextlib
import functools
import threading

import jax
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.inference.generate import GenerateOptions, TokenStream
from lattice_jax.inference.serving.engine import Engine
from lattice_jax.inference.serving.request import EngineOptions
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import unbox

# a memory of fixed size, and one with a token cache; an engine's rows, chunks and context are small too
MODEL = ModelConfig(
  vocab=259, dim=16, layers=2, pattern=("vq", "attention"), block="gau",
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4),
  vq=VQConfig(key_dim=4, value_dim=8, codes=5, block_len=4))
ROWS, CHUNK_LEN, MAX_LEN = 3, 4, 64
BANNED = (0, 1, 2)
SECONDS = 60  # after which a test that waits fails


@functools.lru_cache
def make_variables(model=MODEL):
  # three times the initial weights: a text that hangs on its past, and no ties
  return jax.jit(lambda: jax.tree.map(lambda leaf: 3 * leaf, unbox(init_variables(model, jax.random.key(0)))))()


def make_engine(model=MODEL, variables=None, *, stop_ids=(), marker=None, meter=None, **options):
  options = {"rows": ROWS, "max_len": MAX_LEN, "chunk_len": CHUNK_LEN} | options
  return Engine(
    model, variables or make_variables(model), EngineOptions(**options), banned=BANNED, stop_ids=stop_ids,
    marker=marker, meter=meter)


@contextlib.contextmanager
def running(*arguments, **options):
  """An engine that takes requests, and has ended afterwards."""
  engine = make_engine(*arguments, **options)
  engine.start()
  try:
    yield engine
  finally:
    engine.close(abort=True)
    engine.join(SECONDS)
    assert not engine.is_alive


def alone(request, model=MODEL, *, stop_ids=(), marker=None):
  """(ids, finish) that one row gives by itself."""
  stream = TokenStream(
    model, make_variables(model), [request.ids], length=request.length, options=GenerateOptions(
      temperature=request.temperature, top_k=request.top_k, top_p=request.top_p, seed=request.seed, start_ids=(),
      stop_ids=(*stop_ids, *request.stop_ids), limit=MAX_LEN, prefill_len=CHUNK_LEN, marker=marker))
  for _ in stream:
    pass
  return stream.texts[0].ids, stream.texts[0].finish


class Listener:
  """Keeps what comes. stop_after: ends the text once it has so many tokens."""

  def __init__(self, stop_after=None):
    self.ids, self.finish, self.stop_after = [], None, stop_after
    self.has_begun, self.has_ended = threading.Event(), threading.Event()

  def on_tokens(self, ids):
    self.ids += ids
    self.has_begun.set()
    return self.stop_after is not None and len(self.ids) >= self.stop_after

  def on_end(self, finish):
    assert self.finish is None, "a text ended twice"
    self.finish = finish
    self.has_ended.set()

  def result(self):
    assert self.has_ended.wait(SECONDS), "the text did not end"
    return self.ids, self.finish


def ids_of(length, seed=0):
  return np.random.default_rng(seed).integers(3, MODEL.vocab, length).astype(np.int32)
