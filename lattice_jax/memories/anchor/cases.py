"""Anchor attention as `self_check` runs it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax.numpy as jnp

from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.op import anchor_attention
from lattice_jax.memories.cases import FEW, Case, Sizes, documents, normal
from lattice_jax.types import MARK_ANCHOR


def make_cases(sizes: Sizes) -> Iterator[Case]:
  token = normal(sizes, 3, sizes.width)
  marks = jnp.where(jnp.arange(sizes.tokens) % 7 == 5, MARK_ANCHOR, 0).astype(jnp.int8)[None]

  def run(config, inputs, impl):
    ids, valid = documents(sizes)
    return anchor_attention(*inputs, None, ids, valid, marks=marks, config=config, impl=impl)[0]

  for form, config in (("flat", AnchorConfig(max_segment=FEW)), ("fanout", AnchorConfig(max_segment=FEW, fanout=4))):
    yield Case("anchor", form, functools.partial(run, config), token)
