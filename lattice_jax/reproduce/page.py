"""The pages of published tables: what is published, what was measured and how, and how claims come out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lattice_jax.markdown import markdown_table
from lattice_jax.reproduce.earlier import EARLIER
from lattice_jax.reproduce.paper import Made
from lattice_jax.reproduce.readers import Values
from lattice_jax.reproduce.registry import LEFT_OUT, MEASUREMENTS, PAGES, TABLES
from lattice_jax.reproduce.results import Result, RowResult
from lattice_jax.reproduce.rows import SOURCES, Claim, Row, Table, Train
from lattice_jax.reproduce.verdicts import NOT_RUN, RULES, Judgement, judge_claim, judge_published
from lattice_jax.source_code import ROOT

_COMMIT = 7  # digits


@dataclass(frozen=True)
class Found:
  """Everything that is known: results at sample scale and figures at the paper's size, by TABLE/ROW."""

  sample: Mapping[str, RowResult]
  paper: Mapping[str, Sequence[Made]]

  def readings(self, table: Table, claim: Claim) -> dict[str, Values]:
    return {name: self.sample[f"{table.name}/{name}"].readings for name in claim.rows}

  def judge(self, table: Table, claim: Claim) -> Judgement:
    """A claim whose rows are not whole yet is not judged."""
    if any(not self.sample[f"{table.name}/{name}"].is_whole for name in claim.judged):
      return Judgement(NOT_RUN)
    return judge_claim(claim, self.readings(table, claim))


def write_pages(found: Found, folder: Path, command: str) -> list[Path]:
  """README.md and one page a paper."""
  texts = {"README.md": overview(found, command)} | {
    f"{name}.md": paper_page(tables, found) for name, tables in PAGES.items()}
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in texts.items():
    (folder / name).write_text(text, encoding="utf-8")
  return [folder / name for name in texts]


def overview(found: Found, command: str) -> str:
  tables = [["table", "rows", "at the paper's size", "at sample scale", "minutes expected"]]
  for page, its in PAGES.items():
    for table in its:
      keys = [f"{table.name}/{row.name}" for row in table.rows]
      with_paper = sum(1 for key in keys if found.paper.get(key))
      sampled = [row for row in table.rows if row.sample]
      whole = sum(found.sample[f"{table.name}/{row.name}"].is_whole for row in sampled)
      minutes = sum(MEASUREMENTS[name].minutes for name in {row.sample.measurement for row in sampled})
      tables.append([
        f"[{table.title}]({page}.md#{table.name}) (`{table.name}`)", str(len(keys)), f"{with_paper} of {len(keys)}",
        f"{whole} of {len(sampled)}", f"{minutes:.0f}"])
  claims = [["claim", "source", "difference or figure", "± 2 standard errors", "repetitions", "verdict"]]
  for table in TABLES.values():
    claims += [_claim_row(table, claim, found) for claim in table.claims]
  total = sum(one.minutes for one in MEASUREMENTS.values())
  return f"""# Published tables

    {command}

Each published row that this program has a config or a measure for, [how it is made at either
scale](../../reproduce.md), and what came out. {_at_paper_size(found)}

Samples are small models on small texts: their figures show whether a claim's direction is seen there, and are no
figures of the data sets that papers name. Some measurements serve several tables; together they take about {total:.0f}
minutes on two idle cores of an AMD EPYC.

{markdown_table(tables, "lrrrr")}

## Claims, at sample scale

{markdown_table(claims, "llrrrl")}

## How it is judged

{RULES}
A result counts where its recorded fingerprint is that of today's config, code and data. Where the code has changed
since, the older result is shown as such and not judged; so are results from before fingerprints were recorded.

Sources of published figures:

{chr(10).join(f"- {name}: {text}" for name, text in SOURCES.items())}

## Not in the tables

{chr(10).join(f"- {text}" for text in LEFT_OUT)}
"""


