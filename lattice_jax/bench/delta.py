"""The delta rule with decays, by the length of its chunks, against its token scan and against softmax.

Outputs, last memory and gradients of every form are compared with those of the op in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.bench.gradients import in_float64, with_gradients
from lattice_jax.bench.harness import BenchCase
from lattice_jax.bench.vq import BLOCKWISE, blockwise
from lattice_jax.memories.delta.op import MatrixState, gated_delta, kimi_delta

SCAN, CHECKPOINTED, DEFAULT = "token scan", "token scan, checkpointed", "chunks, default"
MODES = ("fwd", "fwd+bwd")
_CHECKPOINT_EVERY = 64  # tokens
_DECAY_LOGIT = 3.0  # mean of the decays' logits: a token lives for some twenty


@dataclass(frozen=True)
class Shape:
  """One layer; keys and values are `width` wide, and a head has one decay or one a key channel."""

  op: Callable[..., Any]
  heads: int
  width: int
  is_by_channel: bool


SHAPES = {
  "gated_delta": Shape(gated_delta, heads=4, width=64, is_by_channel=False),
  "kimi_delta": Shape(kimi_delta, heads=4, width=64, is_by_channel=True),
}
CHUNKS = (4, 8, 16, 32, 64, 128)
BASELINES = (SCAN, CHECKPOINTED, BLOCKWISE, DEFAULT)

Inputs = tuple[jax.Array, ...]  # q, k, v, step, decay, memory


def cases(head: str, length: int, mode: str, batch: int) -> Iterator[BenchCase]:
  """All cases of a group; "fwd+bwd" also computes gradients of all that goes in, the first memory too."""
  shape = SHAPES[head]
  group = {"op": "delta", "head": head, "T": length, "B": batch, "mode": mode, "dtype": "float32"}
  arguments = _inputs(shape, batch, length)
  run = with_gradients if mode == "fwd+bwd" else lambda attend: attend
  exact = functools.cache(functools.partial(in_float64, run(_run(shape)), arguments))
  forms = {f"chunks of {chunk}": _run(shape, chunk_len=chunk) for chunk in CHUNKS}
  forms |= {
    DEFAULT: _run(shape), SCAN: _run(shape, impl="reference"),
    CHECKPOINTED: functools.partial(_run_checkpointed, shape)}
  for name, attend in forms.items():
    yield BenchCase(name, group, run(attend), arguments, batch * length, exact)
  yield BenchCase(BLOCKWISE, group, run(lambda q, k, v, *_: (blockwise(q, k, v),)), arguments, batch * length)


def _inputs(shape: Shape, batch: int, length: int) -> Inputs:
  rng, token = np.random.default_rng(0), (batch, length, shape.heads)
  q, k, v = rng.normal(size=(3, *token, shape.width))
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  step = rng.uniform(size=token)
  decay = 1 / (1 + np.exp(-_DECAY_LOGIT - rng.normal(size=(*token, shape.width if shape.is_by_channel else 1))))
  memory = rng.normal(size=(batch, shape.heads, shape.width, shape.width))
  return tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v, step, decay, memory))


def _run(shape: Shape, **form: Any) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Inputs → outputs and last memory."""

  def attend(q, k, v, step, decay, memory):
    state = MatrixState(memory, jnp.zeros(len(memory), jnp.int32))
    out, state = shape.op(q, k, v, step, decay, state, **form)
    return out, state.memory_BHKV

  return attend


def _run_checkpointed(shape: Shape, *inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The token scan with a memory saved every few tokens, from which autodiff recomputes the rest."""
  *tokens, memory = inputs
  length = math.gcd(_CHECKPOINT_EVERY, tokens[0].shape[1])

  def cut(x_BT):
    return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], -1, length, *x_BT.shape[2:]), 1, 0)

  @jax.checkpoint
  def one_piece(memory, piece):
    out, memory = _run(shape, impl="reference")(*piece, memory)
    return memory, out

  memory, out_NBC = jax.lax.scan(one_piece, memory, tuple(map(cut, tokens)))
  return jnp.moveaxis(out_NBC, 0, 1).reshape(tokens[2].shape), memory
