"""Small decoders and one compiled loss-and-gradient for each, for the decoder's laws."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.types import Segment, slice_time
from tests.contract.harness import normal_like, quick_jit
from tests.contract.scenes import documents

BATCH, LENGTH, MAX_LEN = 4, 21, 42
SMALL = ModelConfig(
  vocab=31, dim=12, layers=4, mlp_dim=10, xent_chunk=24, impl="xla",
  attention=AttentionConfig(heads=4, kv_heads=2, key_dim=6, value_dim=5, window=6),
  vq=VQConfig(key_dim=6, value_dim=10, codes=7, block_len=5))
DECODERS = {
  "vq-gau": replace(SMALL, pattern=("vq",), block="gau", layers=2),
  "attention-mlp-tied": replace(
    SMALL, pattern=("attention",), block="mlp", mlp="squared_relu", layers=2, tied_embeddings=True, tied_bias=True,
    logit_scale=0.1, norm_bias=True, position_wavelength=1e3, float32_head=True),
  "hybrid-mlp": replace(SMALL, pattern=("window", "vq"), block="mlp", layers=4),
}
# A document that goes on, one that ends in mid-row, two that do, one that ends before the row.
LAYOUT = ([(1, 0, 21)], [(1, 0, 8), (2, 0, 13)], [(1, 0, 3), (2, 0, 11), (3, 0, 7)], [(1, 0, 14)])


@flax.struct.dataclass
class Scored:
  """nll_BT is zero where the token is invalid."""

  nll_BT: jax.Array
  state: Any
  losses: Any
  statistics: Any
  d_params: Any = None


@functools.cache
def variables_of(name: str) -> Any:
  """Values with noise, so that no parameter is at zero."""
  variables = meta.unbox(quick_jit(lambda rng: init_variables(DECODERS[name], rng))(jax.random.key(0)))
  noise = normal_like(7, variables["params"])
  return {**variables, "params": jax.tree.map(lambda param, noise: param + 0.1 * noise, variables["params"], noise)}


def score(
  config: ModelConfig, variables: Any, tokens_BT: Any, targets_BT: Any, state: Any, segment: Segment, *,
  with_gradient: bool = True,
) -> Scored:
  """The training loss's parts and its parameter gradient, in training mode without dropout."""

  def loss_fn(params):
    rngs = {"dropout": jax.random.key(0), "sequence": jax.random.key(1)}
    nll_BT, output = Decoder(config).apply(
      {**variables, "params": params}, tokens_BT, targets_BT, state, segment, train=True, rngs=rngs,
      method=Decoder.score)
    nll_BT = jnp.where(segment.valid_BT, nll_BT, 0)
    # The commitment weight is small: times 1000 its gradient is as large as the rest.
    total = nll_BT.sum() + 1e3 * sum(total for total, _ in output.losses.values())
    return total, Scored(nll_BT, output.state, output.losses, output.statistics)

  if not with_gradient:
    return loss_fn(variables["params"])[1]
  d_params, scored = jax.grad(loss_fn, has_aux=True)(variables["params"])
  return scored.replace(d_params=d_params)


@functools.cache
def compiled(config: ModelConfig, *, with_gradient: bool = True) -> Any:
  return quick_jit(functools.partial(score, config, with_gradient=with_gradient))


def text() -> tuple[jax.Array, jax.Array, Segment]:
  """Tokens, targets and documents of every run."""
  rng = np.random.default_rng(3)
  tokens_BT, targets_BT = rng.integers(0, SMALL.vocab, (2, BATCH, LENGTH), dtype=np.int32)
  return jnp.asarray(tokens_BT), jnp.asarray(targets_BT), documents(LAYOUT, LENGTH)


def run(config: ModelConfig, variables: Any) -> Scored:
  """All of `text` in one call."""
  tokens_BT, targets_BT, segment = text()
  return compiled(config)(variables, tokens_BT, targets_BT, init_state(config, BATCH, MAX_LEN), segment)


def run_in_pieces(config: ModelConfig, variables: Any, pieces: tuple[int, ...]) -> tuple[jax.Array, Any]:
  """Losses of `text` and the final state, in pieces that hand the state on."""
  tokens_BT, targets_BT, segment = text()
  state, nll, start = init_state(config, BATCH, MAX_LEN), [], 0
  for length in pieces:
    stop = start + length
    scored = compiled(config, with_gradient=False)(
      variables, tokens_BT[:, start:stop], targets_BT[:, start:stop], state, slice_time(segment, start, stop))
    state, start = scored.state, stop
    nll.append(scored.nll_BT)
  return jnp.concatenate(nll, 1), state


def unrolled(tree: Any, layers: int) -> Any:
  """The collection of a scanned decoder as one of an unrolled decoder."""
  apart = {name: leaf for name, leaf in tree.items() if name != "groups"}
  if "groups" in tree:
    apart |= {f"group_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], tree["groups"]) for n in range(layers)}
  return apart


def buffer_shapes(hlo: str) -> set[tuple[str, tuple[int, ...]]]:
  """(dtype, dimensions) of every array that a compiled program's text names."""
  found = re.findall(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]+)\]", hlo)
  return {(dtype, tuple(map(int, dims.split(",")))) for dtype, dims in found}
