"""How large memories are, as configs say it of them."""

from __future__ import annotations

import dataclasses

import pytest

from configs import (
  ablation_lattice,
  ablation_online_vq,
  delta_enwik8,
  delta_imagenet64,
  delta_pg19,
  lattice_enwik8,
  recall,
  recurrences,
)
from lattice_jax.config_checks import parse_config
from lattice_jax.models.state_size import StateBytes, describe_state, state_bytes, state_numbers
from tests import counting

FAITHFUL = [f"{name}_faithful" for name in delta_enwik8.RECURRENCES]


def memory_of(get_config, variant):
  """Numbers of a layer's memory, without convolutions and what an open mini-batch adds."""
  config = parse_config(get_config(variant))
  (parts,) = state_numbers(config.model, config.data.seq_len).values()
  return sum(numbers for part, numbers in parts.items() if part not in ("tail", "total"))


@pytest.mark.parametrize(("get_config", "lattice", "ttt"), [
  (ablation_lattice.get_config, 4096, 2112), (delta_enwik8.get_config, 49152, 49920),
  (delta_pg19.get_config, 147456, 148992), (delta_imagenet64.get_config, 65536, 66560),
  (recall.get_config, 8192, 8320)], ids=["ablation", "enwik8", "pg19", "imagenet64", "recall"])
def test_recurrences_have_the_states_that_are_claimed(get_config, lattice, ttt):
  names = set(delta_enwik8.RECURRENCES) - {"gated_slots", "ttt_linear"}
  assert {memory_of(get_config, name) for name in names} == {lattice}
  assert memory_of(get_config, "ttt_linear") == ttt
  # whole slots
  assert 0.98 * lattice < memory_of(get_config, "gated_slots") <= lattice


def test_published_layers_have_the_states_that_are_claimed():
  states = {name: memory_of(ablation_lattice.get_config, name) for name in FAITHFUL}
  wide = {"linear_faithful", "ttt_linear_faithful"}
  assert states == {name: 4224 if name in wide else 4096 for name in FAITHFUL}


@pytest.mark.parametrize(("base", "get_config", "variants", "within"), [
  (ablation_lattice.get_config("base"), ablation_lattice.get_config,
   ("ttt_linear", "gla", "slots192", *FAITHFUL), 1e-3),
  (lattice_enwik8.get_config(), delta_enwik8.get_config, ("linear", "kimi_delta", "ttt_linear"), 2e-3),
  (ablation_online_vq.get_config("lattice"), ablation_online_vq.get_config, ("hybrid", "vq"), 1e-3)],
  ids=["ablation", "enwik8", "online_vq"])
def test_parameters_are_as_equal_as_is_claimed(base, get_config, variants, within):
  def parameters(config):
    return counting.parameters(parse_config(config).model)

  assert {name: parameters(get_config(name)) for name in variants} == pytest.approx(
    dict.fromkeys(variants, parameters(base)), rel=within)


@pytest.mark.parametrize(("task", "budget"), [("", 5056), ("recall,", 2128)], ids=["text", "recall"])
def test_online_vq_is_compared_at_equal_state(task, budget):
  for name in ("lattice", "online_vq", "hybrid", "vq"):
    config = parse_config(ablation_online_vq.get_config(task + name))
    layers = [sum(parts.values()) for parts in state_numbers(config.model, config.data.seq_len).values()]
    assert 0.97 * budget < sum(layers) / len(layers) <= budget, name


def test_a_mixed_pattern_names_each_memory_and_a_cache_of_all_tokens_its_room():
  hybrid = parse_config(ablation_lattice.get_config("hybrid")).model
  assert describe_state(hybrid, 512) == "window: key 8,192 + value 4,096; lattice: unit 4,096 + tail 960"
  softmax = parse_config(ablation_lattice.get_config("softmax")).model
  assert describe_state(softmax, 512) == "key 65,536 + value 32,768"


@pytest.mark.parametrize(("variant", "memory", "tail"), [
  # 2 heads of 64 × 32 numbers and the document's id; 3 inputs of convolutions over 2 heads of 64 + 64 + 32 numbers
  ("base", 4 * (2 * 64 * 32 + 1), 4 * 3 * 2 * 160),
  # weights and, of the open mini-batch, sums of 33 × 32 numbers, document and number of tokens; 32 + 32 + 32 numbers
  ("ttt_linear", 4 * (2 * 2 * 33 * 32 + 2), 4 * 3 * 2 * 96),
  # the chunk's own slots beside those at its start, and how full it is
  ("live16", 4 * (2 * 2 * 64 * 32 + 2), 4 * 3 * 2 * 160)])
def test_bytes_between_tokens_are_those_counted_by_hand(variant, memory, tail):
  config = parse_config(ablation_lattice.get_config(variant))
  assert state_bytes(config.model, config.data.seq_len) == StateBytes(memory, tail)


def test_a_narrow_dtype_narrows_convolutions_alone_and_layers_are_averaged():
  model = parse_config(ablation_lattice.get_config("base")).model
  assert state_bytes(dataclasses.replace(model, dtype="bfloat16"), 0) == StateBytes(16_388, 2 * 960)
  hybrid = parse_config(ablation_lattice.get_config("hybrid")).model
  window, lattice = (state_bytes(dataclasses.replace(hybrid, pattern=(name,)), 0) for name in hybrid.pattern)
  assert state_bytes(hybrid, 0) == StateBytes((window.memory + lattice.memory) // 2, lattice.tail // 2)
  assert window.text() == f"{window.memory:,}" and lattice.text() == "16,388 + tail 3,840"


def test_recurrences_are_compared_at_equal_bytes():
  configs = {name: parse_config(recurrences.get_config(name)) for name in recurrences.MEMORIES}
  found = {name: state_bytes(config.model, 0).memory for name, config in configs.items()}
  # 66 × 32 numbers a head and the document's id; TTT-Linear has to know how full its mini-batch is too
  assert found == {name: 4 * (2 * 66 * 32 + 1) + 4 * (name == "ttt_linear") for name in recurrences.MEMORIES}
  sizes = [counting.parameters(config.model) for config in configs.values()]
  assert max(sizes) / min(sizes) < 1.003
