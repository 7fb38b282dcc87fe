"""The two arms of a rollout and its units, as a command line names them, and the facts that its log holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.evaluation.caches import parse_caches
from lattice_jax.evaluation.loaded_model import LoadedModel, load_pretrained_model, load_run
from lattice_jax.evaluation.rollout.arms import Arm
from lattice_jax.evaluation.rollout.recorded import Recording, open_recording
from lattice_jax.inference.rollout.assignment import CONTROL, TREATMENT

_CACHE_UNIT, _CHUNK_LEN = 64, 128  # slots of a cache are a multiple of the one; a prompt is read in calls of the other


@dataclass(frozen=True, eq=False)
class Sides:
  """arms: control and treatment. facts: what decides the outcome besides the rollout's config."""

  arms: dict[str, Arm]
  recording: Recording
  facts: dict[str, Any]
  description: str


def open_sides(
  *, pretrained: str | None, workdir: Path | None, treatment: str, control: str, treatment_set: Sequence[str],
  inject: float, prompts: str, split: str, prompt_len: int, answer_len: int, canary_len: int, seed: int,
) -> Sides:
  """Loads the model, and again with `treatment_set` if that changes it.

  Raises:
    ValueError: there is no such model, cache or text, or the units do not fit the model.
  """
  source = [] if prompts.endswith(".jsonl") else [f"data.source={prompts}"]

  def load(overrides: Sequence[str]) -> LoadedModel:
    if pretrained is not None:
      return load_pretrained_model(pretrained, workdir=None, dtype="float32", overrides=[*source, *overrides])
    return load_run(Path(str(workdir)), step=None, overrides=[*source, *overrides])

  loaded = {CONTROL: load([])}
  loaded[TREATMENT] = load(treatment_set) if treatment_set else loaded[CONTROL]
  recording = open_recording(
    loaded[CONTROL], prompts, split=split, prompt_len=prompt_len, answer_len=answer_len, canary_len=canary_len,
    seed=seed)
  room = -(-recording.longest // _CACHE_UNIT) * _CACHE_UNIT
  arms = {}
  for name, text in ((CONTROL, control), (TREATMENT, treatment)):
    model, = parse_caches(loaded[name].config, [text]).values()
    arms[name] = Arm(
      dataclasses.replace(loaded[name].config.model, cache=model), loaded[name].variables, max_len=room,
      chunk_len=min(_CHUNK_LEN, model.call_len or _CHUNK_LEN), marker=loaded[name].marker_for([model]),
      inject=inject if name == TREATMENT else 0.0)
  facts = {
    "model": loaded[CONTROL].config.name, "weights": loaded[CONTROL].origin["weights"], "control": control,
    "treatment": treatment, "treatment_set": list(treatment_set), "inject": inject, "prompts": prompts, "split": split,
    "prompt_len": prompt_len, "answer_len": answer_len, "canary_len": canary_len, "seed": seed,
    "recording": recording.fingerprint}
  return Sides(arms, recording, facts, loaded[CONTROL].describe())
