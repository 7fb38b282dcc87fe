"""Decodes many tokens and watches what stays: resident memory, arrays, and programs that were compiled.

python scripts/soak.py --tokens=100000 [--memories=gla,vq,lagkv] [--every=10000] [--output=runs/soak.jsonl]

The smallest models: random weights, one layer, one text, which is drawn as eval.py and scripts/serve.py draw theirs,
in blocks of 16 decode steps. `lagkv` is attention whose cache LagKV compresses while it is written. Prints one line
every `--every` tokens; the exit status is 1 if, after the first of them, memory has grown by more than 16 MB, the
number of arrays has grown, or a program was compiled. Linux only.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positive, some_of
from lattice_jax.commands.run import run_script
from lattice_jax.files import append_jsonl

MEMORIES = ("gla", "vq", "lagkv")
GROWTH_BYTES = 16 << 20  # what an allocator may take and keep
_COMPILED = "/jax/core/compile/backend_compile_duration"


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--tokens", type=positive, default=100_000, help="to decode with each memory")
  parser.add_argument("--every", type=positive, default=10_000, help="tokens between two looks")
  parser.add_argument(
    "--memories", type=some_of(*MEMORIES), default=MEMORIES, help=f"some of {', '.join(MEMORIES)}")
  parser.add_argument("--output", type=path, default=Path("runs/soak.jsonl"), help="gets one line for each look")
  arguments = parser.parse_args()
  faults = []
  for memory in arguments.memories:
    looks = []
    for look in soak(memory, arguments.tokens, arguments.every):
      append_jsonl(arguments.output, [look])
      print(
        f"{memory}: {look['tokens']:7,} tokens, {look['resident_bytes'] / 1e6:.1f} MB, {look['arrays']} arrays, "
        f"{look['compiled']} compiled, {look['seconds']:.0f} s", flush=True)
      looks.append(look)
    faults += [f"{memory}: {fault}" for fault in faults_of(looks)]
  print("\n".join(faults) or "nothing grew")
  return 1 if faults else 0


def soak(memory: str, tokens: int, every: int) -> Iterator[dict[str, Any]]:
  """What is there after every so many tokens: resident bytes, live arrays and programs compiled so far."""
  import jax

  from lattice_jax.inference.streaming.process_memory import ProcessMemory

  compiled: list[float] = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **about: compiled.append(seconds) if name == _COMPILED else None)
  stream, begin, number, due = make_stream(memory, tokens), time.perf_counter(), 0, every
  for (new,) in stream:
    number += len(new)
    if number >= min(due, tokens):
      due += every
      gc.collect()
      yield {
        "memory": memory, "tokens": number, "resident_bytes": ProcessMemory.now().anonymous,
        "arrays": len(jax.live_arrays()), "compiled": len(compiled), "seconds": time.perf_counter() - begin}


def make_stream(memory: str, length: int) -> Any:
  """A text of so many tokens under the smallest model with this memory."""
  import jax

  from lattice_jax.config import CacheConfig, ModelConfig
  from lattice_jax.inference.generate import GenerateOptions, TokenStream
  from lattice_jax.memories.attention_config import AttentionConfig
  from lattice_jax.memories.gated_linear.config import GatedLinearConfig
  from lattice_jax.memories.vq.config import VQConfig
  from lattice_jax.models.decoder import init_variables
  from lattice_jax.sharding import unbox

  pattern = ("attention",) if memory == "lagkv" else (memory,)
  model = ModelConfig(
    vocab=40, dim=16, layers=1, pattern=pattern, block="mlp", mlp_dim=16,
    cache=CacheConfig(policy="lagkv", sinks=1, lag=128, keep=1, call_len=1) if memory == "lagkv" else CacheConfig(),
    attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4),
    gated_linear=GatedLinearConfig(heads=2, key_dim=8, value_dim=8),
    vq=VQConfig(key_dim=4, value_dim=8, codes=8, block_len=8))
  variables = jax.jit(lambda: unbox(init_variables(model, jax.random.key(0))))()
  return TokenStream(model, variables, [[5]], length=length, options=GenerateOptions())


def faults_of(looks: list[dict[str, Any]]) -> list[str]:
  """What grew after the first look."""
  first = looks[0]
  grown = max(look["resident_bytes"] for look in looks) - first["resident_bytes"]
  found = [f"memory grew by {grown / 1e6:.1f} MB"] if grown > GROWTH_BYTES else []
  for name in ("arrays", "compiled"):
    most = max(look[name] for look in looks)
    if most > first[name]:
      found.append(f"{name} went from {first[name]} to {most}")
  return found


if __name__ == "__main__":
  run_script(main)
