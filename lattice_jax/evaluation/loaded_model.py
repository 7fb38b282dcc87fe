"""A model with its weights, of a stored run or pretrained: it evaluates, writes texts, and names its results."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, Config, DataConfig
from lattice_jax.config_checks import check_config
from lattice_jax.config_text import apply_overrides
from lattice_jax.data.anchors import make_marker
from lattice_jax.data.separators import marker_of
from lattice_jax.data.source import Source, fingerprint
from lattice_jax.data.sources import load_source, read_raw
from lattice_jax.data.tokenizers.tokenizer import PRETRAINED, Tokenizer, get_tokenizer
from lattice_jax.evaluation.baselines import compressor_bits_per_byte, image_bits_per_dim, images_of
from lattice_jax.evaluation.evaluator import evaluate_protocols
from lattice_jax.evaluation.origin import keyed_name, origin_key
from lattice_jax.evaluation.pattern import check_variables_fit, restack, shortest_pattern
from lattice_jax.evaluation.result import EvalResult
from lattice_jax.evaluation.result_tables import write_json_lines, write_result, write_text
from lattice_jax.inference.generate import GenerateOptions
from lattice_jax.inference.streaming import StreamedModel
from lattice_jax.inference.text import Written, write_texts
from lattice_jax.marks import Marker
from lattice_jax.models.content import content_digest
from lattice_jax.models.decoder import abstract_variables
from lattice_jax.models.parameters import count_parameters
from lattice_jax.models.pretrained import check_no_file, open_pretrained
from lattice_jax.run_file import read_config
from lattice_jax.runtime import git_commit
from lattice_jax.sharding import make_mesh, param_shardings
from lattice_jax.shown import shown_bytes

_PRETRAINED_LEN = 1024  # tokens of a window on which a pretrained model is evaluated, unless an override says otherwise


@dataclass(frozen=True, eq=False)
class LoadedModel:
  """A run's config, with overrides, and the parameters of one of its checkpoints; or a pretrained model.

  A pretrained model has no `step`, and `workdir` is where its results go. context_len: tokens that it, or a run that
  started from it, was made to read. streamed: what reads its weights through a budget; `params` are then only shapes.
  """

  workdir: Path
  config: Config
  overrides: tuple[str, ...]
  params: Any
  buffers: Any
  step: int | None
  mesh: Mesh
  context_len: int | None = None
  streamed: StreamedModel | None = None

  @property
  def variables(self) -> Any:
    """What `inference` takes: params and buffers, or what streams them."""
    return self.streamed or {"params": self.params, "buffers": self.buffers}

  @property
  def marker(self) -> Marker | None:
    """What says which tokens are anchors; None if none are."""
    return self.marker_for([self.config.model.cache])

  def marker_for(self, caches: Iterable[CacheConfig]) -> Marker | None:
    """As `data.anchors.rule` does, or without a rule as `caches` need. Raises ValueError as `separators.marker_of`."""
    return marker_of(self.config.data.anchors, caches, get_tokenizer(self.config.data))

  @functools.cached_property
  def origin(self) -> dict[str, Any]:
    """Everything that decides what the model says: config, and weights and vocabulary by content, not by name."""
    tokenizer, anchors = get_tokenizer(self.config.data), self.config.data.anchors
    return ({} if anchors.rule == "none" else {"anchors": dataclasses.asdict(anchors)}) | {
      "weights": self.streamed.content_digest() if self.streamed else content_digest(self.variables), "step": self.step,
      "model": dataclasses.asdict(self.config.model), "overrides": list(self.overrides),
      "tokenizer": [tokenizer.name, fingerprint(tokenizer.decode(np.arange(tokenizer.vocab_size)))]}

  def name_of(self, *parts: str, **facts: Any) -> tuple[str, dict[str, Any]]:
    """(the name of a result that depends on the model and these facts, its origin)."""
    origin = self.origin | facts
    step = [] if self.step is None else [f"step{self.step}"]
    return keyed_name([*parts, *step, *self.overrides], origin), origin

  def describe(self) -> str:
    """One line: which run, which checkpoint, on which devices."""
    origin = "pretrained" if self.step is None else f"({self.workdir}) at step {self.step}"
    if self.streamed:
      origin += f" and streamed through {shown_bytes(self.streamed.budget)}"
    return (
      f"{', '.join([f'{self.config.name} {origin}', *self.overrides])}: {count_parameters(self.params):,} parameters "
      f"on {self.mesh.size} {jax.default_backend()} device{'s' if self.mesh.size > 1 else ''}")

  def with_eval(self, **changes: Any) -> LoadedModel:
    """The same model with fields of `config.eval` changed. Raises ValueError for values out of range."""
    for name in ("seq_len", "batch"):
      if name in changes and changes[name] < 1:
        raise ValueError(f"{name}={changes[name]} must be positive.")
    if self.context_len is not None and "seq_len" in changes and changes["seq_len"] > self.context_len:
      raise ValueError(
        f"windows of {changes['seq_len']:,} tokens are more than the {self.context_len:,} that {self.config.name} was "
        "made for; use a smaller --seq_len.")
    if "chunk_len" in changes and changes["chunk_len"] < 0:
      raise ValueError(f"chunk_len={changes['chunk_len']} must be at least 0; 0 reads a window in one call.")
    config = dataclasses.replace(self.config, eval=dataclasses.replace(self.config.eval, **changes))
    check_config(config)
    return dataclasses.replace(self, config=config)

  def read_split(self, split: str) -> tuple[Source, Tokenizer]:
    """The split and its tokenizer. Raises ValueError if the split holds tokens that the model does not have."""
    source, tokenizer = load_source(self.config.data, split), get_tokenizer(self.config.data)
    vocab = self.config.model.vocab
    if tokenizer.vocab_size > vocab and (largest := int(source.tokens.max())) >= vocab:
      raise ValueError(
        f"the text holds token {largest:,}, and the model has {vocab:,}: data.tokenizer={tokenizer.name} is another "
        "model's; get the one that belongs to the weights.")
    return source, tokenizer

  def evaluate(self) -> list[EvalResult]:
    """One result for each protocol of `config.eval`.

    Raises:
      ValueError: as `read_split` and `evaluator.evaluate`, or a cache drops tokens only between calls and there is
        just one call.
    """
    config, eval = self.config, self.config.eval
    is_one_call = eval.protocol != "carried" and not 0 < eval.chunk_len < (eval.seq_len or config.data.seq_len)
    if make_policy(config.model.cache).lag and is_one_call:
      raise ValueError(
        f"the cache policy {config.model.cache.policy!r} drops tokens between calls, and each window is read in one "
        "call, as if nothing were dropped; give a --chunk_len below the window's length, such as --chunk_len=128.")
    source, tokenizer = self.read_split(eval.split)
    return evaluate_protocols(
      config.model, self.streamed or self.params, self.buffers, source, tokenizer, eval=eval, data=config.data,
      mesh=self.mesh)

  def save(self, result: EvalResult, path: Path | None) -> Path:
    """Writes the result as JSON to `path`, or to the workdir under its key; each of two protocols has its own file."""
    config, window = self.config, [] if result.seq_len == self.config.data.seq_len else [f"T{result.seq_len}"]
    name, origin = self.name_of(
      "eval", result.split, result.protocol, *window, text=result.fingerprint, split=result.split,
      protocol=result.protocol, seq_len=result.seq_len, chunk_len=result.chunk_len,
      # batches matter only if part of the split is read
      cut=[config.eval.batch, config.eval.max_batches] if config.eval.max_batches else [])
    if path is None:
      path = self.workdir / f"{name}.json"
    elif config.eval.protocol == "both":
      path = path.with_stem(f"{path.stem}_{result.protocol}")
    run = {
      "workdir": str(self.workdir), "step": self.step, "overrides": list(self.overrides), "key": origin_key(origin),
      "weights": origin["weights"], "dtype": config.model.dtype, "git_commit": git_commit(),
      "devices": [str(device.device_kind) for device in self.mesh.devices.flat]}
    write_result(path, result, run)
    return path

  def baselines(self, split: str) -> tuple[dict[str, float], str]:
    """(bits per unit of methods without a model, the unit); those for texts are given the train split first."""
    source = load_source(self.config.data, split)
    if source.unit == "dim":
      return image_bits_per_dim(images_of(source)), source.unit
    train, text = (b"".join(read_raw(self.config.data, name)) for name in ("train", split))
    return compressor_bits_per_byte(train, text), source.unit

  def draw_texts(
    self, prompts: Sequence[str], *, length: int, is_chat: bool = False, stop_strings: Sequence[str] = (),
    limit: int | None = None, show: Callable[[str], None] = lambda piece: None, **sampling: Any,
  ) -> Written:
    """What the model writes after each prompt; of a single one `show` gets the text piece by piece.

    With `is_chat`, each prompt is a question put by the model's chat template. limit: the most tokens that prompt and
    text may have, at most the model's own.

    Raises:
      ValueError: a prompt is empty or too long, or an option is out of range.
    """
    if limit is not None and self.context_len is not None and limit > self.context_len:
      raise ValueError(
        f"a context of {limit:,} tokens is more than the {self.context_len:,} that {self.config.name} was made for; "
        "ask for fewer.")
    tokenizer = get_tokenizer(self.config.data)
    options = GenerateOptions(
      # a chat template begins with these itself
      start_ids=() if is_chat else tokenizer.start_ids, banned=tokenizer.banned_ids, stop_ids=tokenizer.stop_ids,
      limit=limit or self.context_len, block_len=1, marker=self.marker, **sampling)
    return write_texts(
      self.config.model, self.variables, tokenizer, self._asked(prompts, is_chat), length=length,
      options=options, stop_strings=stop_strings, show=lambda row, piece: show(piece) if len(prompts) == 1 else None)

  def write_texts(
    self, prompts: Sequence[str], *, length: int, is_chat: bool = False, stop_strings: Sequence[str] = (),
    limit: int | None = None, show: Callable[[str], None] = lambda piece: None, **sampling: Any,
  ) -> tuple[Written, Path]:
    """As `draw_texts`, with the prompts in front; and the file in the workdir that now holds them too."""
    heads = [prompt + "\n\n" if is_chat else prompt for prompt in prompts]
    unshown = heads[:] if len(heads) == 1 else []  # until the first piece, so that no refusal ends the prompt's line
    written = self.draw_texts(
      prompts, length=length, is_chat=is_chat, stop_strings=stop_strings, limit=limit,
      show=lambda piece: show(unshown.pop() + piece if unshown else piece), **sampling)
    show(unshown.pop() if unshown else "")
    texts = [head + text for head, text in zip(heads, written.texts, strict=True)]
    name, _ = self.name_of(
      "sample", prompts=self._asked(prompts, is_chat), length=length, stop_strings=list(stop_strings),
      limit=limit or self.context_len, sampling=sampling)
    path = self.workdir / f"{name}.txt"
    write_text(path, f"\n{'-' * 20}\n".join(texts) + "\n")
    if written.window_log:
      write_json_lines(path.with_suffix(".windows.jsonl"), written.window_log)
    return dataclasses.replace(written, texts=tuple(texts)), path

  def _asked(self, prompts: Sequence[str], is_chat: bool) -> list[str]:
    if not is_chat:
      return list(prompts)
    tokenizer = get_tokenizer(self.config.data)
    return [tokenizer.chat([{"role": "user", "content": prompt}]) for prompt in prompts]


def model_name(pretrained: str) -> str:
  """The name of a pretrained model: that of its folder, or of its file without .gguf."""
  return Path(os.path.abspath(Path(pretrained).expanduser())).name.removesuffix(".gguf")


def load_run(workdir: Path, *, step: int | None, overrides: Sequence[str]) -> LoadedModel:
  """The checkpoint of `step` of a run, or its newest, under the shortest pattern that has its layers.

  Raises:
    ValueError: the run or the step does not exist, or an override does not fit the run.
  """
  from lattice_jax.checkpoint import check_tokenizer, load_for_eval  # Orbax takes a second; pretrained models need none

  config = for_reading(apply_overrides(of_run := read_config(workdir), overrides))
  check_no_file(config.model, of_run.model)
  check_tokenizer(workdir, config.data)
  _check_anchors(config)
  # on the devices of this machine, not of the machine that trained it
  mesh = make_mesh(dataclasses.replace(config.mesh, data=-1))
  stored, params, buffers, step = load_for_eval(workdir, step, mesh=mesh)
  variables = restack({"params": params, "buffers": buffers}, stored.model, config.model, mesh, config.mesh)
  if overrides:
    check_variables_fit(config.model, variables)
  return LoadedModel(
    workdir=workdir, config=config, overrides=tuple(overrides), **variables, step=step, mesh=mesh,
    context_len=config.model.context_len or None)


def for_reading(config: Config) -> Config:
  """The config under the shortest pattern of its layers, without what training alone asks of the pattern."""
  return dataclasses.replace(
    config, model=shortest_pattern(config.model), optimizer=dataclasses.replace(config.optimizer, last_layers=0))


def load_pretrained_model(
  name: str, *, workdir: Path | None, dtype: str, overrides: Sequence[str], budget: int | None = None) -> LoadedModel:
  """A pretrained model, which reads books_sample unless an override names another `data.source`.

  workdir: where its results go; runs/ and its name when None. budget: bytes through which its weights are streamed, on
  one device; None reads them all.

  Raises:
    ValueError: the model does not exist or cannot be read, or an override does not fit it.
  """
  pretrained = open_pretrained(name, dtype=dtype)
  seq_len = min(pretrained.context_len, _PRETRAINED_LEN)
  data = DataConfig(source="books_sample", tokenizer=PRETRAINED + name, seq_len=seq_len, update_len=seq_len)
  config = apply_overrides(Config(name=model_name(name), model=pretrained.model, data=data), overrides)
  _check_anchors(config)
  if config.model.pattern != pretrained.model.pattern:
    pretrained = pretrained.with_memories(dataclasses.replace(pretrained.model, pattern=config.model.pattern))
  pretrained = pretrained.with_fitted(config.model)
  check_variables_fit(config.model, {"params": pretrained.shapes, "buffers": {}})
  loaded = functools.partial(
    LoadedModel, workdir=workdir or Path("runs") / model_name(name), config=config, overrides=tuple(overrides),
    buffers={}, step=None, context_len=pretrained.context_len)
  if budget is not None:
    streamed = StreamedModel(pretrained, budget)
    return loaded(params=pretrained.shapes, mesh=streamed.mesh, streamed=streamed)
  mesh = make_mesh(config.mesh)
  # where one row of inputs has a fast product with it: XLA's CPU backend, in float32, on one device
  stored = mesh.size == 1 and jax.default_backend() == "cpu" and config.model.dtype == "float32"
  shardings = param_shardings(abstract_variables(config.model)["params"], mesh, config.mesh)
  return loaded(params=pretrained.params(shardings, stored=stored), mesh=mesh)


def _check_anchors(config: Config) -> None:
  """The rule must fit the tokenizer, and the model have an embedding for the token that `data.anchors.insert` adds."""
  tokenizer = get_tokenizer(config.data)
  make_marker(config.data.anchors, tokenizer)
  if config.data.anchors.insert != "none" and tokenizer.vocab_size > config.model.vocab:
    raise ValueError(
      f"data.anchors.insert={config.data.anchors.insert} adds the token <AC>, for which this model of "
      f"{config.model.vocab:,} tokens has no embedding; train it with --init_from, which adds one, or leave it out.")
