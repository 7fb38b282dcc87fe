"""Times a pretrained model whose weights are streamed through budgets, with a warm and a cold page cache.

python scripts/bench.py streaming --out=docs/results/bench_streaming

Of each file, every line of the table is a process of its own, which draws --tokens tokens --rounds times: the program
that runs without a budget («ordinary»), then the streaming ones with all layers in memory, and with --shares of them;
the latter once out of the page cache, and once out of the disk, for which each layer is taken out of the page cache
when it has been copied. The files are the model's own .gguf, its numbers as float32 safetensors, and a deep random
model whose layers weigh more than all else in the process. They are copied or made under --files, because a page that
another process has mapped stays in the page cache. Appends to bench.jsonl, and prints a table for each file.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import safetensors.numpy

from lattice_jax.commands.arguments import Parser, of, path, place, positive, some_of
from lattice_jax.commands.domains import Several
from lattice_jax.commands.run import run_script
from lattice_jax.domains import Number
from lattice_jax.files import append_jsonl
from lattice_jax.formats.locate import find_pretrained
from lattice_jax.runtime import enable_compilation_cache

KINDS = ("gguf", "float32", "deep")
DEEP = {
  "model_type": "llama", "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 32,
  "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "max_position_embeddings": 1024, "tie_word_embeddings": True, "hidden_act": "silu"}
DEEP_TOKENS = 4  # of every --tokens, for a model that is many times as large


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("op", help="streaming")
  parser.add_argument("--pretrained", type=place, default="smollm2", help="smollm2 or a .gguf file")
  parser.add_argument("--kinds", type=some_of(*KINDS), default=",".join(KINDS), help=f"some of {', '.join(KINDS)}")
  parser.add_argument("--shares", type=of(Several(Number(float, 0, 1))), default="0.5,0.25,0",
                      help="parts of the layers that stay")
  parser.add_argument("--tokens", type=positive, default=32)
  parser.add_argument("--rounds", type=positive, default=3)
  parser.add_argument("--files", type=path, default=".cache/streaming", help="folder of copies, 3 GB")
  parser.add_argument("--out", type=path, required=True, help="folder of bench.jsonl")
  arguments = parser.parse_args()
  from lattice_jax.bench import streaming  # --help need not wait for JAX
  from lattice_jax.bench.harness import describe_machine

  source = find_pretrained(arguments.pretrained)
  if source.is_dir():
    raise ValueError(f"--pretrained={arguments.pretrained} is a folder; give smollm2 or a .gguf file.")
  machine = describe_machine()
  print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
  for kind in arguments.kinds:
    file = prepare(kind, source, arguments.files)
    tokens = -(-arguments.tokens // DEEP_TOKENS) if kind == "deep" else arguments.tokens
    cases = [(None, streaming.ORDINARY), (1.0, "warm")]
    cases += [(share, page_cache) for page_cache in streaming.PAGE_CACHES for share in arguments.shares]
    records = []
    for share, page_cache in cases:
      record = {"file": file.name, "page_cache": page_cache, "tokens": tokens, "load": os.getloadavg()[0]}
      records.append(record | in_a_process(file, share, page_cache, tokens, arguments.rounds))
      append_jsonl(arguments.out / "bench.jsonl", [machine | records[-1]])
    print(f"\n{file.name}\n\n{streaming.format_table(records)}", flush=True)


def in_a_process(file: Path, share: float | None, page_cache: str, tokens: int, rounds: int) -> dict[str, Any]:
  """What `streaming.measure` finds in a fresh interpreter, whose memory nothing else has touched."""
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
    return pool.submit(measure, file, share, page_cache, tokens, rounds).result()


def measure(file: Path, share: float | None, page_cache: str, tokens: int, rounds: int) -> dict[str, Any]:
  from lattice_jax.bench import streaming

  enable_compilation_cache()
  return streaming.measure(file, share, page_cache, tokens=tokens, rounds=rounds)


def prepare(kind: str, source: Path, folder: Path) -> Path:
  """The file or folder of a kind, made where it is not there yet, and written to the disk."""
  folder.mkdir(parents=True, exist_ok=True)
  if kind == "gguf":
    target = folder / source.name
    if not target.exists():
      shutil.copyfile(source, target)
  else:
    target = folder / ("deep" if kind == "deep" else f"{source.stem}-float32")
    if not target.exists() and kind == "deep":
      write_deep(target)
    elif not target.exists():
      export = Path(__file__).resolve().parent / "export.py"
      subprocess.run([sys.executable, str(export), f"--pretrained={source}", f"--output={target}"], check=True)
  for part in [target] if target.is_file() else target.iterdir():
    with part.open("rb") as file:
      os.fsync(file.fileno())
  return target


def write_deep(folder: Path) -> None:
  """A model of random numbers, each layer with the same ones."""
  from lattice_jax.models.pretrained.config_json import read_model_config
  from lattice_jax.models.pretrained.tensors import wanted_tensors

  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(DEEP), encoding="utf-8")
  model, _ = read_model_config(DEEP, folder, dtype="float32", context_len=0)
  random, made = np.random.default_rng(0), {}

  def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = name.split(".")[-2], shape
    if kind not in made:
      made[kind] = np.ones(shape, np.float32) if len(shape) == 1 else (
        random.standard_normal(shape, np.float32) * np.float32(shape[-1]**-0.5))
    return made[kind]

  tensors = {name: tensor(name, shape) for name, shape in wanted_tensors(model).items()}
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


if __name__ == "__main__":
  run_script(main)
