"""Values of stored results: what stands at a place in JSON, JSONL, CSV or a Markdown table, and arithmetic on it."""

from __future__ import annotations

import csv
import functools
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lattice_jax.stored_value import walk

RESULTS = "docs/results"
_NUMBER = r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_CELL = re.compile(rf"{_NUMBER}(?:(?: ± | \(|–| to | … | / |, ){_NUMBER})*\)?(?: ?%| ×)?")


def _ratio(top: float, bottom: float) -> float:
  return top / bottom


def _less(a: Any, b: Any) -> Any:
  """a − b; of lists one by one."""
  return [x - y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a - b


def _product(*numbers: float) -> float:
  return functools.reduce(lambda a, b: a * b, numbers)


def _list(*values: float) -> list[float]:
  return list(values)


def _of_many(fold: Callable[[list[float]], float]) -> Callable[..., float]:
  """A function of a list as one of a list or of several values."""
  return lambda *values: fold(values[0] if len(values) == 1 else list(values))


OPERATIONS: dict[str, Callable[..., Any]] = {
  "ratio": _ratio, "less": _less, "product": _product, "list": _list, "sum": _of_many(sum), "min": _of_many(min),
  "max": _of_many(max), "mean": _of_many(statistics.fmean), "sd": _of_many(statistics.stdev),
  "median": _of_many(statistics.median)}


def value_of(root: Path, source: Any) -> Any:
  """The value of a place [file, step, …], of a number, or of an operation on such: {ratio: [[file, …], [file, …]]}.

  Raises what look_up does, and ValueError for an operation that is not in OPERATIONS.
  """
  if isinstance(source, int | float):
    return source
  if isinstance(source, list):
    return look_up(root, source)
  (name, parts), *more = source.items()
  if more or name not in OPERATIONS:
    raise ValueError(f"{', '.join(source)} is no operation; choose one of {', '.join(OPERATIONS)}")
  return OPERATIONS[name](*(value_of(root, part) for part in parts))


def look_up(root: Path, place: list[Any]) -> Any:
  """The value at [file of docs/results, step, …].

  The steps are those of `lattice_jax.stored_value.walk`. Raises what it does, and ValueError for no such file.
  """
  file, *steps = place
  return walk(_read(root, file), steps, file)


@functools.cache  # one file has many figures
def _read(root: Path, file: str) -> Any:
  kind = Path(file).suffix
  try:
    text = (root / RESULTS / file).read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(f"{file} cannot be read ({error.strerror})") from error
  if kind == ".jsonl":
    return [json.loads(line) for line in text.splitlines()]
  if kind == ".csv":
    return [{key: _cell(cell) for key, cell in row.items()} for row in csv.DictReader(text.splitlines())]
  return read_tables(text) if kind == ".md" else json.loads(text)


def read_tables(text: str) -> list[dict[str, Any]]:
  """Rows of all tables of a Markdown text, with the heading above them as `section`.

  A cell is a number, a list of numbers («a ± b», «a (b to c)») or a text; of equal columns the second one is «name 2».
  """
  rows: list[dict[str, Any]] = []
  header: list[str] = []
  section = ""
  for line in text.splitlines():
    cells = [cell.strip(" *") for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
    if not line.startswith("|"):
      header, section = [], line.lstrip("# ") if line.startswith("#") else section
    elif not header:
      header = [f"{cell} 2" if cell in cells[:place] else cell for place, cell in enumerate(cells)]
    elif set(line) - set("|-: "):
      rows.append({"section": section, **dict(zip(header, map(_cell, cells), strict=True))})
  return rows


def _cell(text: str) -> Any:
  plain = re.sub(r"(?<=\d),(?=\d{3})", "", text).replace("−", "-")
  if not _CELL.fullmatch(plain):
    return text
  numbers = [float(number) for number in re.findall(_NUMBER, plain.replace("–", " "))]
  return numbers if len(numbers) > 1 else numbers[0]
