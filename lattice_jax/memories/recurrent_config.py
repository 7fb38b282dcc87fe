"""The fields that all recurrent memories share."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.fields import at_least, positive, switch


@dataclass(frozen=True)
class RecurrentConfig:
  """A recurrent memory. `value_dim` is per head."""

  heads: int = positive(4, "each with a state of its own")
  value_dim: int = positive(32, "of a head's values")
  conv_width: int = at_least(0, 4, "taps of the causal convolutions over queries, keys and values; 0 = none")
  norm_eps: float = positive(1e-6, "added to the mean square of a head's output, by whose root that is divided")
  gated: bool = switch(True, "gate on the output, SiLU where the memory has none of its own")
