"""Every value that a user can give has a stated domain, and is taken inside it and refused outside in one sentence."""

from __future__ import annotations

import dataclasses
import json
import math
import typing

import pytest

from lattice_jax import dispatch
from lattice_jax.byte_size import ByteSize
from lattice_jax.config import Config
from lattice_jax.config_checks import check_config, default_config, largest_divisor, parse_config, to_dict
from lattice_jax.data.source import SPLITS
from lattice_jax.domains import (
  LARGEST_WHOLE,
  SEED,
  Names,
  Number,
  Numbers,
  Pairs,
  Place,
  Switch,
  Text,
  checked,
)
from lattice_jax.fields import leaves, positive
from lattice_jax.memories.vq import config as vq_config
from lattice_jax.memories.vq import op as vq
from lattice_jax.training.optimizer import RULES
from lattice_jax.writers import WRITERS

BASE = parse_config(default_config())
FIELDS = {path: field for path, field, _ in leaves(BASE)}
DEFAULTS = {path: value for path, _, value in leaves(BASE)}
VALUES = (-1, 0, 1, 1.5, math.nan, math.inf, -math.inf, 10**15, 1e300, 1e-300, 2**32 - 1, 2**70, -(2**70), 10**400, "1",
          "a\nb", None, True, (1,), [[]], {"a": 1}, object())
# Numbers that would be taken if the domain were merely «finite»; pinned one by one.
OUTSIDE = {
  "optimizer.clip_norm": (-1.0, math.nan), "optimizer.b1": (1.0, -0.1), "optimizer.b2": (2.0, 1.0, math.nan),
  "optimizer.eps": (-1.0, 0.0, 1e-300), "optimizer.weight_decay": (-0.1, math.nan, math.inf),
  "optimizer.final_fraction": (-0.1, 1.1, math.nan), "optimizer.warmup_steps": (-1,),
  "optimizer.learning_rate": (0.0, -1.0, math.nan, 1e300), "model.logit_scale": (math.nan, -1.0, 0.0),
  "model.vq.commit_weight": (-1.0, math.nan), "model.vq.near_start": (math.nan, math.inf),
  "model.vq.max_wavelength": (0.0, math.nan), "model.lattice.tolerance": (math.nan, -1.0),
  "model.attention.rope_theta": (-1.0, math.nan), "model.attention.window": (-1,), "model.vq.window": (-1,),
  "model.cache.lagkv.value_weight": (math.nan, -1.0), "model.cache.random.seed": (-1, 2**32),
  "train.seed": (-1, 2**32, 2**64),
  "data.seed": (-1, 2**64), "data.workers": (-1,), "train.keep_best": (-1,), "train.nan_skips": (-1,),
  "train.eval_every": (-1,), "eval.seq_len": (-1,), "eval.chunk_len": (-1,), "eval.max_batches": (-1,),
  "mesh.data": (0, -2), "train.steps": (0, 2**31), "model.dropout": (1.0, -0.1, math.nan)}


def change(section, path, value):
  name, _, rest = path.partition(".")
  return dataclasses.replace(section, **{name: change(getattr(section, name), rest, value) if rest else value})


def raw_with(path, value):
  raw = to_dict(BASE)
  *sections, name = path.split(".")
  section = raw
  for part in sections:
    section = section[part]
  section[name] = value
  return raw


def is_inside(domain, value):
  """The domain as stated by `describe`, read independently of `convert`."""
  if isinstance(domain, Number):
    if isinstance(value, bool) or not isinstance(value, (int, float) if domain.kind is float else int):
      return False
    if value in domain.also:
      return True
    largest = 3.4e38 if domain.kind is float else 2**31 - 1
    low = -largest if domain.low is None else domain.low
    high = largest if domain.high is None else domain.high
    return (low < value if domain.is_low_open else low <= value) and (
      value < high if domain.is_high_open else value <= high) and (value == 0 or abs(value) > 1.1e-38)
  if isinstance(domain, Text):
    return isinstance(value, str) and "\n" not in value and (not domain.allowed or value in domain.allowed)
  if isinstance(domain, Switch):
    return isinstance(value, bool)
  if isinstance(domain, Numbers):
    return value == (1,) and type(value) is tuple
  return False


