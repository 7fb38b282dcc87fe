"""Evaluation results as aligned tables and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lattice_jax.evaluation.result import EvalResult
from lattice_jax.files import replace_file
from lattice_jax.inference.text import Written


def format_result(result: EvalResult) -> str:
  """The totals of one protocol, then its loss by text (if it has texts) and by position, or a task's answers."""
  heading = (
    f"{result.source}, {result.tokenizer} tokenizer, {result.split} split, {result.protocol}: {_context(result)}")
  if result.accuracy is not None:
    tables = [_answers(result, label) for label in dict.fromkeys(group.label for group in result.answers)]
  else:
    tables = [*([_documents(result)] if result.documents else []), _buckets(result)]
  return "\n\n".join([heading, _totals(result), *tables])


def format_comparison(results: Sequence[EvalResult], baselines: Mapping[str, float], unit: str) -> str:
  """The model and the baselines that need no model on the same split, best first."""
  rows = [(f"model, {result.protocol}", result.bits_per_byte) for result in results] + list(baselines.items())
  rows.sort(key=lambda row: row[1])
  return align([("on the same split", f"bits per {unit}"), *((name, f"{value:.4f}") for name, value in rows)])


def format_written(written: Written) -> str:
  """Why each text ended, and the time and memory that it took."""
  ends = {"stop": "the model or a stop string ended it", "length": "as long as asked", "context": "the context is full"}
  rows = [
    (f"text {row + 1}" if len(written.texts) > 1 else "text", f"{tokens:,} tokens: {ends[finish]}")
    for row, (tokens, finish) in enumerate(zip(written.num_tokens, written.finishes, strict=True))]
  timing = written.timing
  speed = timing.tokens_per_second
  return align([
    *rows,
    ("time to first token", f"{timing.first_token_seconds:.2f} s + {timing.compile_seconds:.1f} s compiling"),
    *([("tokens per second", f"{speed:,.1f}")] if speed else []),
    ("memory", f"{timing.cache_bytes:,} bytes")])


def write_result(path: Path, result: EvalResult, run: Mapping[str, Any]) -> None:
  """Writes the result and what is needed to reproduce it (`run`: workdir, step, commit, overrides …)."""
  write_text(path, json.dumps(dict(run) | dataclasses.asdict(result), indent=2) + "\n",
             instead=", or choose another --output")


def write_text(path: Path, text: str, *, instead: str = "") -> None:
  """Writes the whole file or nothing. Raises ValueError if it cannot be written; `instead` names a further remedy."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
  except OSError as error:
    raise ValueError(
      f"{path} cannot be written: {error.strerror}; free space or grant write permission there{instead}.") from error


def write_json_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
  """A file with a line of JSON for each of them, written as `write_text` does."""
  write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def align(rows: Sequence[Sequence[str]]) -> str:
  """Pads columns to equal width; aligns the first to the left and the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if index == 0 else cell.rjust(width)
      for index, (cell, width) in enumerate(zip(row, widths, strict=True)))
    for row in rows)


def _context(result: EvalResult) -> str:
  if result.protocol == "cold":
    return f"windows of {result.seq_len:,} tokens, each from an empty memory"
  return f"whole documents, memory carried, {result.chunk_len:,} tokens a call"


def _totals(result: EvalResult) -> str:
  nats, tokens = f"{result.nll_per_token:.4f}", f"{result.tokens:,}"
  if not result.is_whole:
    tokens += f" of {result.split_tokens:,}"
  if result.accuracy is not None:
    rows = [("accuracy", f"{result.accuracy:.2%}"), ("nats per answer", nats), ("answers", tokens)]
  else:
    rows = [
      (f"bits per {result.unit}", f"{result.bits_per_byte:.4f}"), *_words(result), ("nats per token", nats),
      ("tokens", tokens), ("tokens per second", f"{result.tokens_per_second:,.0f}")]
  return align([
    *rows, ("seconds", f"{result.seconds:.1f} + {result.compile_seconds:.1f} compiling"),
    *((name, f"{value:.4g}") for name, value in sorted(result.metrics.items()))])


def _words(result: EvalResult) -> list[tuple[str, str]]:
  if result.words is None:
    return []
  estimated = "" if result.is_whole else ", estimated"
  origin = "of the raw text" if result.words == result.raw_words else f"published; {result.raw_words:,} in the text"
  return [
    (f"word perplexity{estimated}", _perplexity(result.word_perplexity)), ("words", f"{result.words:,} ({origin})")]


def _answers(result: EvalResult, label: str) -> str:
  groups = [group for group in result.answers if group.label == label]
  return align([
    (label, "answers", "accuracy", "nats per answer"),
    *((
      f"{group.first:,}" if group.first == group.last else f"{group.first:,}–{group.last:,}", f"{group.answers:,}",
      f"{group.accuracy:.2%}", f"{group.nll_per_answer:.4f}") for group in groups)])


def _documents(result: EvalResult) -> str:
  return align([
    ("text", f"bits per {result.unit}", "word perplexity", "words"),
    *((
      document.title, f"{document.bits_per_byte:.4f}", _perplexity(document.word_perplexity), f"{document.words:,}")
      for document in result.documents)])


def _buckets(result: EvalResult) -> str:
  return align([
    ("position", "tokens", f"bits per {result.unit}"),
    *((f"{bucket.start:,}–{bucket.stop - 1:,}", f"{bucket.tokens:,}", f"{bucket.bits_per_byte:.4f}")
      for bucket in result.buckets)])


def _perplexity(value: float | None) -> str:
  return "" if value is None else f"{value:,.2f}"
