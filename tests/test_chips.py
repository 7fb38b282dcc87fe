"""Facts of accelerators, and the sizes that are sold."""

from __future__ import annotations

import pytest

from lattice_jax.chips import CHIPS, chip_of_kind, num_chips, parse_topology


@pytest.mark.parametrize(("kind", "name"), [
  ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"), ("TPU v4", "v4"),
  ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100")])
def test_a_chip_is_known_by_the_names_that_jax_has_for_it(kind, name):
  assert chip_of_kind(kind).name == name


@pytest.mark.parametrize("kind", ["cpu", "TPU v3", "TPU7x"])
def test_other_devices_are_no_chip_of_ours(kind):
  assert chip_of_kind(kind) is None


def test_a_topology_is_a_chip_and_a_size():
  chip, size = parse_topology("v5p:4x4x4")
  assert (chip.name, num_chips(size)) == ("v5p", 64)
  assert num_chips(parse_topology("h100:8")[1]) == 8


@pytest.mark.parametrize(("text", "sentence"), [
  ("v5e:3x5", "is no size in which v5e is sold; use one of v5e:1x1, v5e:2x2"),
  ("v5e", "is no size in which v5e is sold"), ("v5pe:2x2", "Did you mean 'v5p'"), ("", "must be CHIP:SIZE")])
def test_other_topologies_are_refused(text, sentence):
  with pytest.raises(ValueError, match=sentence):
    parse_topology(text)


def test_a_ring_uses_two_ports_of_a_torus_and_all_links_of_a_gpu():
  assert CHIPS["v5e"].ring_rate == 100e9
  assert CHIPS["h100"].ring_rate == 450e9
