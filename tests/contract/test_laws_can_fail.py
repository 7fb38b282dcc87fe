"""Each law passes a right memory and catches a wrong one: a law that cannot fail would prove nothing."""

from __future__ import annotations

import pytest

from tests.contract import laws, meshes
from tests.contract.toy import toy_row

LAWS = {
  "L1": laws.split_invariant,
  "L2": laws.token_by_token,
  "L3": laws.causal,
  "L4": laws.past_forgotten_after_reset,
  "L4 id": laws.returning_id_is_new,
  "L5": laws.padding_ignored,
  "L6": laws.rows_independent,
  "L7": laws.state_constant,
  "L8": laws.matches_reference,
  "L9": laws.bfloat16_accurate,
  "L10": meshes.devices_agree,
  "L11": lambda row: laws.awkward_sizes(row, ""),
  "L12": lambda row: laws.long_constant_input(row, "float32"),
  "L13": laws.packed_equals_separate,
  "L14": lambda row: meshes.sequence_shards_agree(row, 2),
  "L15": lambda row: meshes.split_parameters_agree(row, 2, 2),
}
FAULTS = (
  ("L1", "forgets in some calls"),
  ("L2", "steps differ"),
  ("L3", "looks ahead"),
  ("L3", "sees one token"),
  ("L4", "ignores resets"),
  ("L4", "leaks a millionth"),
  ("L4 id", "confuses ids"),
  ("L5", "counts padding"),
  ("L6", "mixes rows"),
  ("L7", "changes its dtype"),
  ("L8", "cuts a gradient"),
  ("L8", "cuts the state's gradient"),
  ("L9", "16-bit sums"),
  ("L11", "steps differ"),
  ("L12", "sums"),
  ("L12", "overflows at a gate's end"),
  ("L13", "counts from the row's start"),
  ("L14", "forgets between shards"),
  ("L15", "leaves out a part of the sum"),
)
RIGHT = toy_row()


@pytest.mark.xdist_group("toy")
@pytest.mark.parametrize("law", LAWS)
def test_right_memory_passes(law):
  LAWS[law](RIGHT)


@pytest.mark.parametrize(("law", "fault"), FAULTS, ids=lambda value: value.replace(" ", "-"))
def test_wrong_memory_is_caught(law, fault):
  with pytest.raises(AssertionError, match=f"^{law.split()[0]} · toy that {fault}"):
    LAWS[law](toy_row(fault))
