"""Transformer-VQ attention: softmax over all past positions with quantised keys, in linear time (arXiv 2309.16354)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.memories.vq.codebook import COUNT_FLOOR, code_statistics, codebook, dead_codes, moving_average, revive
from lattice_jax.memories.vq.config import KEY_GRADIENTS
from lattice_jax.memories.vq.kernel import attend_in_kernel, reasons_against
from lattice_jax.memories.vq.linear import attend_linear
from lattice_jax.memories.vq.quantize import Quantized, quantize
from lattice_jax.memories.vq.reference import attend_quadratic
from lattice_jax.memories.vq.state import Tokens, VQState, empty_state, with_rows
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.documents import EMPTY, keep_only
from lattice_jax.ops.near_far import FORMS, INPUT_SCAN, close, from_runs, to_runs

__all__ = [
  "COUNT_FLOOR", "FORMS", "KEY_GRADIENTS", "Quantized", "VQState", "choose_reduction", "code_statistics", "codebook",
  "dead_codes", "empty_state", "moving_average", "quantize", "revive", "vq_attention",
]

# Scores of one call above which a CPU is faster going from block to block: they no longer fit in its caches. Measured
# on two cores of an AMD EPYC, one head, forward and backward (docs/results/bench_vq_cpu): at 6 million scores serial
# takes 0.92 of input_scan's time, at 13 million 1.40 and twice its memory.
_CPU_CROSSOVER = 2**23


def choose_reduction(reduction: str, num_scores: int) -> str:
  """The form that runs, for a call of so many scores. Raises ValueError for an unknown name."""
  if reduction == "auto":
    return INPUT_SCAN if jax.default_backend() == "cpu" and num_scores > _CPU_CROSSOVER else "serial"
  if reduction not in FORMS:
    raise ValueError(f"reduction={reduction!r} of op 'vq' is not one of auto, {', '.join(FORMS)}.")
  return reduction


def vq_attention(
  q: Float[Array, "B T Q K"], quantized: Quantized, v: Float[Array, "B T H V"], rows: Float[Array, "H M K"],
  relative: Float[Array, "H S K"], content_bias: Float[Array, "Q K"], position_bias: Float[Array, "Q K"],
  state: VQState | None = None, ids: Int[Array, "B T"] | None = None, valid: Bool[Array, "B T"] | None = None, *,
  block_len: int = 512, near_bias: Float[Array, "Q"] | None = None, reduction: str = "auto", use_cache: bool = True,
  key_gradient: str = "window", stale_rows: bool = False, impl: str = "auto",
) -> tuple[Float[Array, "B T Q V"], VQState]:
  """Attends every query to all earlier tokens of its document, and moves the state on.

  The score of query i and key j is (q_i + content_bias)·row(j) + (q_i + position_bias)·relative[i − j] + near_bias, all
  but the first term for distances 0…W only. Values get their gradient from everywhere, keys as `key_gradient` says.

  Args:
    q: queries, already scaled; Q = H·G, query head h·G + g reads key/value head h.
    quantized: keys of the new tokens.
    rows: codebook.
    relative: row Δ is the embedding of distance Δ = 0…W, so S = W + 1.
    state: what came before; None starts without tokens.
    ids, valid: document of each token; invalid tokens (a suffix) leave the state alone and read zeros. Their keys and
      values are replaced by zeros at the door; their queries must be finite. None: one document, all valid.
    block_len: queries read at a time, any number; a matter of cost alone, but for "blocks". Kernels have their own.
    near_bias: None is zero.
    reduction: how the cache is made ready for every block, one of `FORMS`; a matter of cost alone. "auto" takes the
      measured best.
    use_cache: False forgets what lies further back than W tokens.
    key_gradient: from which queries: at most W tokens later ("window"), or of blocks, counted from the call's first
      token, that hold the key or have it among the W slots before them ("blocks").
    stale_rows: keys of the state's window are the rows that they were read with, not those of `rows`.
    impl: "reference" is the quadratic definition.

  Returns:
    Output in fp32 and the next state.
  """
  batch, length, num_queries, key_dim = q.shape
  kv_heads = v.shape[2]
  state, ids, valid = complete_call("vq", state, ids, valid, like=q, empty=lambda: empty_state(
    batch, relative.shape[1] - 1, kv_heads, rows.shape[1], key_dim, v.shape[-1], v.dtype))
  dtype = state.value_BWHV.dtype
  tokens = keep_only(valid, Tokens(quantized.code_BTH, quantized.key_BTHK, v))

  def add_bias(bias):
    return (q + bias.astype(q.dtype)).astype(dtype).reshape(batch, length, kv_heads, num_queries // kv_heads, key_dim)

  qu_BTHGK, qw_BTHGK = add_bias(content_bias), add_bias(position_bias)
  if near_bias is not None:
    # (q + w)·r + n is the product of vectors that are longer by one
    near_BTHG1 = jnp.broadcast_to(near_bias.astype(dtype).reshape(kv_heads, -1, 1), (*qw_BTHGK.shape[:-1], 1))
    qw_BTHGK = jnp.concatenate([qw_BTHGK, near_BTHG1], -1)
    relative = jnp.pad(relative, ((0, 0), (0, 0), (0, 1)), constant_values=1)
  # A number of tokens is data like the code it belongs to; its gradient would end at the one-hot codes anyway.
  state = state.replace(count_BHM=jax.lax.stop_gradient(state.count_BHM))
  before, run_BT, document_B = to_runs(state.near_far, ids, valid)
  near = before.near if stale_rows else before.near.replace(tokens=with_rows(before.near.tokens, rows))
  stream = near.followed_by(tokens, run_BT)
  span = _span(key_gradient, block_len)
  attend = _choose_form(impl, reduction, block_len, span, qw_BTHGK.shape, rows.shape[1], state)
  out_BTHGV, far = attend(
    qu_BTHGK, qw_BTHGK, stream, before.far, rows, relative, run_BT, use_cache=use_cache, span=span)
  after = close(stream, state.id_BW.shape[1], (run_BT != EMPTY).sum(1), far)
  return keep_only(valid, out_BTHGV.reshape(batch, length, num_queries, -1)), VQState.of(from_runs(after, document_B))


def _span(key_gradient, block_len):
  """Tokens of the blocks that say which queries give a key its gradient; 0 = those at most W later."""
  if key_gradient not in KEY_GRADIENTS:
    raise ValueError(f"key_gradient={key_gradient!r} of op 'vq' is not one of {', '.join(KEY_GRADIENTS)}.")
  return block_len if key_gradient == "blocks" else 0


def _choose_form(impl, reduction, block_len, span, query_shape, num_codes, state):
  """What computes a call: the definition, the kernel, or the linear form."""
  batch, length, kv_heads, group, key_dim = query_shape
  chosen = choose_impl("vq", impl, **reasons_against(state, key_dim, num_codes, length, reduction, span=span))
  if chosen == "reference":
    return attend_quadratic
  if chosen == "xla":
    seen = min(block_len, length) + state.id_BW.shape[1] + num_codes
    form = choose_reduction(reduction, batch * length * kv_heads * group * seen)
    return functools.partial(attend_linear, block_len=block_len, reduction=form)
  form = "serial" if reduction == "auto" else reduction
  return functools.partial(attend_in_kernel, reduction=form, interpret=chosen == "interpret")
