"""Compares figures quoted in README.md, docs/ and beside the code with the stored results that they came from.

python scripts/check_figures.py

The files of docs/figures/ declare them. Exit status 1: a page says something else than its results, a figure of a
complete page is not declared, a page is in no list of docs/figures/pages.yaml, or a loss stands beside a data set's
name and may be that of a sample.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser
from lattice_jax.commands.run import run_script
from scripts.figures.labels import mislabelled
from scripts.figures.prose import Span, figures_of, places_of, tables_of
from scripts.figures.values import RESULTS, value_of

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = "docs/figures"
PAGES = "pages.yaml"
PATTERNS = ("README.md", "docs/*.md", "docs/results/*/README.md", "lattice_jax/**/README.md")
Entry = dict[str, Any]


def main() -> int:
  Parser(__doc__).parse_args()
  entries, lists = read_registry(ROOT / REGISTRY)
  texts = [text for page in sorted(entries) for entry in entries[page] for text in texts_of(entry)]
  found = unlisted(ROOT, lists) + wrong_labels(ROOT)
  for page in sorted({*entries, *lists["complete"]}):
    found += mistakes_of(ROOT, page, entries[page] if page in entries else [], page in lists["complete"])
  compared = sum("from" in text for text in texts)
  print("\n".join([*found, (
    f"{compared} texts compared with stored results, {len(texts) - compared} texts and tables without, in "
    f"{len(entries)} pages; {len(lists['complete'])} pages are complete; {len(found)} mistakes.")]))
  return min(1, len(found))


def read_registry(folder: Path) -> tuple[dict[str, list[Entry]], dict[str, Any]]:
  """Entries by page, and the lists of pages: `complete`, where every figure is declared, and `written` by a command."""
  entries: dict[str, list[Entry]] = {}
  for path in sorted(folder.glob("*.yaml")):
    if path.name != PAGES:
      for page, declared in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        entries.setdefault(page, []).extend(declared)
  return entries, yaml.safe_load((folder / PAGES).read_text(encoding="utf-8"))


def unlisted(root: Path, lists: dict[str, Any]) -> list[str]:
  """Sentences about pages that are in no list, so that nobody looks at their figures."""
  pages = {path.relative_to(root).as_posix() for pattern in PATTERNS for path in root.glob(pattern)}
  return [f"{page} is in no list of {REGISTRY}/{PAGES}; add it to complete, and declare its figures."
          for page in sorted(pages - {*lists["complete"], *lists["written"]})]


def wrong_labels(root: Path) -> list[str]:
  """Sentences about losses in pages and docstrings of configs that could be taken for those of a whole data set."""
  return [f"{path.relative_to(root)}: {line!r} has a loss and a data set's name; say which sample, which paper, or "
          "that it is the whole set."
          for pattern in (*PATTERNS, "configs/*.py") for path in sorted(root.glob(pattern))
          for line in mislabelled(path.read_text(encoding="utf-8"))]


def mistakes_of(root: Path, page: str, entries: list[Entry], is_complete: bool) -> list[str]:
  """What is wrong with a page, in sentences: wrong entries and, in a complete page, figures without an entry."""
  text = (root / page).read_text(encoding="utf-8")
  mistakes: list[str] = []
  declared: list[Span] = []
  for one in [one for entry in entries for one in texts_of(entry)]:
    spans, mistake = check_text(root, page, text, one)
    declared += spans
    mistakes += [mistake] if mistake else []
  if is_complete:
    mistakes += [
      f"{page}:{text.count(chr(10), 0, start) + 1}: {text[start:stop]} is a figure that {REGISTRY} does not declare; "
      "say there which stored value it is, or because of what it has none."
      for start, stop in figures_of(text) if not any(a <= start and stop <= b for a, b in declared)]
  return mistakes


def texts_of(entry: Entry) -> list[Entry]:
  """The texts of an entry: one for each of its `rows`, whose words replace <name>, and for each of its `says`."""
  rows = entry["rows"] if "rows" in entry else [{}]
  says = entry["says"] if "says" in entry and isinstance(entry["says"], list) else [None]
  return [_fill({**entry, "says": text} if text else entry, row) for row in rows for text in says]


def _fill(part: Any, words: dict[str, Any]) -> Any:
  if isinstance(part, dict):
    return {key: _fill(value, words) for key, value in part.items() if key != "rows"}
  if isinstance(part, list):
    return [_fill(value, words) for value in part]
  if isinstance(part, str):
    for name, word in words.items():
      if part == f"<{name}>":
        return word
      part = part.replace(f"<{name}>", str(word))
  return part


def check_text(root: Path, page: str, text: str, entry: Entry) -> tuple[list[Span], str]:
  """Where the figures of one text stand in a page, and what is wrong with it or ""."""
  if "table" in entry:
    return _check_table(root, page, text, entry)
  says = entry["says"]
  if "because" in entry:
    spans = places_of(text, says, {})
    return spans, "" if spans else f"{page} does not say {says!r}, which {REGISTRY} declares."
  try:
    values = {name: value_of(root, source) for name, source in entry["from"].items()}
    shown, places = says.format(**values), places_of(text, says, values)
  except (ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError) as error:
    return [], f"{REGISTRY}: {says!r} of {page}: {error}"
  if shown == says:
    return [], f"{REGISTRY}: {says!r} of {page} has no figure; write {{name}} where one stands."
  return places, "" if places else f"{page} does not say {shown!r}, as its results do."


def _check_table(root: Path, page: str, text: str, entry: Entry) -> tuple[list[Span], str]:
  """As check_text, for all tables whose first line begins so; `stands_in` names the file that has them too."""
  spans = tables_of(text, entry["table"])
  if not spans:
    return [], f"{page} has no table {entry['table']!r}, which {REGISTRY} declares."
  source = (root / RESULTS / entry["stands_in"]).read_text(encoding="utf-8") if "stands_in" in entry else text
  other = [text.count("\n", 0, start) + 1 for start, stop in spans if text[start:stop].strip() not in source]
  return spans, f"{page}:{other[0]}: the table is not that of {entry['stands_in']}." if other else ""


if __name__ == "__main__":
  run_script(main)
