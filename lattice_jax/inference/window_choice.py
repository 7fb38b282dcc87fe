"""Windows chosen while a model reads and writes: per prompt by what its last queries see, later by what is lost.

Both are decisions alone. A rung is a shape of a compiled program and of a cache, so whoever runs the model keeps a
program for each rung, and moves texts to another one between two calls, as `prompt_windows` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lattice_jax.ops.local import ALL

RAISE, LOWER, ALERT = "raise", "lower", "alert"
_MASKED = -1e30


def choose_for_prompt(
  q_probe: Float[Array, "B M Q K"], k: Float[Array, "B T H K"], *, rungs: Sequence[int], sinks: int,
  coverage: float = 0.95, num_tokens: Int[Array, "B"] | None = None,
) -> tuple[Int[Array, "B H"], Float[Array, "R B Q"]]:
  """The smallest window of each key/value head in which all query heads that read it find enough of their attention.

  Args:
    q_probe: the last M queries of a prompt, positions included, as many as are looked at; Q = H·G.
    k: keys of the whole prompt, positions included; what stands behind its end is not seen.
    rungs: windows, ascending.
    sinks: first tokens that every query sees.
    coverage: share of the attention weight, mean over the probes, that must lie in the sinks and the window.
    num_tokens: of each prompt, where they differ; one of fewer than M has as many probes. None: T.

  Returns:
    The window of each key/value head, 0 where no rung is enough, and the share for every rung. O(M·T·K) per head.

  Raises:
    ValueError: the rungs do not ascend, coverage is not within (0, 1], or there are more probes than tokens where
      num_tokens is not given.
  """
  if not rungs or any(low >= high for low, high in zip((0, *rungs), rungs, strict=False)):
    raise ValueError(f"rungs={tuple(rungs)} must be positive and ascend; sort them and name each once.")
  if not 0 < coverage <= 1:
    raise ValueError(f"coverage={coverage} must be above 0 and at most 1, such as 0.95.")
  probes, length = q_probe.shape[1], k.shape[1]
  if probes > length and num_tokens is None:
    raise ValueError(f"{probes} probes are more than the {length} tokens of the prompt; probe its last tokens.")
  heads = k.shape[2]
  q_BMHGK = q_probe.reshape(len(k), probes, heads, -1, q_probe.shape[-1]).astype(jnp.float32)
  score_BHGMT = jnp.einsum("BMHGK,BTHK->BHGMT", q_BMHGK, k, precision="highest") * k.shape[-1] ** -0.5
  last_B = jnp.full(len(k), length) if num_tokens is None else num_tokens
  time_BM = last_B[:, None] + jnp.arange(-probes, 0)
  back_BMT = time_BM[..., None] - jnp.arange(length)
  weight_BHGMT = jax.nn.softmax(jnp.where(back_BMT[:, None, None] >= 0, score_BHGMT, _MASKED), axis=-1)
  is_sink_T = jnp.arange(length) < sinks
  is_probe_BM = time_BM >= 0
  weight_BHGMT *= (is_probe_BM / jnp.maximum(is_probe_BM.sum(1, keepdims=True), 1))[:, None, None, :, None]
  share_RBHG = jnp.stack([
    jnp.where(((back_BMT < rung) | is_sink_T)[:, None, None], weight_BHGMT, 0).sum((-1, -2)) for rung in rungs])
  is_enough_RBH = (share_RBHG >= coverage).all(-1)
  rung_R = jnp.asarray(rungs, jnp.int32)
  window_BH = jnp.where(is_enough_RBH.any(0), rung_R[is_enough_RBH.argmax(0)], ALL)
  return window_BH, share_RBHG.reshape(len(rungs), len(k), -1)


@dataclass(frozen=True)
class Thresholds:
  """When the share of attention that is far changes the window.

  up, down: shares. up_steps, down_steps: steps in a row that its mean must be beyond them. mean_steps: length of the
  exponential mean. pause: steps after a change in which there is no other.
  """

  up: float = 0.30
  down: float = 0.05
  up_steps: int = 8
  down_steps: int = 256
  mean_steps: int = 32
  pause: int = 32

  def __post_init__(self) -> None:
    if not 0 <= self.down < self.up <= 1:
      raise ValueError(f"down={self.down} must be below up={self.up}, both shares from 0 to 1.")
    for name in ("up_steps", "down_steps", "mean_steps", "pause"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1 step.")


@dataclass(frozen=True)
class Watch:
  """What is known of one row after `step` steps. rung: place in the ladder. mean: of the far share; None before any.

  above, below: steps in a row beyond the thresholds. quiet_until: the first step at which something may change again.
  """

  rung: int
  step: int = 0
  mean: float | None = None
  above: int = 0
  below: int = 0
  quiet_until: int = 0


@dataclass(frozen=True)
class Change:
  """One line of the audit log. what: "raise", "lower", or "alert" where the window cannot be raised."""

  step: int
  what: str
  before: int
  after: int
  mean: float


def observe(
  watch: Watch, share: float, *, num_rungs: int, can_raise: bool = True, thresholds: Thresholds | None = None,
) -> tuple[Watch, Change | None]:
  """The watch after one more step, in which `share` of the attention was far, and what is to change.

  can_raise: whether the keys and values of the higher rung still exist somewhere.

  Raises:
    ValueError: the share is not within [0, 1].
  """
  if not 0 <= share <= 1:
    raise ValueError(f"share={share} of the attention must be from 0 to 1.")
  limits = thresholds or Thresholds()
  mean = share if watch.mean is None else watch.mean + (share - watch.mean) / limits.mean_steps
  seen = replace(
    watch, step=watch.step + 1, mean=mean, above=watch.above + 1 if mean > limits.up else 0,
    below=watch.below + 1 if mean < limits.down else 0)
  if seen.step <= seen.quiet_until:
    return seen, None
  what, after = None, seen.rung
  if seen.above >= limits.up_steps:
    is_possible = can_raise and seen.rung + 1 < num_rungs
    what, after = (RAISE, seen.rung + 1) if is_possible else (ALERT, seen.rung)
  elif seen.below >= limits.down_steps and seen.rung > 0:
    what, after = LOWER, seen.rung - 1
  if what is None:
    return seen, None
  changed = replace(seen, rung=after, above=0, below=0, quiet_until=seen.step + limits.pause)
  return changed, Change(seen.step, what, seen.rung, after, mean)
