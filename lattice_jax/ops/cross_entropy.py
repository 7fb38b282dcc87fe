"""Cross-entropy whose logits exist for a chunk of tokens only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lattice_jax.ops.documents import from_chunks, to_chunks
from lattice_jax.ops.sequence import rows_of_a_device


def cross_entropy(
  features: Float[Array, "B T D"], head: Float[Array, "D A"], bias: Float[Array, "A"], targets: Int[Array, "B T"], *,
  chunk: int,
) -> Float[Array, "B T"]:
  """Negative log-likelihood of each target in nats, fp32; the backward pass computes each chunk's logits again.

  Args:
    features: already scaled by the logit scale.
    head: in the features' dtype; products are accumulated in fp32.
    chunk: tokens (over all rows) of which a device has logits at one time; at least one column of the batch. Where
      the head lies on many devices, every chunk gathers it and adds up its gradient, so that few large ones are best.
  """
  batch, length, _ = features.shape
  columns = max(1, min(length, chunk // rows_of_a_device(batch)))

  @jax.checkpoint
  def one_chunk(features_BCD, targets_BC):
    logits_BCA = jnp.einsum("BCD,DA->BCA", features_BCD, head, preferred_element_type=jnp.float32) + bias
    # A sum and no gather: of a vocabulary on several devices each adds its part, and XLA cannot split a gather further
    # where tokens are split by hand (`lattice_jax.ops.sequence`).
    is_target_BCA = targets_BC[..., None] == jnp.arange(head.shape[1])
    target_BC = jnp.where(is_target_BCA, logits_BCA, 0).sum(-1)
    return jax.nn.logsumexp(logits_BCA, axis=-1) - target_BC

  _, nll_NBC = jax.lax.scan(
    lambda carry, xs: (carry, one_chunk(*xs)), None, to_chunks((features, targets), columns))
  return from_chunks(nll_NBC, length)
