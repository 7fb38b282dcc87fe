"""A training run, from an empty or partly trained workdir to its last step.

Every round does, in this order: evaluate if due → save if due → next batch → step → log the previous step. What a round
does follows from the step number alone, so an interrupted run continues as if it had not been interrupted.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.checkpoint_folder import checkpoint_folder
from lattice_jax.config import Config
from lattice_jax.data.loader import train_batches
from lattice_jax.evaluation.evaluator import EvaluationStopped, evaluate_protocols
from lattice_jax.models.parameters import flops_per_token
from lattice_jax.processes import propagate_failure
from lattice_jax.runtime import CLOSING_TIMEOUT, Stop, within
from lattice_jax.sharding import check_batch, make_mesh, reader_of
from lattice_jax.training.agreement import check_command
from lattice_jax.training.feed import Feed, dispatch_size, fetch
from lattice_jax.training.init_from import complete
from lattice_jax.training.reporter import Reporter, peak_flops
from lattice_jax.training.shared_folder import check_shared
from lattice_jax.training.signals import StopRequest, stop_request
from lattice_jax.training.start import announce, open_data, read_earlier, restore
from lattice_jax.training.state import TrainState, make_optimizer
from lattice_jax.training.step import make_program
from lattice_jax.training.straggler import straggler
from lattice_jax.training.trace import Trace
from lattice_jax.training.workdir import check_run_file, dump_update, evaluated_steps, locked
from lattice_jax.writers import check_writers


def train(
  config: Config, workdir: Path, *, init_from: str | Path | None = None, profile: tuple[int, int] | None = None,
  checkpoints: str | None = None
) -> TrainState:
  """Trains until `train.steps`, from the newest checkpoint in `workdir` if there is one.

  init_from: a pretrained model, or a workdir whose newest parameters and buffers a new run starts with.
  profile: (start, stop): a `jax.profiler` trace of updates start … stop − 1 goes to workdir/profile.
  checkpoints: a folder or bucket for checkpoints; then each host may have a workdir of its own. None: in the workdir.

  Raises:
    ValueError: config, data or workdir do not fit each other; nothing of an earlier run is lost.
    Stop: a signal came (everything is saved), or a loss was not finite (the update is dumped for replay).
  """
  check_command(config, workdir=workdir, init_from=init_from, profile=profile, checkpoints=checkpoints)
  check_writers(config.train.writers)
  with propagate_failure():
    folder = checkpoint_folder(workdir, checkpoints)
    config = complete(config, init_from)
  mesh = make_mesh(config.mesh)
  check_batch(config, mesh)
  with locked(workdir), jax.set_mesh(mesh):
    check_shared(folder)
    run = Run(config, workdir, mesh, init_from=init_from, profile=profile, folder=folder, place=checkpoints)
    try:
      # before this there is nothing to save, and a signal ends the program as usual
      with stop_request(run.acknowledge) as request:
        state = run.loop(request)
    except BaseException as error:
      status = error.status if isinstance(error, Stop) else 1
      within(CLOSING_TIMEOUT, lambda: run.close(status))
      raise
    run.close()
    return state


@dataclass(frozen=True)
class Dispatched:
  """A call of the program whose metrics have not been read yet; `started` is when it was called."""

  feed: Feed
  metrics: Any
  started: float


class Run:
  """One process's part of a training run: the state, with its data, checkpoints and writers."""

  def __init__(
    self, config: Config, workdir: Path, mesh: Mesh, *, init_from: str | Path | None, profile: tuple[int, int] | None,
    folder: epath.Path, place: str | None
  ):
    self.config, self.workdir, self.mesh = config, workdir, mesh
    self.data = open_data(config)
    earlier = read_earlier(config, workdir, self.data, place)
    self.checkpoints = Checkpoints(
      workdir, folder=folder, keep_last=config.train.keep_last, keep_best=config.train.keep_best)
    start = restore(config, workdir, self.checkpoints, self.data, mesh, init_from)
    self.description, self.writers = announce(config, workdir, self.data, start, earlier, mesh, place)
    self.reporter = Reporter(
      config, self.writers, tokens_per_byte=self.data.train.num_targets / self.data.train.num_bytes,
      flops_per_token=flops_per_token(config.model, config.data.seq_len), peak_flops=peak_flops())
    self.trace = Trace(profile, workdir / "profile", self.writers.note)
    self.state, self.step, self.saved_step = start.state, start.step, start.step
    self.evaluated = evaluated_steps(workdir, config.eval.split, start.step)
    self.score: tuple[int, float] | None = None
    self.dispatched: Dispatched | None = None

  def loop(self, request: StopRequest) -> TrainState:
    """Runs the remaining updates, or those up to the next boundary after a signal."""
    config, feed, program = self.config.train, None, None
    host, num_hosts = reader_of(self.mesh)
    batches = train_batches(self.config, self.data.train, start_step=self.step, host=host, num_hosts=num_hosts)
    while True:
      self._report_saved()
      is_last = self.step >= config.steps
      is_eval_due = is_last or (self.step > 0 and config.eval_every > 0 and self.step % config.eval_every == 0)
      is_stopped = self._is_stop_agreed(request, is_eval_due)
      if is_eval_due and not is_stopped and self.step not in self.evaluated:
        is_stopped = not self._evaluate(request)
      is_over = is_stopped or is_last
      # an evaluated step is saved too, otherwise the best one might not be kept
      is_save_due = is_over or is_eval_due or self.step % config.save_every == 0
      if is_save_due and self.step != self.saved_step:
        self._save()
      elif is_over:
        self._flush()
      if is_over:
        self._finish_saving()
      self.trace.start_or_stop(self.step, must_end=is_over, drain=self._log_dispatched)
      if is_over:
        break
      feed = feed or self._fetch(batches)
      if program is None:
        program = self._compile(feed)
        continue  # a signal that came meanwhile need not wait for the first updates
      before, self.dispatched = self.dispatched, self._dispatch(program, feed)
      feed = self._fetch(batches, computing=self.dispatched.metrics) if self.step < config.steps else None
      self._log(before)
    if self.step < config.steps or self.step not in self.evaluated:
      self.writers.preempted()
      raise Stop(
        f"stopped by {request.name} at step {self.step} of {config.steps}; everything is saved, and the same "
        "command continues from here.", 128 + request.number)
    self.writers.note(f"done; next: python eval.py --workdir={self.workdir}")
    return self.state

  def acknowledge(self, signal_name: str) -> None:
    """Says that a signal has come; the next boundary may be far off."""
    self.writers.note(
      f"{signal_name} received: the run saves and stops as soon as its current work is done; a second Ctrl-C ends it "
      "at once")

  def close(self, status: int = 0) -> None:
    """Closes the trace, the writers and the checkpoints' threads, also after a failure. status: see `Writer.close`."""
    self.trace.close()
    self.writers.close(status)
    self.checkpoints.close()

  def _is_stop_agreed(self, request: StopRequest, is_eval_due: bool) -> bool:
    # asking all processes costs a round trip, so it happens about once per report
    may_ask = jax.process_count() == 1 or is_eval_due or (
      self.step % self.config.train.log_every < self.config.train.steps_per_dispatch)
    if not may_ask:
      return False
    is_agreed = request.is_agreed(*self.reporter.pace())
    sentence = straggler(request.figures_PF)
    if sentence is not None:
      self.writers.note(sentence)
    return is_agreed

  def _evaluate(self, request: StopRequest) -> bool:
    """Records the result of every protocol; False if a signal ended the evaluation early."""
    self._log_dispatched()
    try:
      results = evaluate_protocols(
        self.config.model, self.state.params, self.state.buffers, self.data.evaluation, self.data.tokenizer,
        eval=self.config.eval, data=self.config.data, mesh=self.mesh, should_stop=request.is_agreed)
    except EvaluationStopped:
      return False
    for result in results:
      self.reporter.evaluation(self.step, result)
    self.evaluated.add(self.step)
    self.score = self.step, results[0].bits_per_byte
    return True

  def _save(self) -> None:
    self._log_dispatched()
    self._flush()
    self._finish_saving()
    score = self.score[1] if self.score is not None and self.score[0] == self.step else None
    self.checkpoints.save(self.step, self.state, self.description, score=score)
    self.saved_step = self.step

  def _flush(self) -> None:
    """Writes everything to disk; raises ValueError if a file of the run is no longer there."""
    self.writers.flush()
    check_run_file(self.workdir)

  def _finish_saving(self) -> None:
    self.checkpoints.wait()
    self._report_saved()

  def _report_saved(self) -> None:
    step = self.checkpoints.newly_saved()
    if step is not None:
      self.writers.note(f"saved the checkpoint of step {step}")

  def _fetch(self, batches: Any, computing: Any = ()) -> Feed:
    count = dispatch_size(self.config, self.step, self.trace.boundaries)
    return fetch(batches, self.config, self.mesh, first_step=self.step, count=count, computing=computing)

  def _compile(self, feed: Feed) -> Any:
    """The program, compiled for the shapes and shardings at hand, so that no later call can recompile it."""
    start = time.perf_counter()
    with self.writers.busy("compiling"):
      program = make_program(self.config, make_optimizer(self.config), self.mesh, self.state)
      compiled = program.lower(self.state, feed.batches, np.int32(0), np.int32(0)).compile()
    self.writers.note(f"compiled in {time.perf_counter() - start:.1f} s")
    return compiled

  def _dispatch(self, program: Any, feed: Feed) -> Dispatched:
    """Starts the updates of a feed and does not wait for them."""
    started = time.perf_counter()
    self.state, metrics = program(self.state, feed.batches, np.int32(self.step), np.int32(feed.count))
    self.step += feed.count
    return Dispatched(feed, metrics, started)

  def _log_dispatched(self) -> None:
    dispatched, self.dispatched = self.dispatched, None
    self._log(dispatched)

  def _log(self, dispatched: Dispatched | None) -> None:
    """Waits for a call and records its updates; raises Stop if one of them was not finite."""
    if dispatched is None:
      return
    feed = dispatched.feed
    metrics = {name: np.asarray(values)[:feed.count] for name, values in jax.device_get(dispatched.metrics).items()}
    halted = np.flatnonzero(metrics["halted"])
    done = int(halted[0]) if halted.size else feed.count
    if done:
      self.reporter.updates(
        feed.first_step, {name: values[:done] for name, values in metrics.items()}, started=dispatched.started,
        waited=feed.waited)
    if halted.size:
      self._stop_at(feed.first_step + done, feed, {name: float(values[done]) for name, values in metrics.items()})

  def _stop_at(self, step: int, feed: Feed, metrics: dict[str, float]) -> None:
    """Dumps the update with index `step`, which changed nothing, and ends the run."""
    folder = self.workdir / f"nan_step_{step}"
    batch = feed.host_batches[step - feed.first_step]
    flags = dump_update(folder, step=step, state=self.state, batch=batch, metrics=metrics, run=self.description)
    self.checkpoints.wait()  # a save in progress is good and need not be given up because of this
    what = "loss" if not math.isfinite(metrics["loss"]) else "gradient"
    raise Stop(
      f"the {what} of the update after step {step} is not finite (steps {feed.first_step} to "
      f"{feed.first_step + feed.count} ran in one call); batch, step and state before it are in {folder}, and "
      f"the same command with {flags} replays it; train.nan_skips allows such updates to be skipped.", 1)
