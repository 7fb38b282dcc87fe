"""Flags of text: escapes that a shell leaves as they are, prompts from files and from standard input."""

from __future__ import annotations

import io
import re
import types

import pytest
from absl import flags
from absl.testing import flagsaver

from lattice_jax.commands.flags import parse_flags
from lattice_jax.commands.text_flags import text_length, text_options


@pytest.fixture(autouse=True)
def flags_as_before():
  with flagsaver.flagsaver():
    yield


def parse(*arguments):
  parse_flags(["eval.py", *arguments])
  return text_options()


@pytest.mark.parametrize(
  ("given", "meant"), [
    (r"\n\n", "\n\n"), (r"a\tb\r", "a\tb\r"), (r"\\n", r"\n"), (r"\"", '"'), (r"\x41\xe9", "Aé"), (r"\u6771!", "東!"),
    ("\n", "\n"), ("plain", "plain"), ("東", "東"), (r"\\\\x41", r"\\x41")])
def test_escapes_of_a_stop_string_are_read(given, meant):
  assert parse(f"--stop={given}", "--stop=x")["stop_strings"] == [meant, "x"]


@pytest.mark.parametrize(
  ("given", "message"), [
    (r"a\q", r"--stop=a\q: the escape \q is not known; \n, \t, \r, \\,"), ("a\\", "the escape \\ is not known"),
    (r"\x4", r"the escape \x is not known"), (r"\u12", r"the escape \u is not known"),
    (r"\ud800", "not a text in UTF-8"), ("\udcff", "not a text in UTF-8")])
def test_unknown_escapes_are_refused(given, message):
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    parse(f"--stop={given}")
  assert "\n" not in str(caught.value)


def test_prompts_come_from_the_command_line_from_files_and_from_standard_input(tmp_path, monkeypatch):
  (tmp_path / "a.txt").write_bytes("Où là?\n\n".encode())
  (tmp_path / "b.txt").write_bytes(b"one line\r\n")
  monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"piped \\n\n")))
  options = parse(
    f"--prompt_file={tmp_path / 'a.txt'}", r"--prompt=The \n", f"--prompt_file={tmp_path / 'b.txt'}", "--prompt=-")
  assert options["prompts"] == [r"The \n", r"piped \n", "Où là?\n", "one line"]
  assert text_length() == 200


def test_without_a_prompt_there_is_none():
  assert parse()["prompts"] == [""]
  assert text_length() == 0
  assert parse("--prompt=")["prompts"] == [""]
  assert text_length() == 200


@pytest.mark.parametrize(
  ("content", "message"), [
    (b"", "it is empty; give a prompt"), (b"\n", "it is empty"),
    (None, "it cannot be read (No such file or directory)"),
    (b"a\0b", "it holds a zero byte at offset 1"), (b"ab\xff", "it is not a text in UTF-8: byte 0xff at offset 2"),
    (b"a" * ((16 << 20) + 1), "it holds more than 16,777,216 bytes")],
  ids=["empty", "line", "missing", "binary", "latin-1", "long"])
def test_files_without_a_prompt_are_refused(content, message, tmp_path):
  path = tmp_path / "a.txt"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=re.escape(f"--prompt_file={path}: {message}")):
    parse(f"--prompt_file={path}")


def test_a_folder_and_an_empty_standard_input_are_no_prompts(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"it cannot be read \(Is a directory\); give a file of text"):
    parse(f"--prompt_file={tmp_path}")
  monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO()))
  with pytest.raises(ValueError, match="--prompt=-: standard input is empty"):
    parse("--prompt=-")


def test_help_says_so():
  assert r"\n, \t, \r, \\" in flags.FLAGS["stop"].help


def test_windows_are_an_option_only_where_they_are_asked_for():
  assert "windows" not in parse("--prompt=a")
  assert parse("--windows=per_prompt", "--prompt=a")["windows"] == "per_prompt"
