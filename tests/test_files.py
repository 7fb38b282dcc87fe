"""A file is replaced as a whole or not at all, a folder is held by one process, and JSON Lines survive a kill."""

from __future__ import annotations

import pytest

from lattice_jax.files import append_jsonl, lock_folder, read_jsonl, replace_file, replacing


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path):
  path = tmp_path / "file.txt"
  replace_file(path, "old")
  with replacing(path) as partial:
    partial.write_text("new")
    assert path.read_text() == "old"
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_file_stays_as_it_is_when_the_block_fails(tmp_path):
  path = tmp_path / "file.txt"
  replace_file(path, b"old")
  with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
    partial.write_text("half")
    raise KeyboardInterrupt
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_held_until_the_block_ends(tmp_path):
  folder = tmp_path / "deep" / "folder"
  with lock_folder(folder, "taken"), pytest.raises(ValueError, match="taken"), lock_folder(folder, "taken"):
    pass
  with lock_folder(folder, "taken"):
    pass


def test_records_are_appended_one_on_a_line(tmp_path):
  path = tmp_path / "folder" / "records.jsonl"
  append_jsonl(path, [{"step": 1}])
  append_jsonl(path, [{"step": 2}, {"step": 3}])
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
  assert [record["step"] for record in read_jsonl(path)] == [1, 2, 3]


@pytest.mark.parametrize("end", ['{"step": 3, "lo', '{"step": 3\n', "\0\0\0"])
def test_reading_ends_at_a_line_that_was_cut_off(tmp_path, end):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n' + end)
  assert [record["step"] for record in read_jsonl(path)] == [1, 2]
