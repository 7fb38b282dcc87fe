"""Rolls a treatment out in stages over recorded units, or simulates how often such rollouts are wrong.

python scripts/rollout.py --pretrained=smollm2 --treatment=window:tokens=512 --log=good.jsonl --dashboard=rollout.html
python scripts/rollout.py --pretrained=smollm2 --treatment=full --inject=0.05 --log=bad.jsonl
python scripts/rollout.py simulate --runs=1000

Each unit, a stretch of a text or a line of a .jsonl file with prompt and answer, is read by the arm that serves it, or
by both where they are compared. The rollout goes on, falls back or waits after every unit. The same command goes on
where the log ends, however it was ended. docs/serving.md explains stages, gates and the log.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, count, of, one_of, path, place, positive, seed
from lattice_jax.commands.run import run_script
from lattice_jax.domains import Number, Text
from lattice_jax.inference.rollout.config import RolloutConfig, with_changes


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("what", nargs="?", type=one_of("run", "simulate"), default="run", help="run, or simulate")
  parser.add_model()
  parser.add_argument("--treatment", type=of(Text()), help="the cache to roll out, as in window:tokens=512")
  parser.add_argument("--control", type=of(Text()), default="full", help="the cache that is served now")
  parser.add_argument("--treatment_set", type=of(Text()), action="append", default=[],
                      help="a change of the treatment's model, as in model.pattern=anchor")
  parser.add_argument("--inject", type=of(Number(float, 0, 10)), default=0.0,
                      help="nats by which the treatment is made worse, to see the rollout notice")
  parser.add_argument("--prompts", type=place, default="books_sample",
                      help="a .jsonl file with prompt and answer in each line, or a text as data.source names it")
  parser.add_argument("--split", type=one_of("train", "validation", "test"), default="test", help="of a text")
  parser.add_argument("--prompt_len", type=positive, default=512, help="tokens of a prompt out of a text")
  parser.add_argument("--answer_len", type=positive, default=32, help="tokens of an answer that are read, at most")
  parser.add_argument("--units", type=positive, default=10_000, help="to read at most, with those in the log")
  parser.add_argument("--canary_every", type=count, default=1, help="units for each canary; 0 = no canaries")
  parser.add_argument("--canary_len", type=positive, default=512, help="tokens of a canary's prompt")
  parser.add_argument("--set", type=of(Text()), action="append", default=[],
                      help="a change of the rollout's config, as in delta_margin=0.05")
  parser.add_argument("--log", type=path, help="file of the decisions, from which the command goes on")
  parser.add_argument("--dashboard", type=path, help="HTML page that is kept up to date")
  parser.add_argument("--runs", type=positive, default=1000, help="of a simulation, of each kind")
  parser.add_argument("--out", type=path, help="JSON file for the figures of a simulation")
  parser.add_argument("--seed", type=seed, default=0, help="of the units, or of the simulation")
  arguments = parser.parse_args()
  check_given(parser, arguments)
  if arguments.what == "simulate":
    simulate(arguments)
    return
  parser.check_model(arguments)
  if arguments.treatment is None or arguments.log is None:
    parser.error("give a --treatment such as window:tokens=512, and a --log from which the rollout can go on.")
  run(arguments)


def check_given(parser: Parser, arguments: argparse.Namespace) -> None:
  """Raises ValueError for an argument that the other of run and simulate takes."""
  simulates = arguments.what == "simulate"
  for name, value in vars(arguments).items():
    if name not in ("what", "set", "seed") and (name in ("runs", "out")) != simulates and (
      value != parser.get_default(name)):
      parser.error(f"--{name} has no effect on {arguments.what}; leave it out, or {'do not ' * simulates}simulate.")


def run(arguments: argparse.Namespace) -> None:
  config = with_changes(RolloutConfig(), arguments.set)
  if not arguments.canary_every:
    raise ValueError(
      "--canary_every=0 would leave the gate canary without evidence, so that no stage could be passed; ask some.")
  from lattice_jax.evaluation.rollout.run import describe, run_recorded  # --help need not wait for JAX
  from lattice_jax.evaluation.rollout.sides import open_sides
  from lattice_jax.inference.rollout.rollout import Rollout
  from lattice_jax.runtime import enable_compilation_cache

  enable_compilation_cache()
  asked = {name: getattr(arguments, name) for name in (
    "pretrained", "workdir", "treatment", "control", "treatment_set", "inject", "prompts", "split", "prompt_len",
    "answer_len", "canary_len", "seed")}
  sides = open_sides(**asked)
  facts = sides.facts | {"canary_every": arguments.canary_every}
  rollout = Rollout(config, log=arguments.log, facts=facts)
  print(sides.description, flush=True)
  print(f"{'goes on' if rollout.state.units else 'starts'} with {arguments.log}: {describe(rollout.state)} "
        f"{rollout.state.units:,} units recorded", flush=True)
  state = run_recorded(
    rollout, sides.arms, sides.recording, units=arguments.units, canary_every=arguments.canary_every,
    dashboard=arguments.dashboard, report=lambda line: print(line, flush=True))
  print(f"{describe(state)} {state.units:,} units recorded", flush=True)


def simulate(arguments: argparse.Namespace) -> None:
  from lattice_jax.files import replace_json
  from lattice_jax.inference.rollout.simulate import SCENARIOS, TRAFFIC, format_summaries, run_scenarios
  from lattice_jax.runtime import git_commit

  for change in arguments.set:
    if change.startswith(("purpose=", "salt=")):
      raise ValueError(
        f"--set={change} has no effect on simulate: each kind of treatment says what its purpose is, and chance "
        "assigns units; leave it out.")
  config = with_changes(TRAFFIC, arguments.set)
  fitting = [scenario for scenario in SCENARIOS if scenario.start in config.stages]
  if len(fitting) < len(SCENARIOS):
    print(f"{len(fitting)} of {len(SCENARIOS)} kinds of treatment start in one of these stages", flush=True)
  summaries = run_scenarios(
    fitting, runs=arguments.runs, seed=arguments.seed, config=config,
    report=lambda summary: print(f"{summary['scenario']['name']}: {summary['seconds']:.1f} s", flush=True))
  print("\n" + format_summaries(summaries), flush=True)
  if arguments.out is not None:
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    replace_json(arguments.out, {
      "command": shlex.join(["python", "scripts/rollout.py", *sys.argv[1:]]), "git_commit": git_commit(),
      "config": dataclasses.asdict(config), "scenarios": summaries})
    print(f"wrote {arguments.out}", flush=True)


if __name__ == "__main__":
  run_script(main)
