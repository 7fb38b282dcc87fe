"""Judges a trained model: bits per byte of a split, loss by position, compressors beside it, a text it writes.

python eval.py --workdir=runs/quickstart --split=test [--protocol=both] [--compressors] [--generate=500 --prompt="The "]
python eval.py --pretrained=smollm2 --protocol=none --generate=100 --prompt="Who wrote Faust?" --chat
"""

from __future__ import annotations

from lattice_jax import interrupt

interrupt.exit_on_signals()

import sys
from pathlib import Path

from absl import flags

from lattice_jax import runtime
from lattice_jax.evaluation import command, report

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; of a pretrained model, where results go.")
_PRETRAINED = flags.DEFINE_string("pretrained", None, "smollm2, a folder of safetensors or a .gguf file, and no run.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of a pretrained model.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; the newest when not given.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "What to read.")
_PROTOCOL = flags.DEFINE_enum(
  "protocol", "cold", ["cold", "carried", "both", "none"],
  "cold: windows, each from an empty memory; carried: whole documents, memory running on; none: no evaluation.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Context: tokens of a window; the run's own when not given.")
_CHUNK_LEN = flags.DEFINE_integer("chunk_len", None, "Tokens of one call, memory carried between; 0 = the window.")
_BATCH = flags.DEFINE_integer("batch", None, "Rows; the result does not depend on it.")
_SET = flags.DEFINE_multi_string("set", [], "Change of the run's config, as in --set=model.vq.cache=False.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file; eval_<split>_<protocol>.json in the workdir when not given.")
_COMPRESSORS = flags.DEFINE_bool(
  "compressors", False,
  "Compare texts with gzip, bz2, xz and order-0, given the train split; images with PNG, WebP and two entropies.")
_GENERATE = flags.DEFINE_integer("generate", 0, "Tokens to write after --prompt, to sample.txt too.", lower_bound=0)
_PROMPT = flags.DEFINE_string("prompt", "", "Start of the text.")
_CHAT = flags.DEFINE_bool("chat", False, "--prompt is a question, put by the pretrained model's chat template.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 takes the most likely token.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw among the k most likely tokens; 0 = all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw among the most likely tokens that hold this probability.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")


def main(argv: list[str]) -> None:
  if argv:
    raise ValueError(f"{argv[0]!r} is not a flag; flags are written --name=value.")
  task = command.choose(
    _WORKDIR.value, _PRETRAINED.value, step=_STEP.value, dtype=_DTYPE.value, overrides=_SET.value)
  print(task.describe(), flush=True)
  results = []
  if _PROTOCOL.value != "none":
    given = {"seq_len": _SEQ_LEN.value, "chunk_len": _CHUNK_LEN.value, "batch": _BATCH.value}
    given = {name: value for name, value in given.items() if value is not None}
    task = task.with_eval(split=_SPLIT.value, protocol=_PROTOCOL.value, **given)
    for result in task.evaluate():
      path = task.write(result, Path(_OUTPUT.value) if _OUTPUT.value else None)
      print(f"\n{report.format_result(result)}\n\nwrote {path}", flush=True)
      results.append(result)
  if _COMPRESSORS.value:
    print(f"\n{report.format_comparison(results, *task.baselines(_SPLIT.value))}", flush=True)
  if _GENERATE.value:
    text = task.generate(
      _PROMPT.value, length=_GENERATE.value, temperature=_TEMPERATURE.value, top_k=_TOP_K.value, top_p=_TOP_P.value,
      seed=_SEED.value, is_chat=_CHAT.value)
    print(f"\n{text}\n\nwrote {task.workdir / 'sample.txt'}")


if __name__ == "__main__":
  runtime.enable_compilation_cache()
  runtime.run_main(main, sys.argv)
