"""A config as a command line says it: files, variants, changes of fields and of whole sections."""

from __future__ import annotations

import pytest

from configs import common, quickstart
from lattice_jax.commands.flags import expand_config_fields
from lattice_jax.config_checks import parse_config
from lattice_jax.config_text import apply_overrides, load_file, read_config
from lattice_jax.domains import Place

BEGIN = "from configs import common\ndef get_config():\n  config = common.default()\n"
QUICKSTART = "configs/quickstart.py"
BASE = parse_config(quickstart.get_config())


def test_a_section_is_changed_and_not_replaced():
  """quickstart has 64 codes, key_dim 64, value_dim 256, block_len 64; the defaults are 512, 128, 1536, 512."""
  assert (BASE.model.vq.codes, BASE.model.vq.key_dim, BASE.model.vq.value_dim, BASE.model.vq.block_len) == (
    64, 64, 256, 64)
  wanted = apply_overrides(BASE, ["model.vq.codes=128"])
  assert apply_overrides(BASE, ["model.vq={'codes': 128}"]) == wanted
  assert apply_overrides(BASE, ["model={'vq': {'codes': 128}}"]) == wanted
  assert read_config(QUICKSTART, ["model.vq={'codes': 128}"]) == wanted
  assert (wanted.model.vq.codes, wanted.model.vq.key_dim, wanted.model.vq.block_len) == (128, 64, 64)


@pytest.mark.parametrize("assign", [
  lambda config: setattr(config.model, "vq", {"codes": 128}),
  lambda config: setattr(config, "model", {"vq": {"codes": 128}}),
  lambda config: config.model.__setitem__("vq", {"codes": 128}),
  lambda config: config.update({"model": {"vq": {"codes": 128}}}),
  lambda config: config.model.update(vq={"codes": 128}),
  lambda config: config.update_from_flattened_dict({"model.vq": {"codes": 128}}),
], ids=["attribute", "outer section", "item", "update", "keyword", "flattened"])
def test_a_config_file_changes_a_section_and_does_not_replace_it(assign):
  config = quickstart.get_config()
  assign(config)
  assert parse_config(config) == apply_overrides(BASE, ["model.vq.codes=128"])
  copied = config.copy_and_resolve_references()
  copied.model.vq = {"codes": 32}
  assert parse_config(copied) == apply_overrides(BASE, ["model.vq.codes=32"])


def test_a_section_of_another_config_comes_whole():
  config, other = quickstart.get_config(), common.default()
  config.model.vq = other.model.vq
  assert parse_config(config).model.vq == parse_config(other).model.vq


@pytest.mark.parametrize(("override", "sentence"), [
  ("optimizer.learning_rat=1", r"unknown config field optimizer\.learning_rat; .* Did you mean 'learning_rate'"),
  ("optimiser.learning_rate=1", r"unknown config field optimiser; .* Did you mean 'optimizer'"),
  ("model.vq={'cods': 1}", r"unknown config field model\.vq\.cods; .* Did you mean 'codes'"),
  ("model.dim.x=1", r"model\.dim\.x goes below 'model\.dim', which is a field and not a section"),
  ("model.vq=3", r"model\.vq=3 must be a section of fields"), ("model.vq={a}", r"model\.vq=\{a\} must be a section"),
  ("model.dim", r"must have the form section\.field=value"), ("=3", r"must have the form section\.field=value"),
  ("model.dim=wide", r"model\.dim=wide must be a whole number"),
  ("optimizer.clip_norm=nan", r"optimizer\.clip_norm=nan must be 0 or more and finite"),
  ("model.pattern=(vq)", r"model\.pattern=\(vq\) must be names with commas between them"),
  ("model.scan_layers=maybe", r"model\.scan_layers=maybe must be true or false"),
  ("train.seed=18446744073709551616", r"train\.seed=18446744073709551616 must lie in \[0, 4294967295\]"),
], ids=str)
def test_a_change_that_cannot_be_is_one_sentence(override, sentence):
  for change in (lambda: apply_overrides(BASE, [override]), lambda: read_config(QUICKSTART, [override])):
    with pytest.raises(ValueError, match=sentence) as caught:
      change()
    assert "\n" not in str(caught.value) and "<" not in str(caught.value)


