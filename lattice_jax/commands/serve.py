"""What scripts/serve.py does: loads the arms, starts their engines, and answers requests until a signal ends it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lattice_jax.commands.run import print_now
from lattice_jax.commands.serve_rollout import check_rollout, open_rollout
from lattice_jax.runtime import enable_compilation_cache

if TYPE_CHECKING:
  from lattice_jax.evaluation.loaded_model import LoadedModel
  from lattice_jax.inference.serving.front import Front

_MOST_CONTEXT = 2048  # tokens of a row by default, as rows are many and a cache takes room for all of them


def check_arguments(arguments: argparse.Namespace) -> None:
  """Raises ValueError for arguments that contradict each other, or that nothing would read."""
  of_run = {"step": arguments.step} if arguments.pretrained else {"dtype": arguments.dtype}
  for name, value in of_run.items():
    if value is not None:
      needs = "a run; a pretrained model has no checkpoints" if arguments.pretrained else (
        "a --pretrained model; of a run use --set=model.dtype")
      raise ValueError(f"--{name} has no effect without {needs}; leave it out.")
  has_treatment = bool(arguments.treatment or arguments.treatment_workdir or arguments.treatment_set)
  is_used = arguments.shadow or arguments.share is not None or arguments.rollout is not None
  if is_used and not has_treatment:
    raise ValueError(
      "--share, --shadow and --rollout say what a treatment does; give one too, such as --treatment=lagkv:ratio=0.25.")
  if has_treatment and not is_used:
    raise ValueError(
      "a treatment answers nobody without a --share of units, --shadow or a --rollout; give one of them.")
  check_rollout(arguments)


def run(arguments: argparse.Namespace, ready: Callable[[int], Any] = lambda port: None) -> None:
  """Serves until SIGTERM or Ctrl-C. ready: called with the port.

  Raises:
    ValueError: as `make_front`, or a package is missing.
    OSError: nothing can listen at that address.
  """
  server = _import_server()
  listener = server.bind(arguments.host, arguments.port)  # before models are loaded, which would be in vain
  enable_compilation_cache()
  front = make_front(arguments)

  def listening(port: int) -> None:
    print_now(f"listening on http://{arguments.host}:{port}; the model is called {front.name}")
    ready(port)

  server.serve(front, listener, grace=arguments.grace, ready=listening)
  print_now("stopped.")


def _import_server() -> ModuleType:
  try:
    from lattice_jax.inference.serving import server
  except ModuleNotFoundError as error:
    raise ValueError(
      f"serving needs the package {error.name}; install what pyproject.toml lists under serve, as in pip install "
      "'.[serve]'.") from error
  return server


def make_front(arguments: argparse.Namespace) -> Front:
  """The arms with their engines running.

  Raises:
    ValueError: a model does not exist, or an argument does not fit it or the other arm.
  """
  from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
  from lattice_jax.evaluation.loaded_model import model_name
  from lattice_jax.inference.serving.engine import Engine
  from lattice_jax.inference.serving.front import Front
  from lattice_jax.inference.serving.metrics import Metrics
  from lattice_jax.inference.serving.request import EngineOptions
  from lattice_jax.inference.serving.rollout_metrics import RolloutCollector
  from lattice_jax.inference.serving.routing import FixedRouter

  arms = load_arms(arguments)
  control = next(iter(arms.values()))
  tokenizer, metrics = get_tokenizer(control.config.data), Metrics()
  sizes = {name: getattr(arguments, name) for name in ("rows", "chunk_len", "chunks", "block_len", "queue")}
  options = EngineOptions(max_len=_context(arguments.max_len, arms.values()), **sizes)
  live = None if arguments.rollout is None else open_rollout(arguments, arms, options)
  engines = {}
  for arm, loaded in arms.items():
    print_now(f"{arm}: {loaded.describe()}")
    engines[arm] = Engine(
      loaded.config.model, loaded.variables, options, banned=tuple(tokenizer.banned_ids),
      stop_ids=tuple(tokenizer.stop_ids), marker=loaded.marker, meter=metrics.meter(arm))
    engines[arm].start()
    print_now(f"  {options.rows} rows of {options.max_len:,} tokens, {engines[arm].cache_bytes:,} bytes of memory")
  if live is not None:
    live.start()
    metrics.registry.register(RolloutCollector(live.snapshot))
  share = float(arguments.shadow) if arguments.share is None else arguments.share
  name = arguments.name or (model_name(arguments.pretrained) if arguments.pretrained else control.config.name)
  return Front(
    engines, live or FixedRouter(share=share, shadow=arguments.shadow), tokenizer, name=name, metrics=metrics,
    page=None if live is None else live.page)


def load_arms(arguments: argparse.Namespace) -> dict[str, LoadedModel]:
  """The model of each arm; two that differ by their caches share their weights."""
  from lattice_jax.evaluation.caches import cache_overrides, parse_caches
  from lattice_jax.evaluation.loaded_model import load_pretrained_model, load_run
  from lattice_jax.inference.serving.routing import CONTROL, TREATMENT

  def load(
    workdir: Any, pretrained: str | None, cache: str | None, step: int | None, more: Sequence[str] = ()) -> LoadedModel:
    overrides = [*arguments.set, *(cache_overrides(cache) if cache else []), *more]
    if pretrained is not None:
      return load_pretrained_model(
        pretrained, workdir=None, dtype=arguments.dtype or "float32", overrides=overrides)
    return load_run(workdir, step=step, overrides=overrides)

  control = load(arguments.workdir, arguments.pretrained, arguments.cache, arguments.step)
  if arguments.treatment_workdir is not None or arguments.treatment_set:
    own = (arguments.treatment_workdir, None, arguments.treatment, None) if arguments.treatment_workdir else (
      arguments.workdir, arguments.pretrained, arguments.treatment or arguments.cache, arguments.step)
    treatment = load(*own, more=arguments.treatment_set)
    if treatment.origin["tokenizer"] != control.origin["tokenizer"]:
      where = f" in {arguments.treatment_workdir}" if arguments.treatment_workdir else ""
      raise ValueError(
        f"the treatment{where} has another tokenizer than control; both arms must read the same ids.")
    return {CONTROL: control, TREATMENT: treatment}
  if arguments.treatment is None:
    return {CONTROL: control}
  cache, = parse_caches(control.config, [arguments.treatment]).values()
  config = dataclasses.replace(control.config, model=dataclasses.replace(control.config.model, cache=cache))
  treatment = dataclasses.replace(
    control, config=config, overrides=(*control.overrides, *cache_overrides(arguments.treatment)))
  return {CONTROL: control, TREATMENT: treatment}


def _context(wanted: int | None, arms: Any) -> int:
  """Tokens of a row. Raises ValueError where a model was made for fewer."""
  most = min((loaded.context_len for loaded in arms if loaded.context_len), default=None)
  if wanted is None:
    return min(most or max(loaded.config.data.seq_len for loaded in arms), _MOST_CONTEXT)
  if most is not None and wanted > most:
    raise ValueError(f"--max_len={wanted:,} is more than the {most:,} tokens that the model was made for; give fewer.")
  return wanted
