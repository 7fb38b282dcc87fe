"""What several hosts must have alike before they start."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

import lattice_jax
from lattice_jax.config import Config
from lattice_jax.training import agreement


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
  def digest_of(**files):
    for name, text in files.items():
      path = tmp_path / "lattice_jax" / f"{name}.py"
      path.parent.mkdir(exist_ok=True)
      path.write_text(text)
    monkeypatch.setattr(lattice_jax, "__file__", str(tmp_path / "lattice_jax" / "__init__.py"))
    agreement.code_digest.cache_clear()
    return agreement.code_digest()

  yield digest_of
  agreement.code_digest.cache_clear()


def test_every_line_of_the_code_counts(digest_of):
  first = digest_of(a="x = 1\n", b="")
  assert digest_of(a="x = 1\n", b="") == first
  assert digest_of(a="x = 2\n", b="") != first
  assert digest_of(a="", b="x = 1\n") != first


@pytest.mark.parametrize(("change", "named"), [
  (lambda config: {"config": dataclasses.replace(config, name="other")}, "the config's name of process 1"),
  (lambda config: {"workdir": "b"}, "--workdir of process 1"),
  (lambda config: {}, "the code of process 1"),
])
def test_the_sentence_names_what_differs(monkeypatch, change, named):
  """The second of two processes is this one, started in another way."""
  if "code" in named:
    digests = iter("ab")
    monkeypatch.setattr(agreement, "code_digest", lambda: next(digests))
  gathered = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "process_allgather", lambda value: gathered.append(value) or np.stack(gathered))
  started = {"config": Config(), "workdir": "a"}
  agreement.check_command(**started)
  with pytest.raises(ValueError, match=named):
    agreement.check_command(**started | change(Config()))
