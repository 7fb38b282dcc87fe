"""A digest changes with the code that is reached, and with nothing else."""

from __future__ import annotations

import subprocess

import pytest

from lattice_jax import source_code
from lattice_jax.source_code import STORES, code_digest, reached

SOURCES = {
  "lattice_jax/__init__.py": b"import lattice_jax.other",
  "lattice_jax/rule.py": b'"""Old words."""\nfrom lattice_jax.tools import double\ndef rule(x):\n  return double(x)\n',
  "lattice_jax/tools.py": b"def double(x):\n  from lattice_jax.files import write\n  return 2 * x\n",
  "lattice_jax/files.py": b"write = print\n",
  "lattice_jax/other.py": b"x = 1\n",
  "lattice_jax/memories/a/__init__.py": b"",
  "lattice_jax/memories/a/op.py": b"import lattice_jax.memories.b.op\n",
  "lattice_jax/memories/a/config.py": b"import lattice_jax.other\n",
  "lattice_jax/memories/b/__init__.py": b"",
  "lattice_jax/memories/b/op.py": b"y = 1\n"}
ROOTS = ("lattice_jax.rule",)


def digest(**changes):
  return code_digest(ROOTS, SOURCES | {f"lattice_jax/{name}.py": code for name, code in changes.items()}, STORES)


def test_imports_are_followed_and_what_only_stores_is_left_out():
  assert reached(ROOTS, SOURCES, STORES) == ["lattice_jax/rule.py", "lattice_jax/tools.py"]
  assert reached(["lattice_jax.memories.a"], SOURCES, ()) == [
    "lattice_jax/memories/a/__init__.py", "lattice_jax/memories/a/op.py", "lattice_jax/memories/b/op.py"]


def test_comments_docstrings_and_other_modules_change_nothing():
  plain = b"# new\nfrom lattice_jax.tools import double\ndef rule(x):\n    '''New words.'''\n    return double(x)\n"
  assert digest(rule=plain) == digest(other=b"x = 2\n") == digest(files=b"write = None\n") == digest()


def test_code_that_is_reached_counts():
  assert digest(tools=b"def double(x):\n  return 3 * x\n") != digest()


def test_a_root_that_is_not_there_is_named():
  with pytest.raises(ValueError, match=r"there is no module lattice_jax\.rules"):
    code_digest(["lattice_jax.rules"], SOURCES, ())


def test_a_commit_is_read_as_it_was_and_an_unclean_one_is_not_known(tmp_path):
  def git(*words):
    subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

  for package in ("lattice_jax", "pallas_kernels"):
    (tmp_path / package).mkdir()
    (tmp_path / package / "a.py").write_text("x = 1\n")
  git("init", "-q")
  git("add", ".")
  git("-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "-qm", "a")
  commit = subprocess.run(
    ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
  (tmp_path / "lattice_jax" / "a.py").write_text("x = 2\n")
  found = source_code.commit_sources(commit, tmp_path)
  assert found == {"lattice_jax/a.py": b"x = 1\n", "pallas_kernels/a.py": b"x = 1\n"}
  assert source_code.tree_sources(tmp_path)["lattice_jax/a.py"] == b"x = 2\n"
  assert source_code.commit_sources(f"{commit}+", tmp_path) is None
  assert source_code.commit_sources("0" * 40, tmp_path) is None
