"""The flags of eval.py, and the calls that they ask for. Needs no JAX until they have been read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lattice_jax.anchor_rule import parse_rule
from lattice_jax.byte_size import ByteSize
from lattice_jax.commands import cache_flags, eval_rules, text_flags
from lattice_jax.commands.cache_flags import cache_overrides
from lattice_jax.commands.domains import COUNT, POSITIVE
from lattice_jax.commands.flags import define, define_set, given_flags
from lattice_jax.commands.run import print_now
from lattice_jax.domains import Place, Switch, Text
from lattice_jax.runtime import enable_compilation_cache

if TYPE_CHECKING:
  from lattice_jax.evaluation.loaded_model import LoadedModel

WORKDIR = define("workdir", Place(), None, "Folder of the run; for a pretrained model, where results go.")
PRETRAINED = define("pretrained", Place(), None, "Instead of a run: smollm2, a folder of safetensors or a .gguf file.")
DTYPE = define("dtype", Text(("float32", "bfloat16")), "float32", "In which a pretrained model computes.")
WEIGHTS_BUDGET = define(
  "weights_budget", ByteSize(), None,
  "Memory through which a pretrained model's weights are streamed from their file, with what a text needs beside them.")
ANCHORS = define(
  "anchors", Text(), None,
  "Which tokens are anchors for a pretrained model: punctuation, line, every:N, ids:N,N or token:TEXT.")
STEP = define("step", COUNT, None, "Checkpoint; the newest when not given.")
SPLIT = define("split", Text(("train", "validation", "test")), "test", "What to read.")
PROTOCOL = define(
  "protocol", Text(("cold", "carried", "both", "none")), None,
  "cold: windows, each from an empty memory; carried: whole documents, the memory running on; none: no evaluation. "
  "When not given: cold, but none with a --task, or for a pretrained model with a --prompt.")
SEQ_LEN = define("seq_len", POSITIVE, None, "Context: tokens of a window; the run's own when not given.")
CHUNK_LEN = define("chunk_len", COUNT, None, "Tokens of one call, the memory carried between calls; 0 = the window.")
BATCH = define(
  "batch", POSITIVE, None, "Rows; the result does not depend on it. 1 with a --weights_budget, if not given.")
SET = define_set()
OUTPUT = define("output", Place(), None, "JSON file; by default eval_<split>_…_<key>.json in the workdir.")
COMPRESSORS = define(
  "compressors", Switch(), False,
  "Compare with what needs no model: texts with gzip, bz2, xz and order-0, given the train split; images with PNG, "
  "WebP and two entropies.")


def main() -> None:
  """Does all that the flags ask for: evaluations, a comparison with compressors, a task of caches, texts."""
  asked = eval_rules.read_asked(PRETRAINED.value, PROTOCOL.value, comparison=COMPRESSORS.value)
  eval_rules.check_flags(asked, given_flags(), SET.value)
  enable_compilation_cache()
  model = load_model()
  print_now(model.describe())
  if asked.evaluation or asked.comparison:
    evaluate(model, asked)
  if asked.task:
    from lattice_jax.commands.cache_task import run_task

    for path in run_task(model, SPLIT.value, report=print_now):
      print_now(f"wrote {path}")
  if asked.text:
    write_texts(model)


def load_model() -> LoadedModel:
  """The run of --workdir, or the --pretrained model."""
  from lattice_jax.evaluation import loaded_model  # --help and misspelt flags need not wait for JAX

  workdir = Path(WORKDIR.value) if WORKDIR.value is not None else None
  overrides = [*SET.value, *cache_overrides()]
  if ANCHORS.value is not None:
    parse_rule(ANCHORS.value, "--anchors")
    overrides.append(f"data.anchors.rule={ANCHORS.value}")
  if PRETRAINED.value is not None:
    model = loaded_model.load_pretrained_model(
      PRETRAINED.value, workdir=workdir, dtype=DTYPE.value, overrides=overrides,
      budget=WEIGHTS_BUDGET.value)
    _check_anchors_are_read(model)
    return model
  if workdir is None:
    raise ValueError("give the --workdir of a training run, or a --pretrained model such as --pretrained=smollm2.")
  return loaded_model.load_run(workdir, step=STEP.value, overrides=overrides)


def _check_anchors_are_read(model: LoadedModel) -> None:
  from lattice_jax.cache.policies.registry import POLICIES
  from lattice_jax.models.decoder import reads_marks

  policies = {text.split(":")[0] for flag in (cache_flags.CACHE, cache_flags.PEERS) for text in flag.value}
  readers = [
    name for name, record in POLICIES.items() if record.records(record.section and record.section()).marks]
  if ANCHORS.value is not None and not reads_marks(model.config.model) and policies.isdisjoint(readers):
    raise ValueError(
      f"--anchors={ANCHORS.value} marks tokens, and nothing here reads marks: the model's memory is "
      f"{','.join(dict.fromkeys(model.config.model.pattern))}; add --set=model.pattern=anchor, or a --cache such as "
      f"--cache={readers[0]}:ratio=0.25.")


def evaluate(model: LoadedModel, asked: eval_rules.Asked) -> None:
  """Writes and prints the result of each protocol, and compares them with compressors."""
  from lattice_jax.evaluation import result_tables

  results = []
  if asked.evaluation:
    given = {"seq_len": SEQ_LEN.value, "chunk_len": CHUNK_LEN.value, "batch": BATCH.value}
    if model.streamed and BATCH.value is None:
      given["batch"] = 1  # temporary arrays of more rows would take the memory that layers could have
    given = {name: value for name, value in given.items() if value is not None}
    model = model.with_eval(split=SPLIT.value, protocol=asked.protocol, **given)
    for result in model.evaluate():
      path = model.save(result, Path(OUTPUT.value) if OUTPUT.value else None)
      print_now(f"\n{result_tables.format_result(result)}\n\nwrote {path}")
      results.append(result)
    if model.streamed:
      last = results[-1]
      print_streaming(model, last.tokens_per_second, tokens_per_pass=model.config.eval.batch * last.chunk_len)
  if asked.comparison:
    print_now(f"\n{result_tables.format_comparison(results, *model.baselines(SPLIT.value))}")


def write_texts(model: LoadedModel) -> None:
  """Prints a text as it is drawn, several once they are all there."""
  from lattice_jax.evaluation import result_tables

  print_now()
  written, path = model.write_texts(
    length=text_flags.text_length(), show=lambda piece: print_now(piece, end=""), **text_flags.text_options())
  texts = written.texts if len(written.texts) > 1 else ()
  print_now("\n\n".join(["", *texts, result_tables.format_written(written), f"wrote {path}"]))
  if written.window_log:
    print_now(f"wrote {path.with_suffix('.windows.jsonl')}")
  if model.streamed:
    print_streaming(model, written.timing.tokens_per_second, tokens_per_pass=len(written.texts))


def print_streaming(model: LoadedModel, tokens_per_second: float | None, *, tokens_per_pass: int) -> None:
  """What it cost to read through --weights_budget."""
  from lattice_jax.inference.streaming.report import format_reports, make_report

  report = make_report(model.streamed, tokens_per_second, tokens_per_pass=tokens_per_pass)
  print_now(f"\n{format_reports([report])}")
