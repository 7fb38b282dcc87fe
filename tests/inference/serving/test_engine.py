"""Requests share rows, and each gets the text that it would get alone, whatever happens to the others."""

from __future__ import annotations

import dataclasses
import gc
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.cache.kv_cache import caches_of
from lattice_jax.config import CacheConfig, MeshConfig
from lattice_jax.inference.serving.request import Closed, Meter, QueueFull, Request
from lattice_jax.marks import ENDS, Marker
from lattice_jax.sharding import make_mesh, replicated
from tests.inference.serving.small import (
  CHUNK_LEN,
  MAX_LEN,
  MODEL,
  ROWS,
  SECONDS,
  Listener,
  alone,
  ids_of,
  make_engine,
  make_variables,
  running,
)
from tests.inference.test_generate import compilations

GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.9, "top_k": 120, "top_p": 0.95}


@pytest.fixture(scope="module")
def engine():
  with running() as engine:
    yield engine


@pytest.fixture(scope="module", autouse=True)
def _no_thread_stays():
  yield
  assert not [thread for thread in threading.enumerate() if thread.name == "engine"]


def mixed(num, sampling):
  """Requests whose prompts end before, at and behind the end of a chunk, and whose texts differ in length."""
  lengths = np.random.default_rng(3).integers(3, 24, (num, 2)).tolist()
  lengths[0], lengths[1] = [2 * CHUNK_LEN, 1], [3, 20]
  return [
    Request(ids_of(prompt, seed), length, seed=seed, **sampling[seed % len(sampling)])
    for seed, (prompt, length) in enumerate(lengths)]


def answers(engine, requests):
  listeners = [Listener() for _ in requests]
  for request, listener in zip(requests, listeners, strict=True):
    engine.submit(request, listener)
  return [listener.result() for listener in listeners]


def test_every_text_is_the_one_that_its_request_gets_alone(engine):
  requests = mixed(10, [GREEDY, SAMPLED])
  for request, answer in zip(requests, answers(engine, requests), strict=True):
    assert answer == alone(request)


def test_blocks_of_several_tokens_give_the_same_texts(engine):
  requests = mixed(7, [GREEDY, SAMPLED])
  with running(block_len=3) as other:
    assert answers(other, requests) == answers(engine, requests)


def test_the_largest_seed_and_a_prompt_that_nearly_fills_the_context(engine):
  request = Request(ids_of(MAX_LEN - 3), 20, seed=2**32 - 1, **SAMPLED)
  (ids, finish), = answers(engine, [request])
  assert (ids, finish) == alone(request) and (len(ids), finish) == (3, "context")


def test_a_cache_is_compressed_once_the_prompt_was_read_and_keeps_what_it_keeps_alone():
  """Separators ask for marks too, which depend on the tokens before."""
  sep = CacheConfig(policy="sep", sinks=1, lag=4, keep=2)
  model = dataclasses.replace(MODEL, layers=1, pattern=("attention",), block="mlp", mlp_dim=8, cache=sep)
  marker = Marker(class_A=(np.arange(MODEL.vocab) % 3 == 0).astype(np.uint8) * ENDS)
  requests = mixed(6, [GREEDY])
  with running(model, marker=marker) as engine:
    for request, answer in zip(requests, answers(engine, requests), strict=True):
      assert answer == alone(request, model, marker=marker)
    cache, = caches_of(engine._device_rows.session.memory).values()
  assert cache.num_slots < MAX_LEN and cache.mark_BHS.shape[1] == ROWS


def test_rows_over_the_devices_of_a_mesh_give_the_same_texts(engine):
  mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
  variables = jax.device_put(make_variables(), replicated(mesh))
  requests = mixed(6, [GREEDY])
  with running(MODEL, variables, rows=2) as other:
    assert answers(other, requests) == answers(engine, requests)


def test_a_text_ends_at_a_stop_id_of_the_engine_or_of_its_request():
  request = Request(ids_of(5), 20, **SAMPLED)
  whole, _ = alone(request)
  first, second = list(dict.fromkeys(whole))[2:6:3]  # in the order in which they come
  own = dataclasses.replace(request, stop_ids=(first,))
  with running(stop_ids=(second,), block_len=3) as engine:
    assert answers(engine, [request, own]) == [
      (whole[:whole.index(second)], "stop"), (whole[:whole.index(first)], "stop")]


