"""What the rest of the code knows of local attention."""

from __future__ import annotations

from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import check as check_attention
from lattice_jax.memories.local.cases import make_cases
from lattice_jax.memories.local.config import check, flat
from lattice_jax.memories.local.convert import as_local, check_choice, lower, rungs_for, with_windows
from lattice_jax.memories.local.far import far_multiply_adds, find_fold
from lattice_jax.memories.local.layer import LocalAttention
from lattice_jax.memories.local.layers import at_block, rows
from lattice_jax.memories.local.maps_file import read_fitted
from lattice_jax.memories.local.profile import resolve
from lattice_jax.memories.local.state import LocalCache, LocalView, clear
from lattice_jax.memories.memory import Carried, Fitted, Memory, Windowed
from lattice_jax.memories.multiply_adds import attention_projections
from lattice_jax.ops.local import ALL


def _make(model: ModelConfig, name: str | None = None) -> LocalAttention:
  return LocalAttention(model.attention, model.local, dtype=model.dtype, impl=model.impl, name=name)


def _check(model: ModelConfig) -> None:
  check_attention(model.attention)
  if model.origin != "config":
    return  # the model's layers and heads are not known yet
  check(model.local)
  find_fold(model.local, model.attention.heads // model.attention.kv_heads)
  for layer, row in enumerate(rows(model)):
    memory = model.pattern[layer % len(model.pattern)]
    if len(model.local.windows) == model.layers * len(row) and memory != "local" and any(row):
      raise ValueError(
        f"model.local.windows gives layer {layer} the windows {','.join(map(str, row))}, and model.pattern makes it "
        f"{memory!r}; give 0 to the heads of layers that are not local.")


def _multiply_adds(model: ModelConfig, length: int) -> float:
  attention = model.attention
  windows = flat(row for n, row in enumerate(rows(model)) if model.pattern[n % len(model.pattern)] == "local")
  beside = model.local.sinks + model.local.picks
  seen = sum(_mean_seen(length, length if window == ALL else window + beside) for window in windows)
  one = attention.key_dim, attention.value_dim
  far = far_multiply_adds(model.local, attention.heads // attention.kv_heads, *one)
  reads = attention.heads * (seen / len(windows) * sum(one) + far)
  return attention_projections(model.dim, attention) + reads


def _mean_seen(length: int, most: int) -> float:
  """Tokens that a query sees, of which there are at most so many, mean over a document."""
  most = min(most, length)
  return most - most * (most - 1) / (2 * length)


def _visible(model: ModelConfig, query: int, key: int) -> bool:
  """Whether some head of some layer may see it, or a summary that it is in."""
  windows = flat(rows(model))
  # any token may be a pick; what other summaries keep is not differentiated
  is_far = model.local.far in ("mean", "moments", "features") or model.local.picks > 0
  return key <= query and (is_far or key < model.local.sinks or ALL in windows or query - key < max(windows))


MEMORIES = {
  "local": Memory(
    make=_make,
    multiply_adds=_multiply_adds,
    cases=make_cases,
    check=_check,
    visible=_visible,
    needs_token_cache=True,
    is_attention=True,
    composes_kernels=True,
    resolve=resolve,
    at_block=at_block,
    fitted=Fitted("local.maps", read_fitted),
    windowed=Windowed(
      check=check_choice, rungs=rungs_for, with_windows=with_windows, from_full=as_local, lower=lower,
      far_share=lambda cache: (cache.seen_B, cache.far_share_B)),
    init_stack=LocalAttention.init_stack,
    # Also without room for tokens: a layer's windows are found by its place in the stack.
    carried=Carried(
      rides=lambda state: isinstance(state, LocalCache),
      enter=LocalView,
      leave=lambda view: view.stack,
      finish=lambda model, stacks, length: clear(stacks))),
}
