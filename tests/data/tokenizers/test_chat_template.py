"""Chat templates give the texts that `transformers` gives, and whatever they do ends in one sentence."""

from __future__ import annotations

import pytest

from lattice_jax.data.tokenizers import sandbox
from lattice_jax.data.tokenizers.chat_template import render
from tests.data.tokenizers.chat_templates import CASES, NAMES, QUESTION, WANTED

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@pytest.mark.parametrize("name", CASES)
def test_texts_are_those_of_transformers(name):
  template, messages, tools = CASES[name]
  assert render(template, messages, TOKENS, tools) == WANTED[name]


def test_the_date_is_todays_and_further_special_tokens_can_be_seen():
  template = "{{ strftime_now('%d %b') | length }} {{ additional_special_tokens[0] }} {{ sep_token is defined }}"
  assert render(template, [], TOKENS | {"additional_special_tokens": ["<a>"]}) == "6 <a> False"
  assert render(NAMES, QUESTION, {}).startswith("True True  False")


@pytest.mark.parametrize(
  ("template", "reason"), [
    ("{{ 1 / 0 }}", "division by zero"), ("{{ raise_exception('no system message.') }}", "no system message$"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "its recursion does not end"),
    ("{{" + "(" * 5000, "its recursion does not end|too many nested"),
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "it takes more than 1 seconds"),
    ("{{ 9 ** (9 ** 9) }}", "it takes more than 1 seconds"),
    ("{{ 'a' * 10 ** 10 }}", "it takes more than 2,147,483,648 bytes"),
    ("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "it takes more than"),
    ("{{ 'a' * 2 * 10 ** 7 }}", "its answer has 20,000,000 characters"),
    ("{% for x in range(10**9) %}{% endfor %}", "Range too big"), ("{{ messages.append(1) }}", "'append' .*unsafe"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "'__class__' .*unsafe"),
    ("{% include '/etc/passwd' %}", "no loader"), ("{% if %}", "Expected an expression"),
    ("{{ messages.x.y }}", "has no attribute 'x'"), ("{% generation %}", "end of template"),
    ("{{ messages + none }}", "concatenate")],
  ids=["zero", "refusal", "recursion", "brackets", "loops", "power", "memory", "output", "answer", "range", "change",
       "classes", "file", "syntax", "undefined", "generation", "types"])
def test_a_template_cannot_do_harm(template, reason, monkeypatch):
  if "1 seconds" in reason:
    monkeypatch.setattr(sandbox, "SECONDS", 1)
  with pytest.raises(ValueError, match=reason) as caught:
    render(template, QUESTION, TOKENS)
  assert "\n" not in str(caught.value)


def test_a_child_that_dies_is_a_reason(monkeypatch):
  with pytest.raises(ValueError, match=r"it crashes the library that reads it \(exit status 1\)"):
    sandbox.call_in_sandbox("no_such_module", {})
