"""Softmax attention as `self_check` runs it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax.numpy as jnp

from lattice_jax.memories.cases import Case, Sizes, documents, normal
from lattice_jax.ops.attention import Order, attend


def make_cases(sizes: Sizes) -> Iterator[Case]:
  token = normal(sizes, 3, sizes.width)

  def run(window, inputs, impl):
    ids = documents(sizes)[0]
    order = Order(jnp.arange(sizes.tokens, dtype=jnp.int32)[None], ids)
    return attend(*inputs, order, order, window=window, impl=impl)[0]

  for form, window in (("full", 0), ("window", max(1, sizes.tokens // 3))):
    yield Case("attention", form, functools.partial(run, window), token)
