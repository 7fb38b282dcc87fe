"""A stored run, loaded to be judged: what eval.py does between its flags and its prints."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lattice_jax.checkpoint import load_for_eval, read_config
from lattice_jax.config import Config
from lattice_jax.config_checks import check_config
from lattice_jax.data.photos import SIZE
from lattice_jax.data.source import Source
from lattice_jax.data.sources import load_source, read_raw
from lattice_jax.data.tokenizers import ByteTokenizer, get_tokenizer
from lattice_jax.evaluation.compressors import compressor_bits_per_byte
from lattice_jax.evaluation.evaluator import evaluate_protocols
from lattice_jax.evaluation.image_baselines import image_bits_per_dim
from lattice_jax.evaluation.overrides import apply_overrides, check_variables_fit
from lattice_jax.evaluation.report import result_name, write_result, write_text
from lattice_jax.evaluation.result import EvalResult
from lattice_jax.inference.generate import generate
from lattice_jax.models.parameters import count_parameters
from lattice_jax.runtime import git_commit
from lattice_jax.sharding import make_mesh


@dataclass(frozen=True, eq=False)
class Task:
  """A run's config, with overrides, and the parameters of one of its checkpoints."""

  workdir: Path
  config: Config
  overrides: tuple[str, ...]
  params: Any
  buffers: Any
  step: int
  mesh: Mesh

  def describe(self) -> str:
    """One line: which run, which checkpoint, on what."""
    changes = "".join(f", {override}" for override in self.overrides)
    return (
      f"{self.config.name} ({self.workdir}) at step {self.step}{changes}: {count_parameters(self.params):,} parameters "
      f"on {self.mesh.size} {jax.default_backend()} device{'s' if self.mesh.size > 1 else ''}")

  def with_eval(self, **changes: Any) -> Task:
    """The same task with fields of `config.eval` changed. Raises ValueError for values out of range."""
    for name in ("seq_len", "batch"):
      if name in changes and changes[name] < 1:
        raise ValueError(f"{name}={changes[name]} must be positive.")
    if "chunk_len" in changes and changes["chunk_len"] < 0:
      raise ValueError(f"chunk_len={changes['chunk_len']} must be at least 0; 0 reads a window in one call.")
    config = dataclasses.replace(self.config, eval=dataclasses.replace(self.config.eval, **changes))
    check_config(config)
    return dataclasses.replace(self, config=config)

  def evaluate(self) -> list[EvalResult]:
    """One result for each protocol of `config.eval`."""
    config = self.config
    return evaluate_protocols(
      config.model, self.params, self.buffers, load_source(config.data, config.eval.split), get_tokenizer(config.data),
      eval=config.eval, data=config.data, mesh=self.mesh)

  def write(self, result: EvalResult, path: Path | None) -> Path:
    """The result as JSON at `path`, or in the workdir; of two protocols each gets its own file."""
    if path is None:
      path = self.workdir / result_name(result, self.config.data.seq_len, self.overrides)
    elif self.config.eval.protocol == "both":
      path = path.with_stem(f"{path.stem}_{result.protocol}")
    run = {
      "workdir": str(self.workdir), "step": self.step, "overrides": list(self.overrides), "git_commit": git_commit(),
      "devices": [str(device.device_kind) for device in self.mesh.devices.flat]}
    write_result(path, result, run)
    return path

  def baselines(self, split: str) -> tuple[dict[str, float], str]:
    """(bits per unit on the split of what needs no model, the unit): of texts given the train split."""
    source = load_source(self.config.data, split)
    if source.unit == "dim":
      return image_bits_per_dim(_images(source)), source.unit
    train, judged = (b"".join(read_raw(self.config.data, name)) for name in ("train", split))
    return compressor_bits_per_byte(train, judged), source.unit

  def generate(self, prompt: str, **options: Any) -> str:
    """The prompt and what follows it, also written to sample.txt in the workdir."""
    tokenizer = get_tokenizer(self.config.data)
    prompt_ids = tokenizer.encode(prompt.encode())
    ids = generate(
      self.config.model, {"params": self.params, "buffers": self.buffers}, [prompt_ids], eos_id=tokenizer.eos_id,
      **options)
    text = prompt + tokenizer.decode(ids[0]).decode(errors="replace")
    write_text(self.workdir / "sample.txt", text + "\n")
    return text


def load(workdir: Path, *, step: int | None, overrides: Sequence[str]) -> Task:
  """The run's newest checkpoint, or that of `step`.

  Raises:
    ValueError: there is no such run or step, or an override does not fit it.
  """
  config = apply_overrides(read_config(workdir), overrides)
  # the devices of this machine, not those of the training run
  mesh = make_mesh(dataclasses.replace(config.mesh, data=-1))
  _, params, buffers, step = load_for_eval(workdir, step, mesh=mesh)
  if overrides:
    check_variables_fit(config.model, {"params": params, "buffers": buffers})
  return Task(
    workdir=workdir, config=config, overrides=tuple(overrides), params=params, buffers=buffers, step=step, mesh=mesh)


def _images(source: Source) -> Iterator[np.ndarray]:
  tokenizer = ByteTokenizer()
  for start, stop in itertools.pairwise(source.offsets.tolist()):
    yield np.frombuffer(tokenizer.decode(source.tokens[start:stop]), np.uint8).reshape(SIZE, SIZE, 3)
