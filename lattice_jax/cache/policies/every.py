"""Every n-th token of a partition stays, whatever it is (the control of arXiv 2412.12094)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import Partitions


def score(own: None, partitions: Partitions) -> jax.Array:
  """Of L slots those at ⌊i·L / keep⌋ come first.

  Where another number stays (an online budget) it is spread too: in the order 0, ½, ¼, ¾, ⅛, … of the partition.
  """
  import jax.numpy as jnp

  del own
  shape = partitions.position_BHNL[:, :, :-1].shape
  lag, bits = shape[-1], (shape[-1] - 1).bit_length()
  reversed_L = [int(f"{slot:0{bits}b}"[::-1], 2) if bits else 0 for slot in range(lag)]
  chosen = {index * lag // partitions.keep for index in range(partitions.keep)}
  score_L = [(slot in chosen) * lag * 2 - reversed_L[slot] for slot in range(lag)]
  return jnp.broadcast_to(jnp.asarray(score_L, jnp.float32), shape)


POLICY = PolicyRecord(doc="", chooses="partition", score=score)
