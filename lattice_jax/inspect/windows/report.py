"""The page of a comparison of windows, written from its JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.inspect.local.report import report_errors
from lattice_jax.inspect.windows.losses import PREFILL
from lattice_jax.markdown import markdown_table

MOST_LOSS = 0.02  # nats a token above full attention, by the upper end of the 95 % interval
LEAST_SAVED = 0.30  # of the median decode step
_FACTS = "{machine}; {versions}; commit {commit}; {seconds:,.0f} s. Everything in float32. Profile: `{profile}`."
_LOSS = (
  "The last {scored:,} tokens of {texts} texts of {seq_len:,} tokens, spread evenly over {source}, {split}; each text "
  "is read in one call under teacher forcing. Intervals: 95 %, from resampling texts. Bytes: keys and values that are "
  "kept of a row of that length, without the summary. Every choice but full attention and `prefill_windows` may keep "
  "as many bytes as «uniform».")
_REMOVAL = "The summary switched off, the windows as they were:"
_NO_SUMMARY = "There is no summary here to switch off: `model.local.far` is none."
_LATENCY = (
  "Decode steps with random keys and values in the caches, one step of each way in turn, in one process. Predicted: "
  "what fewer bytes would save if a step took as long as reading its bytes takes: {weights:,} bytes of weights, as "
  "they are stored, and the cache. Measured: of the medians; and the median of the ratios of neighbouring steps, which "
  "other programs on the machine disturb less. Milliseconds; the largest gap is the longest step.")
_BOUND = (
  "Computed, not measured: a step reads {weight_bytes:,} bytes of weights, w, and all that is kept of its rows. With c "
  "bytes of the full cache and r of another, no step can be faster by more than (c − r) / (w + c), whatever the "
  "windows. {goal:.0%} from: the shortest length at which that is enough for a cut of {goal:.0%}.")
_POSITION = (
  "Nats a token above full attention, by where the token stands in the text, with 95 % intervals from resampling "
  "texts. A window hides nothing of the first tokens.")
_PREFILL = (
  "**`prefill_windows`** (windows while prefilling, full attention while decoding; SWAA, arXiv 2512.10411): the "
  "tokens before those that count are a prompt, read under the windows of «uniform», or of the choice if there is no "
  "such baseline; the keys and values of all of them are kept, and the rest sees them all. It is **not at equal "
  "bytes**: it keeps what full attention keeps, and so saves nothing of a decode step. What it saves is a part of "
  "prefill alone: *pairs*, of a query and a key that attention computes, as a share of full attention's, here for its "
  "prompt of {prompt:,} tokens and in the other lines for a text; projections and MLPs are the same.")
_UNCUT = (
  "**Its windows hide nothing of a prompt of {prompt:,} tokens, so that here it is full attention, and its loss says "
  "nothing.** Score fewer tokens, or give a smaller budget.")
_GAPS = (0.5, 0.95, 0.99, 1)


def format_report(report: dict[str, Any], pictures: dict[str, Path]) -> str:
  """Every part in its place; one that the report lacks is named as not measured."""
  facts = report["facts"]
  loss, latency = report.get("loss"), report.get("latency")
  has_positions = loss is not None and "ranges" in loss
  parts = [
    f"# Windows of single heads: {facts['model']}",
    *(f"{part}: `{command}`" for part, command in facts["commands"].items()),
    _FACTS.format(**facts | {"commit": (facts["git_commit"] or "unknown")[:7]}),
    "## The goal", verdict(loss, latency) if loss and latency else _missing("loss,latency"),
    "## Which length saves what", *(_bound(report["bound"]) if "bound" in report else [_missing("latency")]),
    _picture(pictures, "time saved by length"),
    "## Time of a decode step", *(_latency(latency) if latency else [_missing("latency")]),
    "## Loss at equal bytes", *(_loss(loss) if loss else [_missing("loss")]),
    _picture(pictures, "loss above full attention"),
    "## Loss by position", *(_positions(loss) if has_positions else [_missing("loss")]),
    _picture(pictures, "loss by position"),
    "## Summaries of what is far, at equal bytes",
    # its own heading is this one
    *(report_errors(report["errors"], pictures)[1:] if "errors" in report else [_missing("errors")]),
    "## Windows of the heads", _picture(pictures, "windows of the heads")]
  return "\n\n".join(part for part in parts if part) + "\n"


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
  rows = [["windows", "bytes of a row", "of full", "pairs", "nats a token", "above full", "above uniform"]]
  for arm in loss["arms"]:
    rows.append([
      arm["name"], f"{arm['bytes']:,}", f"{arm['bytes'] / full['bytes']:.1%}",
      f"{arm['prefill_pairs']:.1%}" if "prefill_pairs" in arm and arm["prefill_pairs"] is not None else "",
      f"{arm['nats']:.4f}",
      _interval(arm["above_full"]), _interval(arm["above_uniform"]) if "above_uniform" in arm else ""])
  parts = [_LOSS.format(**loss), markdown_table(rows), *_prefill(loss)]
  if not loss["removal"]:
    return [*parts, _NO_SUMMARY]
  lines = [
    f"- {record['windows']} + {record['far']}: the loss rises by {_interval([record['rise'], *record['interval']])}; "
    f"{record['verdict']}." for record in loss["removal"]]
  return [*parts, _REMOVAL, "\n".join(lines)]


def _prefill(loss: dict[str, Any]) -> list[str]:
  arm, prompt = next((arm for arm in loss["arms"] if arm["windows"] == PREFILL), None), loss["seq_len"] - loss["scored"]
  if arm is None:
    return [_missing("loss", PREFILL)]
  is_cut = arm["prefill_pairs"] is not None and arm["prefill_pairs"] < 1
  return [_PREFILL.format(prompt=prompt), *([] if is_cut else [_UNCUT.format(prompt=prompt)])]


def _latency(latency: Sequence[dict[str, Any]]) -> list[str]:
  rows = [["after", "windows", "bytes of the caches", "p50", "p95", "p99", "largest gap", "predicted", "measured, p50",
           "neighbours"]]
  for record in latency:
    for arm in record["arms"]:
      rows.append([
        _where(record), arm["name"], f"{arm['cache_bytes']:,}",
        *(f"{ms:.1f}" for ms in np.quantile(arm["ms"], _GAPS)),
        f"{arm['predicted']:.1%}", f"{arm['saved_p50']:.1%}", f"{arm['saved_paired']:.1%}"])
  return [_LATENCY.format(weights=latency[0]["weight_bytes"]), markdown_table(rows, "ll" + "r" * 8)]


def _bound(bound: dict[str, Any]) -> list[str]:
  rows = [["batch", "windows", *(f"{length:,}" for length in bound["lengths"]), f"{bound['goal']:.0%} from"]]
  for batch in bound["batches"]:
    for arm in batch["arms"]:
      rows.append([
        str(batch["batch"]), arm["name"], *(f"{share:.1%}" for share in arm["saved"]),
        "never" if arm["from"] is None else f"{arm['from']:,}"])
  return [_BOUND.format(**bound), markdown_table(rows, "ll" + "r" * (len(rows[0]) - 2))]


def _positions(loss: dict[str, Any]) -> list[str]:
  rows = [["windows", *(f"{low:,}–{high - 1:,}" for low, high in loss["ranges"])]]
  rows += [[arm["name"], *map(_interval, arm["by_position"])] for arm in loss["arms"][1:]]
  return [_POSITION, markdown_table(rows)]


def _missing(parts: str, what: str = "This part") -> str:
  return f"{what} was not measured yet; `--parts={parts}` does that."


def _picture(pictures: dict[str, Path], name: str) -> str:
  return f"![{name}]({pictures[name].name})" if name in pictures else ""


def _where(record: dict[str, Any]) -> str:
  return f"{record['length']:,} × {record['batch']}"


def _interval(values: Sequence[float]) -> str:
  mean, low, high = values
  return f"{mean:+.4f} ({low:+.4f} … {high:+.4f})"