def _at_paper_size(found: Found) -> str:
  count = sum(1 for figures in found.paper.values() if figures)
  if not count:
    return "**No row has been run at the paper's size yet.**"
  return f"{count} rows have been run at the paper's size."


def paper_page(tables: Sequence[Table], found: Found) -> str:
  parts = [f"# {tables[0].paper}", "[All tables, and how they are judged](README.md)."]
  for table in tables:
    parts += [f'<a id="{table.name}"></a>', f"## {table.title}", *_table(table, found)]
  return "\n\n".join(parts) + "\n"


def _table(table: Table, found: Found) -> list[str]:
  rows = [["row", "what", "published", "source", "ours, at the paper's size", "verdict"]]
  for row in table.rows:
    key = f"{table.name}/{row.name}"
    ours = [one.figure for one in found.paper[key]] if key in found.paper else []
    verdict = judge_published(row.published.text, ours, row.paper.incomparable if row.paper else "")
    rows.append([
      f"`{row.name}`", row.what, f"{row.published.text} {row.published.unit}" if row.published.text else "–",
      row.published.source, spread_text(ours) or "–", verdict])
  parts = [table.notes, f"    python scripts/reproduce.py {table.name} --scale=paper", markdown_table(rows, "llrlrl")]
  reasons = {row.paper.incomparable for row in table.rows if row.paper} - {""}
  if reasons:
    parts.append(f"Not comparable at any size: {'; '.join(sorted(reasons))}.")
  parts += _runs(table, found)
  parts += ["### At sample scale", f"    python scripts/reproduce.py {table.name} --scale=sample",
            _sample_table(table, found)]
  if table.claims:
    head = ["claim", "source", "difference or figure", "± 2 standard errors", "repetitions", "verdict"]
    parts.append(markdown_table([head, *(_claim_row(table, claim, found) for claim in table.claims)], "llrrrl"))
  if how := _how(table, found):
    parts += ["How these were made:", how]
  return parts


def _runs(table: Table, found: Found) -> list[str]:
  """The runs at the paper's size, one a line."""
  lines = []
  for row in table.rows:
    key = f"{table.name}/{row.name}"
    for one in found.paper[key] if key in found.paper else []:
      lines.append(
        f"- `{row.name}`: {number(one.figure)}, `{one.run}`, commit {_short(one.commit)}, {one.machine}, "
        f"{one.chip_hours:,.1f} chip-hours.")
  return ["Runs:", "\n".join(lines)] if lines else []


def _sample_table(table: Table, found: Found) -> str:
  rows = [["row", "measured", "of", "figure", "unit", "made before, fingerprint unknown"]]
  for row in table.rows:
    key = f"{table.name}/{row.name}"
    if row.sample is None:
      rows.append([f"`{row.name}`", f"no: {row.missing}", "", "", "", ""])
      continue
    result, measurement = found.sample[key], MEASUREMENTS[row.sample.measurement]
    rows.append([
      f"`{row.name}`", status(result), measurement.data, spread_text(list(result.readings.values())) or "–",
      row.sample.unit, _before(key, result)])
  return markdown_table(rows, "lllrlr")


def status(result: RowResult) -> str:
  """Whether all, some or none of a row's units have a result of today's fingerprint."""
  if result.is_whole:
    return "yes"
  done = len(result.of_today)
  return f"{done} of {result.units}" if done else NOT_RUN


def _before(key: str, result: RowResult) -> str:
  """Results of other fingerprints, and those that have none."""
  parts = []
  if not result.of_today and result.earlier:
    values = [value for one in result.earlier for value in one.readings.values()]
    commits = sorted({_short(one.commit) for one in result.earlier})
    parts.append(f"{spread_text(values)} (other code, commit {', '.join(commits)})")
  if key in EARLIER:
    earlier = EARLIER[key]
    parts.append(f"{number(earlier.value(ROOT))} ([{earlier.page}](../{earlier.page}/README.md))")
  return "; ".join(parts)


