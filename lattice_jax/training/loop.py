"""A training run from an empty or half-done workdir to its last step.

Order, in every round: evaluate if due → save if due → next batch → call the program → log the call before. Whatever a
round does follows from the step number, so a run that was cut off goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config import Config
from lattice_jax.data.loader import train_batches
from lattice_jax.data.sources import Source, load_source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer, get_tokenizer
from lattice_jax.evaluation.evaluator import EvaluationStopped, evaluate_protocols
from lattice_jax.models.parameters import count_parameters, flops_per_token
from lattice_jax.run_file import FILE, read_run
from lattice_jax.runtime import CLOSING_TIMEOUT, Stop, within
from lattice_jax.sharding import check_batch, make_mesh
from lattice_jax.together import check_agreement, failing_together
from lattice_jax.training.feed import Feed, Pending, dispatch_size, fetch
from lattice_jax.training.init_from import complete, load_start
from lattice_jax.training.introduction import check_vocabulary, introduction
from lattice_jax.training.reporter import Reporter, peak_flops
from lattice_jax.training.signals import StopRequest, stop_request
from lattice_jax.training.state import TrainState, abstract_state, create_state, make_optimizer
from lattice_jax.training.step import make_program
from lattice_jax.training.trace import Trace
from lattice_jax.training.workdir import (
  check_run_file,
  check_same_run,
  describe_run,
  dump_update,
  evaluated_steps,
  locked,
  with_history,
  write_json,
)
from lattice_jax.writers import RunInfo, Writers, check_writers


@dataclass(frozen=True)
class Options:
  """What the command line adds to a config.

  init_from: a pretrained model, or a workdir whose newest parameters and buffers a new run starts with.
  profile: (start, stop): a `jax.profiler` trace of updates start … stop − 1 goes to workdir/profile.
  """

  init_from: str | Path | None = None
  profile: tuple[int, int] | None = None


def train(config: Config, workdir: Path, options: Options | None = None) -> TrainState:
  """Trains until `train.steps`, starting from the newest checkpoint of `workdir` where there is one.

  Raises:
    ValueError: the config, the data or the workdir do not fit; nothing of an earlier run is lost.
    Stop: a signal came (everything is saved), or a loss was not finite (the update is dumped for replay).
  """
  check_writers(config.train.writers)
  options = options or Options()
  with failing_together():
    config = complete(config, options.init_from)
  mesh = make_mesh(config.mesh)
  check_batch(config, mesh)
  with locked(workdir), jax.set_mesh(mesh):
    run = Run(config, workdir, options, mesh)
    try:
      # a signal before this has nothing to save and ends the program as it always does
      with stop_request(run.answer) as request:
        state = run.loop(request)
    except BaseException:
      within(CLOSING_TIMEOUT, run.close)
      raise
    run.close()
    return state


class Run:
  """One process's part of a training run: data, compiled program, checkpoints and writers around the state."""

  def __init__(self, config: Config, workdir: Path, options: Options, mesh: Mesh):
    self.config, self.workdir, self.options, self.mesh = config, workdir, options, mesh
    with failing_together():
      self.source = load_source(config.data, "train")
      self.eval_source: Source = load_source(config.data, config.eval.split)
      self.tokenizer: Tokenizer = get_tokenizer(config.data)
      check_vocabulary(config, self.tokenizer)
      earlier = read_run(workdir, "config", "data_fingerprint") if (workdir / FILE).exists() else None
      if earlier is not None:
        check_same_run(workdir, earlier, config, self.source.fingerprint)
    check_agreement({"the config": repr(config), "the data": self.source.fingerprint, "jax": jax.__version__})
    self.checkpoints = Checkpoints(
      workdir, keep_last=config.train.keep_last, keep_best=config.train.keep_best)
    self.state, self.step, origin = self._start()
    if self.step > config.train.steps:
      raise ValueError(
        f"{workdir} is at step {self.step}, beyond train.steps={config.train.steps}; "
        f"raise train.steps, or choose another --workdir.")
    self.saved_step = self.step
    parameters = count_parameters(self.state.params)
    self.description, changes = describe_run(config, self.source, parameters=parameters, mesh=mesh), {}
    if earlier is not None:
      self.description, changes = with_history(self.description, earlier, self.step)
    with failing_together():
      write_json(workdir / FILE, self.description)
      self.writers = Writers(
        config.train.writers, RunInfo(workdir, self.step, self.description, self.source.unit))
    self._introduce(parameters, origin, changes)
    self.evaluated = evaluated_steps(workdir, config.eval.split, up_to=self.step)
    self.score: tuple[int, float] | None = None
    self.pending: Pending | None = None
    self.trace = Trace(options.profile, workdir / "profile", self.writers.note)

  def loop(self, request: StopRequest) -> TrainState:
    """Runs what is left, or up to the next boundary after a signal; see the module's docstring for the order."""
    steps = self.config.train.steps
    program, feed, waited = None, None, 0.0
    batches = train_batches(
      self.config, self.source, start_step=self.step, host=jax.process_index(), num_hosts=jax.process_count())
    while True:
      if self._at_boundary(request):
        break
      if feed is None:
        feed = fetch(batches, self.config, self.mesh, first_step=self.step, count=self._size(self.step))
        waited = feed.seconds
      if program is None:
        program = self._compile(feed)
        continue  # a signal that came meanwhile need not wait for the first updates
      started = time.perf_counter()
      self.state, metrics = program(self.state, feed.batches, np.int32(self.step), np.int32(feed.count))
      before, self.pending = self.pending, Pending(feed, metrics, started, waited)
      self.step += feed.count
      feed, waited = self._fetch_ahead(batches, metrics)
      self._log(before)
    if self.step < steps or self.step not in self.evaluated:
      raise Stop(f"stopped by {request.name} at step {self.step} of {steps}; everything is saved, and the same "
                 "command goes on from here.", 128 + request.number)
    self.writers.note(f"done; next: python eval.py --workdir={self.workdir}")
    return self.state

  def answer(self, signal_name: str) -> None:
    """Says that a signal has come, which may be long before the next boundary."""
    self.writers.note(
      f"{signal_name} received: the run saves and stops when what it is in the middle of is done; a second Ctrl-C ends "
      "it at once")

  def close(self) -> None:
    """Ends the trace, the writers and the checkpoint threads, also after a failure."""
    self.trace.close()
    self.writers.close()
    self.checkpoints.close()

  def _start(self) -> tuple[TrainState, int, str]:
    abstract = abstract_state(self.config, self.mesh)
    restored = self.checkpoints.restore_latest(abstract)
    if restored is not None:
      step, state = restored
      check_same_run(
        f"the checkpoint of step {step} in {self.workdir}", self.checkpoints.run_of(step), self.config,
        self.source.fingerprint)
      return state, step, f"resumed from the checkpoint of step {step}"
    variables, origin = load_start(self.config, self.options.init_from, abstract)
    return create_state(self.config, self.mesh, variables), 0, origin

  def _introduce(self, parameters: int, origin: str, changes: dict[str, tuple[Any, Any]]) -> None:
    peak = peak_flops()
    self.reporter = Reporter(
      self.config, self.writers, tokens_per_byte=self.source.num_targets / self.source.num_bytes,
      flops_per_token=flops_per_token(self.config.model, self.config.data.seq_len), peak_flops=peak)
    lines = introduction(
      self.config, self.mesh, self.state, self.source, self.tokenizer, parameters=parameters, peak=peak,
      origin=f"{origin}, step {self.step} of {self.config.train.steps}")
    changed = [f"changed since the start before: {path}: {old} → {new}" for path, (old, new) in changes.items()]
    for line in [*lines, *changed, *self.writers.hints()]:
      self.writers.note(line)

  def _compile(self, feed: Feed) -> Any:
    """The executable, compiled for the shapes and shardings at hand: another call can never recompile."""
    start = time.perf_counter()
    with self.writers.busy("compiling"):
      program = make_program(self.config, make_optimizer(self.config), self.mesh, self.state)
      compiled = program.lower(self.state, feed.batches, np.int32(0), np.int32(0)).compile()
    self.writers.note(f"compiled in {time.perf_counter() - start:.1f} s")
    return compiled

  def _size(self, step: int) -> int:
    return dispatch_size(self.config, step, self.trace.boundaries)

  def _fetch_ahead(self, batches: Any, metrics: Any) -> tuple[Feed | None, float]:
    """The data of the next call, while this one runs; the second result is the time that the devices stood idle."""
    if self.step >= self.config.train.steps:
      return None, 0.0
    feed = fetch(batches, self.config, self.mesh, first_step=self.step, count=self._size(self.step))
    was_late = all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))
    return feed, feed.seconds if was_late else 0.0

  def _at_boundary(self, request: StopRequest) -> bool:
    """Evaluates, saves and starts or ends the trace, where the step or a signal asks for it; True where that is all."""
    config, step = self.config.train, self.step
    self._tell_saved()
    is_last = step >= config.steps
    is_eval_due = is_last or (step > 0 and config.eval_every > 0 and step % config.eval_every == 0)
    # asking all processes costs a round trip, so it is done about once a report
    may_stop = jax.process_count() == 1 or is_eval_due or step % config.log_every < config.steps_per_dispatch
    stopping = may_stop and request.is_agreed()
    if is_eval_due and not stopping and step not in self.evaluated:
      self._drain()
      stopping = not self._evaluate(request)
    # an evaluated step is saved too, or the best one might not be kept
    is_save_due = stopping or is_eval_due or step % config.save_every == 0
    if is_save_due and step != self.saved_step:
      self._drain()
      self._save()
    elif stopping or is_last:
      self._flush()
    if stopping or is_last:
      self.checkpoints.wait()
      self._tell_saved()
    self.trace.at(step, must_end=stopping or is_last, drain=self._drain)
    return stopping or is_last

  def _evaluate(self, request: StopRequest) -> bool:
    """Records the result of every protocol; False where a signal ended it without one."""
    try:
      results = evaluate_protocols(
        self.config.model, self.state.params, self.state.buffers, self.eval_source, self.tokenizer,
        eval=self.config.eval, data=self.config.data, mesh=self.mesh, should_stop=request.is_agreed)
    except EvaluationStopped:
      return False
    for result in results:
      self.reporter.evaluation(self.step, result)
    self.evaluated.add(self.step)
    self.score = self.step, results[0].bits_per_byte
    return True

  def _flush(self) -> None:
    """Has what was written on disk, or raises ValueError where it is not there any more."""
    self.writers.flush()
    check_run_file(self.workdir)

  def _tell_saved(self) -> None:
    step = self.checkpoints.newly_saved()
    if step is not None:
      self.writers.note(f"saved the checkpoint of step {step}")

  def _save(self) -> None:
    self._flush()
    self.checkpoints.wait()
    self._tell_saved()
    score = self.score[1] if self.score is not None and self.score[0] == self.step else None
    self.checkpoints.save(self.step, self.state, self.description, score=score)
    self.saved_step = self.step

  def _drain(self) -> None:
    pending, self.pending = self.pending, None
    self._log(pending)

  def _log(self, pending: Pending | None) -> None:
    """Waits for a call and records its updates; raises Stop where one of them was not finite."""
    if pending is None:
      return
    first_step, count = pending.feed.first_step, pending.feed.count
    metrics = {name: np.asarray(values)[:count] for name, values in jax.device_get(pending.metrics).items()}
    halted = np.flatnonzero(metrics["halted"])
    done = int(halted[0]) if halted.size else count
    if done:
      self.reporter.updates(
        first_step, {name: values[:done] for name, values in metrics.items()}, started=pending.started,
        waited=pending.waited)
    if halted.size:
      self._stop_at(first_step + done, pending.feed, {name: float(values[done]) for name, values in metrics.items()})

  def _stop_at(self, step: int, feed: Feed, metrics: dict[str, float]) -> None:
    """Dumps the update with index `step`, which changed nothing, and ends the run."""
    folder = self.workdir / f"nan_step_{step}"
    batch = feed.host_batches[step - feed.first_step]
    dump_update(folder, step=step, state=self.state, batch=batch, metrics=metrics, run=self.description)
    self.checkpoints.wait()  # a save that still goes on is good, and need not be given up for this
    what = "loss" if not math.isfinite(metrics["loss"]) else "gradient"
    raise Stop(
      f"the {what} of the update after step {step} is not finite (steps {feed.first_step} to "
      f"{feed.first_step + feed.count} ran together); batch, step and state before it are in {folder}, and "
      f"the same command with --workdir={folder} replays it; train.nan_skips allows such updates to be skipped.", 1)
