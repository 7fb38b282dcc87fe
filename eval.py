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

from lattice_jax import runtime
from lattice_jax.arguments import COUNT, POSITIVE, define
from lattice_jax.config_flags import define_set
from lattice_jax.domains import Place, Switch, Text
from lattice_jax.evaluation import flag_rules
from lattice_jax.inference import flags as flags_of_text

_WORKDIR = define("workdir", Place(), None, "Folder of the run; of a pretrained model, where results go.")
_PRETRAINED = define("pretrained", Place(), None, "smollm2, a folder of safetensors or a .gguf file, and no run.")
_DTYPE = define("dtype", Text(("float32", "bfloat16")), "float32", "Of a pretrained model.")
_STEP = define("step", COUNT, None, "Checkpoint; the newest when not given.")
_SPLIT = define("split", Text(("train", "validation", "test")), "test", "What to read.")
_PROTOCOL = define(
  "protocol", Text(("cold", "carried", "both", "none")), None,
  "cold: windows, each from an empty memory; carried: whole documents, memory running on; none: no evaluation. "
  "When not given cold, or none with a --task, or of a pretrained model with a --prompt.")
_SEQ_LEN = define("seq_len", POSITIVE, None, "Context: tokens of a window; the run's own when not given.")
_CHUNK_LEN = define("chunk_len", COUNT, None, "Tokens of one call, memory carried between; 0 = the window.")
_BATCH = define("batch", POSITIVE, None, "Rows; the result does not depend on it.")
_SET = define_set()
_OUTPUT = define("output", Place(), None, "JSON file; by default eval_<split>_…_<key>.json in the workdir.")
_COMPRESSORS = define(
  "compressors", Switch(), False,
  "Compare texts with gzip, bz2, xz and order-0, given the train split; images with PNG, WebP and two entropies.")


def main(argv: list[str]) -> None:
  if argv:
    raise ValueError(f"unexpected argument {argv[0]!r}; flags are written as --name=value.")
  asked = flag_rules.read_asked(_PRETRAINED.value, _PROTOCOL.value, comparison=_COMPRESSORS.value)
  flag_rules.check_flags(asked, flag_rules.given_flags(), _SET.value)
  runtime.enable_compilation_cache()
  from lattice_jax.evaluation import cache_flags, command, result_tables  # --help and mistakes need not wait for JAX

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
      print(f"\n{result_tables.format_result(result)}\n\nwrote {path}", flush=True)
      results.append(result)
  if _COMPRESSORS.value:
    print(f"\n{result_tables.format_comparison(results, *task.baselines(_SPLIT.value))}", flush=True)
  if asked.task:
    for path in cache_flags.judge(task, _SPLIT.value, report=lambda line: print(line, flush=True)):
      print(f"wrote {path}")
  if asked.text:
    def show(piece: str) -> None:
      print(piece, end="", flush=True)

    print(flush=True)
    written, path = task.write_texts(length=flags_of_text.text_length(), show=show, **flags_of_text.text_options())
    texts = written.texts if len(written.texts) > 1 else ()
    print("\n\n".join(["", *texts, result_tables.format_written(written), f"wrote {path}"]))


if __name__ == "__main__":
  runtime.run_main(main, sys.argv)
