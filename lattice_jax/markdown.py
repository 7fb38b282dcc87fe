"""Tables in Markdown, for every report."""

from __future__ import annotations

from collections.abc import Sequence

_RULES = {"l": "---", "r": "---:"}


def markdown_table(rows: Sequence[Sequence[str]], columns: str = "") -> str:
  """The first row is the heading; `columns` aligns each ("l", "r"), by default the first left and the others right."""
  head, *body = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows)
  rules = "|".join(_RULES[column] for column in columns or "l".ljust(len(rows[0]), "r"))
  return "\n".join([f"| {head} |", f"|{rules}|", *(f"| {cells} |" for cells in body)])
