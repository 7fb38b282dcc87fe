"""Which anchors later tokens read: attention mass by layer and by how many segments ago the anchor closed one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.inspect.anchors.losses import bucket
from lattice_jax.inspect.anchors.readers import Reader
from lattice_jax.inspect.anchors.texts import places_of
from lattice_jax.inspect.op_inputs import op_inputs, read_op_inputs
from lattice_jax.inspect.slot_audit import START
from lattice_jax.memories.anchor.places import Places
from lattice_jax.memories.anchor.reference import visible
from lattice_jax.types import Batch

OWN, FIRST = "own segment", "first token"
_NAME_LEN = 18  # characters of the text before an anchor, by which it is called
_MAX_ROWS = 128  # of the picture of a text, into which neighbouring tokens are averaged


def measure_attention(reader: Reader, batch: Batch, tokenizer: Tokenizer) -> dict[str, Any]:
  """Means over heads, texts and the tokens that are no anchors themselves, which see no anchor in the paper's variant.

  by_layer: for each layer that has anchors, the mass on the own segment, on the first token, and on an anchor by its
  distance in segments (1: the one just closed), of the tokens that have an anchor there. text: of the first row, mass
  on each anchor by token, averaged over layers and heads.
  """
  segment = jax.tree.map(jnp.asarray, batch.segment)
  places = places_of(reader.model.anchor, segment)
  is_seen_BTS = visible(reader.model.anchor, places)
  groups = {name: np.asarray(is_here_BTS) for name, is_here_BTS in _groups(reader.model, places).items()}
  layers, total_TS, by_layer = anchor_layers(reader.model), 0.0, []
  read = read_op_inputs(reader.model, reader.variables, batch.tokens_BT, segment)
  for layer in layers:
    inputs = op_inputs(read, reader.model, layer)
    mass_BTS = np.asarray(_mass(inputs["q"], inputs["k"], is_seen_BTS))
    by_layer.append({name: _mean_mass(mass_BTS, is_here_BTS) for name, is_here_BTS in groups.items()})
    total_TS = total_TS + mass_BTS[0] / len(layers)
  return {
    "layers": layers, "columns": list(groups), "by_layer": [list(row.values()) for row in by_layer],
    "text": _picture(total_TS, jax.device_get(places), batch.tokens_BT[0], tokenizer)}


def anchor_layers(model: ModelConfig) -> list[int]:
  return [layer for layer in range(model.layers) if model.pattern[layer % len(model.pattern)] == "anchor"]


def _groups(model: ModelConfig, places: Places) -> dict[str, jax.Array]:
  """Name → which keys a query may have there, [B, T, S]; only queries that are no anchors have any."""
  is_query_BT1 = ((places.segment_BT >= 0) & ~places.is_anchor_BT)[:, :, None]
  own_BTS = (places.segment_BT[:, :, None] == places.segment_BT[:, None]) & is_query_BT1
  time_T = jnp.arange(own_BTS.shape[1])
  groups = {OWN: own_BTS & (time_T[:, None] >= time_T)}
  if model.anchor.keep_bos:
    groups[FIRST] = is_query_BT1 & places.is_bos_BT[:, None]
  is_key_B1S = (places.is_anchor_BT & ~places.is_bos_BT)[:, None]
  distance_BTS = jnp.where(is_key_B1S & is_query_BT1, places.passed_BT[:, :, None] - places.number_BT[:, None] + 1, 0)
  for label in dict.fromkeys(bucket(value) for value in range(1, int(distance_BTS.max()) + 1)):
    low, high = (int(part) for part in (label.split("–") * 2)[:2])
    groups[label] = (distance_BTS >= low) & (distance_BTS <= high)
  return groups


def _mean_mass(mass_BTS: np.ndarray, is_here_BTS: np.ndarray) -> float:
  """Of the queries that have such a key, the mean mass on all of them."""
  has_BT = is_here_BTS.any(-1)
  return float((mass_BTS * is_here_BTS).sum(-1)[has_BT].mean()) if has_BT.any() else 0.0


@jax.jit
def _mass(q_BTQK: jax.Array, k_BTHK: jax.Array, is_seen_BTS: jax.Array) -> jax.Array:
  """Attention weights [B, T, S], averaged over heads."""
  k_BTQK = jnp.repeat(k_BTHK, q_BTQK.shape[2] // k_BTHK.shape[2], axis=2)
  score_BQTS = jnp.einsum("BTQK,BSQK->BQTS", q_BTQK, k_BTQK, precision="highest") * q_BTQK.shape[-1] ** -0.5
  weight_BQTS = jax.nn.softmax(jnp.where(is_seen_BTS[:, None], score_BQTS, -1e30), axis=-1)
  return jnp.where(is_seen_BTS, weight_BQTS.mean(1), 0)


def _picture(mass_TS: np.ndarray, places: Places, ids_T: np.ndarray, tokenizer: Tokenizer) -> dict[str, Any]:
  where = np.flatnonzero(places.is_anchor_BT[0])
  texts = [tokenizer.decode(ids_T[max(place - 5, 0):place + 1]).decode(errors="replace") for place in where]
  rows = np.array_split(mass_TS[:, where].astype(np.float64), min(len(mass_TS), _MAX_ROWS))
  return {
    "tokens": len(mass_TS), "places": where.tolist(),
    "names": [" ".join(text.split())[-_NAME_LEN:] or START for text in texts],
    "mass": np.round([row.mean(0) for row in rows], 4).tolist()}
