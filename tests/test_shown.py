"""Values as sentences show them."""

from __future__ import annotations

import pytest

from lattice_jax.shown import shown_bytes


@pytest.mark.parametrize(("number", "text"), [
  (0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (2_216_448, "2.22 MB"),
  (98_362_432, "98.4 MB"), (538e6, "538 MB"), (9.9e9, "9.90 GB"), (3e16, "30,000 TB")])
def test_bytes_have_three_figures_and_a_unit(number, text):
  assert shown_bytes(number) == text
