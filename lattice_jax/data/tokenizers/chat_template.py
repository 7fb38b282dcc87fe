"""Chat templates: the Jinja program of a model turns messages into the text that it was trained to read."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from lattice_jax.data.tokenizers.sandbox import call_in_sandbox


def render(
  template: str, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, Any],
  tools: Sequence[Mapping[str, Any]] | None = None) -> str:
  """The text up to where the model's answer begins.

  The template gets the variables of `transformers`: messages, tools, documents, add_generation_prompt, and those of
  bos_token and the like that the model has. It runs in a sandbox, in a process of its own.

  Raises ValueError if the template fails; the message is the reason.
  """
  variables = dict(special_tokens) | {
    "messages": list(messages), "tools": tools, "documents": None, "add_generation_prompt": True}
  return call_in_sandbox("chat_template", {"template": template, "variables": variables})


def answer(request: Mapping[str, Any]) -> str:
  """`render` in the child process."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
  environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
  environment.filters["tojson"] = _tojson
  return environment.from_string(request["template"]).render(request["variables"])


class _Generation(jinja2.ext.Extension):
  """{% generation %} … {% endgeneration %} mark what the model is trained to write; the text is the same."""

  tags = frozenset({"generation"})

  def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.Scope(body).set_lineno(line)


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _tojson(
  value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
  sort_keys: bool = False) -> str:
  """Jinja's own filter escapes for HTML, which no model was trained on."""
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
