"""Heads of a stack of layers, each with a window of its own, in groups that can be computed together.

Windows are fixed numbers of a program, for they are the shapes of what is kept. The layers of a stack are one program,
though, which finds what belongs to the layer that it runs for in small tables.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

ALL = 0  # the window of a head that sees the whole document


@dataclass(frozen=True)
class HeadGroup:
  """Key/value heads that have the same window as one another in every layer.

  heads: which ones. windows: those that they have in some layer, ascending, `ALL` as the last.
  kind_L: of each layer, which of `windows` it has. place_L: how many layers before it have the same.
  """

  heads: tuple[int, ...]
  windows: tuple[int, ...]
  kind_L: tuple[int, ...]
  place_L: tuple[int, ...]

  def layers_of(self, kind: int) -> int:
    """How many layers have that window."""
    return self.kind_L.count(kind)

  def kind(self, layer: jax.Array) -> jax.Array:
    """Which of `windows` a layer has."""
    return _look_up(self.kind_L, layer)

  def place(self, layer: jax.Array) -> jax.Array:
    """Where a layer lies among those with its window."""
    return layer if len(self.windows) == 1 else _look_up(self.place_L, layer)

  def window(self, layer: jax.Array, everything: int) -> int | jax.Array:
    """The window of a layer: a number where all have the same, else data, in which `everything` stands for `ALL`."""
    if len(self.windows) == 1:
      return self.windows[0]
    return _look_up(tuple(self.windows[kind] or everything for kind in self.kind_L), layer)


@functools.lru_cache(maxsize=64)
def group_heads(window_LH: tuple[tuple[int, ...], ...]) -> tuple[HeadGroup, ...]:
  """The groups of a stack in which head h of layer l sees window_LH[l][h] tokens, by their first heads."""
  columns: dict[tuple[int, ...], list[int]] = {}
  for head, column in enumerate(zip(*window_LH, strict=True)):
    columns.setdefault(column, []).append(head)
  return tuple(_group(tuple(heads), column) for column, heads in columns.items())


def take_heads(x_BTH: jax.Array, group: HeadGroup, kv_heads: int) -> jax.Array:
  """The group's part of an array whose third axis goes over key/value heads, or over the query heads that read them."""
  if len(group.heads) == kv_heads:
    return x_BTH
  shape = x_BTH.shape
  x_BTHG = x_BTH.reshape(*shape[:2], kv_heads, shape[2] // kv_heads, *shape[3:])
  first, count = group.heads[0], len(group.heads)
  if group.heads == tuple(range(first, first + count)):
    x_BTHG = x_BTHG[:, :, first:first + count]
  else:
    x_BTHG = jnp.stack([x_BTHG[:, :, head] for head in group.heads], axis=2)
  return x_BTHG.reshape(*shape[:2], -1, *shape[3:])


def join_heads(parts: list[jax.Array], groups: tuple[HeadGroup, ...]) -> jax.Array:
  """Undoes `take_heads` of all groups."""
  if len(parts) == 1:
    return parts[0]
  order = [head for group in groups for head in group.heads]
  if order == sorted(order):
    # as rows of numbers, so that the product which reads them need not find its way among heads
    row_BTF = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)
    return row_BTF.reshape(*row_BTF.shape[:2], -1, *parts[0].shape[3:])
  x_BTH = jnp.concatenate(parts, axis=2)
  shape = x_BTH.shape
  x_BTHG = x_BTH.reshape(*shape[:2], len(order), shape[2] // len(order), *shape[3:])
  x_BTHG = jnp.stack([x_BTHG[:, :, place] for place in np.argsort(order)], axis=2)
  return x_BTHG.reshape(shape)


def _group(heads: tuple[int, ...], window_L: tuple[int, ...]) -> HeadGroup:
  windows = tuple(sorted(set(window_L), key=lambda window: (window == ALL, window)))
  kind_L = tuple(map(windows.index, window_L))
  return HeadGroup(heads, windows, kind_L, tuple(kind_L[:n].count(kind) for n, kind in enumerate(kind_L)))


def _look_up(value_L: tuple[int, ...], layer: jax.Array) -> jax.Array:
  return jnp.asarray(value_L, jnp.int32)[layer]
