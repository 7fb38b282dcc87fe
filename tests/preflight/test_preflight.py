"""Will it fit: an account compiled for simulated devices against bytes counted by hand, the search, the refusals."""

from __future__ import annotations

import dataclasses
import math
import sys
import types

import jax
import pytest

from lattice_jax.aot import targets, train_step
from lattice_jax.chips import CHIPS
from lattice_jax.inspect.traffic import Collective, Traffic
from lattice_jax.preflight import account
from lattice_jax.preflight.account import Account, roofline, take_account, work
from lattice_jax.preflight.held import everything_held
from lattice_jax.preflight.machine import Machine, abstract_mesh, find_machine
from lattice_jax.preflight.report import account_text, fit_sentence, formula_text, search_text
from lattice_jax.preflight.search import FILLED, search, with_rows
from lattice_jax.sharding import make_mesh
from scripts import preflight as script
from tests.training import tiny

V5E = find_machine("v5e:2x4")


def take_on_cpu(monkeypatch, **changes):
  """The account of the tiny decoder on eight simulated devices in the place of eight chips."""
  tiny.use_tiny_decoder(monkeypatch)
  monkeypatch.setattr(Machine, "devices", lambda machine: jax.devices()[:machine.chips])
  config = tiny.make_config(**changes)
  return config, take_account(config, V5E)


def test_an_account_is_what_is_counted_by_hand(monkeypatch):
  """Arguments are the state, the batch and two numbers; what whole parameters need is summed over all chips."""
  config, account = take_on_cpu(monkeypatch, mesh__fsdp=False)
  mesh = abstract_mesh(config, V5E)
  held = sum(one.device_bytes for one in everything_held(config, mesh))
  assert account.memory["argument_bytes"] == held + 2 * 4
  assert account.peak_bytes >= held
  # gradients of the embedding, as rows that are read and as the head, of the gains; statistics; a few numbers
  summed = (2 * 259 * 16 + 2 * 16 + 259) * 4
  assert 0 <= account.traffic.received_bytes - 2 * 7 / 8 * summed < 100
  assert {one.axes for one in account.traffic.collectives} == {("data",)}
  text = account_text(account, utilisation=0.3, price=2)
  assert "It fits" in text and "all-reduce" in text and f"{account.roofline.binding}" in text


def test_the_compile_suite_and_preflight_read_the_same_peak(monkeypatch):
  config, account = take_on_cpu(monkeypatch)
  suite = train_step.compile_step(config, make_mesh(config.mesh, jax.devices()))
  assert account.peak_bytes == suite["peak_bytes"]


def test_the_longest_of_three_times_binds():
  config = tiny.make_config()
  done = work(config)
  chip = V5E.chip
  moved = Traffic((Collective("all-gather", ("data",), 8, chip.ring_rate / 4, 2),), int(chip.memory_rate / 5), 1)
  found = roofline(done, moved, V5E)
  assert (found.interconnect, found.memory) == (pytest.approx(0.5), pytest.approx(0.2))
  assert found.compute == pytest.approx(done.flops / 8 / 197e12)
  assert (found.bound, found.binding) == (0.5, "interconnect")
  repeated = tiny.make_config(model__remat="full")
  assert work(repeated).done_flops == pytest.approx(4 / 3 * done.flops)


def measured(config, machine, *, calls, fixed=2e9, row=None):
  """An account whose peak is affine in the rows of a chip and their length."""
  calls.append(config)
  row = row or {"none": 1e9, "full": 0.3e9}
  rows = config.data.batch / 8 * config.data.update_len / 16
  peak = int(fixed + rows * row[config.model.remat])
  empty = Traffic((), 1, 1)
  fits = peak <= machine.chip.usable_bytes
  return Account(config, machine, {}, work(config), fits, peak, {}, empty if fits else None, 0.0)


def find(**options):
  calls = []
  return search(tiny.make_config(), V5E, lambda *given: measured(*given, calls=calls, **options)), calls


def test_the_largest_that_fits_is_found_from_a_handful_of_points():
  found, calls = find()
  limit = int(FILLED * CHIPS["v5e"].usable_bytes)
  rows = {"none": int((limit - 2e9) / 1e9), "full": int((limit - 2e9) / 0.3e9)}
  for one, remat in zip(found, ("none", "full"), strict=False):
    assert one.account.config.data.batch == 8 * rows[remat]
    assert f"--config.data.batch={8 * rows[remat]}" in one.line() and f"remat={remat}" in one.line()
  longest = found[2].account.config
  assert (longest.data.batch, longest.data.update_len) == (8, 16 * 2 ** int(math.log2(rows["full"])))
  assert len(calls) == 9  # of which three are ever longer rows
  assert f"--config.data.update_len={longest.data.update_len}" in search_text(found)


