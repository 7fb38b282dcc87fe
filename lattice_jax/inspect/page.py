"""A report in Markdown as one HTML file, with its pictures inside, for light and dark screens."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from lattice_jax.evaluation.result_tables import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #666; --line: #ddd; --shade: #f5f5f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #181a1b; --faint: #999; --line: #3a3d40; --shade: #232628; }
  img { filter: invert(0.9) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em;
       color: var(--ink); background: var(--paper); }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5em; border-bottom: 1px solid var(--line); }
p, li { max-width: 60em; } img { max-width: 100%; }
code { background: var(--shade); padding: 0 .25em; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 2px 9px; border-bottom: 1px solid var(--line); } tr:hover td { background: var(--shade); }
"""
_PICTURE = re.compile(r'(?<=<img src=")([^":]+\.png)(?=")')


def write_page(path: Path, markdown: str) -> None:
  """Writes the page. Pictures are PNG files in its folder; the first line of the text is the heading."""
  title = markdown.splitlines()[0].lstrip("# ")
  body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
  body = _PICTURE.sub(lambda found: _as_data(path.parent / found[1]), body)
  write_text(
    path, "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n")


def _as_data(picture: Path) -> str:
  return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
