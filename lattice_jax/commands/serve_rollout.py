"""What scripts/serve.py does for --rollout: opens the log, and makes a router that rolls the second arm out."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from lattice_jax.commands.run import print_now
from lattice_jax.inference.rollout.config import RolloutConfig, with_changes

if TYPE_CHECKING:
  from lattice_jax.evaluation.loaded_model import LoadedModel
  from lattice_jax.evaluation.rollout.arms import Arm
  from lattice_jax.evaluation.rollout.live import LiveRollout
  from lattice_jax.inference.serving.request import EngineOptions

LOG, DASHBOARD = "decisions.jsonl", "dashboard.html"  # in the folder of a rollout
# Flags that say more of a rollout, with their defaults.
FLAGS: dict[str, Any] = {
  "rollout_set": [], "prompts": "books_sample", "prompt_len": 512, "scored_len": 32, "score_queue": 64,
  "canary_len": 512, "canary_every": 1, "inject": 0.0}


def check_rollout(arguments: argparse.Namespace) -> None:
  """Raises ValueError for arguments that a rollout contradicts, or that nothing would read without one."""
  if arguments.rollout is None:
    for name, default in FLAGS.items():
      if getattr(arguments, name) != default:
        raise ValueError(f"--{name} has no effect without a --rollout; leave it out, or name the rollout's folder.")
    return
  if arguments.shadow or arguments.share is not None:
    raise ValueError("--rollout decides itself whom the treatment answers; leave out --share and --shadow.")
  with_changes(RolloutConfig(), arguments.rollout_set)


def open_rollout(
  arguments: argparse.Namespace, loaded: dict[str, LoadedModel], options: EngineOptions) -> LiveRollout:
  """A rollout that starts, or goes on where the log in its folder ends; to be started once the engines run.

  Raises:
    ValueError: as `Rollout` and `open_recording`, or recorded units are longer than a row.
  """
  from lattice_jax.config_text import apply_overrides
  from lattice_jax.evaluation.rollout.live import LiveRollout
  from lattice_jax.evaluation.rollout.recorded import open_recording
  from lattice_jax.evaluation.rollout.run import describe
  from lattice_jax.inference.rollout.rollout import Rollout
  from lattice_jax.inference.serving.routing import CONTROL, TREATMENT

  control, treatment = loaded[CONTROL], loaded[TREATMENT]
  text = [] if arguments.prompts.endswith(".jsonl") else [f"data.source={arguments.prompts}"]
  reader = dataclasses.replace(control, config=apply_overrides(control.config, text))
  recording = open_recording(
    reader, arguments.prompts, split="test", prompt_len=arguments.prompt_len, answer_len=arguments.scored_len,
    canary_len=arguments.canary_len, seed=0)
  if recording.longest > options.max_len:
    raise ValueError(
      f"the longest recorded unit or canary has {recording.longest:,} tokens, and a row {options.max_len:,}; use a "
      "smaller --prompt_len and --canary_len, or a larger --max_len.")
  facts = {
    "model": control.config.name, "control": _named(control.config.name, arguments.cache, arguments.set),
    "treatment": _named(arguments.treatment_workdir, arguments.treatment, arguments.treatment_set),
    "weights": control.origin["weights"], "treatment_weights": treatment.origin["weights"],
    "overrides": list(control.overrides), "treatment_overrides": list(treatment.overrides),
    "recording": recording.fingerprint, **{
      name: getattr(arguments, name) for name in FLAGS if name not in ("rollout_set", "score_queue")}}
  config = with_changes(RolloutConfig(), arguments.rollout_set)
  folder = arguments.rollout
  rollout = Rollout(config, log=folder / LOG, facts=facts)
  state = rollout.state
  print_now(f"rollout {'goes on' if state.units else 'starts'} in {folder}: {describe(state)} {state.units:,} units "
            "recorded")
  arms = {
    CONTROL: _arm(control, options), TREATMENT: dataclasses.replace(_arm(treatment, options), inject=arguments.inject)}
  return LiveRollout(
    rollout, arms, recording, scored_len=arguments.scored_len, canary_every=arguments.canary_every,
    room=arguments.score_queue, dashboard=folder / DASHBOARD, report=print_now)


def _arm(loaded: LoadedModel, options: EngineOptions) -> Arm:
  """What reads as the engine does, by the same programs."""
  from lattice_jax.evaluation.rollout.arms import Arm
  from lattice_jax.models.decoder import needs_token_cache

  model = loaded.config.model
  return Arm(
    model, loaded.variables, max_len=options.max_len if needs_token_cache(model) else 0,
    chunk_len=min(options.chunk_len, model.cache.call_len or options.chunk_len), marker=loaded.marker)


def _named(*parts: Any) -> str:
  words = [word for part in parts if part for word in (part if isinstance(part, list) else [part])]
  return " ".join(map(str, words))
