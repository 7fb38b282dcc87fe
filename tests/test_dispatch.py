"""Which implementation runs, and what a user hears when none can."""

import pytest

from lattice_jax.dispatch import OVERRIDE, choose_impl


def test_auto_takes_the_kernel_where_one_can_run_and_xla_elsewhere():
  assert choose_impl("op", "auto", pallas_reason=None) == "pallas"
  assert choose_impl("op", "auto", pallas_reason="no kernel for this backend") == "xla"


def test_a_named_implementation_never_falls_back():
  assert choose_impl("op", "reference", pallas_reason=None) == "reference"
  with pytest.raises(ValueError, match="op 'scan' cannot run: no kernel for cpu; use impl='auto'"):
    choose_impl("scan", "pallas", pallas_reason="no kernel for cpu")


def test_the_environment_overrides_and_is_checked(monkeypatch):
  monkeypatch.setenv(OVERRIDE, "reference")
  assert choose_impl("op", "xla", pallas_reason=None) == "reference"
  monkeypatch.setenv(OVERRIDE, "fast")
  with pytest.raises(ValueError, match="impl='fast' of op 'op' is not one of auto, reference"):
    choose_impl("op", "xla", pallas_reason=None)
