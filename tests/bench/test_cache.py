"""Decoding under a cache policy is timed beside the full cache and beside one of the length that the policy leaves."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from lattice_jax.bench import cache as bench
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_cache.py"
LENGTH, LAG, RATIO = 61, 8, 0.25
MODEL = ModelConfig(
  vocab=31, dim=12, layers=1, pattern=("attention",), block="mlp", mlp_dim=8, scan_layers=False, impl="reference",
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4))


@pytest.mark.parametrize("part", bench.PARTS)
def test_the_command_writes_three_cases_of_a_part(part, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bench, "MODEL", MODEL)
  monkeypatch.setattr(sys, "argv", [
    "bench_cache.py", f"--length={LENGTH}", f"--lag={LAG}", f"--ratio={RATIO}", f"--tokens={LAG}", "--rounds=2",
    f"--parts={part}", f"--out={tmp_path}"])
  runpy.run_path(str(SCRIPT))["main"]()
  assert f"{part}, after {LENGTH} tokens" in capsys.readouterr().out
  full, policy, same_length = (json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines())
  kept = make_policy(CacheConfig(policy="lagkv", lag=LAG, ratio=RATIO)).length_after(LENGTH)
  assert [record["case"] for record in (full, policy, same_length)] == ["full", "lagkv", f"full of {kept}"]
  assert (full["kept"], policy["kept"], same_length["kept"]) == (LENGTH, kept, kept)
  for record in (full, policy, same_length):
    assert record["part"] == part and record["layers"] == MODEL.layers and 0 < record["ms"] <= record["ms 95 %"]
    assert record["bytes"] == record["bytes by formula"]
  assert policy["bytes"] < full["bytes"]
  for ratio in ("times faster", "cost of the policy"):
    low, middle, high = policy[ratio]
    assert low <= middle <= high and ratio not in full
