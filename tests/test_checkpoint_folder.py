"""Where checkpoints lie: in the workdir, in another folder, or in a bucket."""

from __future__ import annotations

import json
import sys
import types

import pytest

from lattice_jax.checkpoint_folder import checkpoint_folder, stored_folder, unreadable_folder
from lattice_jax.commands.domains import Storage


def test_a_bucket_needs_its_package(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not there
  with pytest.raises(ValueError, match=r"--checkpoints=gs://b/run needs the package gcsfs, .* pip install gcsfs=="):
    checkpoint_folder(tmp_path, "gs://b/run")
  monkeypatch.setitem(sys.modules, "gcsfs", types.ModuleType("gcsfs"))
  assert str(checkpoint_folder(tmp_path, "gs://b/run")) == "gs://b/run"


def test_run_json_says_where_they_are(tmp_path):
  assert stored_folder(tmp_path) == tmp_path / "checkpoints"
  (tmp_path / "run.json").write_text(json.dumps({"checkpoints": str(tmp_path / "ssd")}))
  assert stored_folder(tmp_path) == tmp_path / "ssd"


def test_what_cannot_be_read_is_set_aside_beside_them(tmp_path):
  assert unreadable_folder(checkpoint_folder(tmp_path)) == tmp_path / "unreadable_checkpoints"
  assert unreadable_folder(checkpoint_folder(tmp_path, str(tmp_path / "a"))) == tmp_path / "a_unreadable_checkpoints"


@pytest.mark.parametrize(("text", "sentence"), [
  ("s3://b/run", "Orbax writes to no other kind of bucket"), ("gs://b", "must be gs://BUCKET/FOLDER"),
  ("gs:///run", "must be gs://BUCKET/FOLDER"), ("hdfs://a/b", "Orbax writes to no other kind of bucket")])
def test_other_buckets_are_refused(text, sentence):
  with pytest.raises(ValueError, match=sentence):
    Storage().parse(text)


def test_buckets_and_folders_are_storage():
  assert Storage().parse("gs://b/run/") == "gs://b/run"
  assert Storage().parse("/mnt/run") == "/mnt/run"
