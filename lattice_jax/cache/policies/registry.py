"""The cache policies that a config may name. Adding one is a file in this folder, a name here and a row in the laws."""

from __future__ import annotations

import importlib

from lattice_jax.cache.policies.record import PolicyRecord

NAMES = ("full", "window", "lagkv", "local", "knorm", "keydiff", "random", "every", "sep", "h2o", "snapkv", "tova")

POLICIES: dict[str, PolicyRecord] = {
  name: importlib.import_module(f"lattice_jax.cache.policies.{name}").POLICY for name in NAMES}
DROPPING = tuple(name for name in NAMES if POLICIES[name].chooses != "nothing")
COMPRESSING = tuple(name for name in NAMES if POLICIES[name].compresses)
