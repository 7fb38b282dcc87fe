"""python -m lattice_jax.self_check: a small op passes, and what is wrong is found."""

import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.cases import Case, Sizes
from lattice_jax.memories.registry import FOLDERS, find_memory
from lattice_jax.self_check import results
from lattice_jax.self_check.__main__ import main
from lattice_jax.self_check.check import check, largest_error, make_cases


def test_one_op_passes_and_says_where_it_has_no_kernel(capsys, tmp_path):
  arguments = ["--tokens=9", "--heads=1", "--width=3", "--ops=gated_linear", "--dtypes=float32", f"--out={tmp_path}"]
  assert main(arguments) == 0
  printed = capsys.readouterr().out
  assert "1 of 1 within the limits" in printed
  assert "interpret float32" in printed and "there is no Pallas kernel for it yet" in printed
  page = (tmp_path / "README.md").read_text()
  assert "--ops=gated_linear" in page and "One row of 9 tokens" in page
  assert "| gated_linear | chunks | xla | float32 |" in page and page.count("| gated_linear |") == 2


def test_every_memory_has_a_case():
  sizes = Sizes(tokens=6, heads=1, width=4, slots=4)
  checked = {case.op for case in make_cases(sizes)}
  for name in FOLDERS:
    own = {case.op for case in find_memory(name).cases(sizes)}
    assert own and own <= checked, name


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_a_wrong_result_is_a_miss(wrong):
  def run(inputs, impl):
    return inputs[0] * (wrong if impl == "xla" else 1.0)

  (row,) = check(Case("op", "form", run, (jnp.arange(1.0, 5.0),)), ("xla",), "float32")
  assert not row.holds
  assert results.status([row]) == 1
  assert "MISS: op op, form, impl xla, float32: results differ" in results.summary([row])
  assert "where 1e-05 is allowed" in results.summary([row]) and "model.impl=reference on" in results.summary([row])


def test_errors_are_relative_to_each_array_but_not_to_one_that_is_zero():
  large, none = np.full(4, 100.0), np.zeros(4)
  assert largest_error((large, none), (large, none)) == 0
  assert largest_error((large + 1, none), (large, none)) == pytest.approx(0.01)
  assert largest_error((large, none + 1e-6), (large, none)) == pytest.approx(1e-6)


def test_an_op_that_is_none_is_refused():
  with pytest.raises(ValueError, match=r"--ops=none is not one of .*attention, delta, .*"):
    main(["--ops=none"])


def test_nothing_to_check_is_a_failure():
  assert results.status([]) == 1
  assert "nothing was checked" in results.summary([])
