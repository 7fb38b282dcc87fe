"""Which commit a result names."""

from __future__ import annotations

import subprocess

from lattice_jax import runtime


def test_only_a_checkout_that_tracks_the_code_names_a_commit(tmp_path, monkeypatch):
  def git(*words):
    identity = "-c", "user.name=a", "-c", "user.email=a@b.c"
    return subprocess.run(
      ["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True).stdout.strip()

  code = tmp_path / "package" / "runtime.py"
  code.parent.mkdir()
  code.write_text("")
  monkeypatch.setattr(runtime, "__file__", str(code))
  assert runtime.git_commit() is None  # no checkout
  (tmp_path / "other.py").write_text("")
  git("init", "--quiet")
  git("add", "other.py")
  git("commit", "--quiet", "--message=other")
  assert runtime.git_commit() is None  # another project's
  git("add", ".")
  git("commit", "--quiet", "--message=all")
  assert runtime.git_commit() == git("rev-parse", "HEAD")
  (tmp_path / "other.py").write_text("changed")
  assert runtime.git_commit() == git("rev-parse", "HEAD") + "+"
