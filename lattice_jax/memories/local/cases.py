"""Local attention as `self_check` runs it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from lattice_jax.memories.cases import FEW, Case, Sizes, documents, normal
from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.memories.local.op import local_attention


def make_cases(sizes: Sizes) -> Iterator[Case]:
  token = normal(sizes, 3, sizes.width)

  def run(windows, inputs, impl):
    ids, valid = documents(sizes)
    config = LocalConfig(rungs=(FEW, 3 * FEW), windows=windows)
    return local_attention(*inputs, None, ids, valid, config=config, impl=impl)[0]

  heads = (FEW, 3 * FEW) * (sizes.heads // 2) + (0,) * (sizes.heads % 2)
  for form, windows in (("alike", (FEW,)), ("heads", heads)):
    yield Case("local", form, functools.partial(run, windows), token)
