"""The table of law L14: what it says of a comparison, and of one whose shards have too few tokens."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from scripts import check_sequence
from tests.contract import meshes, sequence_programs
from tests.contract.tolerances import assert_close, recorded

PROGRAM = """HloModule jit_f, num_partitions=2

ENTRY %main (a: f32[LENGTH,8]) -> f32[LENGTH,8] {
  %a = f32[LENGTH,8]{1,0} parameter(0)
  ROOT %moved = f32[LENGTH,8]{1,0} collective-permute(%a), channel_id=1, source_target_pairs={{0,1}}
}
"""


def test_records_hold_the_largest_difference_of_a_kind():
  want = np.ones(8, np.float32)
  with recorded() as largest:
    for off in (1e-7, 3e-6, 1e-6):
      assert_close("L14", "a layer", "output", want + np.float32(off), want)
    assert_close("L14", "a layer", "gradient.input", want, want)
  assert largest["output"] == pytest.approx(3e-6, rel=0.1) and largest["gradient"] == 0
  assert_close("L14", "a layer", "output", want + np.float32(5e-6), want)
  assert largest["output"] == pytest.approx(3e-6, rel=0.1)


def test_a_line_for_every_memory_and_number_of_devices(monkeypatch, tmp_path, capsys):
  def agree(row, shards, *, has_room):
    if row.name == "window" and shards == 4:
      return  # its shards have too few tokens
    for quantity, off in (("output", 2e-6), ("state", 1e-6), ("gradient.parameters", 5e-5)):
      assert_close("L14", row.name, quantity, np.float32(1 + off), np.float32(1))

  monkeypatch.setattr(meshes, "sequence_shards_agree", agree)
  monkeypatch.setattr(
    sequence_programs, "compiled_text", lambda memory, length, shards: PROGRAM.replace("LENGTH", str(length)))
  monkeypatch.setattr(check_sequence, "simulate_devices", lambda count: None)
  monkeypatch.setattr(sys, "argv", ["check_sequence.py", f"--out={tmp_path}", "--memories=gru,window,attention"])
  assert check_sequence.main() == 0
  page = (tmp_path / "README.md").read_text()
  assert "| gru | relay | 2 | 2.0e-06 | 9.5e-07 | 5.0e-05 | 1,024 | 2,048 |" in page
  assert "| window | halo | 4 | too few tokens | too few tokens | too few tokens | 1,024 | 2,048 |" in page
  assert "--memories=gru,window,attention --shards=2,4`" in page
  assert page.count("| attention, with a cache |") == page.count("| attention |") == 2
  assert "| attention, with a cache | gather | 2 | 2.0e-06 | 9.5e-07 | 5.0e-05 |  |  |" in page
