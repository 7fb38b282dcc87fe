"""What every command and script says to a mistake: its name, one sentence, exit status 2; and what it takes."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from lattice_jax.commands import arguments
from lattice_jax.commands import run as door
from lattice_jax.commands.flags import FlagParser
from lattice_jax.config import DataConfig
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
from lattice_jax.domains import Number
from lattice_jax.formats.locate import find_pretrained
from lattice_jax.self_check import __main__ as self_check

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(
  path.stem for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text()
  and path.stem not in ("check_overhead", "pretrained_reference"))  # a command; a stranger to this environment
NUMBERS = ("-1", "0", "1", "nan", "inf", "-inf", "1e300", str(10**15), str(2**70), "9" * 5000, "x", "")
# Commands in an interpreter each, for flags are global: name, lowest, highest, whether whole, whether low is left out.
WHOLE, LARGEST, SEEDS = True, 2**31 - 1, 2**32 - 1
FLAGS = {
  "train": {
    "cpu_devices": (1, LARGEST, WHOLE), "num_processes": (1, LARGEST, WHOLE), "process": (0, LARGEST, WHOLE)},
  "eval": {
    "cpu_devices": (1, LARGEST, WHOLE), "step": (0, LARGEST, WHOLE), "seq_len": (1, LARGEST, WHOLE),
    "chunk_len": (0, LARGEST, WHOLE), "batch": (1, LARGEST, WHOLE), "generate": (0, LARGEST, WHOLE),
    "temperature": (0, 3.4e38, not WHOLE), "top_k": (0, LARGEST, WHOLE), "top_p": (1e-38, 1, not WHOLE),
    "seed": (0, SEEDS, WHOLE), "context": (1, LARGEST, WHOLE), "lengths": (1, LARGEST, WHOLE),
    "answers": (1, LARGEST, WHOLE), "depths": (0, 1, not WHOLE), "trials": (1, LARGEST, WHOLE),
    "examples": (0, LARGEST, WHOLE), "rows": (1, LARGEST, WHOLE), "task_seed": (0, SEEDS, WHOLE),
    "weights_budget": (1, 2**60, WHOLE)},
  "scripts.check_overhead": {
    "cpu_devices": (1, LARGEST, WHOLE), "updates": (1, LARGEST, WHOLE), "rounds": (1, LARGEST, WHOLE)},
}
ASK = """
import importlib, json, sys
from lattice_jax.commands.flags import FlagParser, parse_flags
from absl import flags
importlib.import_module(sys.argv[1])
command, numbers = sys.argv[1], json.loads(sys.argv[2])
said, foreign = {}, []
library = ("absl.", "pytype")
for name in sorted(flags.FLAGS):
  flag = flags.FLAGS[name]
  if not isinstance(flag.parser, FlagParser):
    foreign.append([name, flags.FLAGS.find_module_defining_flag(name)])
    continue
  domain = getattr(flag.parser.domain, "of", flag.parser.domain)
  if domain.kind in (int, float):
    said[name] = {}
    for text in numbers:
      try:
        parse_flags([command, f"--{name}={text}"])
        said[name][text] = None
      except ValueError as error:
        said[name][text] = str(error)
