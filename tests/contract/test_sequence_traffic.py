"""What devices that share the tokens of a row hand to one another, counted in the compiled program."""

from __future__ import annotations

import math

import pytest

from lattice_jax.memories.memory import EXCHANGES
from lattice_jax.memories.registry import FOLDERS, find_memory
from tests.contract.decoder_runs import buffer_shapes
from tests.contract.sequence_programs import BATCH, BY_NAME, compiled_text, moved_bytes
from tests.thorough import further

SHORT = 32


@pytest.mark.parametrize("name", [
  "gated_deltanet", "lattice", "window", *further("vq", "linear", "gru", "ttt_linear", "online_vq", "gated_slots")])
def test_states_and_windows_do_not_grow_with_the_tokens(name):
  assert moved_bytes(name, 2 * SHORT) == moved_bytes(name, SHORT)


def test_windows_are_linear_in_the_window():
  six, ten, fourteen = (moved_bytes("window", SHORT, window) for window in (6, 10, 14))
  assert ten - six == fourteen - ten > 0


def test_keys_that_are_gathered_are_linear_in_the_tokens():
  one, two, three = (moved_bytes("attention", times * SHORT) for times in (1, 2, 3))
  assert three - two == two - one > 0


def test_anchors_are_gathered_and_not_the_tokens_around_them():
  """In a round an eighth of the tokens at most; the program says it up to three times, with the gradients."""
  def growth(name):
    return moved_bytes(name, 4 * SHORT) - moved_bytes(name, 2 * SHORT)

  assert 0 < 4 * growth("anchor") < growth("attention")


def test_a_ring_holds_the_keys_of_few_devices_at_a_time():
  """All keys, or values, of the rows are larger than any array of a ring; to gather them makes one."""
  length, shards = 2 * SHORT, 4  # so few that scores are smaller
  model = BY_NAME["attention"].model.attention
  fewest = BATCH * length * model.kv_heads * min(model.key_dim, model.value_dim)

  def largest(exchange):
    return max(math.prod(sizes) for _, sizes in buffer_shapes(compiled_text("attention", length, 0, exchange, shards)))

  assert largest("gather") >= fewest > largest("ring")


def test_every_memory_says_what_it_hands_on():
  assert {find_memory(name).exchange for name in FOLDERS} <= set(EXCHANGES)
