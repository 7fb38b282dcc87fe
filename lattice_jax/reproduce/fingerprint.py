"""What decides a result: its config, the code of what it computes, and its data. Equal fingerprints, equal results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lattice_jax.config import Config, used_leaves
from lattice_jax.config_text import read_config
from lattice_jax.data.published import SAMPLES, sha256_once
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import model_sha256
from lattice_jax.formats.locate import find_pretrained
from lattice_jax.memories.registry import FOLDERS
from lattice_jax.reproduce.rows import Measurement, Program, Train
from lattice_jax.run_file import stored_config
from lattice_jax.source_code import ROOT, STORES, Sources, code_digest, tree_sources

# Roots of the code of a training and of its evaluation; memories add their folders.
_TRAINING = (
  "lattice_jax.data.loader", "lattice_jax.data.sources", "lattice_jax.evaluation.evaluator",
  "lattice_jax.models.decoder", "lattice_jax.training.optimizer", "lattice_jax.training.state",
  "lattice_jax.training.step")
# Modules that they reach and that change no result.
_OTHER_CODE = (
  *STORES,
  "lattice_jax.evaluation.loaded_model", "lattice_jax.evaluation.origin", "lattice_jax.evaluation.result_tables",
  "lattice_jax.inspect.names", "lattice_jax.inspect.plots", "lattice_jax.sweep",
  # what makes the data, which are digested by themselves
  "lattice_jax.data.archives", "lattice_jax.data.corpus", "lattice_jax.data.hashing", "lattice_jax.data.own_texts",
  "lattice_jax.data.photos", "lattice_jax.data.progress", "lattice_jax.data.published", "lattice_jax.data.sources",
  "lattice_jax.data.synthetic", "lattice_jax.data.tokenizers", "lattice_jax.formats",
  # where arrays lie, what goes between devices, and what is compiled when
  "lattice_jax.sharding", "lattice_jax.ops.sequence", "lattice_jax.inference.compilation",
  "lattice_jax.inference.streaming",
  # other ways to what the tests hold to be the same
  "pallas_kernels")
# Where progress goes, how often it is saved, and on how many devices it is computed.
_NO_MATTER = (
  "name", "train.writers", "train.log_every", "train.save_every", "train.keep_last", "train.keep_best",
  "train.eval_every", "train.nan_skips", "train.steps_per_dispatch", "mesh.")
_OF_ONE_RUN = ("train.seed", "data.seed", "eval.")


@dataclass(frozen=True)
class Fingerprint:
  """Digests in hexadecimal. `config` is that of a Program's words where it is one."""

  config: str
  code: str
  data: str

  @property
  def key(self) -> str:
    """Eight digits that depend on all three."""
    return _digest(asdict(self))[:8]


def facts_of(config: Config, without: Sequence[str] = _NO_MATTER) -> dict[str, Any]:
  """Every value that can change the result: no `free` field, no section of a memory that the model lacks."""
  sections = tuple(part for part in without if part.endswith("."))
  return {
    path: value for path, field, value in used_leaves(config)
    if "free" not in field.metadata and path not in without and not path.startswith(sections)}


def is_same_experiment(one: Config, other: Config) -> bool:
  """Whether two configs differ at most in seeds, in what is evaluated, and in what changes no result."""
  without = (*_NO_MATTER, *_OF_ONE_RUN)
  return facts_of(one, without) == facts_of(other, without)


def fingerprint(measurement: Measurement, seed: int, needed: Sequence[Fingerprint] = ()) -> Fingerprint:
  """Of one run of a measurement on today's code. needed: of what it reads.

  Raises:
    ValueError: a config, data or weights cannot be read.
  """
  if isinstance(measurement.make, Train):
    return _of_training(measurement.make, seed)
  return _of_program(measurement.make, needed)


def seeded(make: Train, seed: int) -> list[str]:
  """The overrides of one run."""
  return [*make.overrides, f"train.seed={seed}"]


def _of_training(make: Train, seed: int) -> Fingerprint:
  config = read_config(str(ROOT / make.config), seeded(make, seed))
  data = {
    "train": load_source(config.data, "train").fingerprint, "tokenizer": model_sha256(config.data),
    "start": weights_digest(make.init_from)}
  return Fingerprint(
    _digest(facts_of(config)), code_digest(training_roots(config), tree_sources(), _OTHER_CODE), _digest(data))


def training_roots(config: Config) -> tuple[str, ...]:
  """The modules whose code a training of this config runs."""
  return (*_TRAINING, *sorted({f"lattice_jax.memories.{FOLDERS[name]}" for name in config.model.pattern}))


def _of_program(make: Program, needed: Sequence[Fingerprint]) -> Fingerprint:
  data = {
    "source": sample_digest(make.source), "files": [sha256_once(ROOT / file) for file in make.files],
    "weights": weights_digest(make.pretrained), "runs": sorted(one.key for one in needed)}
  return Fingerprint(_digest(make.words), code_digest(make.code, tree_sources(), _OTHER_CODE), _digest(data))


def of_run(run: dict[str, Any], start: str, sources: Sources) -> Fingerprint:
  """Of a run by its run.json and the code of its commit. start: the weights that its parameters came from."""
  config = stored_config(run, "the run")
  data = {"train": run["data_fingerprint"], "tokenizer": run["tokenizer_sha256"], "start": weights_digest(start)}
  code = code_digest(training_roots(config), sources, _OTHER_CODE)
  return Fingerprint(_digest(facts_of(config)), code, _digest(data))


def weights_digest(name: str) -> str:
  """Of a pretrained model's file, or all weights of its folder; "" for no model. Raises ValueError if it is missing."""
  if not name:
    return ""
  path = find_pretrained(name)
  return _files_digest([path] if path.is_file() else sorted(path.glob("*.safetensors")))


def sample_digest(name: str) -> str:
  """Of the shipped files of a sample; "" for no data."""
  return _files_digest(sorted(path for path in (SAMPLES / name).rglob("*") if path.is_file())) if name else ""


def _files_digest(paths: list[Path]) -> str:
  return _digest([sha256_once(path) for path in paths])


def _digest(facts: Any) -> str:
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