def test_a_list_is_given_at_once():
  assert apply_overrides(BASE, ["train.writers=stdout,jsonl,wandb"]).train.writers == ("stdout", "jsonl", "wandb")
  with pytest.raises(ValueError, match=r"train\.writers is given twice; write all of it at once"):
    apply_overrides(BASE, ["train.writers=stdout", "train.writers=jsonl"])


@pytest.mark.parametrize(("argv", "as_set"), [
  (["--config.train.steps=4"], ["--set=train.steps=4"]), (["--config.train.steps", "4"], ["--set=train.steps=4"]),
  (["-config.model.vq.gated=False"], ["--set=model.vq.gated=False"]),
  (["--config.model.vq.gated"], ["--set=model.vq.gated=True"]),
  (["--noconfig.model.vq.gated"], ["--set=model.vq.gated=False"]),
  (["--config=a.py", "--workdir=b"], ["--config=a.py", "--workdir=b"]),
  (["--config.name=a=b\nc"], ["--set=name=a=b\nc"]),
  (["--", "--config.train.steps=4"], ["--", "--config.train.steps=4"]),
], ids=str)
def test_both_spellings_of_a_change_are_one(argv, as_set):
  assert expand_config_fields(argv) == as_set


@pytest.mark.parametrize(("argv", "sentence"), [
  (["--config.train.steps"], r"--config\.train\.steps has no value"),
  (["--noconfig.train.steps"], r"only fields that are true or false"),
  (["--config.train.stepps=3"], r"unknown config field train\.stepps; .* Did you mean 'steps'"),
], ids=str)
def test_a_spelling_that_is_none_is_refused(argv, sentence):
  with pytest.raises(ValueError, match=sentence):
    expand_config_fields(argv)


def write(folder, text):
  (folder / "mine.py").write_text(text)
  return f"{folder}/mine.py"


@pytest.mark.parametrize(("text", "sentence"), [
  ("x = 1\n", r"mine\.py has no function get_config"), ("get_config = 3\n", r"has no function get_config"),
  ("def get_config(:\n", r"mine\.py: line 1 is not Python"),
  ("import nothing_here\n", r"line 1, «import nothing_here», raises ModuleNotFoundError: No module named"),
  ("def get_config():\n  return {}['x']\n", r"line 2, «return \{\}\['x'\]», raises KeyError"),
  ("def get_config():\n  return 3\n", r"get_config returns a int, and must return a config"),
  ("def get_config():\n  raise ValueError('two\\nlines.')\n", r": two lines\."),
  (f"{BEGIN}  config.optimizer.learning_rat = 1.0\n",
   r"line 4, «config\.optimizer\.learning_rat = 1\.0», has the unknown field 'learning_rat'\. Did you mean"),
  (f"{BEGIN}  config.model.dim = 'x'\n", r"line 4, «config\.model\.dim = 'x'», raises TypeError"),
  ("def get_config():\n  return open('/')\n", "raises IsADirectoryError"),
], ids=str)
def test_a_file_that_makes_no_config_is_one_sentence(tmp_path, text, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    load_file(write(tmp_path, text))
  assert str(caught.value).startswith(f"--config={tmp_path}/mine.py") and "\n" not in str(caught.value)


def test_a_place_that_is_no_config_file_is_one_sentence(tmp_path):
  with pytest.raises(ValueError, match=r"is a folder; name a file, such as configs/ablation_anchor\.py"):
    load_file("configs")
  with pytest.raises(ValueError, match=r"there is no such file; .* Did you mean 'quickstart\.py'\?"):
    load_file("configs/quickstrt.py")
  with pytest.raises(ValueError, match=r"is no Python file .*; scripts/sweep\.py reads sweeps\."):
    load_file("configs/sweeps/vq_ablation.yaml")
  with pytest.raises(ValueError, match=r"quickstart\.py:smok: this config has no variant 'smok'; .* 'smoke'"):
    load_file("configs/quickstart.py:smok")


def test_home_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  write(tmp_path, f"{BEGIN}  return config\n")
  assert read_config(Place().parse("~/mine.py"), ["data.path=~/data"]).data.path == f"{tmp_path}/data"
  assert parse_config({"data": {"path": "~/data"}}).data.path == f"{tmp_path}/data"
