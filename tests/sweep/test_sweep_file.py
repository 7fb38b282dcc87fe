"""What a sweep file may say, and one sentence for all else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lattice_jax.config import Config, ModelConfig
from lattice_jax.config_text import apply_overrides
from lattice_jax.evaluation.caches import cache_overrides
from lattice_jax.sweep.parameters import Choice, Interval, Multiples, Normal, parse_parameter
from lattice_jax.sweep.search import GridSearch
from lattice_jax.sweep.sweep_file import read_sweep
from tests.sweep import sweeps

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize(("entry", "parameter"), [
  ({"value": 3}, Choice("p", (3,))),
  ({"values": ["a", 1, 0.5, True]}, Choice("p", ("a", 1, 0.5, True))),
  ({"distribution": "constant", "value": "x"}, Choice("p", ("x",))),
  ({"distribution": "categorical", "values": [1]}, Choice("p", (1,))),
  ({"min": 1, "max": 4}, Multiples("p", 1, 4, 1)),
  ({"min": 1, "max": 4.0}, Interval("p", 1, 4.0)),
  ({"distribution": "uniform", "min": 1, "max": 4}, Interval("p", 1, 4)),
  ({"distribution": "int_uniform", "min": 1, "max": 4}, Multiples("p", 1, 4, 1)),
  ({"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.1}, Multiples("p", 0.1, 0.5, 0.1)),
  ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}, Interval("p", 1e-4, 1e-2, log=True)),
  ({"distribution": "normal"}, Normal("p", 0.0, 1.0)),
  ({"distribution": "normal", "mu": 2, "sigma": 3}, Normal("p", 2, 3)),
], ids=str)
def test_fields_mean_what_they_mean_in_wandb(entry, parameter):
  assert parse_parameter("p", entry) == parameter


def test_multiples_have_no_rounding_errors_and_stay_inside():
  assert Multiples("p", 0.1, 0.5, 0.1).choices() == (0.1, 0.2, 0.3, 0.4, 0.5)
  assert Multiples("p", 10, 70, 32).choices() == (32, 64)


@pytest.mark.parametrize(("entry", "message"), [
  (3, "parameter p is 3, but must hold value, values, or min and max"),
  ({}, "parameter p has nothing, but needs value, values, or min and max"),
  ({"min": 1}, "parameter p has min, but needs"),
  ({"parameters": {"a": {"value": 1}}}, r"parameter p is nested; write .* as in p\.NAME"),
  ({"distribution": "beta"}, "distribution 'beta' is not one of constant, categorical, uniform"),
  ({"min": 1, "max": 2, "q": 1}, "'q' is not a field of distribution int_uniform, which has min, max"),
  ({"distribution": "uniform", "min": 1}, "distribution uniform needs 'max'"),
  ({"values": []}, r"values=\[\] must be a list with at least one value"),
  ({"values": [[1]]}, r"\[1\] must be a number, a text, true or false"),
  ({"value": None}, "None must be a number, a text"),
  ({"min": "1e-4", "max": 1e-2}, r"min='1e-4' must be a number\. YAML reads it as text; write 1\.0e-04"),
  ({"values": ["5E3"]}, r"'5E3' is a text\. YAML reads it as text; write 5\.0e\+03"),
  ({"min": 2, "max": 2}, "min=2 must be less than max=2"),
  ({"distribution": "int_uniform", "min": 1, "max": 2.5}, "must be whole numbers"),
  ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min=0 of log_uniform_values must be positive"),
  ({"distribution": "q_uniform", "min": 1, "max": 2, "q": 5}, "no multiple of q=5 lies between min=1 and max=2"),
  ({"distribution": "q_uniform", "min": 1, "max": 2, "q": 0}, "q=0 must be positive"),
  ({"distribution": "normal", "sigma": 0}, "sigma=0 must be positive"),
  ({"distribution": ["uniform"]}, r"distribution \['uniform'\] is not one of"),
  ({"value": 1, 2: 3, "x": 4}, "'2' is not a field of distribution constant"),
  ({"min": float("-inf"), "max": 1.0}, "min=-inf must be finite"),
  ({"min": 0.0, "max": float("nan")}, "max=nan must be finite"),
  ({"min": 0, "max": 10**400}, r"max=10{400} (must be finite|is too large)"),
  ({"distribution": "q_uniform", "min": 1, "max": 2, "q": 1e-300}, "lie more than 9,007,199,254,740,992 multiples of"),
  ({"distribution": "normal", "mu": float("nan")}, "mu=nan must be finite"),
  ({"values": [1, float("nan")]}, "value=nan must be finite"),
], ids=str)
def test_bad_parameter_is_refused_in_one_sentence(entry, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse_parameter("p", entry)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), [
  ({"metod": "grid"}, "'metod' is not one of program, method, .* Did you mean 'method'"),
  ({"early_terminate": {"type": "hyperband"}}, "'early_terminate': trials are not cut short offline"),
  ({"program": None}, "'program' is missing"),
  ({"metric": None}, "'metric' is missing"),
  ({"method": "anneal"}, "method='anneal' is not one of grid, random, bayes"),
  ({"metric": {"name": "train/loss"}}, "'train/loss' is not the name of an evaluation"),
  ({"metric": {"goal": "minimize"}}, "metric must hold a name and a goal"),
  ({"metric": {"name": sweeps.METRIC, "goal": "least"}}, "goal='least' is not one of minimize, maximize"),
  ({"metric": {"name": sweeps.METRIC, "target": 2}}, "metric: 'target' is not one of name, goal"),
  ({"parameters": {}}, "parameters must hold at least one name"),
  ({"parameters": {"a": {"value": 1}}}, "every parameter is a constant"),
  ({"parameters": {"a": {"min": 0.0, "max": 1}}}, "parameter a: a grid cannot go through a continuous"),
  ({"command": "train.py"}, "command='train.py' must be a list"),
  ({"command": ["${program}", "${args_json}"]}, r"the macro \$\{args_json\} is not one of \$\{env\}"),
  ({"command": ["${args}", "--config=${program}"]}, r"holds \$\{program\} as a part, which W&B does not replace"),
  ({"command": ["${program}"]}, r"\$\{args\} is missing"),
  ({"method": "random"}, "method random has no end of its own; say with run_cap"),
  ({"run_cap": 0}, "run_cap=0 must be a positive whole number"),
], ids=str)
def test_bad_file_is_refused_in_one_sentence_that_names_it(tmp_path, changes, message):
  with pytest.raises(ValueError, match=rf"sizes\.yaml: .*{message}") as caught:
    sweeps.read(tmp_path, **changes)
  assert "\n" not in str(caught.value)


def test_what_is_no_yaml_is_one_sentence(tmp_path):
  path = tmp_path / "a.yaml"
  path.write_text("a: [1\nb: {")
  with pytest.raises(ValueError, match=r"a\.yaml is not readable YAML") as caught:
    read_sweep(path)
  assert "\n" not in str(caught.value)
  with pytest.raises(ValueError, match=r"b\.yaml cannot be read \(No such file or directory\)"):
    read_sweep(tmp_path / "b.yaml")


@pytest.mark.parametrize(("text", "message"), [
  ("a: 1\nb: 2\na: 3", r"line 3 holds the key 'a' a second time; remove one\.$"),
  ("a: {b: {c: 1, d: 2, c: 3}}", r"line 1 holds the key 'c' a second time; remove one\.$"),
  ("a: &a [1, *a]", r"line 1 holds itself by an alias\.$"),
  ("a: &a [x]\n" + "".join(f"{new}: &{new} [{', '.join(9 * [f'*{old}'])}]\n" for old, new in zip("abcdefgh", "bcdefghi",
                                                                                            strict=True)),
   r"its aliases unfold to more than 100,000 values\.$"),
  ("[" * 5000, r"it is nested too deeply\.$"),
  ("a: " + "9" * 5000, r"Exceeds the limit \(4300 digits\)"),
  ("a: 2001-99-99", r"month must be in 1\.\.12"),
  ("a: !!python/object/apply:os.system [true]", r"could not determine a constructor for the tag"),
  ("a: b\n---\na: c", r"expected a single document"),
  ("a: \0", r"special characters are not allowed"),
  ("? [a, b]\n: c\n? {a: b}\n: c", r"found unhashable key"),
  ("\xff", r"(program|must hold)"),
], ids=["twice", "twice-inside", "holds-itself", "bomb", "deep", "digits", "date", "code", "two", "zero", "keys",
        "text"])
def test_yaml_that_is_ambiguous_or_unfolds_without_end_is_one_sentence(tmp_path, text, message):
  path = tmp_path / "a.yaml"
  path.write_text(text, encoding="utf-8")
  with pytest.raises(ValueError, match=rf"^\S+a.yaml.*{message}") as caught:
    read_sweep(path)
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
  path.write_bytes(text.encode("utf-16"))
  with pytest.raises(ValueError, match=r"^\S+a.yaml is not readable YAML: 'utf-8' codec can't decode"):
    read_sweep(path)


def test_aliases_and_merged_keys_are_read_as_everywhere(tmp_path):
  path = sweeps.write(tmp_path)
  plain = read_sweep(path)
  text = path.read_text().replace("  size:\n", "  size: &size\n").replace("  seed:\n", "  seed:\n    <<: *size\n")
  path.write_text(text)
  assert "<<" in text and read_sweep(path) == plain


def test_a_grid_is_counted_before_it_is_gone_through(tmp_path):
  parameters = {name: {"values": list(range(1000))} for name in "abcd"}
  with pytest.raises(ValueError, match=r"sizes\.yaml: the grid has 1,000,000,000,000 trials, and at most 100,000 can "
                                       r"be gone through; use fewer values, or method random with a run_cap\.$"):
    sweeps.read(tmp_path, parameters=parameters)
  many = {"a": {"min": 1, "max": 2_000_000_000}}
  with pytest.raises(ValueError, match=r"the grid has 2,000,000,000 trials"):
    sweeps.read(tmp_path, parameters=many)
  assert sweeps.read(tmp_path, method="random", run_cap=2, parameters=many).run_cap == 2


def test_what_a_file_says_at_length_is_quoted_in_part(tmp_path):
  with pytest.raises(ValueError, match=r"parameter p: \['xxx.* … .*must be a number, a text, true or ") as caught:
    sweeps.read(tmp_path, parameters={"p": {"value": ["x" * 5000]}})
  assert len(str(caught.value)) < 700


def test_command_is_expanded_as_wandb_does(tmp_path):
  command = ["${env}", "${interpreter}", "${program}", "--fixed", "${args}", "--workdir=x/{run_id}"]
  sweep = sweeps.read(tmp_path, program="train.py", command=command)
  assert sweep.arguments({"a.b": 1, "c": True}) == [
    "${env}", "${interpreter}", "train.py", "--fixed", "--a.b=1", "--c=True"]
  assert sweeps.read(tmp_path, program="train.py").arguments({"a": "x"}) == [
    "${env}", "${interpreter}", "train.py", "--a=x"]


def test_grid_goes_through_the_product_in_the_order_of_the_file(tmp_path):
  search = GridSearch(sweeps.read(tmp_path))
  assert [search.trial(index).id for index in range(search.total)] == [
    "size=1_seed=0", "size=1_seed=1", "size=2_seed=0", "size=2_seed=1", "size=4_seed=0", "size=4_seed=1"]
  assert search.trial(3).values == {"size": 2, "seed": 1}
  assert GridSearch(sweeps.read(tmp_path, run_cap=4)).total == 4


def test_ids_are_short_unique_and_fit_for_a_folder_and_a_wandb_run(tmp_path):
  parameters = {
    "config": {"values": ["configs/a.py:base", "configs/a.py:revive,codes 64"]}, "x.m": {"values": [1, 2]},
    "y.m": {"values": [0.1, 0.2]}, "z": {"value": 7}}
  search = GridSearch(sweeps.read(tmp_path, parameters=parameters))
  assert search.trial(0).id == "config=base_x.m=1_y.m=0.1"
  assert search.trial(7).id == "config=revive+codes-64_x.m=2_y.m=0.2"
  same = {"a": {"values": ["x y", "x-y"]}}
  assert GridSearch(sweeps.read(tmp_path, parameters=same)).trial(1).id == "trial_001"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid_and_every_trial_has_a_folder_of_its_own(path):
  sweep = read_sweep(path)
  raw = yaml.safe_load(path.read_text())
  assert sweep.program in ("train.py", "scripts/sweep_eval.py")
  assert f"--workdir=runs/sweeps/{path.stem}/{{run_id}}" in raw["command"]
  flag = "--config.train.writers=" if sweep.program == "train.py" else "--writers="
  writers = next(word for word in raw["command"] if word.startswith(flag))
  assert "wandb" in writers and "jsonl" in writers, "online, W&B needs the metric; offline, the table does"
  if sweep.method == "grid":
    search = GridSearch(sweep)
    ids = [search.trial(index).id for index in range(search.total)]
    assert not [name for name in ids if re.search(r"[:;,#?/']", name)], "characters that W&B refuses"


@pytest.mark.parametrize(
  "path", [path for path in FILES if "sweep_eval.py" in path.read_text(encoding="utf-8")], ids=lambda path: path.stem)
def test_every_setting_that_is_evaluated_can_be(path):
  search = GridSearch(read_sweep(path))
  for values in (search.trial(index).values for index in range(search.total)):
    overrides = cache_overrides(values["cache"]) if "cache" in values else values["set"].split()
    apply_overrides(Config(model=ModelConfig(pattern=("attention",))), overrides)


@pytest.mark.parametrize(("name", "entry", "message"), [
  ("config.optimizer.learning_rat", {"value": 1.0}, r"unknown config field optimizer\.learning_rat; "),
  ("config.optimizer.b2", {"values": [0.9, 2]}, r"parameter config\.optimizer\.b2: 2 must lie in \[0, 1\)"),
  ("config.train.steps", {"values": [10, 1.5]}, r"parameter config\.train\.steps: 1\.5 must be a whole number"),
  ("config.optimizer.clip_norm", {"min": -1.0, "max": 1.0}, r"clip_norm: -1\.0 must be 0 or more"),
  ("config.model.dim", {"min": 0, "max": 64}, r"model\.dim: 0 must be positive"),
  ("config.model.logit_scale", {"distribution": "normal", "mu": 1.0}, r"logit_scale: -3\.\d+ must be positive"),
], ids=str)
def test_values_of_a_field_are_refused_before_any_trial(tmp_path, name, entry, message):
  with pytest.raises(ValueError, match=message) as caught:
    sweeps.read(tmp_path, method="random", run_cap=2, parameters={name: entry, "config.train.seed": {"values": [0, 1]}})
  assert "\n" not in str(caught.value)
