"""Measures the overhead of the training loop: tokens per second of the loop and of its bare compiled program, in turn.

python scripts/check_overhead.py --config=configs/quickstart.py [--cpu_devices=2] [--updates=96] [--rounds=3]

The loop reads data, logs every update and writes metrics.jsonl; the bare program is a `lax.scan` of the same update
over batches that are already on the devices. Neither includes compilation, saving or evaluation. Prints the ratio of
the medians.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.domains import POSITIVE
from lattice_jax.commands.flags import define, define_config, define_set
from lattice_jax.commands.run import run_command
from lattice_jax.config import Config
from lattice_jax.config_text import read_config
from lattice_jax.runtime import enable_compilation_cache

_CONFIG, _SET = define_config(), define_set()
_UPDATES = define("updates", POSITIVE, 96, "Updates that are timed in each round.")
_ROUNDS = define("rounds", POSITIVE, 3, "Number of times that each of the two runs.")


def main() -> None:
  if not _CONFIG.value:
    raise ValueError("--config is missing: python scripts/check_overhead.py --config=configs/quickstart.py")
  config = read_config(_CONFIG.value, _SET.value)
  per_call = config.train.steps_per_dispatch
  calls = max(2, _UPDATES.value // per_call)
  train = dataclasses.replace(
    config.train, steps=(calls + 1) * per_call, save_every=10**9, eval_every=0, writers=("jsonl",))
  config = dataclasses.replace(config, train=train, eval=dataclasses.replace(config.eval, max_batches=1))
  enable_compilation_cache()
  bare = prepare_bare(config)
  speeds: dict[str, list[float]] = {"train.py": [], "bare program": []}
  for _ in range(_ROUNDS.value):
    speeds["train.py"].append(loop_speed(config))
    speeds["bare program"].append(bare(calls))
  medians = {name: statistics.median(values) for name, values in speeds.items()}
  for name, values in speeds.items():
    print(f"{name:14s} {medians[name]:10.0f} tokens/s   rounds: {', '.join(f'{value:.0f}' for value in values)}")
  print(f"ratio {medians['train.py'] / medians['bare program']:.3f}")


def loop_speed(config: Config) -> float:
  """Tokens per second of the training loop, from the end of its first call to the end of its last."""
  from lattice_jax.metrics import read_metric_lines
  from lattice_jax.training.loop import train

  with tempfile.TemporaryDirectory() as folder:
    train(config, Path(folder))
    updates = [record for record in read_metric_lines(Path(folder) / "metrics.jsonl") if "split" not in record]
  first, last = updates[config.train.steps_per_dispatch - 1], updates[-1]
  tokens = (last["step"] - first["step"]) * config.data.batch * config.data.update_len
  return tokens / (last["time_elapsed"] - first["time_elapsed"])


def prepare_bare(config: Config):
  """A function (calls) → tokens per second of the program alone, which is compiled and warmed up first."""
  import jax  # --help need not wait for JAX

  from lattice_jax.data.loader import train_batches
  from lattice_jax.data.sources import load_source
  from lattice_jax.sharding import make_mesh, replicated
  from lattice_jax.training.feed import fetch
  from lattice_jax.training.state import create_state, make_optimizer
  from lattice_jax.training.step import make_update

  mesh = make_mesh(config.mesh)
  per_call = config.train.steps_per_dispatch
  batches = train_batches(config, load_source(config.data, "train"), start_step=0)
  feed = fetch(batches, config, mesh, first_step=0, count=per_call)

  def timed(calls: int) -> float:
    state = create_state(config, mesh)
    update = make_update(config, make_optimizer(config))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)
    program = jax.jit(
      lambda state, batches: jax.lax.scan(update, state, batches), donate_argnums=0, out_shardings=shardings)
    with jax.set_mesh(mesh):
      compiled = program.lower(state, feed.batches).compile()
    seconds = []
    for _ in range(calls + 1):
      start = time.perf_counter()
      state, metrics = compiled(state, feed.batches)
      jax.block_until_ready(metrics)
      seconds.append(time.perf_counter() - start)
    return calls * per_call * config.data.batch * config.data.update_len / sum(seconds[1:])

  return timed


if __name__ == "__main__":
  run_command(main, sys.argv)
