"""The rotary embedding in a config.json: its frequencies, and the number of tokens that it was stretched to.

Newer files hold theta and the scaling in rope_parameters. Older ones hold the scaling in rope_scaling, with its type as
«type», and theta beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lattice_jax.models.pretrained.metadata import ROPE, check_keys, flag, positive_number, whole_number
from lattice_jax.shown import shown

_THETA = 10_000.0  # the default of all families; files of Llama 1 and 2 do not state it
_ORIGINAL = "original_max_position_embeddings"


def read_rope(
  config: Mapping[str, Any], kinds: set[str], source: str, *, key_dim: int, context_len: int,
) -> tuple[dict[str, Any], int]:
  """(rope_theta and rope_scaling of our attention, the number of tokens that the model can read).

  kinds: of the model's layers, with the names of layer_types. context_len: 0, or the length that is asked for; only the
  frequencies of «dynamic» scaling depend on it.

  Raises ValueError if our decoder lacks the type or a key, or values are impossible or contradict each other.
  """
  given = _given(config, kinds, source)
  kind = _one(given, ("rope_type", "type"), source) or "default"
  if kind not in tuple(ROPE):
    raise ValueError(f"{source} has rotary scaling of type {shown(kind)}; {', '.join(ROPE)} can be read.")
  check_keys(given, ROPE[kind], source, prefix="rope_scaling.")
  theta = _theta(config, given, source)
  longest = whole_number(config, "max_position_embeddings", source)
  if kind == "default":
    return {"rope_theta": theta}, context_len or longest
  factor = positive_number(given, "factor", source, least=1)
  original = whole_number(given, _ORIGINAL, source) if given.get(_ORIGINAL) is not None else longest
  if kind == "dynamic":
    theta = _longer_theta(theta, factor, (context_len or longest) / longest, key_dim, source)
    if original != longest:
      raise ValueError(
        f"{source} says {_ORIGINAL}={original} and max_position_embeddings={longest}; with «dynamic» scaling both are "
        "the length before stretching.")
    return {"rope_theta": theta}, context_len or longest
  if kind == "llama3":
    whole_number(given, _ORIGINAL, source)
  else:
    # a llama3 model reads fewer tokens than the factor allows, and its file says how many
    longest = max(longest, _stretched(original, factor, source))
  scaling = {"kind": kind, "factor": factor, "original_len": original} | _details(given, kind, source)
  if kind == "yarn":
    scaling["gain"] = _yarn_gain(given, factor, source)
  return {"rope_theta": theta, "rope_scaling": scaling}, context_len or longest


def _given(config: Mapping[str, Any], kinds: set[str], source: str) -> dict[str, Any]:
  """The file's entries on the rotary embedding; if they are given per layer type, those that all types share."""
  both = [config[name] for name in ("rope_parameters", "rope_scaling") if config[name]]
  if not all(isinstance(one, dict) for one in both):
    raise ValueError(f"{source} says rope_scaling={shown(both[0])}; it must say an object or null.")
  if len(both) == 2 and both[0] != both[1]:
    raise ValueError(f"{source} has rope_parameters and rope_scaling that differ; keep the right one.")
  given = both[0] if both else {}
  by_type = [given[kind] for kind in sorted(kinds) if kind in given]
  if not by_type:
    return given
  if len(by_type) < len(kinds) or not isinstance(by_type[0], dict) or any(one != by_type[0] for one in by_type):
    raise ValueError(
      f"{source} gives layers of different types different rotary embeddings; only one for all layers can be read.")
  others = {"full_attention", "sliding_attention"}
  return {name: value for name, value in given.items() if name not in others} | by_type[0]


def _one(given: Mapping[str, Any], names: tuple[str, str], source: str) -> Any:
  """The value under either of two names. Raises ValueError if they disagree."""
  said = [given[name] for name in names if given.get(name) is not None]
  if len(said) == 2 and said[0] != said[1]:
    raise ValueError(f"{source} says {names[0]}={shown(said[0])} and {names[1]}={shown(said[1])}; keep the right one.")
  return said[0] if said else None


def _theta(config: Mapping[str, Any], given: Mapping[str, Any], source: str) -> float:
  """The base of the frequencies, which may be stated in the rotary embedding, outside it, or the same in both."""
  said = [
    positive_number(place, "rope_theta", source, above=1, below=1e12)  # 1 would rotate all pairs equally
    for place in (given, config) if place.get("rope_theta") is not None]
  if len(said) == 2 and said[0] != said[1]:
    raise ValueError(
      f"{source} says rope_theta={said[1]:g} and, within the rotary embedding, {said[0]:g}; keep the right one.")
  return said[0] if said else _THETA


def _stretched(original: int, factor: float, source: str) -> int:
  length = int(original * factor)
  if length >= 2**31:
    raise ValueError(f"{source} stretches {original:,} tokens by {factor:g}; no text is longer than 2**31 tokens.")
  return length


def _longer_theta(theta: float, factor: float, times: float, key_dim: int, source: str) -> float:
  """The theta of «dynamic» scaling for texts `times` as long as in training; unchanged for shorter ones."""
  if key_dim < 4:
    raise ValueError(f"{source} has heads of {key_dim}, which «dynamic» rotary scaling cannot stretch.")
  return theta * (factor * max(times, 1) - (factor - 1)) ** (key_dim / (key_dim - 2))


def _details(given: Mapping[str, Any], kind: str, source: str) -> dict[str, Any]:
  if kind == "llama3":
    return {name: positive_number(given, name, source) for name in ("low_freq_factor", "high_freq_factor")}
  if kind != "yarn":
    return {}
  betas = [name for name in ("beta_fast", "beta_slow") if given.get(name) is not None]
  details: dict[str, Any] = {name: positive_number(given, name, source) for name in betas}
  if given.get("truncate") is not None:
    details["truncate"] = flag(given, "truncate", source)
  return details


def _yarn_gain(given: Mapping[str, Any], factor: float, source: str) -> float:
  """The factor of queries and keys that keeps attention over more tokens as sharp."""
  scales = [name for name in ("mscale", "mscale_all_dim") if given.get(name) is not None]
  if given.get("attention_factor") is not None:
    if scales:
      raise ValueError(f"{source} says attention_factor and {scales[0]}, and either gives the other; keep one of them.")
    return positive_number(given, "attention_factor", source)
  if len(scales) == 1:
    raise ValueError(f"{source} says {scales[0]} alone; mscale and mscale_all_dim have an effect only together.")
  above, below = (positive_number(given, name, source) for name in scales) if scales else (1.0, 0.0)
  return (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
