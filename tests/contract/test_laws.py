"""The laws of the memory-layer contract, for every memory of the registry. `laws.py` says what each law asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lattice_jax.memories.registry import FOLDERS, find_memory
from tests.contract import laws, meshes
from tests.contract.memories import ROWS, Row
from tests.thorough import further


def _mark(row: Row, *values: object, name: str = "", is_further: bool = False) -> object:
  """One row's tests share compiled functions: they belong on one worker."""
  marks = [pytest.mark.xdist_group(row.name), *([pytest.mark.thorough] if is_further else [])]
  return pytest.param(row, *values, id="-".join([row.name, *([name] if values else [])]), marks=marks)


def _mark_variant(row: Row, variant: str) -> object:
  """Beyond a row's own sizes and its first variants they are further cases."""
  always = ("", *(name for name, _ in row.variants[:row.always]))
  return _mark(row, variant, name=variant, is_further=variant not in always)


each_row = pytest.mark.parametrize("row", [_mark(row) for row in ROWS])
each_form = pytest.mark.parametrize(
  ("row", "variant"),
  [_mark_variant(row, variant) for row in ROWS for variant in ("", *(name for name, _ in row.variants))])
each_variant = pytest.mark.parametrize(
  ("row", "variant"), [_mark_variant(row, variant) for row in ROWS for variant, _ in row.variants])
each_same_form = pytest.mark.parametrize(
  ("row", "name", "variant"),
  [_mark(row, name, variant, name=name, is_further=True) for row in ROWS for name, variant, _ in row.forms])
linear_rows = pytest.mark.parametrize(
  ("row", "dtype"),
  [_mark(row, dtype, name=dtype, is_further=dtype == "bfloat16")
   for row in ROWS if row.constant_input for dtype in ("float32", "bfloat16")])


def test_every_memory_of_the_registry_has_a_row():
  tested = {name for name in FOLDERS if any(row.memory is find_memory(name) for row in ROWS)}
  missing = sorted(set(FOLDERS) - tested)
  assert not missing, f"add a row to tests/contract/memories.py for: {', '.join(missing)}"


@each_row
def test_L1_any_split_gives_the_same(row):
  laws.split_invariant(row)


@pytest.mark.thorough
@each_row
def test_L2_token_by_token_equals_the_sequence(row):
  laws.token_by_token(row)


@each_form
def test_L3_sees_what_it_may_and_nothing_else(row, variant):
  laws.causal(row, variant)


@each_row
def test_L4_past_has_no_influence_after_reset(row):
  laws.past_forgotten_after_reset(row)


@each_row
def test_L4_id_that_comes_back_is_a_new_document(row):
  laws.returning_id_is_new(row)


@each_row
def test_L5_invalid_tokens_change_nothing(row):
  laws.padding_ignored(row)


@each_row
def test_L6_rows_are_independent(row):
  laws.rows_independent(row)


@each_row
def test_L7_state_is_constant_and_nothing_compiles_twice(row):
  laws.state_constant(row)


@each_form
def test_L8_outputs_state_and_gradients_match_the_reference(row, variant):
  laws.matches_reference(row, variant)


@each_same_form
def test_L8_other_forms_give_the_same(row, name, variant):
  laws.matches_reference(row, name, of=variant)


@each_row
def test_L9_bfloat16_is_near_and_sums_are_fp32(row):
  laws.bfloat16_accurate(row)


@pytest.mark.thorough  # L15 splits rows over devices too
@each_row
def test_L10_eight_devices_equal_one(row):
  meshes.devices_agree(row)


@each_row
@pytest.mark.parametrize("shards", [4, *further(2)])
def test_L14_tokens_on_several_devices_equal_one_device(row, shards):
  meshes.sequence_shards_agree(row, shards)


@pytest.mark.thorough
@each_variant
def test_L14_holds_for_other_sizes_and_rules(row, variant):
  meshes.sequence_shards_agree(row, 2, variant)


@pytest.mark.parametrize("row", [
  _mark(row, is_further=row.name != "attention") for row in ROWS if row.memory.needs_token_cache])
def test_L14_without_a_cache_tokens_on_several_devices_equal_one_device(row):
  meshes.sequence_shards_agree(row, 4, has_room=False)


@pytest.mark.thorough
@pytest.mark.parametrize("variant", [name for row in ROWS if row.name == "anchor" for name, _ in row.variants])
def test_L14_anchors_of_other_rules_are_gathered_too(variant):
  (row,) = (row for row in ROWS if row.name == "anchor")
  meshes.sequence_shards_agree(row, 4, variant, has_room=False)


@each_row
@pytest.mark.parametrize(("data", "model"), [(2, 2), *further((4, 1), (1, 2))], ids=["both", "fsdp", "tensor"])
def test_L15_split_parameters_equal_whole_ones(row, data, model):
  meshes.split_parameters_agree(row, data, model)


@pytest.mark.parametrize("shards", [4, *further(2)])
def test_L14_keys_that_go_round_give_what_one_device_gives(shards):
  (row,) = (row for row in ROWS if row.name == "attention")
  meshes.sequence_shards_agree(row, shards, "ring", has_room=False)


@pytest.mark.parametrize("shards", [4, *further(2)])
def test_L14_blocks_that_say_which_gradients_keys_get_are_those_of_one_device(shards):
  """They are counted from a call's first token; shards of whole blocks count the same ones."""
  (row,) = (row for row in ROWS if row.name == "vq")
  vq = replace(row.model.vq, block_len=3, key_gradient="blocks")
  meshes.sequence_shards_agree(replace(row, name="vq-blocks", model=replace(row.model, vq=vq)), shards)


@each_variant
def test_L11_awkward_sizes_keep_token_by_token_equal(row, variant):
  laws.awkward_sizes(row, variant)


@linear_rows
def test_L12_long_constant_input_stays_finite_and_counted(row, dtype):
  laws.long_constant_input(row, dtype)


@each_row
def test_L13_packed_documents_equal_separate_ones(row):
  laws.packed_equals_separate(row)
