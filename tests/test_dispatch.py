"""Which implementation runs, and what a user hears when none can."""

import pytest

from lattice_jax import dispatch
from lattice_jax.dispatch import BACKEND, OVERRIDE, choose_impl, target_backend


def test_auto_takes_the_kernel_where_one_can_run_and_xla_elsewhere():
  assert choose_impl("op", "auto", pallas_reason=None) == "pallas"
  assert choose_impl("op", "auto", pallas_reason="no kernel for this backend") == "xla"


def test_a_named_implementation_never_falls_back():
  assert choose_impl("op", "reference", pallas_reason=None) == "reference"
  with pytest.raises(ValueError, match="op 'scan' cannot run: no kernel for cpu; use impl='auto'"):
    choose_impl("scan", "pallas", pallas_reason="no kernel for cpu")


def test_a_kernel_of_another_backend_runs_interpreted_and_one_that_is_not_recommended_by_name():
  assert choose_impl("op", "interpret", pallas_reason=None, backend_reason="no kernel for cpu") == "interpret"
  with pytest.raises(ValueError, match="impl='interpret' of op 'op' cannot run: no such head"):
    choose_impl("op", "interpret", pallas_reason="no such head", backend_reason="no kernel for cpu")
  with pytest.raises(ValueError, match="impl='pallas' of op 'op' cannot run: no kernel for cpu"):
    choose_impl("op", "pallas", pallas_reason=None, backend_reason="no kernel for cpu")
  assert choose_impl("op", "auto", pallas_reason=None, auto_reason="it has not been timed") == "xla"
  assert choose_impl("op", "pallas", pallas_reason=None, auto_reason="it has not been timed") == "pallas"


def test_the_choice_and_its_reason_are_said_once_per_op(caplog):
  dispatch._log_choice.cache_clear()
  with caplog.at_level("INFO", "lattice_jax"):
    for _ in range(2):
      choose_impl("scan", "auto", pallas_reason="no kernel for cpu")
      choose_impl("attention", "auto", pallas_reason=None)
      choose_impl("scan", "xla", pallas_reason=None)
  assert caplog.messages == [
    "op scan: xla (no kernel for cpu)", "op attention: pallas (a kernel supports this backend and these shapes)"]


def test_programs_may_be_compiled_for_another_backend(monkeypatch):
  assert target_backend() == "cpu"
  monkeypatch.setenv(BACKEND, "tpu")
  assert target_backend() == "tpu"


def test_the_environment_overrides_and_is_checked(monkeypatch):
  monkeypatch.setenv(OVERRIDE, "reference")
  assert choose_impl("op", "xla", pallas_reason=None) == "reference"
  monkeypatch.setenv(OVERRIDE, "fast")
  with pytest.raises(ValueError, match="impl='fast' of op 'op' is not one of auto, reference"):
    choose_impl("op", "xla", pallas_reason=None)
