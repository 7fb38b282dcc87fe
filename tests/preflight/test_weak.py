"""Weak scaling: bytes that a chip receives as chips become more, and what is said where they are too many."""

from __future__ import annotations

import dataclasses
import sys

import jax
import pytest

from lattice_jax.inspect.traffic import Collective, Traffic
from lattice_jax.preflight import stored, weak, weak_page
from lattice_jax.preflight.account import Account, take_account, work
from lattice_jax.preflight.machine import Machine, find_machine
from scripts import preflight as script
from tests.training import tiny


def row_of(ones, *, mesh=None, chips="v5e:2x4", memory_bytes=0, **changes):
  """A row with these collectives."""
  machine = find_machine(chips)
  mesh = mesh or {"data": machine.chips, "seq": 1, "model": 1}
  config = tiny.make_config(data__batch=mesh["data"], mesh__seq=mesh["seq"], mesh__model=mesh["model"], **changes)
  moved = Traffic(tuple(ones), memory_bytes, 1)
  return stored.make_row("tiny", Account(config, machine, mesh, work(config), True, 1, {}, moved, 0.0))


def test_sums_of_gradients_grow_as_a_ring_says_and_rows_of_a_chip_stay(monkeypatch, tmp_path):
  """On one chip nothing is received; on n a sum of g bytes brings 2 g (n − 1) / n."""
  tiny.use_tiny_decoder(monkeypatch)
  monkeypatch.setattr(Machine, "devices", lambda machine: jax.devices()[:machine.chips])
  machines = weak.machines_of("v5e", (8, 1, 4))
  assert [machine.name for machine in machines] == ["v5e:1x1", "v5e:2x2", "v5e:2x4"]
  config, rows = tiny.make_config(mesh__fsdp=False), []
  for machine in machines:
    point = weak.with_rows_of(config, machines[-1], machine)
    assert point.data.batch == config.data.batch // 8 * machine.chips
    rows.append(stored.stored_row(tmp_path / "rows", "tiny", point, machine, take_account))
  received = [row.traffic.received_bytes for row in rows]
  summed = (2 * 259 * 16 + 2 * 16 + 259) * 4  # as in test_preflight
  assert received[0] == 0
  for bytes_, n in zip(received[1:], (4, 8), strict=True):
    assert 0 <= bytes_ - 2 * (n - 1) / n * summed < 100
  weak_page.write_page(tmp_path)
  text = (tmp_path / "README.md").read_text()
  assert "## tiny on v5e" in text and "parameters whole on every chip" in text
  assert (tmp_path / "tiny_v5e.png").read_bytes()[:4] == b"\x89PNG"
  assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith(("| 1 ", "| 4 ", "| 8 "))] == [
    "| 1", "| 4", "| 8"]


def test_the_share_is_of_the_exchange_and_what_it_waits_for():
  row = row_of([Collective("all-reduce", ("data",), 8, 1e11, 1)], memory_bytes=3 * 819 * 10**9)
  assert row.roofline.interconnect == pytest.approx(1) and row.roofline.memory == pytest.approx(3)
  assert weak.exchange_share(row) == pytest.approx(0.25)
  # a quarter more would be four times as long as the exchange
  assert "About 2 rows a chip in place of 1 (data.batch=16)" in weak.advice(row)


def test_what_is_advised_follows_from_what_moves_most():
  gather, total = Collective("all-gather", ("data",), 8, 2e11, 1), Collective("all-reduce", ("data",), 8, 1e11, 1)
  split = row_of([gather, total])
  assert f"at most {8e-9 * split.parameters * 7 / 8:.2g} GB in place of 300.00" in weak.advice(split)
  assert split.whole_bytes > 3 * 4 * split.parameters  # AdamW, and the memory
  assert "fsdp" not in weak.advice(row_of([gather, total], mesh__fsdp=False))
  assert "fsdp" not in weak.advice(dataclasses.replace(split, parameters=10**12))
  assert "fsdp" not in weak.advice(dataclasses.replace(split, whole_bytes=17 * 10**9))
  layers = Collective("all-reduce", ("model",), 4, 4e11, 1)
  assert "mesh.model=2 in place of 4" in weak.advice(row_of([gather, layers], mesh={"data": 2, "seq": 1, "model": 4}))
  tokens = Collective("collective-permute", ("seq",), 4, 4e11, 1)
  assert "mesh.seq=2 in place of 4" in weak.advice(row_of([gather, tokens], mesh={"data": 2, "seq": 4, "model": 1}))
  assert not weak.advice(row_of([gather], memory_bytes=10**15))


@pytest.mark.parametrize(("arguments", "sentence"), [
  (["configs/quickstart.py:smoke", "--topology=v5e", "--weak=1,3", "--out=x"], "not sold as 3 chips; choose from 1, 4"),
  (["configs/quickstart.py:smoke", "--topology=v7", "--weak=1", "--out=x"], "must be CHIP:SIZE with a chip of"),
  (["configs/quickstart.py:smoke", "--topology=v5e", "--weak=1,256", "--out=x"], "use a multiple of 256"),
  (["configs/quickstart.py:smoke", "--topology=a100", "--weak=1,8", "--out=x"], "and not for a100:1"),
  (["configs/quickstart.py:smoke", "--topology=v5e", "--weak=1"], "name it with --out"),
  (["configs/quickstart.py:smoke", "--topology=v5e:2x2", "--out=x"], "--out is for --weak and --table"),
  (["configs/quickstart.py:smoke", "--table", "--out=x"], "has its own configs and topologies"),
  (["--table", "--out=x", "--search"], "--search and --table are two questions"),
  (["--table", "--out=x", "--only=no_such"], "--only=no_such is in none of vq_enwik8@v5e:8x16"),
  (["configs/quickstart.py:smoke", "--topology=v5e:2x2", "--only=vq"], "--only chooses rows of --table"),
  (["--search"], "name a CONFIG and --topology")])
def test_what_cannot_be_is_refused(monkeypatch, arguments, sentence):
  monkeypatch.setenv("LATTICE_JAX_BACKEND", "cpu")
  monkeypatch.setattr(script, "ensure_compiler", lambda kind: None)
  monkeypatch.setattr(sys, "argv", ["preflight.py", *arguments])
  with pytest.raises(ValueError, match=sentence):
    script.main()