def _claim_row(table: Table, claim: Claim, found: Found) -> list[str]:
  judged = found.judge(table, claim)
  text = f"{claim.text} (`{table.name}`)"
  for name in claim.beside:
    values = list(found.sample[f"{table.name}/{name}"].readings.values())
    text += f"; beside it `{name}`: {spread_text(values) or NOT_RUN}"
  return [
    text, claim.source, "–" if judged.difference is None else number(judged.difference, sign="+"),
    "–" if judged.error is None else number(2 * judged.error), str(judged.repetitions or "–"), judged.verdict]


def _how(table: Table, found: Found) -> str:
  """One line a measurement: command, commit, machine, minutes."""
  lines: dict[str, list[Result]] = {}
  for row in table.rows:
    if row.sample:
      for result in found.sample[f"{table.name}/{row.name}"].of_today:
        lines.setdefault(row.sample.measurement, []).append(result)
  return "\n".join(_how_line(name, results) for name, results in lines.items())


def _how_line(name: str, results: Sequence[Result]) -> str:
  by_unit = {result.unit: result for result in results}
  first = next(iter(by_unit.values()))
  seeds = f"; and seeds {', '.join(list(by_unit)[1:])}" if len(by_unit) > 1 else ""
  commits = ", ".join(sorted({_short(one.commit) for one in by_unit.values()}))
  machines = ", ".join(sorted({one.machine for one in by_unit.values()}))
  minutes = sum(one.minutes for one in by_unit.values())
  expected = MEASUREMENTS[name].minutes
  cores = " (a training has one core)" if isinstance(MEASUREMENTS[name].make, Train) else ""
  return (
    f"- {name}: `{first.command}`{seeds}; commit {commits}; {machines}; {minutes:.1f} minutes{cores}, "
    f"{expected:g} expected on two cores.")


def _short(commit: str | None) -> str:
  if not commit:
    return "unknown"
  return commit[:_COMMIT] + ("+" if commit.endswith("+") else "")


def spread_text(values: Sequence[float]) -> str:
  """The mean, with the sample standard deviation and count of several; "" of none."""
  if not values:
    return ""
  mean = number(statistics.fmean(values))
  return mean if len(values) == 1 else f"{mean} ± {number(statistics.stdev(values))} ({len(values)})"


def number(value: float, sign: str = "-") -> str:
  """Four significant digits, at most four behind the point."""
  size = abs(value)
  digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 1 else 4
  return f"{round(value, digits) + 0.0:{sign},.{digits}f}"


def list_text(asked: Sequence[tuple[Table, Row]], stored: Mapping[str, int]) -> str:
  """Rows with what is published. stored: number of results at sample scale, by TABLE/ROW."""
  parts: dict[str, list[list[str]]] = {}
  for table, row in asked:
    title = f"{table.name}: {table.title} ({table.paper})"
    rows = parts.setdefault(title, [["row", "what", "published", "sample", "minutes"]])
    count = stored[f"{table.name}/{row.name}"]
    rows.append([row.name, row.what, _published(row), _stored(row, count), _minutes(row)])
  return "\n\n".join(f"{title}\n\n{markdown_table(rows, 'lllrr')}" for title, rows in parts.items())


def _published(row: Row) -> str:
  text = f"{row.published.text} {row.published.unit}" if row.published.text else "no figure"
  return f"{text} [{row.published.source}]"


def _stored(row: Row, count: int) -> str:
  if row.sample is None:
    return "none"
  make = MEASUREMENTS[row.sample.measurement].make
  wanted = len(make.seeds) if isinstance(make, Train) else 1
  return "measured" if count >= wanted else f"{count} of {wanted}" if count else NOT_RUN


def _minutes(row: Row) -> str:
  return f"{MEASUREMENTS[row.sample.measurement].minutes:g}" if row.sample else ""
