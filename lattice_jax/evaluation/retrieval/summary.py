"""Tables of retrieval under every cache: how much is kept, how much is right, and what the paper's rule predicts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lattice_jax.evaluation.bootstrap import interval_of_mean
from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.evaluation.retrieval.plan import AnswerRecord
from lattice_jax.files import to_jsonl
from lattice_jax.markdown import markdown_table

FULL = "full"
_ENOUGH = 0.5  # share right under the full cache, below which a cell says nothing about other caches


@dataclass(frozen=True)
class Summary:
  """Trials of one prompt length and answer size under one cache; `depth` is None for all depths together.

  token_accuracy: share of the answers' tokens that were the most likely ones. exact_accuracy: share of answers without
  a mistake. low, high: 95 % interval of the token accuracy, from resampling trials. is_telling: the full cache gets at
  least half of the tokens right. The other fields are means of those of `AnswerRecord`.
  """

  length: int
  answer: int
  depth: float | None
  cache: str
  trials: int
  kept: int
  cache_bytes: int
  per_partition: int
  answer_tokens: float
  needle_kept: float
  token_accuracy: float
  low: float
  high: float
  exact_accuracy: float
  nll_per_token: float
  is_telling: bool


def summarize(lines: Iterable[AnswerRecord], *, by_depth: bool) -> list[Summary]:
  """Groups by length, answer size and cache, in the order of the lines; with `by_depth` by depth as well."""
  groups: dict[tuple[int, int, float | None, str], list[AnswerRecord]] = {}
  for line in lines:
    groups.setdefault((line.length, line.answer, line.depth if by_depth else None, line.cache), []).append(line)
  full = {key[:3]: _accuracies(group)[0].mean() for key, group in groups.items() if key[3] == FULL}
  return [_summary(key, group, full) for key, group in sorted(groups.items(), key=lambda item: item[0][:2])]


def format_table(summaries: Sequence[Summary], task: str) -> str:
  """A Markdown table for each prompt length and answer size."""
  parts = [f"# {task}", _LEGEND]
  for length, answer in dict.fromkeys((row.length, row.answer) for row in summaries):
    rows = [row for row in summaries if (row.length, row.answer) == (length, answer)]
    parts.append(f"## {length:,} tokens, answer size {answer}")
    if not rows[0].is_telling:
      parts.append("The full cache gets less than half right, so that nothing follows for the others.")
    parts.append(markdown_table([
      ("cache", "kept", "bytes per row", "answer kept", "tokens right", "95 %", "exact", "nats per token", "trials"),
      *((
        row.cache, f"{row.kept:,}", f"{row.cache_bytes:,}", f"{row.needle_kept:.0%}", f"{row.token_accuracy:.1%}",
        f"{row.low:.1%}–{row.high:.1%}", f"{row.exact_accuracy:.1%}", f"{row.nll_per_token:.3f}", f"{row.trials}")
        for row in rows)]))
  return "\n\n".join([*parts, *_rule(summaries)]) + "\n"


def write_summary(folder: Path, task: str, lines: Sequence[AnswerRecord]) -> list[Path]:
  """Writes report.md, table.jsonl with all cells, and examples.md with what the model itself wrote in each cell."""
  overall, cells = summarize(lines, by_depth=False), summarize(lines, by_depth=True)
  texts = {
    "report.md": format_table(overall, task),
    "table.jsonl": to_jsonl(dataclasses.asdict(row) for row in [*overall, *cells]),
    "examples.md": format_examples(lines, task)}
  for name, text in texts.items():
    write_text(folder / name, text)
  return [folder / name for name in texts]


def format_examples(lines: Iterable[AnswerRecord], task: str) -> str:
  """A Markdown table for each cell: the texts that the model wrote under each cache, one column per trial."""
  parts = [f"# {task}: answers as the model wrote them, greedily"]
  written = sorted((line for line in lines if line.written), key=lambda line: (line.length, line.answer, line.depth))
  for (length, answer, depth), cell in itertools.groupby(
    written, key=lambda line: (line.length, line.answer, line.depth)):
    rows = [(line.cache, *(_as_code(text) for text in line.written)) for line in cell]
    columns = ("cache", *(f"trial {trial}" for trial in range(max(map(len, rows)) - 1)))
    parts += [f"## {length:,} tokens, answer size {answer}, depth {depth:g}", markdown_table([columns, *rows])]
  return "\n\n".join(parts) + "\n"


_LEGEND = (
  "Answers are scored token by token, each given the correct tokens before it. «kept»: slots in use after the prompt; "
  "«answer kept»: share of the answer's own tokens that are among them, averaged over layers and heads. "
  "`origin.json` names the model, text and code behind these figures.")


def _rule(summaries: Sequence[Summary]) -> list[str]:
  """The rule of LagKV's authors: retrieval suffers if a partition keeps fewer tokens than the answer has."""
  full = {(row.length, row.answer): row for row in summaries if row.cache == FULL}
  rows = [
    (row, full[row.length, row.answer]) for row in summaries
    if row.cache.startswith("lagkv") and row.per_partition and (row.length, row.answer) in full and row.is_telling]
  if not rows:
    return []
  rows.sort(key=lambda pair: pair[0].per_partition / pair[0].answer_tokens)
  return ["## Tokens kept per partition against the answer's length", markdown_table([
    ("cache", "prompt", "kept per partition", "answer tokens", "ratio", "tokens right", "relative to full"),
    *((
      row.cache, f"{row.length:,}", f"{row.per_partition}", f"{row.answer_tokens:.0f}",
      f"{row.per_partition / row.answer_tokens:.2f}", f"{row.token_accuracy:.1%}",
      f"{row.token_accuracy / whole.token_accuracy:.0%}") for row, whole in rows)])]


def _summary(
  key: tuple[int, int, float | None, str], group: Sequence[AnswerRecord],
  full: dict[tuple[int, int, float | None], float],
) -> Summary:
  tokens, exact, nll = _accuracies(group)
  low, high = interval_of_mean(tokens)
  return Summary(
    length=key[0], answer=key[1], depth=key[2], cache=key[3], trials=len(tokens), kept=group[0].kept,
    cache_bytes=group[0].cache_bytes, per_partition=group[0].per_partition,
    answer_tokens=float(np.mean([len(right) for line in group for right in line.right])),
    needle_kept=float(np.mean([share for line in group for share in line.needle_kept])),
    token_accuracy=float(tokens.mean()), low=low, high=high, exact_accuracy=float(exact.mean()),
    nll_per_token=float(nll.mean()), is_telling=key[:3] not in full or bool(full[key[:3]] >= _ENOUGH))


def _accuracies(group: Sequence[AnswerRecord]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """For every trial: (share of counted tokens that are right, whether all are, nats per token)."""
  trials = [
    (np.array(right)[scored], np.array(nll)[scored]) for line in group
    for right, nll, scored in zip(line.right, line.nll, line.scored, strict=True)]
  return (
    np.array([right.mean() for right, _ in trials]), np.array([right.all() for right, _ in trials]),
    np.array([nll.mean() for _, nll in trials]))


def _as_code(text: str) -> str:
  """As code on one line, without characters that would end the cell."""
  return f"`{text.replace('|', '¦').replace('`', '´')!r}`"