def test_a_search_whose_first_point_cannot_be_compiled_ends():
  def refuse(config, machine):
    raise ValueError("the batch does not fit")

  with pytest.raises(ValueError, match="the batch does not fit"):
    search(tiny.make_config(), V5E, refuse)


def test_where_not_even_one_row_fits_that_is_said():
  found, _ = find(row={"none": 30e9, "full": 1e9})
  assert found[0].account is None and "not even one row" in search_text(found)
  assert found[1].account.config.model.remat == "full"


def test_what_is_answered_fits_although_the_peak_bends():
  """The compiler packs rows worse than the first two say."""
  calls = []

  def bent(config, machine):
    account = measured(config, machine, calls=calls)
    rows = config.data.batch // 8
    peak = account.peak_bytes + int(0.2e9) * max(0, rows - 3)
    fits = peak <= machine.chip.usable_bytes
    return dataclasses.replace(account, peak_bytes=peak, fits=fits, traffic=Traffic((), 1, 1) if fits else None)

  for one in search(tiny.make_config(), V5E, bent):
    assert one.account.fits and one.account.peak_bytes <= FILLED * CHIPS["v5e"].usable_bytes


def test_rows_that_were_refused_bound_what_is_tried_next():
  """Two points that fit lie on so flat a line that it passes those that did not fit before."""
  def stepped(config, machine):
    rows = config.data.batch // 8
    peak = int(20e9) if rows >= 20 else int(12e9 + 0.1e9 * (rows - 10))
    account = measured(config, machine, calls=[])
    return dataclasses.replace(account, peak_bytes=peak, fits=peak <= machine.chip.usable_bytes)

  found = search(tiny.make_config(data__batch=160), V5E, stepped)
  assert found[0].account.config.data.batch == 8 * 19


def test_a_search_compiles_with_the_least_effort_and_nothing_else_does(monkeypatch, capsys):
  efforts = []

  def searched(config, machine, measure):
    efforts.append(jax.config.jax_exec_time_optimization_effort)
    return []

  monkeypatch.setenv("LATTICE_JAX_BACKEND", "cpu")
  monkeypatch.setattr(script, "ensure_compiler", lambda kind: None)
  monkeypatch.setattr("lattice_jax.preflight.search.search", searched)
  monkeypatch.setattr(account, "take_account", lambda *_: efforts.append(jax.config.jax_exec_time_optimization_effort))
  monkeypatch.setattr("lattice_jax.preflight.report.account_text", lambda *_, **__: "")
  before = jax.config.jax_exec_time_optimization_effort
  try:
    for more in ([], ["--search"]):
      monkeypatch.setattr(sys, "argv", ["preflight.py", "configs/quickstart.py:smoke", "--topology=v5e:2x4", *more])
      script.main()
  finally:
    jax.config.update("jax_exec_time_optimization_effort", before)
  assert efforts == [before, -1.0] and before == 0


@pytest.mark.parametrize(("said", "needed"), [
  ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded", 17.5),
  ("Ran out of memory on HBM, the total memory required for HLO temporaries (16.71G) exceeds available HBM (15.75G)",
   16.71)])
def test_what_has_no_room_on_a_chip_does_not_fit(monkeypatch, said, needed):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(said)

  monkeypatch.setattr(account, "compile_update", refuse)
  _, taken = take_on_cpu(monkeypatch)
  assert not taken.fits and taken.traffic is None and taken.peak_bytes == int(needed * 2**30)


