"""Figures in the prose of a Markdown page, and where a text with figures stands in it."""

from __future__ import annotations

import re
import string
from typing import Any

from markdown_it import MarkdownIt

Span = tuple[int, int]

# "%" and units of time, memory, loss and speed. Tokens, bytes and updates are sizes as a rule.
_UNIT = (
  r"(?:%|‰|µs|ms|s|seconds?|min|minutes?|hours?|h|days?|[kMGT]i?B(?:/s)?|nats?|bits?|points?|"
  r"(?:tokens|bytes|steps|updates)(?:/s| per second| a second))(?![\w/])")
_FIGURE = re.compile(
  rf"(?<![\w.])(\d+(?:,\d{{3}})*(?:(?:\.\d+)+(?:e[+-]?\d+)?|e[+-]?\d+|(?=\s?{_UNIT})))(?:\s?{_UNIT})?(?!\w)")
_RELEASE = re.compile(r"\d+(\.\d+){2,}")
# Code, targets of links, addresses, papers, and the releases of programs and models that are named.
_NO_PROSE = re.compile(
  r"`[^`]+`|\]\([^)\s]*\)|https?://\S+|arXiv\s+\d+\.\d+|\b(?:[Pp]ython|jax|Llama|NumPy|CUDA|torch) \d[\d.]*")
_NO_PROSE_BLOCKS = {"fence", "code_block", "thead_open", "html_block"}


def figures_of(text: str) -> list[Span]:
  """Where numbers with a decimal point or a unit stand in running text and in cells of tables.

  No prose are blocks of code, `code`, heads of tables, targets of links, and numbers of papers and releases.
  """
  hidden = _hide(text)
  return [found.span(1) for found in _FIGURE.finditer(hidden) if not _RELEASE.search(found[1])]


def _hide(text: str) -> str:
  """The text with as many blanks in the place of what is no prose."""
  lines = text.splitlines(keepends=True)
  for token in MarkdownIt().enable("table").parse(text):
    if token.type in _NO_PROSE_BLOCKS and token.map:
      for row in range(*token.map):
        lines[row] = re.sub(r"[^\n]", " ", lines[row])
  return _NO_PROSE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), "".join(lines))


def tables_of(text: str, header: str) -> list[Span]:
  """Where the tables stand whose first line begins with `header`."""
  starts = [0]
  for line in text.splitlines(keepends=True):
    starts.append(starts[-1] + len(line))
  return [
    (starts[token.map[0]], starts[token.map[1]]) for token in MarkdownIt().enable("table").parse(text)
    if token.type == "table_open" and token.map and text.startswith(header, starts[token.map[0]])]


def places_of(text: str, says: str, values: dict[str, Any]) -> list[Span]:
  """Where the {…} of `says` stand, wherever it stands with these values; without any, where `says` itself stands.

  A minus is − or -, a blank may be the end of a line, and 1e-06 is 1e-6. Raises what str.format does for a field that
  is not among the values or cannot be shown in its format.
  """
  pieces = []
  for literal, field, spec, _ in string.Formatter().parse(says):
    pieces.append(_pattern(literal))
    if field is not None:
      value, _ = string.Formatter().get_field(field, (), values)
      shown = "|".join(_pattern(text) for text in _shown(value, spec or ""))
      pieces.append(rf"\**({shown})\**")  # bold or not
  pattern = re.compile(rf"(?<!\d)(?<!\d[.,]){'(?<![+−-])' if says[0] == '{' else ''}{''.join(pieces)}(?!\d|[.,]\d)")
  groups = range(min(1, pattern.groups), pattern.groups + 1)
  return [found.span(group) for found in pattern.finditer(text) for group in groups]


def _shown(value: Any, spec: str) -> list[str]:
  """The value in its format; half way between two figures either, as what is stored may have been rounded before."""
  near = [value * (1 + shift) for shift in (-1e-9, 1e-9)] if isinstance(value, float) and spec else []
  return sorted({format(one, spec) for one in [value, *near]})


def _pattern(text: str) -> str:
  escaped = re.sub(r"[−-]", "−", re.sub(r"\s+", " ", text))
  pattern = re.escape(escaped).replace(r"\ ", r"\s+").replace("−", "[−-]")
  return re.sub(r"(?<=\de\[−-\])0?(?=\d\b)", "0?", pattern)
