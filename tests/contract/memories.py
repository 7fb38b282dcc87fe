"""The table of the law tests: one row per memory of the registry, with small awkward sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.lattice.config import LatticeConfig
from lattice_jax.memories.local.config import LocalConfig, SummaryConfig
from lattice_jax.memories.memory import Memory
from lattice_jax.memories.registry import find_memory, find_section
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.memories.vq.op import FORMS
from tests.memories.sizes import faithful_section, section_with

ROWS_PER_BATCH = 8  # one for each simulated device
LENGTH = 23  # T of the laws: a prime, longer than every window and than four blocks
PIECE = 8  # of L1; with 1 and LENGTH the only compiled lengths, but for LONG
MAX_LEN = 3 * LENGTH  # room of a token cache: a prefix, the sequence, and what follows
LONG = 16_384  # T of L12


@dataclass(frozen=True)
class Row:
  """A memory and the sizes it is tested at.

  variants: other sizes and rules, which run L3, L8 and L11 only; the first of them, `always`, in every run, the others
    and `forms` as thorough tests.
  forms: name, variant, model: other ways to compute a variant, "" for the row's own, that only have to give the same.
  accumulators: the fields of the state, by dotted name, that sum over time and must be fp32.
  constant_input: for states of fixed size that sum over time: checks the final state of one row after LONG equal
    tokens; None exempts the memory from L12.
  constant_model: of L12, where it is not `model`, whose parameters it takes.
  apart: of L12, so many equal tokens apart outputs are the same at its end.
  adjust: changes the parameters that all laws use.
  """

  name: str
  memory: Memory
  model: ModelConfig
  variants: tuple[tuple[str, ModelConfig], ...] = ()
  always: int = 1
  forms: tuple[tuple[str, str, ModelConfig], ...] = ()
  accumulators: tuple[str, ...] = ()
  constant_input: Callable[[ModelConfig, Any], None] | None = None
  constant_model: ModelConfig | None = None
  apart: int = LONG // 2
  adjust: Callable[[Any], Any] = lambda params: params


def _vq_counts_every_token(model: ModelConfig, state: Any) -> None:
  """Equal tokens share one code; those outside the cache are at most the last two blocks."""
  count_BHM = np.asarray(state.count_BHM)
  assert (np.count_nonzero(count_BHM, axis=-1) == 1).all(), "equal tokens went to several codes"
  cached_BH = count_BHM.sum(-1)
  in_blocks = LONG // model.vq.block_len * model.vq.block_len
  assert ((in_blocks - 2 * model.vq.block_len <= cached_BH) & (cached_BH <= in_blocks)).all(), cached_BH
  assert (cached_BH == np.round(cached_BH)).all(), "a count of tokens is not whole"


def _lattice_keeps_its_lengths(model: ModelConfig, state: Any) -> None:
  """However often the same is written, slots stay directions."""
  length_BHM = np.linalg.norm(state.memory.slots.unit_BHMV, axis=-1)
  assert np.abs(length_BHM - 1).max() < 1e-5, np.abs(length_BHM - 1).max()


def _every_write_was_the_same(model: ModelConfig, state: Any) -> None:
  """So the memory is one outer product."""
  sizes_BHK = np.linalg.svd(np.asarray(state.memory.memory_BHKV, np.float64), compute_uv=False)
  assert (sizes_BHK[..., 1] <= 1e-3 * sizes_BHK[..., 0]).all(), sizes_BHK


def _queries_near_keys(params: Any) -> Any:
  """Keeps q·k of a token away from zero.

  The first output of a document is (q·k)v made as long as all others: its sign, where q·k is small, is a matter of
  rounding, and L9 would hold or not by the luck of its numbers.
  """
  keys = {name: params[name.replace("query", "key")] for name in params if name.startswith("query")}
  return params | {name: key + np.float32(0.1) * (params[name] - key) for name, key in keys.items()}


def _does_not_grow(model: ModelConfig, state: Any) -> None:
  """A memory that corrects or averages stays of the size of what it is given."""
  largest = {path: float(np.abs(leaf).max()) for path, leaf in vars(state.memory).items() if leaf.ndim > 1}
  assert max(largest.values()) < 10, largest


def _every_token_joined(model: ModelConfig, state: Any) -> None:
  """Counts are whole and none is lost; equal tokens have the means that they are."""
  memory = state.memory
  count_BHM = np.asarray(memory.count_BHM)
  assert (count_BHM == np.round(count_BHM)).all() and (count_BHM.sum(-1) == LONG).all(), count_BHM
  for mean_BHMV in (np.asarray(memory.key_BHMK), np.asarray(memory.value_BHMV)):
    used_BHMV = np.where(count_BHM[..., None] > 0, mean_BHMV, mean_BHMV[:, :, :1])
    assert np.ptp(used_BHMV, axis=2).max() < 1e-5, mean_BHMV


MODEL = ModelConfig(dim=12, layers=1, impl="xla")
GROUPED = AttentionConfig(heads=4, kv_heads=2, key_dim=6, value_dim=5, window=6)
SHGA = VQConfig(heads=1, kv_heads=1, key_dim=6, value_dim=10, codes=7, block_len=5)
GROUPED_VQ = VQConfig(heads=4, kv_heads=2, key_dim=4, value_dim=3, codes=3, block_len=4, gated=False)

LATTICE = LatticeConfig(heads=2, slots=5, value_dim=6)
# Two taps and no gate, but for some: both are the frame's, and Lattice's row has more of them.
# Of these each recurrence takes the fields that it has.
SMALL = {
  "heads": 2, "key_dim": 5, "value_dim": 6, "conv_width": 2, "gated": False, "slots": 3, "chunk_len": 4, "gate_rank": 3,
  "mini_batch": 4, "codes": 6}


def _attention(name: str, **changes: Any) -> ModelConfig:
  return replace(MODEL, pattern=(name,), attention=replace(GROUPED, **changes))


def _anchor(**changes: Any) -> ModelConfig:
  return replace(_attention("anchor"), anchor=AnchorConfig(**changes))


def _local(*windows: int, kv_heads: int = 2, **changes: Any) -> ModelConfig:
  rungs = tuple(sorted({*windows} - {0}))
  local = LocalConfig(**{"sinks": 2, "rungs": rungs, "windows": windows} | changes)
  return replace(_attention("local", kv_heads=kv_heads), local=local)


def _vq(base: VQConfig = SHGA, **changes: Any) -> ModelConfig:
  return replace(MODEL, pattern=("vq",), vq=replace(base, **changes))


def _lattice(**changes: Any) -> ModelConfig:
  return replace(MODEL, pattern=("lattice",), lattice=replace(LATTICE, **changes))


def _recurrence(name: str, **changes: Any) -> ModelConfig:
  return replace(MODEL, pattern=(name,), **section_with(name, **SMALL | changes))


def _faithful(name: str, **changes: Any) -> ModelConfig:
  return replace(MODEL, pattern=(name,), **faithful_section(name, **SMALL | changes))


def _recurrence_row(
  name: str, *accumulators: str, check: Callable[[ModelConfig, Any], None], constant_chunk: int = SMALL["chunk_len"],
  adjust: Callable[[Any], Any] = _queries_near_keys, **changes: Any,
) -> Row:
  """check: of the state after constant input. changes: of `SMALL`."""
  # What sums over time is the recurrence. Convolutions do not, but what never forgets would keep that those of the
  # first tokens saw less: 1/T of the memory, which is more than L12's limit.
  constant_model = _recurrence(name, **changes | {"conv_width": 0, "chunk_len": constant_chunk})
  return Row(
    # of most, tests/memories/test_faithful.py holds the published layer to its equations across calls and documents
    name, find_memory(name), _recurrence(name, **changes), always=0,
    variants=(("faithful", _faithful(name, **changes)),) if find_section(name).published else (),
    accumulators=tuple(f"memory.{field}" for field in accumulators), constant_input=check,
    constant_model=constant_model, adjust=adjust)


ROWS = (
  Row(
    "attention", find_memory("attention"), _attention("attention"),
    variants=(
      ("gated", _attention("attention", heads=1, kv_heads=1, gated=True, qk_norm=True)),
      ("no-rope", _attention("attention", kv_heads=1, rope_theta=0.0)),
      ("ring", _attention("attention", exchange="ring")),
    ),
  ),
  Row(
    "window", find_memory("window"), _attention("window"),
    variants=(
      ("one-token", _attention("window", window=1)),
      ("wider-than-T", _attention("window", window=LENGTH + 8, kv_heads=4)),
    ),
  ),
  Row(
    "window-with-sinks", find_memory("attention"),
    replace(_attention("attention"), cache=CacheConfig(policy="window", sinks=2, window=WindowConfig(window=5)))),
  Row(
    "anchor", find_memory("anchor"), _anchor(max_segment=4, protected=3),
    variants=(
      ("anchors-see-anchors", _anchor(max_segment=LENGTH + 6, keep_bos=False, anchors_see_anchors=True)),
      ("newest-anchors", _anchor(max_segment=3, reach=2)),
      ("anchors-of-anchors", _anchor(max_segment=2, fanout=3)),
    ),
  ),
  Row(
    "local", find_memory("local"), _local(7, 3, far="mean"), accumulators=("summary.key_BHJK",),
    variants=(
      ("windows-alone", _local(7, 3)),
      ("one-token", _local(1, sinks=0)),
      ("wider-than-T", _local(LENGTH + 8, kv_heads=4)),
      ("picks", _local(7, 4, far="mean", picks=3, pick_lag=2)),
      ("moments-of-one-head", _local(0, 4, far="moments", summary=SummaryConfig(blocks=2, span=3))),
      ("features", _local(7, 3, far="features", summary=SummaryConfig(features=3, hidden=4))),
    ),
  ),
  Row(
    "vq", find_memory("vq"), _vq(),
    variants=(
      ("grouped", _vq(GROUPED_VQ)),
      ("one-code", _vq(codes=1)),
      ("one-token-blocks", _vq(block_len=1)),
      ("block-longer-than-T", _vq(block_len=LENGTH + 6)),
      ("no-cache", _vq(cache=False)),
      ("near-bias", _vq(near_start=1.5)),
      ("multi-query", _vq(GROUPED_VQ, kv_heads=1)),
      ("multi-head", _vq(GROUPED_VQ, kv_heads=4)),
      ("window-and-block-differ", _vq(block_len=3, window=7)),
      # key_gradient="blocks" is left out: its gradients depend on where calls are cut, by definition
      ("joined-and-stale", _vq(joined=True, stale_rows=True)),
    ),
    forms=tuple(
      (f"{variant or 'gated'}-{reduction}", variant, _vq(base, reduction=reduction))
      for variant, base in (("", SHGA), ("grouped", GROUPED_VQ)) for reduction in FORMS if reduction != "serial"),
    accumulators=("count_BHM", "mean_BHMV"),
    constant_input=_vq_counts_every_token,
  ),
  Row(
    "lattice", find_memory("lattice"), _lattice(forget=True),
    variants=(
      ("similarity-accumulated", _lattice(objective="similarity", state="accumulated", forget=True)),
      ("returning", _lattice(state="returning", forget=True)),
      ("one-slot-bare", _lattice(slots=1, conv_width=0, gated=False, unit_values=False, projected=False)),
      ("encoding-parallel", _lattice(objective="encoding", form="parallel", chunk_len=4, rounds=4, tolerance=0.0)),
      ("live", _lattice(form="live", chunk_len=4)),
      ("frozen", _lattice(form="frozen", chunk_len=5, objective="encoding")),
      ("additive", _lattice(form="additive", chunk_len=4, forget=True)),
    ),
    accumulators=("memory.slots.unit_BHMV",),
    constant_input=_lattice_keeps_its_lengths,
  ),
  # Half of the last bit for each of 512 sums, all to one side, stays below L12's limit; 4,096 sums would not.
  _recurrence_row("linear", "memory_BHKV", check=_every_write_was_the_same, constant_chunk=LONG // 512),
  replace(_recurrence_row("scalar_decay", "memory_BHKV", check=_every_write_was_the_same), always=1),
  _recurrence_row("gla", "memory_BHKV", check=_every_write_was_the_same),
  _recurrence_row("deltanet", "memory_BHKV", check=_does_not_grow, conv_width=3, gated=True),
  replace(
    _recurrence_row("gated_deltanet", "memory_BHKV", check=_does_not_grow),
    variants=(
      ("learned-start", _recurrence("gated_deltanet", learned_start=True, unit_values=True)),
      ("faithful", _faithful("gated_deltanet"))), always=1),
  # Its gate is its own. With two taps the first token of one document made four fifths of L9's error in the gradient of
  # inputs, and that of query_taps was 6.4 % off; of other inputs 1.8 to 4.3 %, as of gated_deltanet.
  _recurrence_row("kimi_delta", "memory_BHKV", check=_does_not_grow, conv_width=3, gated=True),
  replace(
    _recurrence_row("gated_slots", "key_BHMK", "value_BHMV", check=_does_not_grow),
    variants=(("one-slot", _recurrence("gated_slots", slots=1)), ("faithful", _faithful("gated_slots"))), always=1),
  # Equal places of neighbouring mini-batches are compared, for there is no end to compare with: keys of one token at
  # the places of a mini-batch differ by small turns alone, and the inner model, whose steps lengthen its normed output
  # and so become slower, still learns to tell them apart after LONG tokens: the last half moves outputs by 1 %, and not
  # always by less than the quarter before. Its first output is q and more, so queries need not be near keys. Without
  # convolution, as gradients of its steps cancel: with one more rounding of q, k and v they are 5.5 % off in L9.
  replace(
    _recurrence_row(
      "ttt_linear", "weight_BHKV", "total_BHKV", check=_does_not_grow, adjust=lambda params: params, conv_width=0,
      gated=True),
    apart=SMALL["mini_batch"],
    variants=(
      ("mini-batch-longer-than-T", _recurrence("ttt_linear", conv_width=0, mini_batch=LENGTH + 6)),
      ("faithful", _faithful("ttt_linear", conv_width=3))),
    always=2),
  # Its update gate is the query, so there are no products of queries and keys.
  replace(
    _recurrence_row("gru", "hidden_BHV", check=_does_not_grow, adjust=lambda params: params, gated=True, form="newton"),
    variants=(("scan", _recurrence("gru", form="scan")), ("one-round", _recurrence("gru", form="newton", rounds=1))),
    always=1),
  replace(
    _recurrence_row("online_vq", "key_BHMK", "value_BHMV", "count_BHM", check=_every_token_joined),
    variants=(
      ("full", _recurrence("online_vq", growth="full", codes=9)),
      ("one-code", _recurrence("online_vq", codes=1)),
      ("one-token-chunks", _recurrence("online_vq", chunk_len=1)),
      ("chunk-longer-than-T", _recurrence("online_vq", chunk_len=LENGTH + 6)),
    ), always=1),
)