def test_a_kernel_that_the_compiler_refuses_is_one_sentence(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(
      "\nRESOURCE_EXHAUSTED: Ran out of memory in memory space vmem: 20.84M and limit 19.00M.\n\nPages of detail")

  monkeypatch.setattr(account, "compile_update", refuse)
  with pytest.raises(ValueError, match=r"refuses the update of .* of 16 tokens \(RESOURCE.*19\.00M\); ") as raised:
    take_on_cpu(monkeypatch)
  assert "\n" not in str(raised.value)


def test_rows_are_a_multiple_of_what_the_mesh_and_micro_batches_need():
  config = with_rows(tiny.make_config(train__accumulate=2), V5E, 3)
  assert config.data.batch == 3 * 8 * 2
  abstract_mesh(config, V5E)


def test_a_gpu_gets_what_formulas_say_and_no_peak():
  config, h200 = tiny.make_config(), find_machine("h200:8")
  text = formula_text(config, h200, everything_held(config, abstract_mesh(config, h200)), utilisation=0.3)
  assert "Not known is what a program for h200 needs" in text
  with pytest.raises(ValueError, match="compiled here for v5e, v5p, v6e, h100, and not for h200:8"):
    h200.devices()


def test_an_h100_is_described_to_its_compiler_and_what_is_larger_does_not_fit(monkeypatch):
  asked = []

  def describe(**arguments):
    asked.append(arguments)
    return types.SimpleNamespace(devices=jax.devices()[:8])

  monkeypatch.setattr(targets.topologies, "get_topology_desc", describe)
  targets.devices.cache_clear()
  config, h100 = tiny.make_config(), find_machine("h100:8")
  assert h100.chip.compiler == "h100" and len(h100.devices()) == 8
  assert (asked[0]["platform"], asked[0]["topology"]) == ("cuda", "1x1x8")
  targets.devices.cache_clear()
  program = types.SimpleNamespace(as_text=lambda: "")
  monkeypatch.setattr(account, "compile_update", lambda config, mesh: program)
  monkeypatch.setattr(account, "read_traffic", lambda text, shape: Traffic((), 0, 1))
  said = {}
  for share in (0.5, 0.9, 1.1):
    peak = int(share * h100.chip.usable_bytes)
    monkeypatch.setattr(account, "memory_facts", lambda compiled, peak=peak: {
      "peak_bytes": peak, "argument_bytes": 0, "temp_bytes": 0})
    taken = account.take_account(config, h100)
    said[share] = taken.fits, fit_sentence(taken)
  assert said[0.5][0] and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in said[0.5][1]
  assert said[0.9][0] and "JAX takes 75% of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION" in said[0.9][1]
  assert not said[1.1][0] and "It does not fit: the compiler needs 93.48 GB" in said[1.1][1]


@pytest.mark.parametrize(("arguments", "sentence"), [
  (["--topology=v5e:3x5"], "is no size in which v5e is sold; use one of v5e:1x1"),
  (["--topology=v5e:2x4", "--config.mesh.model=3"], "do not fit 8 devices; mesh.seq × mesh.model must divide"),
  (["--topology=v5e:2x4", "--config.mesh.data=2"], "is not the number of devices, 8; use mesh.data=-1, or 8"),
  (["--topology=v5e:2x4", "--config.data.batch=12"], "use a multiple of 8, such as data.batch=8"),
  (["--topology=v5e:2x4", "--config.modle.dim=12"], "modle"),
  (["--topology=h200:8", "--search"], "and not for h200:8"),
  (["--topology=v5e:2x4", "--search", "--shardings"], "ask one at a time")])
def test_what_cannot_be_is_refused_before_anything_is_compiled(monkeypatch, arguments, sentence):
  monkeypatch.setenv("LATTICE_JAX_BACKEND", "cpu")
  monkeypatch.setattr(script, "ensure_compiler", lambda kind: pytest.fail("looked for a compiler"))
  monkeypatch.setattr(sys, "argv", ["preflight.py", "configs/quickstart.py:smoke", *arguments])
  with pytest.raises(ValueError, match=sentence):
    script.main()


def test_shardings_are_printed_with_what_whole_axes_cost(monkeypatch, capsys):
  monkeypatch.setenv("LATTICE_JAX_BACKEND", "cpu")
  monkeypatch.setattr(sys, "argv", [
    "preflight.py", "configs/quickstart.py:smoke", "--topology=v5e:2x4", "--shardings", "--config.mesh.model=2"])
  script.main()
  out = capsys.readouterr().out
  assert "| params/embedding |" in out and "| batch/tokens_BT |" in out and "cannot be split over mesh.model=2" in out


def test_without_the_compiler_the_command_that_brings_it_is_named(monkeypatch):
  from lattice_jax.aot import environment

  monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(environment, "_ROOT", environment._ROOT / "tests")
  with pytest.raises(ValueError, match=r"bash scripts/aot\.sh environment tpu"):
    environment.ensure_compiler("tpu")