def test_a_listener_may_end_its_text_and_the_others_go_on(engine):
  requests, stopped = mixed(5, [SAMPLED]), Listener(stop_after=4)
  engine.submit(Request(ids_of(3), 40, **SAMPLED), stopped)
  assert answers(engine, requests) == [alone(request) for request in requests]
  assert stopped.result()[1] == "stop" and len(stopped.ids) == 4


def test_a_cancelled_text_frees_its_row_and_a_waiting_one_its_place(engine):
  long, listeners = Request(ids_of(3), 60, **SAMPLED), [Listener() for _ in range(ROWS + 2)]
  tickets = [engine.submit(long, listener) for listener in listeners]
  assert all(listener.has_begun.wait(SECONDS) for listener in listeners[:1])
  for ticket in tickets:
    ticket.cancel()
  assert {listener.result()[1] for listener in listeners} == {"cancelled"}
  assert all(len(listener.ids) < 60 for listener in listeners)
  request = Request(ids_of(7), 9, **SAMPLED)
  assert answers(engine, [request]) == [alone(request)]
  assert (engine.rows_in_use, engine.queue_len) == (0, 0)


def test_a_prompt_is_cancelled_while_it_is_read(engine, monkeypatch):
  listener, tickets, read = Listener(), [], engine._session.read_call
  monkeypatch.setattr(engine._session, "read_call", lambda *given: (tickets[0].cancel(), read(*given)))
  with engine._changed:  # so that the engine begins once the ticket is known
    tickets.append(engine.submit(Request(ids_of(40), 5), listener))
  assert listener.result() == ([], "cancelled")
  monkeypatch.undo()
  request = Request(ids_of(7), 9, **SAMPLED)
  assert answers(engine, [request]) == [alone(request)]


@pytest.mark.parametrize("chunks", [1, 2])
def test_between_two_chunks_of_a_prompt_every_text_gets_a_token(engine, monkeypatch, chunks):
  monkeypatch.setattr(engine, "options", dataclasses.replace(engine.options, chunks=chunks))
  calls, first, second = [], Listener(), Listener()
  read, draw = engine._session.read_call, engine._draw
  monkeypatch.setattr(engine._session, "read_call", lambda *given: (calls.append("c"), read(*given)))
  monkeypatch.setattr(engine, "_draw", lambda *given: (calls.append("d"), draw(*given))[1])
  with engine._changed:  # so that the engine sees both at once
    engine.submit(Request(ids_of(3), 55, **SAMPLED), first)
    engine.submit(Request(ids_of(6 * CHUNK_LEN), 2), second)
  assert second.has_ended.wait(SECONDS) and first.has_ended.wait(SECONDS)
  runs = [len(run) for run in "".join(calls).split("d") if run]  # of chunks, one of the first prompt and six
  assert runs == {1: [1] * 7, 2: [2, 2, 2, 1]}[chunks] and len(first.ids) == 55


def test_a_full_queue_and_a_request_that_does_not_fit_are_refused():
  class Slow(Listener):
    """Holds the engine's thread until the test has seen the queue full."""

    def on_tokens(self, ids):
      is_held.set()
      assert may_go_on.wait(SECONDS)
      return super().on_tokens(ids)

  is_held, may_go_on, request = threading.Event(), threading.Event(), Request(ids_of(3), 4)
  with running(queue=2) as engine:
    listeners = [Slow() for _ in range(ROWS + 2)]
    engine.submit(request, listeners[0])
    assert is_held.wait(SECONDS) and engine.rows_in_use == 1
    for listener in listeners[1:]:
      engine.submit(request, listener)
    with pytest.raises(QueueFull, match="2 requests wait for a row already, as many as may; try again later"):
      engine.submit(request, Listener())
    may_go_on.set()
    assert {listener.result()[1] for listener in listeners} == {"length"}
    for ids, length, message in (
      ([], 1, "the prompt is empty"), ([259], 1, "token 259, outside the vocabulary of 259"),
      (ids_of(MAX_LEN), 1, "has 64 tokens, and the context holds 64"), ([3], 0, "a text of 0 tokens")):
      with pytest.raises(ValueError, match=message):
        engine.submit(Request(np.asarray(ids, np.int32), length), Listener())
  with pytest.raises(Closed, match="takes no more requests"):
    engine.submit(Request(ids_of(3), 4), Listener())
  with pytest.raises(ValueError, match="temperature=-1"):
    Request(ids_of(3), 4, temperature=-1)
  with pytest.raises(ValueError, match="queue=0 must be at least 1"):
    make_engine(queue=0)


