"""Runs evaluated in windows of several lengths, most of them longer than those of their training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lattice_jax.config import Config
from lattice_jax.evaluation.loaded_model import LoadedModel, load_run
from lattice_jax.files import append_jsonl, read_jsonl
from lattice_jax.inspect.plots import line_style, new_figure, save_figure
from lattice_jax.markdown import markdown_table
from lattice_jax.runtime import git_commit
from lattice_jax.sweep.table import Spread, spread

_SEED = re.compile(r"[_,-]?seed=(\d+)")
_RECORD = "lengths.jsonl"


@dataclasses.dataclass(frozen=True)
class Measured:
  """A run in windows of `length` tokens, each read from an empty memory.

  name, seed: of the run's folder, without its seed, and that; "" where the folder names none. value: bits per byte or
  dim, or of a task the share of right answers. batch: rows of a call. weights: which parameters they were, by content.
  """

  name: str
  seed: str
  length: int
  trained: int
  value: float
  unit: str
  split: str
  batch: int
  tokens: int
  step: int | None
  weights: str
  commit: str | None


def measure(
  workdirs: Sequence[Path], lengths: Sequence[int], out: Path, *, split: str, rows: int,
  report: Callable[[str], None],
) -> list[Measured]:
  """Evaluates each run at each length; what `out` holds already of the same weights is not measured again.

  Windows are read in calls of the run's own length, the memory carried on, so no program needs more memory than in
  training. rows: windows read side by side at the shortest length; longer ones as many as give as many tokens.

  Raises:
    ValueError: a folder is no run, two folders have one name and seed, or a length does not fit the run's data.
  """
  named: dict[tuple[str, str], Path] = {}
  for workdir in workdirs:
    if (other := named.setdefault(_name_of(workdir), workdir)) is not workdir:
      raise ValueError(f"{other} and {workdir} have the same name and seed; give one of them.")
  known = {_key(line): line for line in read_jsonl(out / _RECORD)}
  found = []
  for (name, seed), workdir in named.items():
    weights = None
    for length in lengths:
      batch = max(1, rows * min(lengths) // length)
      model = _at(workdir, length, split, batch)
      weights = weights or model.origin["weights"]
      asked = {"name": name, "seed": seed, "length": length, "split": split, "batch": batch, "weights": weights}
      line = known.get(_key(asked))
      if line is None:
        (result,) = model.evaluate()
        is_task = result.accuracy is not None
        line = asked | {
          "trained": load_run(workdir, step=None, overrides=()).config.data.seq_len,
          "value": result.accuracy if is_task else result.bits_per_byte,
          "unit": "right answers" if is_task else f"bits per {result.unit}", "tokens": result.tokens,
          "step": model.step, "commit": git_commit()}
        append_jsonl(out / _RECORD, [line])
      found.append(Measured(**line))
      report(f"{name} {seed}, {length:,} tokens: {found[-1].value:.4f} {found[-1].unit}")
  return found


def _at(workdir: Path, length: int, split: str, batch: int) -> LoadedModel:
  """The run's model, to be evaluated in windows of this length, on the whole split; documents of recall are as long."""
  model = load_run(workdir, step=None, overrides=())
  config = model.config
  call_len = min(length, config.data.seq_len)
  if config.data.source == "recall":
    model = dataclasses.replace(model, config=_with_seq_len(config, length))
  return model.with_eval(split=split, protocol="cold", seq_len=length, chunk_len=call_len, batch=batch, max_batches=0)


def _with_seq_len(config: Config, length: int) -> Config:
  return dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=length, update_len=length))


def _name_of(workdir: Path) -> tuple[str, str]:
  folder = workdir.resolve().name
  seed = _SEED.search(folder)
  name = _SEED.sub("", folder).strip("_,-")
  return name.removeprefix("config=") or folder, seed[1] if seed else ""


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
  return tuple(line[part] for part in ("name", "seed", "length", "split", "batch", "weights"))


def by_name(found: Sequence[Measured]) -> dict[str, dict[int, dict[str, float]]]:
  """Name → length → seed → value, in the order of `found`."""
  values: dict[str, dict[int, dict[str, float]]] = {}
  for line in found:
    values.setdefault(line.name, {}).setdefault(line.length, {})[line.seed] = line.value
  return values


def difference(values: dict[int, dict[str, float]], length: int, start: int) -> Spread:
  """Of the value at `length` to that at `start`, over seeds."""
  return spread([value - values[start][seed] for seed, value in values[length].items()])


def format_lengths(found: Sequence[Measured], command: str) -> str:
  """A line for each name, best first at the shortest length; mean ± sample standard deviation over seeds."""
  named, sign = by_name(found), -1 if found[0].unit == "right answers" else 1
  lengths = list(dict.fromkeys(line.length for line in found))
  rows = sorted(named.items(), key=lambda item: sign * spread(list(item[1][lengths[0]].values())).mean)
  table = [["", *(f"{length:,}" for length in lengths), *(f"{length:,} − {lengths[0]:,}" for length in lengths[1:])]]
  for name, values in rows:
    table.append([
      name, *(spread(list(values[length].values())).text() for length in lengths),
      *(difference(values, length, lengths[0]).text("+") for length in lengths[1:])])
  trained = ", ".join(sorted({f"{line.trained:,}" for line in found}))
  commits = ", ".join(sorted({str(line.commit) for line in found}))
  seeds = max(len(values[lengths[0]]) for values in named.values())
  return (
    f"    {command}\n\n{found[0].unit.capitalize()} of the {found[0].split} split in windows of so many tokens, each "
    f"from an empty memory; trained on {trained}. Mean ± sample standard deviation over {seeds} "
    f"seed{'s' * (seeds > 1)}; commit {commits}.\n\n{markdown_table(table, 'l' + 'r' * (len(table[0]) - 1))}\n")


def plot_lengths(found: Sequence[Measured], out: Path) -> None:
  """A line for each name over the length of windows, with the standard deviation over seeds as bars."""
  figure, (axes,) = new_figure("Windows beyond the length of training", size=(8.5, 5))
  for index, (name, values) in enumerate(by_name(found).items()):
    spreads = [spread(list(of.values())) for of in values.values()]
    color, line = line_style(index)
    axes.errorbar(
      list(values), [one.mean for one in spreads], yerr=[one.sd or 0.0 for one in spreads], color=color, linestyle=line,
      marker="o", capsize=3, label=name)
  lengths = sorted({line.length for line in found})
  axes.set_xscale("log", base=2)
  axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
  for trained in {line.trained for line in found}:
    axes.axvline(trained, color="0.6", linewidth=1, zorder=0)
  axes.set_xlabel("tokens of a window (grey: length of training)")
  axes.set_ylabel(found[0].unit)
  axes.grid(True, alpha=0.25)
  axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
  save_figure(figure, out)
