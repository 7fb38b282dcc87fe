"""The page of a report on anchors, written from its JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattice_jax.markdown import markdown_table

_FACTS = (
  "{machine}; {versions}; commit {commit}; {seconds:,.0f} s. All in float32. Anchors: rule `{rule}`, at most "
  "{max_segment} tokens a segment. {masked}")
_TEXT = (
  "{windows} windows of {window_len:,} tokens, {origin}; {anchors} anchors, segments of {mean_len:.1f} tokens on "
  "average and {largest_len} at most. Intervals: 95 %, from resampling windows. The reduced cache gives what the "
  "masked forward pass gives: the mean difference of a token's loss is asserted to be at most {tolerance:g} nats. The "
  "largest stands beside it; the full cache has one too.")
_PLACES = (
  "Loss by the token's place in its segment (after the first segment), by how many segments were closed before, and by "
  "position in the window. Windows with many segments have shorter ones, so the second table mixes the two.")
_CACHE = (
  "Bytes of one row with room for {room:,} tokens, {tokens:,} of them read. Kept by formula: keys and values of the "
  "tokens that are kept, 2 · layers · key heads · width · 4 bytes each. Live: the arrays of the state, with `reach` at "
  "the number of anchors and `max_segment` at the longest segment of this text, which leave the mask as it is. As "
  "configured: an anchor slot for every token, unless `reach` or `fanout` bounds them.")
_TIMES = (
  "Time of a decode step, caches in turn; without a cache the prefix is read again for every token, with which the "
  "paper compares its speed.")
_RECALL = (
  "A sentence says a code word and comes again later, up to the word, which is the answer; {answers} prompts a cell. "
  "Random letters are the surprising kind. Distance 0: another sentence stands in place of the first.")
_DEMONSTRATIONS = (
  "Lines such as `hot -> cold`; the last token of each is an anchor, and nothing else is. {answers} prompts a cell; 0 "
  "is without demonstrations. In *pairs* the answer stands in one of the demonstrations.")
_ATTENTION = (
  "Attention mass of «{reader}», mean of {count} layers and of all heads, over the tokens that have such keys. Numbers "
  "are segments back: 1 is the anchor that closed the last segment.")
_MASKED = {
  True: "«masked» is the model that learned under the mask.",
  False: "«masked» is a causal model with reduction: it never learned under the mask."}


def format_report(report: dict[str, Any], pictures: dict[str, Path]) -> str:
  """Every part that the report has, as tables with a picture below."""
  facts = report["facts"]
  parts = [
    f"# Anchors: {facts['model']}",
    f"`{facts['command']}`",
    _FACTS.format(**facts | {"commit": _commit(facts["git_commit"]), "masked": _MASKED[facts["is_trained"]]})
    + (f" «after» is the run {facts['after']}." if facts["after"] else "")]
  for name, heading in (
    ("text", _text), ("cache", _cache), ("recall", _recall), ("demonstrations", _demonstrations),
    ("attention", _attention)):
    if name in report:
      parts += heading(report[name], pictures)
  return "\n\n".join(parts) + "\n"


def _text(text: dict[str, Any], pictures: dict[str, Path]) -> list[str]:
  rows = [("read", "how", "nats per token", "95 %", "perplexity", "bits per byte", "95 %", "above full", "95 %",
           "from one call: mean", "largest")]
  for reading in text["readings"]:
    off = (f"{reading['mean_difference']:.1e}", f"{reading['largest_difference']:.1e}") if (
      "mean_difference" in reading) else ("", "")
    rows.append((
      reading["reader"], reading["how"], f"{reading['nats_per_token']:.4f}", _range(reading["nats_interval"]),
      f"{reading['perplexity']:.2f}", f"{reading['bits_per_byte']:.4f}", _range(reading["bits_interval"]),
      f"{reading['above_full']:+.4f}", _range(reading["above_full_interval"], "+.4f"), *off))
  return [
    "## The same text, read in different ways",
    _TEXT.format(**text, **text["segments"]),
    markdown_table(rows, "ll" + "r" * 9),
    "### Near the boundary, and along the way",
    _PLACES, _grouped("place in the segment", text["by_place"]), _grouped("segments before", text["by_segment"]),
    _grouped("position", text["by_position"]),
    _picture(pictures, "loss", "Loss above full attention by place in the segment, segments before, and position")]


def _cache(cache: dict[str, Any], pictures: dict[str, Path]) -> list[str]:
  rows = [("rule", "read", "segments: mean, largest", "kept", "kept by formula", "live arrays, sized to the text",
           "as configured", "full cache", "fewer")]
  rows += [(
    rule["rule"], f"{rule['read']:,}", f"{rule['mean_len']:.1f}, {rule['largest_len']}",
    f"{rule['kept']:,} ({rule['kept_share']:.1%})", f"{rule['kept_bytes']:,}", f"{rule['live_bytes']:,}",
    f"{rule['configured_bytes']:,}", f"{rule['full_bytes']:,}", f"{rule['saved']:.1%}") for rule in cache["rules"]]
  times = [("a token with", "ms, median", "CPU ms, median", "repeats"), *(
    (row["what"], f"{row['ms']:.1f}", f"{row['cpu_ms']:.1f}", str(row["repeats"])) for row in cache["times"])]
  return [
    "## Cache",
    _CACHE.format(**cache), markdown_table(rows), _TIMES, markdown_table(times),
    _picture(pictures, "cache", "Bytes of the caches")]


def _recall(records: Sequence[dict[str, Any]], pictures: dict[str, Path]) -> list[str]:
  return [
    "## Verbatim recall",
    _RECALL.format(**records[0]), _answers(records, "kind", "distance"),
    _picture(pictures, "recall", "Loss and accuracy of code words by distance")]


def _demonstrations(records: Sequence[dict[str, Any]], pictures: dict[str, Path]) -> list[str]:
  return [
    "## One anchor a demonstration",
    _DEMONSTRATIONS.format(**records[0]), _answers(records, "task", "shots"),
    _picture(pictures, "demonstrations", "Loss and accuracy of tasks by number of demonstrations")]


def _attention(attention: dict[str, Any], pictures: dict[str, Path]) -> list[str]:
  mean = [sum(column) / len(column) for column in zip(*attention["by_layer"], strict=True)]
  return [
    "## Which anchors are read",
    _ATTENTION.format(**attention, count=len(attention["layers"])),
    markdown_table([("", *attention["columns"]), ("mass", *(f"{value:.3f}" for value in mean))]),
    _picture(pictures, "layers", "Attention mass by layer"),
    _picture(pictures, "picture", "Attention mass on every anchor of one text")]


def _grouped(name: str, groups: Sequence[dict[str, Any]]) -> str:
  readers, masked = list(groups[0]["nats"]), list(groups[0]["above_full"])
  head = (name, "tokens", *readers, *(part for reader in masked for part in (f"{reader} − full", "95 %")))
  return markdown_table([head, *((
    group["bucket"], f"{group['tokens']:,}", *(f"{group['nats'][reader]:.3f}" for reader in readers),
    *(part for reader in masked for part in (
      f"{group['above_full'][reader][0]:+.3f}", _range(group["above_full"][reader][1:], "+.3f"))))
    for group in groups)])


def _answers(records: Sequence[dict[str, Any]], kind: str, along: str) -> str:
  """A row for each cell; of every reader the loss and the share of answers without a mistake."""
  readers = list(dict.fromkeys(record["reader"] for record in records))
  cells: dict[tuple[Any, Any], dict[str, dict[str, Any]]] = {}
  for record in records:
    cells.setdefault((record[kind], record[along]), {})[record["reader"]] = record
  rows = [(kind, along, "anchors before", *(f"{reader}: {what}" for reader in readers for what in ("nats", "right")))]
  for (name, place), found in cells.items():
    rows.append((
      str(name), str(place), f"{found[readers[0]]['segments']:.1f}", *(text for reader in readers for text in (
        f"{found[reader]['nats_per_token']:.2f} ({_range(found[reader]['nats_interval'], '.2f')})",
        f"{found[reader]['exact']:.0%}"))))
  return markdown_table(rows)


def _commit(commit: str | None) -> str:
  """With a plus sign where files differed from it."""
  return "unknown" if commit is None else commit[:7] + "+" * commit.endswith("+")


def _range(interval: Sequence[float], form: str = ".4f") -> str:
  low, high = interval
  return f"{low:{form}} to {high:{form}}"


def _picture(pictures: dict[str, Path], name: str, text: str) -> str:
  return f"![{text}]({pictures[name].name})"
