"""Any override of any field is either applied as written or refused in one sentence that names the field."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lattice_jax.config import Config
from lattice_jax.config_checks import default_config, parse_config, to_dict
from lattice_jax.config_text import apply_overrides
from lattice_jax.domains import Names, Number, Switch, Text
from lattice_jax.fields import find

MANY = settings(max_examples=200)
BASE = parse_config(default_config())


def leaves(section, path=""):
  """(path, default) of every field."""
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      yield from leaves(value, f"{path}{field.name}.")
    else:
      yield path + field.name, value


FIELDS = dict(leaves(BASE))
DOMAINS = {path: find(Config, path) for path in FIELDS}
WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
BY_TYPE = {
  bool: st.booleans(),
  int: st.integers(-3, 10_000),
  float: st.floats(-1, 10, allow_nan=False),
  str: st.one_of(WORDS, st.sampled_from(["adamw", "cosine", "none", "bytes", "validation", "packed", "both"])),
}


@st.composite
def overrides(draw):
  """A field and a value of its type."""
  path = draw(st.sampled_from(sorted(FIELDS)))
  if isinstance(FIELDS[path], tuple):
    names = WORDS | st.sampled_from(["vq", "attention", "window"])
    return path, tuple(draw(st.lists(names, min_size=1, max_size=3)))
  return path, draw(BY_TYPE[type(FIELDS[path])])


@st.composite
def fitting(draw):
  """A field and a value of its domain, which another field may still contradict."""
  path, domain = draw(st.sampled_from(sorted(DOMAINS.items())))
  if isinstance(domain, Number):
    low = -10 if domain.low is None else domain.low
    high = 10_000 if domain.high is None else min(domain.high, 10_000)
    if domain.kind is int:
      return path, draw(st.integers(low, high))
    return path, draw(st.floats(low, high, exclude_min=domain.is_low_open, exclude_max=domain.is_high_open, width=32))
  if isinstance(domain, (Text, Names)) and domain.allowed:
    names = st.sampled_from(domain.allowed)
    return path, draw(names if isinstance(domain, Text) else st.lists(names, min_size=1, max_size=3).map(tuple))
  return path, draw(st.booleans() if isinstance(domain, Switch) else st.just(FIELDS[path]))


def value_at(config, path):
  for name in path.split("."):
    config = getattr(config, name)
  return config


def as_text(value):
  return ",".join(value) if isinstance(value, tuple) and all(isinstance(item, str) for item in value) else str(value)


@MANY
@given(overrides())
def test_an_override_is_applied_or_refused_in_one_sentence(override):
  path, value = override
  try:
    changed = apply_overrides(BASE, [f"{path}={as_text(value)}"])
  except ValueError as error:
    assert "\n" not in str(error) and str(error).endswith((".", "?"))
    assert path.split(".")[-1] in str(error) or path.split(".")[0] in str(error)
    return
  assert value_at(changed, path) == value
  assert {name: default for name, default in leaves(changed) if name != path} == {
    name: default for name, default in FIELDS.items() if name != path}


@settings(max_examples=60)
@given(st.lists(fitting(), max_size=3, unique_by=lambda drawn: drawn[0]))
def test_a_config_survives_json_and_its_own_overrides(drawn):
  texts = [f"{path}={as_text(value)}" for path, value in drawn]
  try:
    changed = apply_overrides(BASE, texts)
  except ValueError:
    assume(False)
  assert parse_config(json.loads(json.dumps(to_dict(changed)))) == changed
  assert apply_overrides(changed, texts) == changed


@MANY
@given(st.sampled_from(sorted(FIELDS)), st.integers(0, 30), st.sampled_from("abcxyz_"))
def test_a_misspelt_field_is_never_taken(path, place, letter):
  section, _, name = path.rpartition(".")
  place %= len(name) + 1
  wrong = name[:place] + letter + name[place:]
  wrong_path = f"{section}.{wrong}".lstrip(".")
  assume(wrong_path not in FIELDS)
  with pytest.raises(ValueError, match=rf"unknown config field {wrong_path}; this section has .*Did you mean"):
    apply_overrides(BASE, [f"{wrong_path}=1"])


@MANY
@given(st.sampled_from(sorted(FIELDS)), st.sampled_from([None, [1, {}], {"a": 1}, object()]))
def test_a_value_of_no_sensible_type_is_refused(path, value):
  raw = to_dict(BASE)
  *sections, name = path.split(".")
  section = raw
  for part in sections:
    section = section[part]
  section[name] = value
  with pytest.raises(ValueError, match=rf"^{path}="):
    parse_config(raw)


def test_the_search_knows_every_type_of_field():
  assert {type(value) for value in FIELDS.values()} <= {*BY_TYPE, tuple}
  assert isinstance(BASE, Config) and len(FIELDS) > 60
