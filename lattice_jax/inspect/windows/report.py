"""The page of a comparison of windows, written from its JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattice_jax.markdown import markdown_table

MOST_LOSS = 0.02  # nats a token above full attention, by the upper end of the 95 % interval
LEAST_SAVED = 0.30  # of the median decode step
_FACTS = "{machine}; {versions}; commit {commit}; {seconds:,.0f} s. Everything in float32. Profile: `{profile}`."
_LOSS = (
  "The last {scored:,} tokens of {texts} texts of {seq_len:,} tokens, spread evenly over {source}, {split}; each text "
  "is read in one call under teacher forcing. Intervals: 95 %, from resampling texts. Bytes: keys and values that are "
  "kept of a row of that length, without the summary. Every choice but full attention may keep as many bytes as "
  "«uniform».")
_REMOVAL = "The summary switched off, the windows as they were:"
_NO_SUMMARY = "There is no summary here to switch off: `model.local.far` is none."
_LATENCY = (
  "Decode steps with random keys and values in the caches, one step of each way in turn, in one process. Predicted: "
  "what fewer bytes would save if a step took as long as reading its bytes takes: {weights:,} bytes of weights, as "
  "they are stored, and the cache. Measured: of the medians; and the median of the ratios of neighbouring steps, which "
  "other programs on the machine disturb less.")
_LEFT_OUT = (
  "Windows while a prompt is read and full attention while decoding is not among them: the memory has the same windows "
  "for both, and with the windows it also drops the keys and values that full attention would read.")


def format_report(report: dict[str, Any], pictures: dict[str, Path]) -> str:
  """Every part that the report has."""
  facts = report["facts"]
  parts = [
    f"# Windows of single heads: {facts['model']}",
    *(f"{part}: `{command}`" for part, command in facts["commands"].items()),
    _FACTS.format(**facts | {"commit": (facts["git_commit"] or "unknown")[:7]})]
  if "loss" in report:
    parts += _loss(report["loss"])
  if "latency" in report:
    parts += _latency(report["latency"])
  if {"loss", "latency"} <= report.keys():
    parts += ["## The goal", verdict(report["loss"], report["latency"])]
  for name, path in pictures.items():
    parts += [f"![{name}]({path.name})"]
  return "\n\n".join(parts) + "\n"


def verdict(loss: dict[str, Any], latency: Sequence[dict[str, Any]]) -> str:
  """Whether so much time was saved for so little loss, way by way, in sentences."""
  lines = [f"At least {LEAST_SAVED:.0%} off the median step, and less than {MOST_LOSS} nats lost, upper end:", ""]
  for arm in loss["arms"][1:]:
    high = arm["above_full"][2]
    is_good = high < MOST_LOSS
    measured = [
      f"{_where(record)}: {other['saved_p50']:.0%} ({other['predicted']:.0%} predicted)"
      + (" – fast enough" if other["saved_p50"] >= LEAST_SAVED else "")
      for record in latency for other in record["arms"] if other["name"] == arm["name"]]
    is_met = is_good and any("fast enough" in text for text in measured)
    if measured:
      lines.append(
        f"- {arm['name']}: **{'met' if is_met else 'not met'}**. Loss {high:+.4f} at most, "
        f"{'good' if is_good else 'not good'} enough; time saved, " + "; ".join(measured) + ".")
  return "\n".join(lines)


def _loss(loss: dict[str, Any]) -> list[str]:
  full = loss["arms"][0]
  rows = [["windows", "bytes of a row", "of full", "nats a token", "above full", "above uniform"]]
  for arm in loss["arms"]:
    rows.append([
      arm["name"], f"{arm['bytes']:,}", f"{arm['bytes'] / full['bytes']:.1%}", f"{arm['nats']:.4f}",
      _interval(arm["above_full"]), _interval(arm["above_uniform"]) if "above_uniform" in arm else ""])
  parts = ["## Loss at equal bytes", _LOSS.format(**loss), markdown_table(rows), _LEFT_OUT]
  if not loss["removal"]:
    return [*parts, _NO_SUMMARY]
  lines = [
    f"- {record['windows']} + {record['far']}: the loss rises by {_interval([record['rise'], *record['interval']])}; "
    f"{record['verdict']}." for record in loss["removal"]]
  return [*parts, _REMOVAL, "\n".join(lines)]


def _latency(latency: Sequence[dict[str, Any]]) -> list[str]:
  rows = [["after", "windows", "bytes of the caches", "p50, ms", "p95, ms", "predicted", "measured, p50", "neighbours"]]
  for record in latency:
    for arm in record["arms"]:
      rows.append([
        _where(record), arm["name"], f"{arm['cache_bytes']:,}", f"{arm['p50_ms']:.1f}", f"{arm['p95_ms']:.1f}",
        f"{arm['predicted']:.1%}", f"{arm['saved_p50']:.1%}", f"{arm['saved_paired']:.1%}"])
  what = _LATENCY.format(weights=latency[0]["weight_bytes"])
  return ["## Time of a decode step", what, markdown_table(rows, "llrrrrrr")]


def _where(record: dict[str, Any]) -> str:
  return f"{record['length']:,} × {record['batch']}"


def _interval(values: Sequence[float]) -> str:
  mean, low, high = values
  return f"{mean:+.4f} ({low:+.4f} … {high:+.4f})"
