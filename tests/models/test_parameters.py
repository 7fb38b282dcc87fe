"""Counts by formula against counts by hand, and against the published size."""

import pytest

from configs import vq_enwik8
from lattice_jax.config import ModelConfig
from lattice_jax.config_checks import parse_config
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.lattice.config import LatticeConfig
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.decoder import abstract_variables
from lattice_jax.models.parameters import count_parameters, flops_per_token
from tests.memories.sizes import section_with


def test_published_enwik8_model_has_its_published_size():
  config = parse_config(vq_enwik8.get_config())
  variables = abstract_variables(config.model)
  # parameters and codebook statistics together; the paper's code counts 187.6M
  assert count_parameters(variables) == pytest.approx(187.6e6, rel=2e-3)


def test_flops_of_softmax_attention_by_hand():
  attention = AttentionConfig(heads=2, kv_heads=1, key_dim=8, value_dim=4)
  config = ModelConfig(vocab=10, dim=16, layers=3, pattern=("attention",), block="mlp", mlp_dim=32, attention=attention)
  projections = 16 * (2 * 8 + 8 + 4) + 2 * 4 * 16
  scores_and_reads = 2 * (101 / 2) * (8 + 4)
  assert flops_per_token(config, seq_len=100) == 6 * (3 * (projections + scores_and_reads + 3 * 16 * 32) + 16 * 10)


def test_flops_of_transformer_vq_do_not_grow_with_the_length():
  config = ModelConfig(vq=VQConfig(block_len=8, codes=16))
  assert flops_per_token(config, 1_000) == flops_per_token(config, 100_000)
  softmax = ModelConfig(pattern=("attention",))
  assert flops_per_token(softmax, 100_000) > 10 * flops_per_token(softmax, 1_000)


def test_flops_of_lattice_by_hand():
  lattice = LatticeConfig(heads=2, slots=8, value_dim=4, conv_width=3)
  config = ModelConfig(vocab=10, dim=16, layers=3, pattern=("lattice",), block="gau", lattice=lattice)
  projections = 16 * 2 * (8 + 8 + 4 + 4 + 4 + 1)  # q, k, v, gate, out, step
  convolutions = 3 * 2 * (8 + 8 + 4)
  assert flops_per_token(config, seq_len=100) == 6 * (3 * (projections + convolutions + 5 * 2 * 8 * 4) + 16 * 10)


@pytest.mark.parametrize(("memory", "gates", "state"), [
  ("linear", 0, 2 * 8 * 4), ("gated_deltanet", 2 * 16, 3 * 8 * 4), ("gated_slots", 5 * 16, 2 * 5 * (8 + 4)),
  # Its projections are as wide as values.
  ("gru", -(16 + 3) * 2 * (8 - 4), 6 * 4),
  # Half of the projection to 4 numbers is a head's; what makes the output's gate stands in place of 16 × 4.
  ("kimi_delta", 16 + 4 * (16 // 2 + 8) + 4 * (16 // 2 + 4) - 16 * 4, 3 * 8 * 4)])
def test_flops_of_recurrences_by_hand(memory, gates, state):
  section = section_with(memory, heads=2, key_dim=8, value_dim=4, slots=5, conv_width=3)
  config = ModelConfig(vocab=10, dim=16, layers=3, pattern=(memory,), block="gau", **section)
  head = 16 * (8 + 8 + 4 + 4 + 4) + 3 * (8 + 8 + 4) + gates + state
  assert flops_per_token(config, seq_len=100) == 6 * (3 * 2 * head + 16 * 10)