@pytest.mark.parametrize("path", FIELDS)
def test_a_value_is_taken_inside_the_domain_and_refused_outside_in_one_sentence(path):
  domain = FIELDS[path].metadata["domain"]
  for value in VALUES:
    if is_inside(domain, value):
      assert domain.convert(value) == value
      continue
    with pytest.raises(ValueError) as caught:
      checked(domain, path, value)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}=") and "\n" not in sentence and sentence.endswith((".", "?")), sentence
    assert len(sentence) < 400 and " at 0x" not in sentence
  # and the whole config is checked so, read from JSON or built
  with pytest.raises(ValueError, match=f"^{path}="):
    parse_config(raw_with(path, None))
  with pytest.raises(ValueError, match=f"^{path}="):
    check_config(change(BASE, path, None))


@pytest.mark.parametrize(("path", "value"), [(path, value) for path in OUTSIDE for value in OUTSIDE[path]], ids=str)
def test_numbers_that_reverse_or_disable_training_are_refused(path, value):
  with pytest.raises(ValueError, match=rf"^{path}=.* (must|is too (small|large): must) "):
    parse_config(raw_with(path, value))
  with pytest.raises(ValueError, match=rf"^{path}="):
    check_config(change(BASE, path, value))


def test_every_field_states_domain_meaning_and_type():
  def walk(cls):
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
      assert field.metadata["doc"].strip(), field.name
      if dataclasses.is_dataclass(hints[field.name]):
        assert field.default_factory is hints[field.name]
        walk(hints[field.name])
        continue
      domain = field.metadata["domain"]
      assert isinstance(domain, (Number, Text, Switch, Names, Numbers, Pairs))
      assert domain.kind is (typing.get_origin(hints[field.name]) or hints[field.name]), field.name
      assert domain.convert(field.default) == field.default and domain.describe()

  walk(Config)
  with pytest.raises(ValueError, match="must be positive"):
    positive(0, "a default outside of its own domain")


def test_a_field_without_domain_is_an_error():
  @dataclasses.dataclass(frozen=True)
  class Section:
    heads: int = 4

  with pytest.raises(TypeError, match="the config field 'heads' has no domain"):
    list(leaves(Section()))


@pytest.mark.parametrize(("stated", "owned"), [
  (vq_config.REDUCTIONS, ("auto", *vq.FORMS)),
  (FIELDS["model.impl"].metadata["domain"].allowed, dispatch.IMPLEMENTATIONS),
  (FIELDS["train.writers"].metadata["doc"].partition(": ")[2].split(", "), WRITERS),
  (FIELDS["optimizer.name"].metadata["domain"].allowed, RULES),
  (FIELDS["eval.split"].metadata["domain"].allowed, SPLITS)])
def test_names_of_the_config_are_those_that_the_code_answers_to(stated, owned):
  assert tuple(stated) == tuple(owned)


def test_independent_decay_leaves_something_of_a_parameter():
  raw = raw_with("optimizer.weight_decay", 1.0)
  parse_config(raw)
  raw["optimizer"]["decay"] = "independent"
  with pytest.raises(ValueError, match=r"weight_decay=1\.0 is the part of a parameter .* must be less than 1"):
    parse_config(raw)


@pytest.mark.parametrize("scheme", ["gs://bucket/data", "s3://bucket", "http://host/x"])
def test_places_of_other_machines_are_refused(scheme):
  with pytest.raises(ValueError, match=rf"^data\.path='{scheme}' is not on this machine: .* is not supported"):
    parse_config(raw_with("data.path", scheme))


