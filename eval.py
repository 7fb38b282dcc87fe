"""Judges a trained model: bits per byte of a split, loss by position, compressors beside it, a text it writes.

python eval.py --workdir=runs/quickstart --split=test [--protocol=both] [--compressors] [--generate=500 --prompt="The "]
python eval.py --pretrained=smollm2 --prompt="Who wrote Faust?" --chat [--cache=lagkv:ratio=0.25]
python eval.py --pretrained=smollm2 --task=passkey --cache=lagkv:ratio=0.25 --peers=window,knorm
"""

from __future__ import annotations

from lattice_jax import interrupt

interrupt.exit_on_signals()

import sys
from pathlib import Path

from absl import flags

from lattice_jax import runtime
from lattice_jax.evaluation import cache_flags, command, flag_rules, report
from lattice_jax.inference import flags as flags_of_text

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; of a pretrained model, where results go.")
_PRETRAINED = flags.DEFINE_string("pretrained", None, "smollm2, a folder of safetensors or a .gguf file, and no run.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of a pretrained model.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; the newest when not given.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "What to read.")
_PROTOCOL = flags.DEFINE_enum(
  "protocol", None, ["cold", "carried", "both", "none"],
  "cold: windows, each from an empty memory; carried: whole documents, memory running on; none: no evaluation. "
  "When not given cold, or none with a --task, or of a pretrained model with a --prompt.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Context: tokens of a window; the run's own when not given.")
_CHUNK_LEN = flags.DEFINE_integer("chunk_len", None, "Tokens of one call, memory carried between; 0 = the window.")
_BATCH = flags.DEFINE_integer("batch", None, "Rows; the result does not depend on it.")
_SET = flags.DEFINE_multi_string("set", [], "Change of the run's config, as in --set=model.vq.cache=False.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file; by default eval_<split>_…_<key>.json in the workdir.")
_COMPRESSORS = flags.DEFINE_bool(
  "compressors", False,
  "Compare texts with gzip, bz2, xz and order-0, given the train split; images with PNG, WebP and two entropies.")


def main(argv: list[str]) -> None:
  if argv:
    raise ValueError(f"{argv[0]!r} is not a flag; flags are written --name=value.")
  asked = flag_rules.read_asked(_PRETRAINED.value, _PROTOCOL.value, comparison=_COMPRESSORS.value)
  flag_rules.check_flags(asked, flag_rules.given_flags(), _SET.value)
  task = command.choose(
    _WORKDIR.value, _PRETRAINED.value, step=_STEP.value, dtype=_DTYPE.value,
    overrides=[*_SET.value, *cache_flags.overrides()])
  print(task.describe(), flush=True)
  results = []
  if asked.evaluation:
    given = {"seq_len": _SEQ_LEN.value, "chunk_len": _CHUNK_LEN.value, "batch": _BATCH.value}
    given = {name: value for name, value in given.items() if value is not None}
    task = task.with_eval(split=_SPLIT.value, protocol=asked.protocol, **given)
    for result in task.evaluate():
      path = task.write(result, Path(_OUTPUT.value) if _OUTPUT.value else None)
      print(f"\n{report.format_result(result)}\n\nwrote {path}", flush=True)
      results.append(result)
  if _COMPRESSORS.value:
    print(f"\n{report.format_comparison(results, *task.baselines(_SPLIT.value))}", flush=True)
  if asked.task:
    for path in cache_flags.judge(task, _SPLIT.value, report=lambda line: print(line, flush=True)):
      print(f"wrote {path}")
  if asked.text:
    def show(piece: str) -> None:
      print(piece, end="", flush=True)

    print(flush=True)
    written, path = task.write_texts(length=flags_of_text.text_length(), show=show, **flags_of_text.text_options())
    texts = written.texts if len(written.texts) > 1 else ()
    print("\n\n".join(["", *texts, report.format_written(written), f"wrote {path}"]))


if __name__ == "__main__":
  runtime.enable_compilation_cache()
  runtime.run_main(main, sys.argv)
