"""The ablations of anchor attention: every shipped trial trains a valid model, and differs in one thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import ablation_anchor, anchor_pg19, common
from lattice_jax.config_checks import parse_config
from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
from lattice_jax.fields import leaves
from lattice_jax.sweep.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
SWEEP = read_sweep(ROOT / "configs" / "sweeps" / "anchor_ablation.yaml")
INSERTED = {"model.vocab": 2049, "data.anchors.rule": "token:<AC>", "data.anchors.insert": "sentence"}
CHANGES = {
  "base": {},
  "insert": INSERTED,
  "copies2": INSERTED | {"data.anchors.copies": 2, "model.anchor.protected": 171},
  "line": {"data.anchors.rule": "line"},
  "every16": {"data.anchors.rule": "every:16"},
  "fanout4": {"model.anchor.fanout": 4},
  "reach8": {"model.anchor.reach": 8},
  "sees": {"model.anchor.anchors_see_anchors": True},
  "nobos": {"model.anchor.keep_bos": False},
  "random16": {"data.anchors.random_every": 16},
  "dropout": {"data.anchors.dropout": 0.1},
  "repeat": {"data.anchors.repeat_share": 0.25},
  "causal": {"model.pattern": ("attention",), "data.anchors.rule": "none"},
  "insert,causal": {**INSERTED, "model.pattern": ("attention",), "data.anchors.rule": "none"},
}


def changes(arg):
  base, config = (parse_config(ablation_anchor.get_config(name)) for name in ("base", arg))
  return {
    path: value for (path, _, value), (*_, of_base) in zip(leaves(config), leaves(base), strict=True)
    if path != "name" and value != of_base}


@pytest.mark.parametrize("variant", CHANGES)
def test_a_variant_changes_one_thing(variant):
  assert changes(variant) == CHANGES[variant]


def test_the_sweep_has_every_variant_once_and_its_metric():
  variants = [value.rpartition(":")[2] for value in SWEEP.parameters[0].values]
  assert sorted(variants) == sorted({*common.variants(ablation_anchor.get_config)} - {"sample", "smoke"})
  source = load_source(parse_config(ablation_anchor.get_config()).data, "validation")
  assert SWEEP.metric == f"eval_validation_cold/bits_per_{source.unit}"


def test_the_base_is_the_sample_of_the_experiment():
  base, sample = parse_config(ablation_anchor.get_config()), parse_config(anchor_pg19.get_config("sample"))
  assert base.name == "ablation_anchor"
  assert (base.model, base.data, base.optimizer, base.train, base.eval) == (
    sample.model, sample.data, sample.optimizer, sample.train, sample.eval)


@pytest.mark.parametrize("arg", ["insert", "copies2", "insert,smoke", "copies2,smoke"])
def test_the_model_knows_the_token_that_is_inserted(arg):
  config = parse_config(ablation_anchor.get_config(arg))
  assert config.model.vocab == get_tokenizer(config.data).vocab_size
