"""A report in Markdown as one HTML file, with its pictures inside, for light and dark screens."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.page_style import STYLE

_CHAPTER = re.compile(r"^(?=## )", re.MULTILINE)
_PICTURE = re.compile(r'(?<=<img src=")([^":]+\.png)(?=")')


def write_page(path: Path, markdown: str) -> None:
  """Writes the page. Pictures are PNG files in its folder; the first line of the text is the heading."""
  title = markdown.splitlines()[0].lstrip("# ")
  head, *sections = _CHAPTER.split(markdown)
  renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
  body = renderer.render(head) + "".join(f"<section>{renderer.render(section)}</section>" for section in sections)
  body = _PICTURE.sub(lambda found: _as_data(path.parent / found[1]), body)
  write_text(
    path, '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
    f'content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style></head>'
    f'<body><main class="report">{body}</main></body></html>\n')


def _as_data(picture: Path) -> str:
  return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
