"""Over real HTTP: no answer is lost or mixed up, clients that leave free their rows, and errors are OpenAI's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import httpx
import jax
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.inference.serving.app import MOST_BYTES
from lattice_jax.inference.serving.front import Front
from lattice_jax.inference.serving.metrics import Metrics
from lattice_jax.inference.serving.request import Request
from lattice_jax.inference.serving.routing import CONTROL, REFUSED, TREATMENT, Route
from lattice_jax.inference.serving.server import Server, bind
from tests.inference.serving.small import MAX_LEN, MODEL, SECONDS, alone, make_engine, make_variables
from tests.inference.test_generate import compilations

SAMPLING = {"temperature": 0.9, "top_k": 120, "top_p": 0.95}
LONG = {"prompt": "long", "max_tokens": 55, "seed": 1, **SAMPLING}


class ChatTokenizer(ByteTokenizer):
  """Bytes with a template, which puts the start id first, as templates do."""

  def chat(self, messages):
    return "".join(f"{message['role']}:{message['content']}\n" for message in messages)


class UnitsByName:
  """Routes by the first letter of the unit, and keeps what is recorded."""

  def __init__(self):
    self.answered, self._changed = {}, threading.Condition()

  def route(self, unit):
    return {"t": Route(TREATMENT), "s": Route(CONTROL, (TREATMENT,), note=unit)}.get(unit[0], Route(CONTROL))

  def record(self, answered):
    if answered.unit == "t-broken":
      raise RuntimeError("the router is broken")
    with self._changed:
      self.answered[answered.request_id] = answered
      self._changed.notify_all()

  def close(self):
    self.is_closed = True

  def wait_for(self, request_id):
    with self._changed:
      assert self._changed.wait_for(lambda: request_id in self.answered, SECONDS)
      return self.answered[request_id]


@contextlib.contextmanager
def serving(*, grace=SECONDS, **options):
  """(front, address, server) of two arms with the same model and other weights."""
  metrics, variables = Metrics(), jax.tree.map(lambda leaf: 1.5 * leaf, make_variables())
  arms = {
    CONTROL: make_engine(meter=metrics.meter(CONTROL), **options),
    TREATMENT: make_engine(MODEL, variables, meter=metrics.meter(TREATMENT), **options)}
  for engine in arms.values():
    engine.start()
  front = Front(arms, UnitsByName(), ChatTokenizer(), name="small", metrics=metrics)
  ports, is_ready = [], threading.Event()
  server = Server(front, grace=grace, ready=lambda port: (ports.append(port), is_ready.set()))
  thread = threading.Thread(target=lambda: server.run([bind("127.0.0.1", 0)]))
  thread.start()
  assert is_ready.wait(SECONDS)
  try:
    yield front, f"http://127.0.0.1:{ports[0]}", server
  finally:
    server.should_exit = True
    thread.join(SECONDS)
    assert not thread.is_alive() and not any(engine.is_alive for engine in arms.values())


@pytest.fixture(scope="module")
def served():
  with serving() as served:
    yield served


def run(served, talk):
  """talk(client) on an event loop of its own."""
  async def go():
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=served[1], timeout=SECONDS, limits=limits) as client:
      return await talk(client)

  return asyncio.run(go())


def post(served, path, **fields):
  async def talk(client):
    headers = fields.pop("headers", {})
    return await client.post(path, json=fields, headers=headers)

  return run(served, talk)


async def events_of(lines):
  """The values of a stream, without the word that ends it."""
  values = []
  async for line in lines:
    if line == "data: [DONE]":
      return values
    if line:
      values.append(json.loads(line.removeprefix("data: ")))
  raise AssertionError("the stream ended without [DONE]")


def text_alone(prompt, length, seed, **sampling):
  ids = np.array([1, *ByteTokenizer().encode(prompt.encode())], np.int32)
  ids, finish = alone(Request(ids, length, seed=seed, **sampling))
  return text_of(ids), "length" if finish == "context" else finish


def text_of(ids):
  return ByteTokenizer().decode(np.array(ids)).decode(errors="replace")


def test_twenty_clients_at_once_get_their_own_texts_though_some_leave(served):
  lengths = np.random.default_rng(0).integers(3, 24, (24, 2)).tolist()
  prompts = ["".join(chr(97 + (7 * seed + n) % 26) for n in range(length)) for seed, (length, _) in enumerate(lengths)]

  async def talk(client):
    async def one(seed):
      fields = {"prompt": prompts[seed], "max_tokens": lengths[seed][1], "seed": seed, **SAMPLING}
      if seed % 3 == 0:
        choice = (await client.post("/v1/completions", json=fields)).json()["choices"][0]
        return choice["text"], choice["finish_reason"]
      async with client.stream("POST", "/v1/completions", json=fields | {"stream": True}) as response:
        if seed % 3 == 1:  # leaves after the first piece
          return await anext(response.aiter_lines())
        choices = [event["choices"][0] for event in await events_of(response.aiter_lines())]
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]

    return await asyncio.gather(*map(one, range(24)))

  with compilations() as compiled:
    answers = run(served, talk)
  assert compiled == []
  for seed, answer in enumerate(answers):
    if seed % 3 != 1:
      assert answer == text_alone(prompts[seed], lengths[seed][1], seed, **SAMPLING)


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_its_rows_in_both_arms(served, is_stream):
  front = served[0]

  async def talk(client):
    request = client.build_request(
      "POST", "/v1/completions", json=LONG | {"stream": is_stream}, headers={"X-Unit-Id": "s-leaves"})
    if is_stream:
      response = await client.send(request, stream=True)
      await response.aclose()
      return
    sending = asyncio.create_task(client.send(request))
    while not front.arms[CONTROL].rows_in_use:
      await asyncio.sleep(0)
    sending.cancel()

  before = set(front.router.answered)
  run(served, talk)
  with front.router._changed:
    assert front.router._changed.wait_for(lambda: set(front.router.answered) - before, SECONDS)
  answered = front.router.answered[(set(front.router.answered) - before).pop()]
  assert {outcome.finish for outcome in answered.outcomes.values()} == {"cancelled"}
  assert all(len(outcome.ids) < LONG["max_tokens"] for outcome in answered.outcomes.values())


def test_each_unit_has_its_arm_and_a_shadow_is_recorded_beside_it(served):
  router = served[0].router
  texts, fields = {}, {"prompt": "abc", "max_tokens": 12, "seed": 4, **SAMPLING}
  for unit, arm in (("c", CONTROL), ("t", TREATMENT), ("s", CONTROL)):
    response = post(served, "/v1/completions", **fields, user="c-other", headers={"X-Unit-Id": unit})
    assert response.headers["X-Arm"] == arm
    texts[unit] = response.json()["choices"][0]["text"]
    answered = router.wait_for(response.headers["X-Request-Id"])
    assert answered.unit == unit and answered.prompt_ids == (1, 100, 101, 102)
    assert set(answered.outcomes) == {arm, *answered.route.shadows}
  assert texts["c"] == texts["s"] != texts["t"] and texts["c"] == text_alone("abc", 12, 4, **SAMPLING)[0]
  shadow, control = answered.outcomes[TREATMENT], answered.outcomes[CONTROL]
  assert answered.route.note == "s" and text_of(shadow.ids) == texts["t"]
  assert control.finish == "length" and control.cache_bytes == served[0].arms[CONTROL].row_bytes > 0
  assert 0 < control.next_seconds <= control.longest_seconds and control.first_seconds > 0
  response = post(served, "/v1/completions", **fields, user="t-user")
  assert response.headers["X-Arm"] == TREATMENT and response.json()["choices"][0]["text"] == texts["t"]


def test_a_shadow_ends_its_text_though_the_client_has_its_own_already(served):
  engine, held = served[0].arms[TREATMENT], threading.Event()
  draw, engine._draw = engine._draw, lambda *given: held.wait(SECONDS) and draw(*given)
  response = post(served, "/v1/completions", prompt="abc", max_tokens=12, seed=4, user="s", **SAMPLING)
  engine._draw = draw
  held.set()
  shadow = served[0].router.wait_for(response.headers["X-Request-Id"]).outcomes[TREATMENT]
  assert shadow.finish == "length" and len(shadow.ids) == 12


def test_a_router_that_fails_harms_no_answer(served, caplog):
  fields = {"prompt": "abc", "max_tokens": 2, "user": "t-broken"}
  assert post(served, "/v1/completions", **fields).status_code == 200
  response = post(served, "/v1/completions", **fields | {"user": "t"})
  served[0].router.wait_for(response.headers["X-Request-Id"])  # one thread, so the other has been recorded before
  assert "the router failed to record a request" in caplog.text


def test_ids_echo_stops_and_usage(served):
  text, _ = text_alone("abc", 12, 4, **SAMPLING)
  stop = text[5:7]
  fields = {"max_tokens": 12, "seed": 4, "stop": [stop], **SAMPLING}
  for prompt in "abc", [100, 101, 102], [1, 100, 101, 102], ["abc"]:
    answer = post(served, "/v1/completions", prompt=prompt, **fields).json()
    assert answer["choices"][0]["text"] == text.partition(stop)[0] and answer["choices"][0]["finish_reason"] == "stop"
    assert answer["object"] == "text_completion" and answer["model"] == "small"
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["total_tokens"] == 4 + answer["usage"]["completion_tokens"]
  assert post(served, "/v1/completions", prompt="abc", echo=True, **fields).json()["choices"][0]["text"] == \
    "abc" + text.partition(stop)[0]
  whole = post(served, "/v1/completions", prompt="x" * (MAX_LEN - 4)).json()
  assert (whole["choices"][0]["finish_reason"], whole["usage"]["completion_tokens"]) == ("length", 3)
  fields |= {"stop": None, "stop_token_ids": list(range(3, 259))}
  ended = post(served, "/v1/completions", prompt="abc", **fields)
  assert ended.json()["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}


def test_a_chat_is_put_by_its_template(served):
  messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
  fields = {"messages": messages, "seed": 2, "max_tokens": 9, **SAMPLING}
  prompt = np.array(ByteTokenizer().encode(b"system:be\nuser:hi\n"), np.int32)  # without start ids
  ids, _ = alone(Request(prompt, 9, seed=2, **SAMPLING))
  text = text_of(ids)
  answer = post(served, "/v1/chat/completions", **fields).json()
  assert answer["object"] == "chat.completion" and answer["usage"]["prompt_tokens"] == len(prompt)
  assert answer["choices"][0]["message"] == {"role": "assistant", "content": text}

  async def talk(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=fields | options) as response:
      assert response.headers["content-type"].startswith("text/event-stream")
      return await events_of(response.aiter_lines())

  first, *events, last, usage = run(served, talk)
  assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
  assert "".join(event["choices"][0]["delta"].get("content", "") for event in [*events, last]) == text
  assert last["choices"][0]["finish_reason"] == "length" and last["object"] == "chat.completion.chunk"
  assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 9
  assert len({event["id"] for event in (first, *events, last, usage)}) == 1
  filled = post(served, "/v1/chat/completions", messages=messages).json()
  assert filled["usage"]["total_tokens"] == MAX_LEN and filled["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("call", "status", "code", "sentence"), [
  (("GET", "/v1/nothing"), 404, None, "GET /v1/nothing: Not Found."),
  (("GET", "/v1/completions"), 405, None, "GET /v1/completions: Method Not Allowed."),
  (("POST", "/v1/completions", b"{"), 400, None, "the body is not JSON"),
  (("POST", "/v1/completions", b" " * (MOST_BYTES + 1)), 413, None, "the body has more than 4,194,304 bytes"),
  (("POST", "/v1/completions", {"prompt": "a", "model": "smal"}), 404, "model_not_found",
   "there is no model smal; this server has small. Did you mean 'small'?"),
  (("POST", "/v1/completions", {"prompt": "a" * 63}), 400, "context_length_exceeded",
   "the prompt has 64 tokens, and the context holds 64"),
  (("POST", "/v1/completions", {"prompt": "abc", "max_tokens": 61}), 400, "context_length_exceeded",
   "the prompt has 4 tokens, and 61 more were asked for; the context holds 64 of both together."),
  (("POST", "/v1/completions", {"prompt": [300]}), 400, None, "token 300, outside the vocabulary of 259"),
  (("POST", "/v1/completions", {"prompt": "a", "user": "u" * 257}), 400, None, "user has 257 characters"),
  (("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 70}]}), 400,
   "context_length_exceeded", "the prompt has 76 tokens"),
  (("GET", "/v1/models/other"), 404, "model_not_found", "there is no model other; this server has small.")],
  ids=lambda value: "-".join(map(str, value))[:50] if isinstance(value, tuple) else "")
def test_an_error_is_one_sentence_in_the_shape_of_openai(served, call, status, code, sentence):
  async def talk(client):
    method, path, *body = call
    content = body[0] if body and isinstance(body[0], bytes) else json.dumps(body[0]).encode() if body else None
    return await client.request(method, path, content=content)

  response = run(served, talk)
  error = response.json()["error"]
  assert response.status_code == status and set(error) == {"message", "type", "param", "code"}
  assert error["code"] == code and sentence in error["message"] and error["message"].endswith((".", "?"))


def test_models_health_and_metrics(served):
  async def talk(client):
    return [(await client.get(path)) for path in ("/v1/models", "/v1/models/small", "/healthz", "/metrics")]

  before = dict(post_metrics(served))
  post(served, "/v1/completions", prompt="abc", max_tokens=5, seed=1)
  models, model, health, metrics = run(served, talk)
  assert models.json()["data"] == [model.json()] and model.json()["id"] == "small"
  assert health.json() == {"status": "ok"} and metrics.headers["content-type"].startswith("text/plain")
  after = dict(post_metrics(served))

  def grown(name, **labels):
    key = name, ("arm", CONTROL), *sorted(labels.items())
    return after[key] - (before[key] if key in before else 0)

  assert grown("lattice_requests_total", finish="length") == 1
  assert grown("lattice_prompt_tokens_total") == 4 and grown("lattice_completion_tokens_total") == 5
  assert grown("lattice_time_to_first_token_seconds_count") == 1 and grown("lattice_inter_token_seconds_count") == 4
  assert after["lattice_rows", ("arm", CONTROL)] == 3 and after["lattice_rows_in_use", ("arm", CONTROL)] == 0
  assert after["lattice_cache_bytes", ("arm", CONTROL)] == served[0].arms[CONTROL].cache_bytes
  assert after["lattice_queue_length", ("arm", CONTROL)] == 0 and after["process_resident_memory_bytes",] > 0


def post_metrics(served):
  async def talk(client):
    return (await client.get("/metrics")).text

  for family in text_string_to_metric_families(run(served, talk)):
    for sample in family.samples:
      yield (sample.name, *sorted(sample.labels.items())), sample.value


def test_a_full_queue_is_429_and_a_shadow_without_room_is_dropped():
  held = threading.Event()

  async def talk(client):
    streams = [await client.send(client.build_request(
      "POST", "/v1/completions", json=LONG | {"stream": True}), stream=True) for _ in range(4)]
    refused = await client.post("/v1/completions", json=LONG)
    for stream in streams:
      await stream.aclose()
    return refused

  with serving(queue=1) as served:
    engine = served[0].arms[CONTROL]
    draw, engine._draw = engine._draw, lambda *given: held.wait(SECONDS) and draw(*given)
    refused = run(served, talk)
    held.set()
    assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["Retry-After"] and "1 requests wait for a row already" in refused.json()["error"]["message"]
    served[0].arms[TREATMENT].close()
    answer = post(served, "/v1/completions", prompt="a", user="s")
    assert answer.status_code == 200
    outcomes = served[0].router.wait_for(answer.headers["X-Request-Id"]).outcomes
    assert outcomes[TREATMENT].finish == REFUSED and outcomes[CONTROL].ids
    assert dict(post_metrics(served))["lattice_shadows_dropped_total", ("arm", TREATMENT)] == 1
    refused = post(served, "/v1/completions", prompt="a", user="t")
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
    page = httpx.get(served[1] + "/rollout")
    assert page.status_code == 404 and "start it with a treatment and --rollout" in page.json()["error"]["message"]
  # each arm is told that it refused a request, and the router that nothing follows
  router = served[0].router
  refused = [answered.route.arm for answered in router.answered.values() if not answered.prompt_ids]
  assert refused == [CONTROL, TREATMENT] and router.is_closed


@pytest.mark.parametrize(("grace", "reason"), [(SECONDS, "length"), (0, "abort")], ids=["finished", "ended"])
def test_at_the_end_streams_are_finished_or_told_why_not(grace, reason):
  async def talk(client):
    async with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
      lines = response.aiter_lines()
      await anext(lines)
      server.should_exit = True
      return [line async for line in lines if line]

  with serving(grace=grace) as served:
    server = served[2]
    if reason == "abort":  # the text would end too soon otherwise
      draw, ended = served[0].arms[CONTROL]._draw, threading.Event()
      close = served[0].close
      served[0].close = lambda **options: (close(**options), ended.set())
      count = iter(range(100))
      served[0].arms[CONTROL]._draw = lambda *given: (next(count) < 9 or ended.wait(SECONDS)) and draw(*given)
    *_, last, done = run(served, talk)
  assert done == "data: [DONE]"
  assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == reason


def test_a_fault_of_the_engine_is_told_to_everybody(caplog):
  with serving() as served:
    async def talk(client):
      async with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        whole = asyncio.create_task(client.post("/v1/completions", json=LONG))
        lines = response.aiter_lines()
        await anext(lines)
        served[0].arms[CONTROL]._draw = None
        return await events_of(lines), await whole, await client.get("/healthz")

    events, whole, health = run(served, talk)
  assert events[-1]["error"]["type"] == whole.json()["error"]["type"] == "server_error"
  assert whole.status_code in (500, 503) and health.status_code == 503
  assert "an engine has ended; the log says why." in health.json()["error"]["message"]
