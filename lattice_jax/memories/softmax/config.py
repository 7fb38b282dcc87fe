"""The part of the config of softmax attention: `model.attention`, which all memories that attend read."""

from __future__ import annotations

import math
from typing import Any

from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.section import Section


def _smoke(config: Any) -> dict[str, Any]:
  heads = min(4, config.heads)
  return {
    "heads": heads, "kv_heads": math.gcd(heads, config.kv_heads), "key_dim": 16, "value_dim": 16,
    "window": min(16, config.window)}


SECTION = Section("attention", AttentionConfig, "the memories \"attention\" and \"window\"", _smoke)
