"""What a client may send: every field is taken, or refused in one sentence that names it; none is ignored."""

from __future__ import annotations

import json

import pytest

from lattice_jax.inference.serving.wire import Asked, Refusal, parse_chat, parse_completion

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields):
  return parse_completion(json.dumps({"prompt": "a"} | fields).encode())


def chat(**fields):
  return parse_chat(json.dumps({"messages": MESSAGES} | fields).encode())


def test_fields_are_taken_as_they_are_meant():
  asked = completion(
    prompt=[[3, 4]], model="m", max_tokens=7, temperature=0, top_p=0.5, top_k=3, seed=2**32 - 1, stop=["x", "yz"],
    stop_token_ids=[9], stream=True, stream_options={"include_usage": True}, user="u", echo=True, n=1, best_of=1,
    logprobs=None, logit_bias={}, presence_penalty=0.0, suffix=None)
  assert asked == Asked(
    prompt=(3, 4), model="m", length=7, temperature=0.0, top_p=0.5, top_k=3, seed=2**32 - 1, stops=("x", "yz"),
    stop_ids=(9,), stream=True, include_usage=True, user="u", echo=True)
  assert completion() == Asked(prompt="a") and completion(prompt=["é"]).prompt == "é"
  assert completion(stop="x").stops == ("x",) and completion(prompt=[]).prompt == ()
  assert chat(max_completion_tokens=3, tools=[], response_format={"type": "text"}) == Asked(
    messages=tuple(MESSAGES), length=3, length_field="max_completion_tokens")
  parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
  assert chat(messages=[{"role": "system", "content": parts}]).messages == ({"role": "system", "content": "ab"},)


@pytest.mark.parametrize(("fields", "param", "sentence"), [
  ({"promt": "a"}, "promt", "there is no field promt. Did you mean 'prompt'?"),
  ({"prompt": 3}, "prompt", "prompt must be a text or a list of token ids."),
  ({"prompt": ["a", "b"]}, "prompt", "prompt holds 2 prompts, and a request has one; send one request for each."),
  ({"prompt": [1, True]}, "prompt", "prompt must be a list of token ids."),
  ({"prompt": [-1]}, "prompt", "prompt must be a list of token ids."),
  ({"prompt": [2**31]}, "prompt", "prompt must be a list of token ids."),
  ({"prompt": "\ud800"}, "prompt", "prompt holds half a character, which no text in UTF-8 can; send the whole one."),
  ({"max_tokens": 0}, "max_tokens", "max_tokens=0 must be positive."),
  ({"max_tokens": 1.5}, "max_tokens", "max_tokens=1.5 must be of type int, not float."),
  ({"temperature": "hot"}, "temperature", "temperature='hot' must be of type float, not str."),
  ({"temperature": -1}, "temperature", "temperature=-1 must be 0 or more and finite."),
  ({"temperature": True}, "temperature", "temperature=True must be of type float, not bool."),
  ({"top_p": 0}, "top_p", "top_p=0 must lie in (0, 1]."),
  ({"top_k": -1}, "top_k", "top_k=-1 must be 0 or more."),
  ({"seed": -1}, "seed", "seed=-1 must lie in [0, 4294967295]."),
  ({"seed": 10**30}, "seed", "must lie in [0, 4294967295]."),
  ({"n": 2}, "n", "n=2 is not supported here; leave it out, or set it to 1."),
  ({"n": True}, "n", "n=True is not supported here; leave it out, or set it to 1."),
  ({"logprobs": 0}, "logprobs", "logprobs=0 is not supported here; leave it out."),
  ({"logit_bias": {"3": 1}}, "logit_bias", "logit_bias=an object is not supported here; leave it out, or set"),
  ({"stop": ""}, "stop", "stop must be a text or a list of at most 16, each of 1 to 1,000 characters."),
  ({"stop": ["a"] * 17}, "stop", "stop must be a text or a list of at most 16"),
  ({"stop": [3]}, "stop", "stop must be a text or a list of at most 16"),
  ({"stream": "yes"}, "stream", "stream='yes' must be of type bool, not str."),
  ({"stream_options": {"include_usage": True}}, "stream_options", "stream_options are of streams; leave them out"),
  ({"stream": True, "stream_options": {"a": 1}}, "stream_options", "stream_options must be an object that holds"),
  ({"user": "a\nb"}, "user", "user='a\\nb' must be a text of one line."),
], ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "")
def test_a_wrong_field_is_refused(fields, param, sentence):
  with pytest.raises(Refusal) as refused:
    completion(**fields)
  error = refused.value.body["error"]
  assert error["param"] == param and error["type"] == "invalid_request_error" and refused.value.status == 400
  assert sentence in error["message"] and error["message"].endswith((".", "?")) and "\n" not in error["message"]


@pytest.mark.parametrize(("fields", "sentence"), [
  ({"messages": []}, "messages must be a list of at least one message"),
  ({"messages": [{"role": "user"}]}, "messages[0] must be an object with role and content, and nothing else."),
  ({"messages": [*MESSAGES, {"role": "me", "content": ""}]}, "messages[1].role='me' is not one of system, developer"),
  ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content must be a text, or a"),
  ({"messages": [{"role": "user", "content": None}]}, "messages[0].content must be a text, or a list"),
  ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages[0].content must be a text"),
  ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens and max_completion_tokens mean the same"),
  ({"tools": [{}]}, "tools=[an object] is not supported here; leave it out, or set it to []."),
  ({"response_format": {"type": "json_object"}}, "response_format=an object is not supported here"),
  ({"prompt": "a"}, "there is no field prompt."), ({"echo": True}, "there is no field echo.")],
  ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "")
def test_a_wrong_chat_is_refused(fields, sentence):
  with pytest.raises(Refusal) as refused:
    chat(**fields)
  assert sentence in str(refused.value)


@pytest.mark.parametrize(("body", "sentence"), [
  (b"", "the body is not JSON in UTF-8 (Expecting value: line 1 column 1); send one object."),
  (b"\xff{}", "the body is not JSON in UTF-8 ('utf-8' codec can't decode byte 0xff"),
  (b"[]", "the body must be a JSON object, with fields such as prompt."),
  (b'{"temperature": NaN, "prompt": ""}', "the body is not JSON in UTF-8 (NaN is no JSON); send one object."),
  (b'{"prompt": "a", "prompt": "b"}', "the body is not JSON in UTF-8 (a field stands in it twice)"),
  (b'{"seed": ' + b"9" * 5000 + b"}", "the body is not JSON in UTF-8 (Exceeds the limit"),
  (b"[" * 100_000, "the body is nested too deeply; send one object of plain fields."),
  (b"{}", "the field prompt is missing; give a text or a list of token ids.")], ids=lambda value: repr(value)[:20])
def test_what_is_no_request_is_refused(body, sentence):
  with pytest.raises(Refusal) as refused:
    parse_completion(body)
  assert sentence in str(refused.value)
  with pytest.raises(Refusal, match="messages is missing"):
    parse_chat(b"{}")
