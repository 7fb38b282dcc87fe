"""Times a pretrained model here beside `transformers` and llama.cpp, on the same file, taking turns.

python scripts/bench.py peers --lengths=512,2048,4096,7500 --out=docs/results/bench_peers

Each side is one process in an environment of its own, made under --environments from scripts/peers/requirements.txt
(about 1.5 GB) and used again by the next run. Here the .gguf file is read as it is; `transformers` gets the same
numbers as float32 safetensors, and so does a second side of ours. In every round each side reads the same random prompt
and then draws --tokens more; times are medians over rounds with the 20 and 80 % quantiles, ratios medians of the ratios
within rounds. The first round, in which programs are compiled, is not counted. Appends to bench.jsonl, prints a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, place, positive, positives
from lattice_jax.commands.run import run_script
from lattice_jax.files import append_jsonl
from lattice_jax.formats.locate import find_pretrained
from lattice_jax.markdown import markdown_table

HERE = Path(__file__).resolve().parent / "peers"
BASELINES = ("transformers fp32", "llama.cpp")


class Side:
  """A process that answers requests."""

  def __init__(self, python: Path | str, script: str, *arguments: str):
    self._process = subprocess.Popen(
      [str(python), str(HERE / script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
      stderr=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"})

  def ask(self, length: int, tokens: int) -> dict[str, float]:
    self._process.stdin.write(json.dumps({"length": length, "tokens": tokens}) + "\n")
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise ValueError(f"{' '.join(self._process.args)} ended; run it alone to see why.")
    return json.loads(line)

  def end(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("op", help="peers")
  parser.add_argument("--pretrained", type=place, default="smollm2", help="smollm2 or a .gguf file")
  parser.add_argument("--lengths", type=positives, default="512,2048,4096,7500", help="tokens of the prompt")
  parser.add_argument("--tokens", type=positive, default=32, help="tokens drawn after the first")
  parser.add_argument("--rounds", type=positive, default=7)
  parser.add_argument("--cache", default="", help="of one more side of ours, as in eval.py --cache")
  parser.add_argument("--environments", type=path, default=".cache/peers")
  parser.add_argument("--out", type=path, required=True, help="folder of bench.jsonl")
  arguments = parser.parse_args()
  from lattice_jax.bench.harness import describe_machine  # --help need not wait for JAX

  file = find_pretrained(arguments.pretrained)
  if file.is_dir():
    raise ValueError(f"--pretrained={arguments.pretrained} is a folder; llama.cpp needs a .gguf file.")
  machine, python = describe_machine(), make_environment(arguments.environments)
  floats = arguments.environments / f"{file.stem}-float32"
  if not floats.exists():
    export = Path(__file__).resolve().parent / "export.py"
    subprocess.run([sys.executable, str(export), f"--pretrained={file}", f"--output={floats}"], check=True)
  sides = {
    "lattice_jax": Side(sys.executable, "with_lattice_jax.py", str(file)),
    "lattice_jax fp32": Side(sys.executable, "with_lattice_jax.py", str(floats)),
    "transformers fp32": Side(python, "with_transformers.py", str(floats)),
    "llama.cpp": Side(python, "with_llama_cpp.py", str(file))}
  if arguments.cache:
    sides[f"lattice_jax {arguments.cache}"] = Side(
      sys.executable, "with_lattice_jax.py", str(file), arguments.cache)
  for length in arguments.lengths:
    rounds = [{name: side.ask(length, arguments.tokens) for name, side in sides.items()}
              for _ in range(arguments.rounds + 1)][1:]
    records = [record(name, length, rounds) for name in sides]
    append_jsonl(arguments.out / "bench.jsonl", [machine | {"file": file.name} | line for line in records])
    print(f"\n{length:,} tokens\n\n{table(records)}", flush=True)
  for side in sides.values():
    side.end()


def record(name: str, length: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
  """Quantiles of one side's times, and of the ratio of each baseline's time to its own."""
  from lattice_jax.bench.harness import quantiles

  line: dict[str, Any] = {"side": name, "length": length, "rounds": len(rounds)}
  for what in ("first", "each"):
    line[what] = quantiles([answers[name][what] for answers in rounds])
    for baseline in BASELINES:
      line[f"{what}: {baseline}"] = quantiles([answers[baseline][what] / answers[name][what] for answers in rounds])
  return line | {"peak_bytes": rounds[-1][name]["peak_bytes"]}


def table(records: list[dict[str, Any]]) -> str:
  rows = [["", "first token (s)", "20–80 %", *(f"× {name}" for name in BASELINES), "each token (ms)", "20–80 %",
           *(f"× {name}" for name in BASELINES), "peak memory (MB)"]]
  for line in records:
    cells = [line["side"]]
    for what, scale, digits in (("first", 1, 2), ("each", 1000, 1)):
      low, middle, high = (f"{scale * value:.{digits}f}" for value in line[what])
      cells += [middle, f"{low}–{high}", *(f"{line[f'{what}: {name}'][1]:.2f}" for name in BASELINES)]
    rows.append([*cells, f"{line['peak_bytes'] / 1e6:,.0f}"])
  return markdown_table(rows)


def make_environment(folder: Path) -> Path:
  """The interpreter of the peers' environment, which is made where it is not there."""
  python, wanted = folder / "env" / "bin" / "python", HERE / "requirements.txt"
  stamp = folder / "installed.txt"
  if not stamp.exists() or stamp.read_text() != wanted.read_text():
    print(f"installing {wanted} into {folder} …", flush=True)
    venv.create(folder / "env", with_pip=True, clear=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(wanted)], check=True)
    stamp.write_text(wanted.read_text())
  return python


if __name__ == "__main__":
  run_script(main)
