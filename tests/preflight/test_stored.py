"""Accounts as files: what comes back, when one is taken anew, the page of many, and which machine a row gets."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lattice_jax.inspect.traffic import Collective, Traffic
from lattice_jax.preflight import stored, table
from lattice_jax.preflight.account import Account, work
from lattice_jax.preflight.machine import find_machine
from lattice_jax.source_code import tree_sources
from tests.training import tiny

V5E = find_machine("v5e:2x4")
MOVED = Traffic((
  Collective("all-gather", ("data",), 8, 100.0, 2), Collective("all-reduce", ("data",), 8, 40.0, 1),
  Collective("all-gather", ("data",), 8, 400.0, 1)), 5_000_000, 1)


def account_of(config, machine, *, fits=True, traffic=MOVED):
  return Account(
    config, machine, {"data": machine.chips, "seq": 1, "model": 1}, work(config), fits, 3_000_000_000,
    {"peak_bytes": 3_000_000_000} if fits else {}, traffic if fits else None, 1.5)


def test_a_row_comes_back_as_it_was_written(tmp_path):
  for fits in (True, False):
    row = stored.make_row("tiny:a,b", account_of(tiny.make_config(), V5E, fits=fits))
    stored.write_row(tmp_path / "row.json", row)
    assert stored.read_row(tmp_path / "row.json") == row
    assert row.is_current and (row.roofline is None) != fits


def test_a_row_is_of_the_code_that_its_memories_and_its_chips_run(monkeypatch):
  def digests():
    stored.code_of_programs.cache_clear()
    return [stored.code_of_programs(*of) for of in ((("lattice",), True), (("lattice",), False), (("vq",), True))]

  sources = tree_sources()
  before = digests()
  for path, changed in {
    "lattice_jax/memories/lattice/scan.py": [True, True, False],
    "lattice_jax/memories/vq/layer.py": [False, False, True],
    "pallas_kernels/lattice_hopper.py": [False, True, False],
    "pallas_kernels/lattice_tpu.py": [True, True, False],
    "lattice_jax/models/decoder.py": [True] * 3, "lattice_jax/sharding.py": [True] * 3,
    "lattice_jax/checkpoint.py": [False] * 3}.items():
    monkeypatch.setattr(stored, "tree_sources", lambda path=path: sources | {path: sources[path] + b"new = 1\n"})
    assert [one != other for one, other in zip(digests(), before, strict=True)] == changed, path
  monkeypatch.undo()
  assert digests() == before


def test_collectives_of_a_kind_become_one_with_the_same_bytes():
  together = stored.summed(MOVED)
  assert together.received_bytes == MOVED.received_bytes == 640
  assert [(one.name, one.runs) for one in together.collectives] == [("all-gather", 3), ("all-reduce", 1)]


def test_a_row_is_taken_anew_only_for_another_program(tmp_path, monkeypatch):
  taken = []

  def take(config, machine):
    taken.append(config)
    return account_of(config, machine)

  config = tiny.make_config()
  unused = dataclasses.replace(config.model.lattice, slots=config.model.lattice.slots + 1)  # of no layer
  others = (
    tiny.make_config(), dataclasses.replace(tiny.make_config(train__log_every=7), name="other"),
    tiny.make_config(model__lattice=unused), tiny.make_config(model__dim=32))
  for one in (config, *others):
    stored.stored_row(tmp_path, "tiny", one, V5E, take)
  assert taken == [config, others[-1]]
  stored.stored_row(tmp_path, "tiny", others[-1], find_machine("v5e:2x2"), take)
  assert len(taken) == 3 and len(list(tmp_path.iterdir())) == 2
  monkeypatch.setattr(stored, "code_of_programs", lambda memories, is_tpu: "changed")
  row = stored.stored_row(tmp_path, "tiny", others[-1], V5E, take)
  assert len(taken) == 4 and row.code == "changed"


def test_a_file_that_is_no_row_is_named(tmp_path):
  (tmp_path / "row.json").write_text('{"name": "tiny"}')
  with pytest.raises(ValueError, match=r"row\.json is not a row .* delete it"):
    stored.read_row(tmp_path / "row.json")


def test_a_config_gets_the_largest_machine_that_its_rows_divide_over():
  config = tiny.make_config(data__batch=16)
  assert table.largest_machine(config, "v5e:16x16").name == "v5e:4x4"
  assert table.largest_machine(config, "v5e:2x2").name == "v5e:2x2"
  split = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, model=4))
  assert table.largest_machine(split, "v5p:4x4x4").name == "v5p:4x4x4"
  with pytest.raises(ValueError, match="is not divisible by the 4 devices"):
    table.largest_machine(tiny.make_config(data__batch=3), "v5p:2x2x1")


def test_the_page_holds_each_row_what_is_missing_and_the_suite(tmp_path):
  config = tiny.make_config()
  row = stored.make_row("tiny", account_of(config, V5E))
  refused = stored.make_row("large", account_of(config, V5E, fits=False))
  stale = dataclasses.replace(row, name="older", code="before", compiler="jax 0, libtpu 0")
  record = {"case": "tiny", "target": "v5e:2x4", "mesh": row.mesh, "batch": row.batch, "update_len": row.update_len,
            "peak_bytes": 2_900_000_000}
  (tmp_path / "step.json").write_text(json.dumps({"records": [record, record | {"case": "another"}]}))
  text = table.page(
    [row, refused, stale], {"long": ["v5e:16x16", "v6e:16x16"], "done": []}, tmp_path, command="go",
    utilisation=0.5, price=3)
  assert "goes on: long on v5e:16x16, v6e:16x16." in text and "older on v5e:2x4" in text
  assert f"that are not there ({stored.compiler()} and jax 0, libtpu 0);" in text
  assert "| tiny | v5e:2x4 | 3,000,000,000 | 2,900,000,000 | +3.4% |" in text
  cells = next(line for line in text.splitlines() if line.startswith("| tiny | v5e:2x4 | data 8 |")).split(" | ")
  hours = row.roofline.bound / 0.5 * row.steps / 3600
  assert cells[-2:] == [f"{8 * hours:,.0f}", f"{24 * hours:,.0f} |"] and row.roofline.binding in cells
  assert "passes 20%" not in text
  waiting = dataclasses.replace(row, traffic=Traffic((Collective("all-reduce", ("data",), 8, 1e12, 1),), 5000, 1))
  text = table.page([waiting], {}, tmp_path, command="go", utilisation=0.5, price=3)
  assert "- tiny on v5e:2x4: On 8 chips the exchange is 100% of an update" in text
  text = table.page([refused], {}, tmp_path, command="go", utilisation=0.5, price=3)
  assert "| large | v5e:2x4 | data 8 |" in text and "does not fit" in text
