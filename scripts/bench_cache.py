"""Times decoding after a long text with a cache policy, against the full cache and a full cache of equal length.

python scripts/bench_cache.py --length=8192 --lag=128 --ratio=0.25 --out=docs/results/bench_cache_cpu

Prints, and appends to bench.jsonl, for whole steps of a model with SmolLM2-135M's sizes (random weights) and for only
the attention of its layers: milliseconds per token (median, 95 %), the speed-up over the full cache, the cost of the
policy itself (against a full cache of the length that it leaves), bytes measured and by formula, temporary bytes.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from lattice_jax.cache.config import CacheConfig
from lattice_jax.cache.policies.registry import DROPPING, POLICIES
from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.commands.arguments import Parser, of, one_of, path, positive, some_of
from lattice_jax.commands.run import run_script
from lattice_jax.fields import find
from lattice_jax.files import append_jsonl
from lattice_jax.runtime import enable_compilation_cache

if TYPE_CHECKING:
  from lattice_jax.bench.cache import Decoding


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("--policy", default="lagkv", type=one_of(*DROPPING))
  parser.add_argument("--length", type=positive, default=8192, help="tokens of the text before decoding")
  parser.add_argument("--lag", type=of(find(CacheConfig, "lag")), default=128)
  parser.add_argument("--ratio", type=of(find(CacheConfig, "ratio")), default=0.25)
  parser.add_argument("--window", type=of(find(WindowConfig, "window")), default=0, help="of the policy window")
  parser.add_argument("--layers", type=positive, help="of the model; by default as many as SmolLM2-135M has")
  parser.add_argument("--dtype", default="float32", type=one_of("float32", "bfloat16"))
  parser.add_argument("--tokens", type=positive, default=256, help="tokens decoded per round; a multiple of the lag")
  parser.add_argument("--rounds", type=positive, default=5)
  parser.add_argument("--parts", type=some_of("step", "attention"), default="step,attention")
  parser.add_argument("--out", type=path, required=True, help="folder of bench.jsonl")
  arguments = parser.parse_args()
  from lattice_jax.bench import cache as bench  # --help need not wait for JAX
  from lattice_jax.bench.harness import describe_machine

  enable_compilation_cache()
  machine = describe_machine()
  print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
  model = dataclasses.replace(bench.MODEL, layers=arguments.layers or bench.MODEL.layers, dtype=arguments.dtype)
  ratio = arguments.ratio if POLICIES[arguments.policy].compresses else 0.0
  cache = CacheConfig(
    policy=arguments.policy, lag=arguments.lag, ratio=ratio, window=WindowConfig(window=arguments.window))
  for part in arguments.parts:
    results = bench.measure(
      model, cache, arguments.length, part=part, num_tokens=arguments.tokens, rounds=arguments.rounds)
    print(f"\n{part}, after {arguments.length:,} tokens", flush=True)
    group = {"part": part, "text": arguments.length, "cache": dataclasses.asdict(cache), "layers": model.layers}
    for record in records(results):
      print("  " + ", ".join(f"{name} {value}" for name, value in record.items()), flush=True)
      append_jsonl(arguments.out / "bench.jsonl", [machine | group | record])


def records(results: list[Decoding]) -> list[dict[str, Any]]:
  """Ratios compare times of the same round: median over rounds, with the 20 and 80 % quantiles."""
  full, policy, same_length = (np.array([np.sum(seconds) for seconds in result.seconds]) for result in results)
  compared = [{}, {"times faster": rounded(full / policy), "cost of the policy": rounded(policy / same_length - 1)}, {}]
  return [
    {"case": result.name, "kept": result.length, "ms": float(f"{1000 * np.median(result.seconds):.4g}"),
     "ms 95 %": float(f"{1000 * np.quantile(result.seconds, 0.95):.4g}"), **ratios, "bytes": result.bytes_measured,
     "bytes by formula": result.bytes_formula, "temporary bytes": result.temp_bytes}
    for result, ratios in zip(results, compared, strict=True)]


def rounded(values: np.ndarray) -> list[float]:
  from lattice_jax.bench.harness import quantiles

  return [float(f"{value:.4g}") for value in quantiles(values)]


if __name__ == "__main__":
  run_script(main)
