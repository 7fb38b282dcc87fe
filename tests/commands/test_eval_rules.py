"""Flags of eval.py that nothing would read are refused before anything is loaded."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags
from absl.testing import flagsaver

from lattice_jax.commands import eval as eval_command
from lattice_jax.commands import eval_rules, text_flags
from lattice_jax.commands.eval_rules import Asked, check_flags, read_asked
from lattice_jax.commands.flags import given_flags
from lattice_jax.config import Config, ModelConfig
from lattice_jax.evaluation import loaded_model

ROOT = Path(__file__).parents[2]
EVALUATION = Asked(
  pretrained=False, protocol="cold", comparison=False, task="", prompt=False, text=False, draws=False)
MODEL_TEXT = dataclasses.replace(EVALUATION, pretrained=True, protocol="none", prompt=True, text=True, draws=True)
GREEDY = dataclasses.replace(MODEL_TEXT, draws=False)
PASSKEY = dataclasses.replace(EVALUATION, protocol="none", task="passkey")
COMPARING = dataclasses.replace(PASSKEY, task="text")


def check(asked, *arguments):
  check_flags(asked, [argument.removeprefix("--").partition("=")[0] for argument in arguments], [])


@pytest.mark.parametrize(("asked", "argument"), [
  (MODEL_TEXT, "--step=2"), (EVALUATION, "--dtype=bfloat16"), (MODEL_TEXT, "--seq_len=8"), (PASSKEY, "--chunk_len=8"),
  (PASSKEY, "--batch=8"), (PASSKEY, "--output=x.json"), (MODEL_TEXT, "--split=test"), (EVALUATION, "--peers=knorm"),
  (EVALUATION, "--lengths=1024"), (MODEL_TEXT, "--trials=3"), (EVALUATION, "--task_seed=1"), (COMPARING, "--answers=7"),
  (COMPARING, "--depths=0"), (COMPARING, "--examples=1"), (EVALUATION, "--rows=1"), (EVALUATION, "--chat"),
  (EVALUATION, "--prompt=a"), (EVALUATION, "--prompt_file=a"), (EVALUATION, "--stop=a"), (PASSKEY, "--context=9"),
  (EVALUATION, "--temperature=0"), (EVALUATION, "--anchors=line"), (EVALUATION, "--weights_budget=1MB"),
  (dataclasses.replace(MODEL_TEXT, task="text"), "--weights_budget=1MB"),
  (dataclasses.replace(MODEL_TEXT, text=False, comparison=True), "--weights_budget=1MB"),
  (dataclasses.replace(MODEL_TEXT, pretrained=False), "--weights_budget=1MB"),
  (GREEDY, "--top_k=3"), (GREEDY, "--top_p=0.5"), (EVALUATION, "--seed=1"), (GREEDY, "--seed=1"),
  (EVALUATION, "--windows=per_prompt")],
  ids=lambda value: value if isinstance(value, str) else "")
def test_a_flag_that_nothing_reads_is_refused(asked, argument):
  name = argument.partition("=")[0]
  with pytest.raises(ValueError, match=f"{name} has no effect without .*; leave it out, or ask for that too"):
    check(asked, argument)


def test_every_flag_of_the_command_has_a_rule_or_is_what_is_asked_for():
  files = (ROOT / "lattice_jax" / "commands" / name for name in ("eval.py", "cache_flags.py", "text_flags.py"))
  defined = {name for file in files for name in re.findall(r'define\w*\(\s*"(\w+)"', file.read_text())}
  ruled = {name for names, _, _ in eval_rules._RULES for name in names}
  assert defined - ruled == {"workdir", "pretrained", "protocol", "compressors", "task", "cache", "generate"}
  assert ruled <= defined


@pytest.mark.parametrize(("asked", "arguments"), [
  (EVALUATION, ["--step=2", "--split=test", "--seq_len=8", "--chunk_len=4", "--batch=2", "--output=x"]),
  (MODEL_TEXT, ["--dtype=bfloat16", "--prompt=a", "--chat", "--stop=b", "--context=9", "--top_k=3", "--seed=1"]),
  (MODEL_TEXT, ["--anchors=line", "--weights_budget=200MB"]),
  (dataclasses.replace(EVALUATION, pretrained=True), ["--weights_budget=200MB", "--batch=2"]),
  (GREEDY, ["--temperature=0", "--stop=b", "--windows=per_prompt"]),
  (PASSKEY, ["--split=test", "--peers=knorm", "--lengths=9", "--answers=7", "--depths=0", "--rows=1", "--task_seed=1"]),
  (COMPARING, ["--lengths=9", "--trials=2", "--peers=knorm"])],
  ids=["evaluation", "text", "anchors", "streamed", "greedy", "task", "compare"])
def test_flags_that_something_reads_pass(asked, arguments):
  check(asked, *arguments)


@pytest.mark.parametrize(("asked", "override", "message"), [
  (EVALUATION, "eval.split=train", "--set=eval.split=train would be overruled by --split; use --split=train"),
  (EVALUATION, "eval.chunk_len=4", "use --chunk_len=4"), (EVALUATION, "train.steps=4", "no effect without a training"),
  (EVALUATION, "optimizer.b1=0.5", "no effect without a training"),
  (PASSKEY, "eval.max_batches=4", "no effect without an evaluation")],
  ids=lambda value: value if "=" in str(value) else "")
def test_a_change_of_the_config_that_nothing_reads_is_refused(asked, override, message):
  with pytest.raises(ValueError, match=message):
    check_flags(asked, [], [override])
  check_flags(EVALUATION, [], ["eval.max_batches=4", "model.vq.cache=False"])


@pytest.mark.parametrize("field", ["windows", "profile"])
def test_windows_that_the_prompt_would_overrule_are_refused(field):
  override = f"model.local.{field}=64"
  with pytest.raises(ValueError, match=f"--set={override} would be overruled by --windows, which chooses them; leave"):
    check_flags(MODEL_TEXT, ["windows"], [override])
  check_flags(MODEL_TEXT, [], [override])


def test_a_command_that_asks_for_nothing_is_refused():
  with pytest.raises(ValueError, match="nothing is asked for"):
    check_flags(dataclasses.replace(EVALUATION, protocol="none"), [], [])


@pytest.mark.parametrize(("arguments", "pretrained", "protocol", "expected"), [
  ([], None, None, "cold"), (["--task=text"], None, None, "none"), (["--prompt=a"], None, None, "cold"),
  (["--prompt=a"], "m", None, "none"), (["--prompt=a"], "m", "both", "both"), (["--generate=3"], "m", None, "cold")],
  ids=str)
def test_an_evaluation_is_made_unless_something_else_is_asked_for(arguments, pretrained, protocol, expected):
  with flagsaver.flagsaver():
    flags.FLAGS(["eval.py", *arguments])
    assert read_asked(pretrained, protocol, comparison=False).protocol == expected
    assert {argument.removeprefix("--").partition("=")[0] for argument in arguments} <= set(given_flags())


def test_chance_decides_a_text_but_at_temperature_zero():
  with flagsaver.flagsaver():
    flags.FLAGS(["eval.py", "--generate=3"])
    assert text_flags.draws()
    flags.FLAGS.temperature = 0.0
    assert not text_flags.draws()


def test_a_rule_of_anchors_for_a_pretrained_model_is_a_change_of_its_config(monkeypatch):
  asked = []
  config = Config(model=ModelConfig(pattern=("anchor",)))

  def load(name, **given):
    asked.append(given["overrides"])
    return SimpleNamespace(config=config)

  monkeypatch.setattr(loaded_model, "load_pretrained_model", load)
  with flagsaver.flagsaver(pretrained="x", anchors="every:8", set=["data.seed=1"]):
    eval_command.load_model()
  assert asked == [["data.seed=1", "data.anchors.rule=every:8"]]
  with (
    flagsaver.flagsaver(pretrained="x", anchors="lines"),
    pytest.raises(ValueError, match="--anchors='lines' is none of none, punctuation")):
    eval_command.load_model()


def test_a_rule_of_anchors_that_nothing_reads_is_refused(monkeypatch):
  plain = SimpleNamespace(config=Config(model=ModelConfig(pattern=("attention",))))
  monkeypatch.setattr(loaded_model, "load_pretrained_model", lambda name, **given: plain)
  with (
    flagsaver.flagsaver(pretrained="x", anchors="line"),
    pytest.raises(ValueError, match="--anchors=line marks tokens, and nothing here reads marks")):
    eval_command.load_model()
  for read in ({"cache": ["sep:ratio=0.25"]}, {"cache": ["lagkv:ratio=0.25"], "peers": ["sep"], "task": "text"}):
    with flagsaver.flagsaver(pretrained="x", anchors="line", **read):
      assert eval_command.load_model() is plain
