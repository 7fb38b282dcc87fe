"""Compares figures quoted in README.md and docs/ with the stored results that they came from.

python scripts/check_figures.py

docs/figures/*.yaml declare them: the text around a figure, its format, and where its value stands. Exit status 1: a page
says something else than its results, or a page that docs/figures/pages.yaml calls complete has a figure that is not declared.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser
from lattice_jax.commands.run import run_script
from scripts.figures.prose import Span, figures_of, places_of, tables_of
from scripts.figures.values import RESULTS, value_of

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = "docs/figures"
PAGES = "pages.yaml"
Entry = dict[str, Any]


def main() -> int:
  Parser(__doc__).parse_args()
  entries, complete = read_registry(ROOT / REGISTRY)
  texts = [text for page in sorted(entries) for entry in entries[page] for text in texts_of(entry)]
  found = [mistake for page in sorted({*entries, *complete})
           for mistake in mistakes_of(ROOT, page, entries[page] if page in entries else [], page in complete)]
  compared = sum("from" in text for text in texts)
  print("\n".join([*found, f"{compared} texts compared with stored results, {len(texts) - compared} texts that have none, "
                          f"in {len(entries)} pages, of which {len(complete)} are complete; {len(found)} mistakes."]))
  return min(1, len(found))


def read_registry(folder: Path) -> tuple[dict[str, list[Entry]], list[str]]:
  """Entries by page, and the pages in which every figure must be declared."""
  entries: dict[str, list[Entry]] = {}
  for path in sorted(folder.glob("*.yaml")):
    if path.name != PAGES:
      for page, declared in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        entries.setdefault(page, []).extend(declared)
  return entries, yaml.safe_load((folder / PAGES).read_text(encoding="utf-8"))["complete"]


def mistakes_of(root: Path, page: str, entries: list[Entry], is_complete: bool) -> list[str]:
  """What is wrong with a page: sentences, one for each wrong entry and, in a complete page, for each figure without one."""
  text = (root / page).read_text(encoding="utf-8")
  mistakes: list[str] = []
  declared: list[Span] = []
  for entry in entries:
    for one in texts_of(entry):
      spans, mistake = check_text(root, page, text, one)
      declared += spans
      mistakes += [mistake] if mistake else []
  if is_complete:
    mistakes += [
      f"{page}:{text.count(chr(10), 0, start) + 1}: {text[start:stop]!r} is not declared in {REGISTRY}."
      for start, stop in figures_of(text) if not any(a <= start and stop <= b for a, b in declared)]
  return mistakes


def texts_of(entry: Entry) -> list[Entry]:
  """The texts of an entry: one for each of its `rows`, whose words stand in the place of <name>, and of a list of `says`."""
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
  if "because" in entry:
    spans = sum(places_of(text, entry["says"], {}), [])
    return spans, "" if spans else f"{page} does not say {entry['says']!r}, which {REGISTRY} declares."
  try:
    values = {name: value_of(root, source) for name, source in entry["from"].items()}
    says, places = entry["says"].format(**values), places_of(text, entry["says"], values)
  except (ValueError, LookupError, TypeError, ZeroDivisionError) as error:
    return [], f"{REGISTRY}: {entry['says']!r} of {page}: {error}"
  if says == entry["says"]:
    return [], f"{REGISTRY}: {says!r} of {page} has no figure; write {{name}} where one stands."
  return sum(places, []), "" if places else f"{page} does not say {says!r}, as its results do."


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
