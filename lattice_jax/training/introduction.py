"""What a run checks and says once, before its first update."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from lattice_jax.config import Config
from lattice_jax.data.sources import Source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.models import decoder
from lattice_jax.sharding import tree_bytes
from lattice_jax.training.state import TrainState, carries_memory


def check_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
  """The model must have an embedding for every token."""
  if tokenizer.vocab_size > config.model.vocab:
    raise ValueError(
      f"model.vocab={config.model.vocab} is smaller than the {tokenizer.vocab_size} tokens of data.tokenizer="
      f"{config.data.tokenizer}; set model.vocab={tokenizer.vocab_size}.")


def introduction(
  config: Config, mesh: Mesh, state: TrainState, source: Source, tokenizer: Tokenizer, *, parameters: int,
  peak: float | None, origin: str
) -> list[str]:
  """Sizes of the model, its mesh and its data. `peak`: FLOP/s of all devices. `origin`: where the state is from."""
  row_bytes = tree_bytes(jax.eval_shape(lambda: decoder.init_state(config.model, 1)))
  lines = [(
    f"{config.name}: {parameters:,} parameters ({tree_bytes(state.params) / 1e6:.1f} MB), optimizer "
    f"{tree_bytes(state.opt_state) / 1e6:.1f} MB, memory {row_bytes / 1e3:.1f} kB a row, "
    f"{'carried between updates' if carries_memory(config) else 'empty at every update'}")]
  spare = config.model.vocab - tokenizer.vocab_size
  if spare:  # harmless, and wanted where a rounder number shards better
    lines.append(
      f"model.vocab={config.model.vocab} has {spare} rows more than data.tokenizer={config.data.tokenizer} has "
      "tokens; they are never the answer")
  lines.append(
    f"mesh data {mesh.shape['data']} × model {mesh.shape['model']} of {jax.devices()[0].device_kind}, "
    f"{jax.process_count()} process(es){f'; peak {peak / 1e12:.0f} TFLOP/s' if peak else ''}")
  lines.append(
    f"data {source.name}: {len(source.tokens):,} tokens, {config.data.batch} rows × "
    f"{config.data.update_len} tokens an update; {origin}")
  return lines