print(json.dumps([said, foreign]))
"""


def is_number_inside(text, low, high, is_whole):
  try:
    value = (int if is_whole else float)(text)
  except ValueError:
    return False
  return low <= value <= high


def is_one_sentence(text, name):
  is_short = len(text) < 300 and "\n" not in text and text.endswith((".", "?"))
  return is_short and name in text and "<" not in text and "Errno" not in text


@pytest.mark.parametrize("command", FLAGS)
def test_every_numeric_flag_has_a_domain(command):
  done = subprocess.run(
    [sys.executable, "-c", ASK, command, json.dumps(NUMBERS)], cwd=ROOT, capture_output=True, text=True, check=True)
  said, foreign = json.loads(done.stdout)
  assert set(said) == set(FLAGS[command])
  assert all(module.startswith("absl") for _, module in foreign), "a flag that was not made by commands.flags.define"
  for name, answers in said.items():
    for text, sentence in answers.items():
      if is_number_inside(text, *FLAGS[command][name]):
        assert sentence is None, (name, text, sentence)
      else:
        assert sentence and is_one_sentence(sentence, f"--{name}="), (name, text, sentence)


@pytest.mark.parametrize(("command", "sentence"), [
  (("train.py", "--workdri=x"), "train.py: unknown flag --workdri. Did you mean --workdir?"),
  (("train.py", "--config.optimizer.learning_rat=1"), "train.py: unknown config field optimizer.learning_rat; "),
  (("train.py", "--config.model.items=1"), "train.py: unknown config field model.items; "),
  (("train.py", "--workdir=gs://bucket/run"), "train.py: --workdir=gs://bucket/run is not on this machine: gs://"),
  (("train.py", "--init_from=s3://a"), "train.py: --init_from=s3://a is not on this machine: s3://"),
  (("train.py", "--config=configs/quickstart.py", "--workdir=a", "--process=1"),
   "train.py: --process has no effect without --distributed; leave it out, or ask for that too."),
  (("train.py", "--checkpoints=s3://bucket/run"),
   "train.py: --checkpoints=s3://bucket/run must be a folder or gs://BUCKET/FOLDER: Orbax writes to no other kind of"),
  (("train.py", "--distributed=maybe"), "train.py: --distributed=maybe must be true or false."),
  (("train.py", "--workdir"), "train.py: --workdir has no value; write --workdir=VALUE."),
  (("train.py", "--flagfile=/nothing"), "train.py: --flagfile cannot be read (No such file or directory: '/nothing')."),
  (("train.py", "more"), "train.py: unexpected argument 'more'; flags are written as --name=value."),
  (("eval.py", "--dtyp=x"), "eval.py: unknown flag --dtyp. Did you mean --dtype?"),
  (("eval.py", "--dtype=float16"), "eval.py: --dtype=float16 is not one of float32, bfloat16."),
  (("eval.py", "--output=http://a/b"), "eval.py: --output=http://a/b is not on this machine: http://"),
  (("eval.py", "--pretrained=hf://a"), "eval.py: --pretrained=hf://a is not on this machine: hf://"),
  (("eval.py", "more"), "eval.py: unexpected argument 'more'; flags are written as --name=value."),
], ids=str)
def test_a_mistake_is_answered_before_jax_is_there(command, sentence, tmp_path):
  """A module of the name jax that cannot be imported stands in the way."""
  (tmp_path / "jax.py").write_text("raise SystemExit('jax was imported')\n")
  done = subprocess.run(
    [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False,
    env=os.environ | {"PYTHONPATH": str(tmp_path)})
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith(sentence) and done.stderr.count("\n") == 1, done.stderr
  assert not list(ROOT.glob("gs:*"))


class Asked(BaseException):
  """Holds the parser of a script, in the place of its work."""


@pytest.fixture
def run(monkeypatch):
  """(status, stderr) of a script that is called so, in this process."""
  environment = dict(os.environ)

  def call(name, *words):
    main = (lambda: self_check.main(list(words))) if name == "self_check" else \
      importlib.import_module(f"scripts.{name}").main
    called = f"lattice_jax/{name}/__main__.py" if name == "self_check" else f"scripts/{name}.py"
    monkeypatch.setattr(sys, "argv", [called, *words])
    door.run_script(main)

  yield call
  os.environ.clear()
  os.environ.update(environment)


def program(name):
  return name if name == "self_check" else f"{name}.py"


@pytest.mark.parametrize("name", [*SCRIPTS, "self_check"])
def test_a_script_refuses_what_it_does_not_know(run, capsys, name):
  for words in ("--nonsense=3",), ("--nonsense", "3"):
    with pytest.raises(SystemExit) as left:
      run(name, *words)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{program(name)}: unknown flag --nonsense.") and said.count("\n") == 1, said


@pytest.mark.parametrize("name", [*SCRIPTS, "self_check"])
def test_every_number_and_place_of_a_script_has_a_domain(run, monkeypatch, name):
  def parse_args(parser, args=None, namespace=None):
    raise Asked(parser)

  monkeypatch.setattr(arguments.Parser, "parse_args", parse_args)
  with pytest.raises(Asked) as asked:
    run(name)
  for action in asked.value.args[0]._actions:
    if action.type is None:
      assert action.nargs == 0 or action.default in ("", [], None), f"{action.dest} is a text of no domain"
      continue
    domain = getattr(action.type.domain, "of", action.type.domain)
    if isinstance(domain, Number):
      low, high = (domain.low, LARGEST if domain.kind is int and domain.high is None else domain.high)
      bounds = max(low, 2e-38) if domain.is_low_open else low, 3.4e38 if high is None else high
      for text in NUMBERS:
        if is_number_inside(text, *bounds, domain.kind is int):
          assert math.isfinite(float(text)) and action.type(text) is not None
        else:
          with pytest.raises(argparse.ArgumentTypeError) as refused:
            action.type(text)
          assert is_one_sentence(str(refused.value), f"={text[:20]}")


@pytest.mark.parametrize(("name", "words", "sentence"), [
  ("lengths", ("run", "--lengths=0,5", "--out=o"), "lengths.py: --lengths=0,5 must be values with commas between them"),
  ("lengths", ("nowhere", "--lengths=512", "--out=o"), "lengths.py: nowhere"),
  ("report", ("nowhere",), "report.py: there is no folder nowhere; give the workdir of a run, or the folder"),
  ("sweep_eval", ("--workdir=a",), "sweep_eval.py: give either the workdir of a trained --run or a --pretrained model"),
  ("sweep_eval", ("--run=a", "--workdir=a", "--writers=wandb"), "sweep_eval.py: --writers=wandb leaves out jsonl"),
  ("sweep", ("sweep.yaml", "--jobs=0"), "sweep.py: --jobs=0 must be positive."),
  ("sweep", ("sweep.yaml", "--job=1"), "sweep.py: unknown flag --job. Did you mean '--jobs'?"),
  ("sweep", ("sweep.yaml", "more"), "sweep.py: unexpected argument 'more'; flags are written as --name=value."),
  ("sweep", ("gs://a/sweep.yaml",), "sweep.py: file=gs://a/sweep.yaml is not on this machine: gs://"),
  ("sweep", ("sweep.yaml", "--beyond=12,x"), "sweep.py: --beyond=12,x must be values with commas between them"),
  ("plot", ("a", "--what=los"), "plot.py: --what=los is not one of loss, position,"),
  ("plot", (), "plot.py: the following arguments are required: paths."),
  ("plot", ("nothing",), "plot.py: nothing/metrics.jsonl does not exist; give the workdir of a run that trains.\n"),
  ("prepare_data", ("enwik9",), "prepare_data.py: name=enwik9 is not one of enwik8, pg19,"),
  ("prepare_data", ("enwik8", "--path=s3://a"), "prepare_data.py: --path=s3://a is not on this machine"),
  ("prepare_data", ("enwik8", "--tokenizer=x"), "prepare_data.py: enwik8 is read as bytes;"),
  ("prepare_data", ("pg19", "--copies=0"), "prepare_data.py: --copies=0 must be positive."),
  ("prepare_data", ("pg19", "--copies=2"), "prepare_data.py: --copies=2 has no effect without --insert;"),
  ("export", ("--output",), "export.py: --output has no value; write --output=VALUE."),
  ("audit", ("--workdir=a", "--out=b", "--threshold=nan"), "audit.py: --threshold=nan must be positive and finite."),
  ("audit", ("--workdir=a", "--out=b", "--text=c", "--document=1"),
   "audit.py: --document=1 is one of the split's, and --text is read instead; leave one out."),
  ("anchors", ("--out=a",), "anchors.py: give either the --workdir of a run or a --pretrained model,"),
  ("anchors", ("--out=a", "--workdir=b", "--pretrained=c"), "anchors.py: give either the --workdir"),
  ("anchors", ("--out=a", "--workdir=b", "--parts=tex"), "anchors.py: --parts=tex "),
  ("anchors", ("--out=a", "--workdir=b", "--trials=0"), "anchors.py: --trials=0 must be positive."),
  ("anchors", ("--out=a", "--workdir=b", "--anchors=none"), "anchors.py: --anchors=none marks no token"),
  ("rollout", (), "rollout.py: give either the --workdir of a run or a --pretrained model, such as smollm2."),
  ("rollout", ("simulat",), "rollout.py: what=simulat is not one of run, simulate."),
  ("rollout", ("--pretrained=a",), "rollout.py: give a --treatment such as window:tokens=512, and a --log"),
  ("rollout", ("--pretrained=a", "--treatment=full", "--log=b", "--set=alpha=2"), "rollout.py: alpha=2 must lie in"),
  ("rollout", ("simulate", "--treatment=full"), "rollout.py: --treatment has no effect on simulate; leave it out,"),
  ("rollout", ("--runs=3",), "rollout.py: --runs has no effect on run; leave it out, or simulate."),
  ("rollout", ("simulate", "--set=purpose=required"), "rollout.py: --set=purpose=required has no effect on simulate:"),
  ("rollout", ("simulate", "--set=alfa=2"), "rollout.py: unknown config field alfa; this section has salt,"),
  ("rollout", ("--inject=-1",), "rollout.py: --inject=-1 must lie in [0, 10]."),
  ("rollout", ("--pretrained=a", "--treatment=full", "--log=b", "--canary_every=0"),
   "rollout.py: --canary_every=0 would leave the gate canary without evidence,"),
  ("local", ("--out=a",), "local.py: give either the --workdir of a run or a --pretrained model,"),
  ("local", ("--out=a", "--pretrained=b", "--budgets=0"), "local.py: --budgets=0 "),
  ("local", ("--out=a", "--pretrained=b", "--split=validation"), "local.py: --split=validation is not one of train"),
  ("bench_cache", ("--out=a", "--ratio=nan"), "bench_cache.py: --ratio=nan must lie in [0, 1]."),
  ("serve", (), "serve.py: give either the --workdir of a run or a --pretrained model, such as smollm2."),
  ("serve", ("--workdir=a", "--port=70000"), "serve.py: --port=70000 must lie in [0, 65535]."),
  ("serve", ("--workdir=a", "--dtype=bfloat16"), "serve.py: --dtype has no effect without a --pretrained model;"),
  ("serve", ("--pretrained=a", "--step=3"), "serve.py: --step has no effect without a run; a pretrained model has no"),
  ("serve", ("--workdir=a", "--share=0.5"), "serve.py: --share, --shadow and --rollout say what a treatment does;"),
  ("serve", ("--workdir=a", "--treatment=knorm:keep=8"), "serve.py: a treatment answers nobody without a --share"),
  ("serve", ("--workdir=a", "--inject=0.1"), "serve.py: --inject has no effect without a --rollout; leave it out, or"),
  ("serve", ("--workdir=a", "--treatment=full", "--rollout=b", "--shadow"), "serve.py: --rollout decides itself whom"),
  ("serve", ("--workdir=a", "--treatment=full", "--rollout=b", "--rollout_set=alpa=1"), "serve.py: unknown"),
  ("self_check", ("--ops=latice",), "self_check: --ops=latice is not one of anchor, attention, delta,"),
], ids=str)
def test_a_mistake_in_a_script_is_one_sentence(run, capsys, name, words, sentence):
  with pytest.raises(SystemExit) as left:
    run(name, *words)
  said = capsys.readouterr().err
  assert left.value.code == 2
  assert said.startswith(sentence) and said.count("\n") == 1, said


@pytest.mark.parametrize("open_it", [
  lambda: load_source(DataConfig(source="text:gs://bucket/book.txt"), "train"),
  lambda: get_tokenizer(DataConfig(tokenizer="pretrained:gs://bucket/book.txt")),
  lambda: find_pretrained("gs://bucket/book.txt")], ids=["text", "tokenizer", "model"])
def test_a_place_inside_another_value_is_of_this_machine_too(open_it):
  with pytest.raises(ValueError, match=r"gs://bucket/book\.txt'? is not on this machine: gs:// is not supported"):
    open_it()


def test_home_is_found_by_every_flag_that_names_a_place(monkeypatch, run, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert FlagParser(arguments.place.domain).parse("~/x") == f"{tmp_path}/x"
  assert arguments.path("~/x") == tmp_path / "x" and arguments.path("~nobody-of-the-kind/x").name == "x"


@pytest.mark.parametrize("run", [
  lambda main: door.run_script(main), lambda main: door.run_command(main, ["plot.py"])],
  ids=["script", "command"])
def test_what_the_system_refuses_has_no_number(capsys, monkeypatch, run):
  def main():
    pathlib.Path("/").read_text()

  monkeypatch.setattr(sys, "argv", ["scripts/plot.py"])
  with pytest.raises(SystemExit) as left:
    run(main)
  assert (left.value.code, capsys.readouterr().err) == (2, "plot.py: /: Is a directory.\n")
