"""Starts a server, keeps many clients busy with it over HTTP, and compares every answer with its text alone.

python scripts/serve_load.py --workdir=runs/smoke --streams=200 --seconds=120 --out=docs/results/serving

Clients read streams, ask for whole answers, leave in mid-stream, and send nonsense. Prints, and writes to load.json:
requests, tokens per second, milliseconds to the first piece and between two pieces, memory of the server, programs
compiled after the start, and answers that were lost or differ, for which the exit status is 1. Needs httpx and what
scripts/serve.py needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positive
from lattice_jax.commands.run import run_script

_SERVER = Path(__file__).with_name("serve.py")
_CHUNK_LEN = 64
_LISTENING = "listening on "


def main() -> int:
  parser = Parser(__doc__)
  parser.add_model()
  parser.add_argument("--streams", type=positive, default=200, help="clients at once")
  parser.add_argument("--seconds", type=positive, default=120, help="for which they send requests")
  parser.add_argument("--questions", type=positive, default=64, help="different requests")
  parser.add_argument("--rows", type=positive, default=64, help="of the server")
  parser.add_argument("--max_len", type=positive, default=288, help="tokens of a row")
  parser.add_argument("--chunks", type=positive, default=4, help="chunks of prompts read between two decode calls")
  parser.add_argument("--block_len", type=positive, default=4, help="tokens of a row drawn in one decode call")
  parser.add_argument("--out", type=path, required=True, help="folder of load.json")
  arguments = parser.parse_args()
  parser.check_model(arguments)
  return run(arguments)


def run(arguments: argparse.Namespace) -> int:
  from lattice_jax.bench import serving  # --help need not wait for JAX
  from lattice_jax.bench.harness import describe_machine
  from lattice_jax.evaluation.loaded_model import load_pretrained_model, load_run
  from lattice_jax.runtime import enable_compilation_cache

  enable_compilation_cache()
  model = load_run(arguments.workdir, step=None, overrides=[]) if arguments.workdir else load_pretrained_model(
    arguments.pretrained, workdir=None, dtype="float32", overrides=[])
  questions = serving.make_questions(model, arguments.questions, chunk_len=_CHUNK_LEN)
  print(f"{len(questions)} texts were written alone; starting the server …", flush=True)
  with server(arguments) as url:
    seen, metrics = asyncio.run(
      serving.drive(url, questions, streams=arguments.streams, seconds=arguments.seconds))
  command = shlex.join(["python", "scripts/serve_load.py", *sys.argv[1:]])
  found = {"command": command, "model": model.describe()} | describe_machine() | {
    name: getattr(arguments, name) for name in ("rows", "max_len", "chunks", "block_len", "questions")}
  found |= serving.record(seen, metrics, streams=arguments.streams, seconds=arguments.seconds)
  arguments.out.mkdir(parents=True, exist_ok=True)
  file = arguments.out / "load.json"
  file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
  print(f"{serving.format_record(found)}\n\nwrote {file}")
  return int(bool(found["wrong"] or found["lost"]))


@contextlib.contextmanager
def server(arguments: argparse.Namespace) -> Iterator[str]:
  """The address of a server in a process of its own, which ends in order."""
  model = ["--workdir", str(arguments.workdir)] if arguments.workdir else ["--pretrained", arguments.pretrained]
  options = {name: getattr(arguments, name) for name in ("rows", "max_len", "chunks", "block_len")}
  options |= {"chunk_len": _CHUNK_LEN, "port": 0, "grace": 5}
  flags = [f"--{name}={value}" for name, value in options.items()]
  process = subprocess.Popen([sys.executable, str(_SERVER), *model, *flags], stdout=subprocess.PIPE, text=True)
  try:
    said = []
    for line in process.stdout:
      said.append(line)
      if line.startswith(_LISTENING):
        yield line.removeprefix(_LISTENING).partition(";")[0]
        break
    else:
      raise ValueError(f"the server ended before it listened; it said {' '.join(said)!r}.")
  finally:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
  print(f"the server ended with exit status {process.returncode}", flush=True)


if __name__ == "__main__":
  run_script(main)
