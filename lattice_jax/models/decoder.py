"""The decoder: embedding, groups of blocks that repeat a pattern of memories, norm, and head."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.config import ModelConfig
from lattice_jax.memories.memory import Carried
from lattice_jax.memories.registry import find_memory
from lattice_jax.models.block import Block
from lattice_jax.modules import RMSNorm, offset, sinusoids, table, weight
from lattice_jax.ops.cross_entropy import cross_entropy
from lattice_jax.ops.sequence import each_alone, lay_out
from lattice_jax.ops.stored_weight import StoredWeight
from lattice_jax.types import MEMORY_BOUNDARY, Segment, SumCount, whole_segment


@flax.struct.dataclass
class DecoderOutput:
  """features_BTD: after the final norm, scaled for the head. Losses are summed over layers, metrics averaged.

  `state` and `statistics` mirror the inputs `state` and `buffers`: one a block of the pattern, stacked over groups.
  """

  features_BTD: jax.Array
  state: Any
  losses: dict[str, SumCount]
  metrics: dict[str, SumCount]
  statistics: dict[str, Any]


class Group(nn.Module):
  """The blocks of one repetition of the pattern; a legal body of `nn.scan`.

  `stream` is the residual stream and, by block, the stacks of states that ride as carry (`memory.Carried`), of which
  this group writes layer `index`; other states come in and go out as `states`.
  """

  config: ModelConfig
  train: bool

  @nn.compact
  def __call__(self, stream, states, index, segment):
    x_BTD, stacks = stream
    x_BTD, outputs = lay_out(x_BTD), {}
    for n, (name, memory) in enumerate(pattern_blocks(self.config)):
      carried = find_memory(memory).carried
      state = carried.enter(stacks[name], index) if name in stacks else states[name]
      output = Block(block_config(self.config, n), memory, name=name)(x_BTD, state, segment, train=self.train)
      if name in stacks:
        stacks = {**stacks, name: carried.leave(output.state)}
        output = output.replace(state=None)
      x_BTD, outputs[name] = output.y_BTD, output.replace(y_BTD=None)
    return (x_BTD, stacks), outputs


class Decoder(nn.Module):
  """A causal language model over token ids. Training, prefill and decoding are the same call."""

  config: ModelConfig

  def setup(self):
    config = self.config
    self.embedding = table(self, "embedding", (config.vocab, config.dim), ("vocab", "embed"))
    if not config.tied_embeddings:
      self.head = weight(self, "head", (config.dim, config.vocab), ("embed", "vocab"), fan_in=config.dim)
    if has_head_bias(config):
      self.head_bias = offset(self, "head_bias", (config.vocab,), ("vocab",))
    if config.position_wavelength:
      self.position_scale = offset(self, "position_scale", (), ())
    self.final_norm = RMSNorm(config.norm_gain, config.norm_bias, config.norm_eps)  # no parameters until it is called

  @nn.compact
  def __call__(self, tokens_BT: jax.Array, state: Any, segment: Segment, *, train: bool = False) -> DecoderOutput:
    """Features of every position, and the memory after the last; `score` and `logits` take them to the vocabulary."""
    config, x_BTD = self.config, self.embed(tokens_BT, segment)
    run_groups = self._scanned_groups(train) if config.scan_layers else self._unrolled_groups(train)
    stacks, states = split_carried(config, state)
    (x_BTD, stacks), outputs = run_groups((x_BTD, stacks), states, jnp.arange(num_groups(config)), segment)
    stacks = finish_carried(config, stacks, tokens_BT.shape[1])
    losses, metrics = _reduce_layers(outputs)
    return DecoderOutput(
      features_BTD=self.features(x_BTD),
      state={name: stacks[name] if name in stacks else output.state for name, output in outputs.items()},
      losses=losses, metrics=metrics,
      statistics={name: output.statistics for name, output in outputs.items()})

  def embed(self, tokens_BT: jax.Array, segment: Segment) -> jax.Array:
    """The residual stream [B, T, D] before the first block."""
    config = self.config
    x_BTD = self.embedding.rows(tokens_BT).astype(config.dtype)
    if config.position_wavelength:
      sinusoids_BTD = sinusoids(segment.positions_BT, config.dim, max_wavelength=config.position_wavelength)
      x_BTD += (self.position_scale * sinusoids_BTD).astype(config.dtype)
    return x_BTD

  def features(self, x_BTD: jax.Array) -> jax.Array:
    """What the head reads, from the residual stream after the last block."""
    config = self.config
    if config.final_norm:
      x_BTD = self.final_norm(x_BTD)
    if config.float32_head:
      x_BTD = x_BTD.astype(jnp.float32)
    return x_BTD * jnp.asarray(config.logit_scale, x_BTD.dtype)

  def logits(self, features_BTD: jax.Array) -> jax.Array:
    """fp32 logits [B, T, A], all at once: for few positions. `score` is for many."""
    stored = self.embedding if self.config.tied_embeddings else self.get_variable("params", "head")
    if isinstance(stored, StoredWeight) and stored.code_NK.dtype != jnp.float32:
      return stored.products(features_BTD) + self._head_bias()
    head_DA, bias_A = self._head(features_BTD.dtype)
    return jnp.einsum("BTD,DA->BTA", features_BTD, head_DA, preferred_element_type=jnp.float32) + bias_A

  def score(
    self, tokens_BT: jax.Array, targets_BT: jax.Array, state: Any, segment: Segment, *, train: bool = False,
  ) -> tuple[jax.Array, DecoderOutput]:
    """Negative log-likelihood of each target in nats, [B, T] fp32, and the decoder's output."""
    output = self(tokens_BT, state, segment, train=train)
    head_DA, bias_A = self._head(output.features_BTD.dtype)
    chunk = self.config.xent_chunk

    def score_alone(constants, tokens):
      features_BTD, targets_BT = tokens
      return cross_entropy(features_BTD, *constants, targets_BT, chunk=chunk)

    return each_alone(score_alone, (head_DA, bias_A), (output.features_BTD, targets_BT)), output

  def _head(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    config = self.config
    head_DA = self.embedding.array((config.dim, config.vocab)) if config.tied_embeddings else self.head
    return head_DA.astype(dtype), self._head_bias()

  def _head_bias(self) -> jax.Array:
    config = self.config
    return config.logit_scale * self.head_bias if has_head_bias(config) else jnp.zeros((config.vocab,), jnp.float32)

  def _scanned_groups(self, train: bool):
    scan = nn.scan(
      _remat(Group, self.config.remat), length=num_groups(self.config), in_axes=(0, 0, nn.broadcast), out_axes=0,
      variable_axes={"params": 0, "buffers": 0}, split_rngs={"params": True, "dropout": True, "sequence": True},
      metadata_params={nn.PARTITION_NAME: "layers"})
    return scan(self.config, train, name="groups")

  def _unrolled_groups(self, train: bool):
    group = _remat(Group, self.config.remat)

    def run_groups(carried, states, index_L, segment):
      outputs = []
      for n in range(num_groups(self.config)):
        states_n = jax.tree.map(lambda x, n=n: x[n], states)
        carried, output = group(self.config, train, name=f"group_{n}")(carried, states_n, index_L[n], segment)
        outputs.append(output)
      return carried, jax.tree.map(lambda *xs: jnp.stack(xs), *outputs)

    return run_groups


def num_groups(config: ModelConfig) -> int:
  """Repetitions of the pattern."""
  return config.layers // len(config.pattern)


def has_head_bias(config: ModelConfig) -> bool:
  """Whether logits have a bias."""
  return config.tied_bias if config.tied_embeddings else config.head_bias


def needs_token_cache(config: ModelConfig) -> bool:
  """Whether some memory forgets between calls unless its state was made with a `max_len`."""
  return any(find_memory(memory).needs_token_cache for memory in config.pattern)


def reads_marks(config: ModelConfig) -> bool:
  """Whether some memory asks which tokens are marked as anchors."""
  return any(find_memory(memory).protects is not None for memory in config.pattern)


def fewest_tokens(config: ModelConfig, shards: int) -> int:
  """Of a row, where so many devices share its tokens."""
  return shards * max(find_memory(memory).reach(config) for memory in config.pattern) if shards > 1 else 1


def protected_room(config: ModelConfig) -> int:
  """Tokens of a document that may be marked as protected, in every memory that reads marks."""
  room = [find_memory(memory).protects for memory in config.pattern]
  return min((protects(config) for protects in room if protects is not None), default=0)


def init_variables(config: ModelConfig, rng: jax.Array) -> dict[str, Any]:
  """{"params", "buffers"} as boxes with logical axes; `buffers` is {} where no memory has any."""
  state, segment = init_state(config, 1), whole_segment(1, 1)
  tokens_BT = jnp.zeros((1, 1), jnp.int32)
  variables = Decoder(config).init(rng, tokens_BT, tokens_BT, state, segment, method=Decoder.score)
  return {"buffers": {}} | variables


def abstract_variables(config: ModelConfig) -> dict[str, Any]:
  """What `init_variables` returns, with shapes and dtypes in place of arrays; traced once."""
  return _abstract(config, init_variables)


@functools.lru_cache(maxsize=64)
def _abstract(config: ModelConfig, init: Callable[..., Any]) -> dict[str, Any]:
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def init_state(config: ModelConfig, batch: int, max_len: int = 0) -> dict[str, Any]:
  """The memory of a model that has read nothing: block of the pattern → state, stacked over groups."""
  def stacked(memory, n):
    record = find_memory(memory)
    return record.init_stack(record.make(block_config(config, n)), batch, max_len, num_groups(config))

  return {name: stacked(memory, n) for n, (name, memory) in enumerate(pattern_blocks(config))}


def update_buffers(
  config: ModelConfig, buffers: dict[str, Any], statistics: dict[str, Any], rng: jax.Array) -> dict[str, Any]:
  """The only writer of `buffers`: each memory's rule on the statistics of one whole optimizer step."""
  def update_group(group_buffers, group_statistics, key):
    return {
      name: {"memory": find_memory(memory).update_buffers(
        config, group_buffers[name]["memory"], group_statistics[name], jax.random.fold_in(key, n))}
      for n, (name, memory) in enumerate(pattern_blocks(config)) if name in group_buffers}

  keys_L = jax.random.split(rng, num_groups(config))
  if "groups" in buffers:
    return {"groups": jax.vmap(update_group)(buffers["groups"], statistics, keys_L)}
  return {
    f"group_{n}": update_group(buffers[f"group_{n}"], jax.tree.map(lambda x, n=n: x[n], statistics), keys_L[n])
    for n in range(num_groups(config)) if f"group_{n}" in buffers}


def pattern_blocks(config: ModelConfig) -> list[tuple[str, str]]:
  """(module name, memory name) of each block of the pattern."""
  return [(f"block_{n}", memory) for n, memory in enumerate(config.pattern)]


def block_config(config: ModelConfig, block: int) -> ModelConfig:
  """The config of the layers that are this block of the pattern."""
  return find_memory(config.pattern[block]).at_block(config, block)


def split_carried(config: ModelConfig, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """(stacks that ride through the scan over layers as its carry, other states) by block."""
  stacks = {}
  for name, memory in pattern_blocks(config):
    carried = find_memory(memory).carried
    if carried and carried.rides(state[name]):
      stacks[name] = state[name]
  return stacks, {name: memory for name, memory in state.items() if name not in stacks}


def finish_carried(config: ModelConfig, stacks: dict[str, Any], length: int) -> dict[str, Any]:
  """What each kind of carried state asks for after the last layer, all its stacks in one go."""
  blocks: dict[Carried, list[str]] = {}
  for name, memory in pattern_blocks(config):
    if name in stacks:
      blocks.setdefault(find_memory(memory).carried, []).append(name)
  for carried, names in blocks.items():
    stacks = stacks | carried.finish(config, {name: stacks[name] for name in names}, length)
  return stacks


def _remat(group: type[nn.Module], policy: str) -> type[nn.Module]:
  if policy == "none":
    return group
  # inside a scan the loop itself keeps XLA from merging the recomputation with the forward pass
  policies = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "boundary": jax.checkpoint_policies.save_only_these_names(MEMORY_BOUNDARY)}
  return nn.remat(group, policy=policies[policy], prevent_cse=False)


def _reduce_layers(outputs: dict[str, Any]) -> tuple[dict[str, SumCount], dict[str, SumCount]]:
  """Losses add up over layers (their means do, so counts are averaged); metrics are averaged over layers."""
  losses, metrics = {}, {}
  for output in outputs.values():
    for name, (total_L, count_L) in output.losses.items():
      before, _ = losses[name] if name in losses else (0.0, None)
      losses[name] = before + total_L.sum(), count_L.mean()
    for name, (total_L, count_L) in output.metrics.items():
      total, count = metrics[name] if name in metrics else (0.0, 0.0)
      metrics[name] = total + total_L.sum(), count + count_L.sum()
  return losses, metrics