@pytest.mark.parametrize(("domain", "text", "value"), [
  (Number(int, 1), "12", 12), (Number(float, 0), "1e-3", 1e-3), (SEED, str(2**32 - 1), 2**32 - 1),
  (Switch(), "False", False), (Switch(), "true", True), (Text(("a", "b")), "b", "b"), (Names(), "a,b", ("a", "b")),
  (Numbers(), "64", (64,)), (Numbers(), "64,128", (64, 128)), (Numbers(), "[0]", (0,)), (Numbers(), "", ()),
  (Names(), "('a', 'b')", ("a", "b")), (Names(), "", ()), (Pairs(), "(('a', 'b'),)", (("a", "b"),)),
  (Place(), "a/x", "a/x")], ids=str)
def test_what_a_command_line_says(domain, text, value):
  assert domain.parse(text) == value and type(domain.parse(text)) is type(value)


@pytest.mark.parametrize(("domain", "text", "sentence"), [
  (Number(int, 1), "1.5", "must be a whole number"), (Number(int, 1), "0", "must be positive"),
  (Number(float, 1), "0.75", "must be 1 or more and finite"),
  (Number(int, 1), "9" * 5000, "must be a whole number"), (Number(float, 0), "x", "must be a number"),
  (Number(float, 0), "nan", "must be 0 or more and finite"), (Number(float, 0, 1), "1e400", r"must lie in \[0, 1\]"),
  (Number(int, 1, also=(-1,)), "-2", "must be positive, or -1"), (SEED, str(2**64), r"must lie in \[0, 4294967295\]"),
  (Switch(), "maybe", "must be true or false"), (Text(("auto", "xla")), "aut", "Did you mean 'auto'"),
  (Names(("vq",)), "vqq", "names 'vqq'; known are vq"), (Names(), "(a, b)", "names with commas"),
  (Numbers(), "64,,", "must be whole numbers with commas"), (Numbers(), "1.5,2", "must be a list of whole numbers"),
  (Numbers(), "True", "must be a list of whole numbers"), (Numbers(1), "0,1", r"holds 0, .* must lie in \[1"),
  (Numbers(), str(2**31), "must lie in"), (Numbers(fewest=1), "", "must hold at least 1 number"),
  (Pairs(), "((a", "pairs of names"), (Pairs(), "(" * 10_000, "pairs of names")], ids=lambda value: str(value)[:40])
def test_what_a_command_line_may_not_say(domain, text, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    domain.parse(text)
  assert "\n" not in str(caught.value) and "<" not in str(caught.value)


def test_largest_divisor_of_a_large_prime_is_found_at_once():
  assert largest_divisor(LARGEST_WHOLE, at_most=LARGEST_WHOLE - 1) == 1
  assert largest_divisor(360, at_most=100) == 90 and largest_divisor(7, at_most=0) == 1


def test_a_stored_config_from_before_a_field_was_added_gets_its_default():
  raw = json.loads(json.dumps(to_dict(BASE)))
  del raw["optimizer"]["decay"], raw["model"]["cache"]
  assert parse_config(raw) == BASE


@pytest.mark.parametrize(("text", "size"), [
  ("200MB", 200_000_000), ("1.5GiB", 3 << 29), ("4096", 4096), ("7b", 7), ("64 kB", 64_000), ("0.3kb", 300),
  ("2TiB", 2 << 40), ("1KiB", 1024), (str(2**60), 2**60)])
def test_a_size_is_bytes_or_has_a_unit(text, size):
  assert ByteSize().parse(text) == size


@pytest.mark.parametrize(
  "text", ["", "MB", "0", "0.4B", "-1MB", "1.5", "1e9", "nan", "1.MB", "9" * 5000, "3 PB", "1_0", "²"])
def test_what_is_no_size_is_refused(text):
  with pytest.raises(ValueError, match=r"must be a number of bytes (with or without a unit, as in|from 1 to 2\^60)"):
    ByteSize().parse(text)
  for value in (0, 2**60 + 1, True, 1.5, "1MB"):
    with pytest.raises(ValueError, match="must be"):
      ByteSize().convert(value)
