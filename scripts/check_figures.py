"""Compares figures quoted in README.md and docs/ with the stored results that they came from.

python scripts/check_figures.py

docs/figures.yaml declares them: the text around a figure, its format, and where its value stands. A figure that is not
declared there is not checked. Exit status 1: a page says something else than its results.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax import stored_value
from lattice_jax.commands.arguments import Parser
from lattice_jax.commands.run import run_script

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = "docs/figures.yaml"


def main() -> int:
  Parser(__doc__).parse_args()
  pages = yaml.safe_load((ROOT / REGISTRY).read_text(encoding="utf-8"))
  found = [mistake(ROOT, page, entry) for page, entries in pages.items() for entry in entries]
  mistakes = [text for text in found if text]
  print("\n".join([*mistakes, f"{len(found)} texts with figures in {len(pages)} pages; {len(mistakes)} mistakes."]))
  return min(1, len(mistakes))


def mistake(root: Path, page: str, entry: dict[str, Any]) -> str:
  """What is wrong with one entry of the registry; "" if its text, with today's values, stands in the page."""
  try:
    values = {name: look_up(root, place) for name, place in entry["from"].items()}
    says = entry["says"].format(**values)
  except (ValueError, LookupError, TypeError) as error:
    return f"{REGISTRY}: {entry['says']!r} of {page}: {error}"
  if says == entry["says"]:
    return f"{REGISTRY}: {says!r} of {page} has no figure; write {{name}} where one stands."
  text = _plain((root / page).read_text(encoding="utf-8"))
  return "" if _plain(says) in text else f"{page} does not say {says!r}, as its results do."


def look_up(root: Path, place: list[Any]) -> Any:
  """The value at [file, step, …]. Raises ValueError or LookupError where there is none."""
  return stored_value.look_up(root / place[0], place[1:], place[0])


def _plain(text: str) -> str:
  """With one kind of minus and single blanks, as a page may break its lines anywhere."""
  return " ".join(text.replace("−", "-").split())


if __name__ == "__main__":
  run_script(main)
