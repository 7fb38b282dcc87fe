"""The document between one shard and the next."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY, document_after
from lattice_jax.ops.sequence.axis import AXIS

_NO_TOKEN = EMPTY - 1  # in place of the document of a shard's last token


def documents_between(ids_BT: jax.Array, valid_BT: jax.Array, document_B: jax.Array) -> jax.Array:
  """[N + 1, B], the same on all shards: the document of the state before each of them, and after the last."""
  own_B = document_after(ids_BT, valid_BT, jnp.full_like(document_B, _NO_TOKEN))
  documents = [document_B]
  for last_B in jax.lax.all_gather(own_B, AXIS):
    documents.append(jnp.where(last_B == _NO_TOKEN, documents[-1], last_B))
  return jnp.stack(documents)
