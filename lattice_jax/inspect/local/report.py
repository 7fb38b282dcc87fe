"""The page of a report on local attention, written from its JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattice_jax.markdown import markdown_table

_FACTS = "{machine}; {versions}; commit {commit}; {seconds:,.0f} s. All in float32."
_ERRORS = (
  "Queries, keys and values of all {layers} layers while the model reads {texts} texts of {seq_len:,} tokens with full "
  "attention. Each arm keeps {sinks} sinks, a window, and what stands in its row; the output of attention is compared "
  "with that of full attention for every {every}th token. Error: √(Σ ‖o − ô‖² / Σ ‖o‖²) over the tokens of a text "
  "beyond the budget, for each of its query heads, then the mean over heads, layers and texts. Intervals: 95 %, from "
  "resampling texts. Settings were chosen on text of the validation split ({tuning_texts} × {seq_len:,} tokens), in "
  "every third layer.")
_BYTES = (
  "**Equal bytes.** A budget of n tokens is n · {token_bytes} bytes for one head of one layer: a token is 4 · (K + V) "
  "bytes. (sinks + window) · {token_bytes} + picks · ({token_bytes} + 8) + the bytes of the summary ≤ the budget, and "
  "the window is what is left. A summary counts with all its float32 and int32 arrays at full size: J (1 + K + V) + 1 "
  "numbers of a mean with J blocks, J K more of variances, J K V more of covariances; (J t + P)(K + V + 1) + "
  "(P / stride) · {group} K + 1 of attention matching, its open span and its record of queries included; R (V + 1) of "
  "R trained features, whose maps are parameters and are not counted. A pick has a score and a position beside key and "
  "value.")
_OFF = (
  "*Summary off* is the removal test: the same window and picks, the summary ignored. *Saves* is by how much the error "
  "is higher then, with its interval; a summary whose interval holds 0 does nothing.")
_ORDER = "Differences between arms, text by text. A claim holds if the whole interval is above 0."
_NEEDLE = (
  "A key after a quarter of the text is moved, and so are the last {tail} queries of every head, along a direction "
  "that the other keys hardly have: together they give it {mass:.0%} of the weight under full attention. No query "
  "before the last ones was moved, as when a question comes at the end. Texts: {texts}. *Kept*: heads in which the "
  "needle is still there as it is.")


def report_errors(errors: dict[str, Any], pictures: dict[str, Path]) -> list[str]:
  """Tables of every budget, with pictures below."""
  parts = [
    "## Equal bytes", _ERRORS.format(**errors), _BYTES.format(**errors, group=errors["heads"]["group"]), _OFF]
  for budget in errors["budgets"]:
    parts += [f"### {budget['budget']} tokens", _arms(budget), _order(budget["order"])]
  parts += [
    _ORDER, _picture(pictures, "errors", "Errors of all arms at each budget"), "### By position", _positions(errors),
    _picture(pictures, "position", "Errors by position"), "### By layer",
    _picture(pictures, "layers", "Errors by layer")]
  return parts


def report_needle(needle: dict[str, Any], pictures: dict[str, Path]) -> list[str]:
  """A table of all budgets with a picture below."""
  rows = [("bytes of", "arm", "setting", "error", "95 %", "kept")]
  rows += [(
    f"{budget['budget']} tokens", arm["name"], arm["setting"], f"{arm['error']:.3f}", _range(arm["interval"]),
    f"{arm['kept']:.0%}") for budget in needle["budgets"] for arm in budget["arms"]]
  return ["## A needle", _NEEDLE.format(**needle), markdown_table(rows, "lllrrr"),
          _picture(pictures, "needle", "Errors of the queries that look for the needle")]


def format_head(facts: dict[str, Any]) -> list[str]:
  """The heading, the command, and where it ran."""
  commit = facts["git_commit"]
  commit = "unknown" if commit is None else commit[:7] + "+" * commit.endswith("+")
  return [f"# Local attention: {facts['model']}", f"`{facts['command']}`", _FACTS.format(**facts | {"commit": commit})]


def _arms(budget: dict[str, Any]) -> str:
  rows = [("arm", "setting", "window", "summary and picks (bytes)", "all (bytes)", "error", "95 %", "median head",
           "summary off", "saves", "95 %")]
  for arm in budget["arms"]:
    has_summary = arm["summary_saves"][0] != 0
    rows.append((
      arm["name"], arm["setting"], f"{arm['window']:,}", f"{arm['far_bytes']:,}", f"{arm['bytes']:,}",
      f"{arm['error']:.4f}", _range(arm["interval"]), f"{arm['median_of_heads']:.4f}",
      f"{arm['without_summary']:.4f}" if has_summary else "",
      f"{arm['summary_saves'][0]:+.4f}" if has_summary else "",
      _range(arm["summary_saves"][1:], "+.4f") if has_summary else ""))
  return markdown_table(rows, "ll" + "r" * 9)


def _order(order: Sequence[dict[str, Any]]) -> str:
  rows = [("less error", "more error", "difference", "95 %", "heads", "")]
  rows += [(
    each["better"], each["worse"], f"{each['more']:+.4f}", _range(each["interval"], "+.4f"),
    f"{each['share_of_heads']:.0%}", ("claim: " * each["is_claim"]) + ("holds" if each["holds"] else "does not hold"))
    for each in order]
  return markdown_table(rows, "llrrrl")


def _positions(errors: dict[str, Any]) -> str:
  edges = sorted({tuple(place) for budget in errors["budgets"] for place in budget["ranges"]})
  rows = [("bytes of", "arm", *(f"{low:,}–{high - 1:,}" for low, high in edges))]
  for budget in errors["budgets"]:
    for arm in budget["arms"]:
      found = dict(zip(map(tuple, budget["ranges"]), arm["by_position"], strict=True))
      rows.append((f"{budget['budget']} tokens", arm["name"], *(
        f"{found[place]:.4f}" if place in found else "" for place in edges)))
  return markdown_table(rows, "ll" + "r" * len(edges))


def _range(interval: Sequence[float], form: str = ".4f") -> str:
  low, high = interval
  return f"{low:{form}} to {high:{form}}"


def _picture(pictures: dict[str, Path], name: str, text: str) -> str:
  return f"![{text}]({pictures[name].name})"
