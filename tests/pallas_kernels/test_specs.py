"""Every call in the list of specs becomes a TPU program with legal blocks and operations. Needs no TPU library."""

import jax
import pytest

from pallas_kernels.specs import TPU_CASES

NAMES = {name for name, *_ in TPU_CASES}
# The program of a gradient holds that of the values.
OUTERMOST = [case for case in TPU_CASES if f"{case[0]}_gradient" not in NAMES]


@pytest.mark.parametrize(("function", "args"), [case[1:] for case in OUTERMOST], ids=[case[0] for case in OUTERMOST])
def test_lowers_for_a_tpu(function, args):
  text = jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
  assert "tpu_custom_call" in text


def test_names_are_unique():
  assert len(NAMES) == len(TPU_CASES)