def test_closing_finishes_what_was_taken_and_aborting_ends_it():
  requests = mixed(5, [SAMPLED])
  with running() as engine:
    listeners = [Listener() for _ in requests]
    for request, listener in zip(requests, listeners, strict=True):
      engine.submit(request, listener)
    engine.close()
    engine.join(SECONDS)
    assert [listener.result() for listener in listeners] == [alone(request) for request in requests]
  with running() as engine:
    listeners = [Listener() for _ in range(ROWS + 2)]
    for listener in listeners:
      engine.submit(Request(ids_of(3), 60), listener)
    assert listeners[0].has_begun.wait(SECONDS)
    engine.close(abort=True)
    assert {listener.result()[1] for listener in listeners} == {"abort"}


def test_a_fault_ends_every_text_and_the_engine(caplog):
  with running() as engine:
    listeners = [Listener() for _ in range(ROWS + 2)]
    for listener in listeners:
      engine.submit(Request(ids_of(3), 60), listener)
    assert listeners[0].has_begun.wait(SECONDS)
    engine._draw = None
    assert {listener.result()[1] for listener in listeners} == {"error"}
    engine.join(SECONDS)
    with pytest.raises(Closed):
      engine.submit(Request(ids_of(3), 4), Listener())
  assert "the engine failed, and ends all texts" in caplog.text


def test_a_row_whose_logits_are_not_finite_ends_with_an_error_and_the_others_go_on(engine):
  read, requests = engine._session.read_call, mixed(4, [SAMPLED])
  broken = Listener()

  def spoil(*given):
    read(*given)
    state, engine._session.read_call = engine._session.state, read
    engine._session.state = state.replace(logits_BA=state.logits_BA.at[0, 9].set(jnp.nan))

  with engine._changed:
    engine._session.read_call = spoil
    engine.submit(Request(ids_of(3), 20, **SAMPLED), broken)
  assert answers(engine, requests) == [alone(request) for request in requests]
  assert broken.result() == ([], "not_finite")


def test_a_listener_that_fails_loses_its_own_text_only(engine, caplog):
  class Broken(Listener):
    def on_tokens(self, ids):
      raise RuntimeError("no reader")

  broken, requests = Broken(), mixed(4, [SAMPLED])
  engine.submit(Request(ids_of(3), 60), broken)
  assert answers(engine, requests) == [alone(request) for request in requests]
  assert broken.result() == ([], "cancelled") and "no reader" in caplog.text


def test_nothing_is_compiled_and_no_array_stays_once_the_engine_runs(engine):
  requests = mixed(9, [GREEDY, SAMPLED])
  answers(engine, requests)
  gc.collect()
  arrays = len(jax.live_arrays())
  with compilations() as compiled:
    for _ in range(3):
      answers(engine, requests)
  gc.collect()
  assert compiled == [] and len(jax.live_arrays()) <= arrays


def test_the_meter_hears_of_every_request():
  class Kept(Meter):
    def __init__(self):
      self.first, self.gaps, self.ends = [], [], []

    def first_token(self, seconds):
      self.first.append(seconds)

    def gap(self, seconds):
      self.gaps.append(seconds)

    def ended(self, finish, prompt_len, num_tokens):
      self.ends.append((finish, prompt_len, num_tokens))

  meter, requests = Kept(), mixed(5, [SAMPLED])
  with running(meter=meter) as engine:
    answers(engine, requests)
  assert sorted(meter.ends) == sorted(("length", len(request.ids), request.length) for request in requests)
  assert len(meter.first) == len(requests) and min(meter.first) > 0
  assert len(meter.gaps) == sum(request.length - 1 for request in requests)
