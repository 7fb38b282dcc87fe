"""Cache policies on the command line: `lagkv:lag=128,ratio=0.25`, and peers that keep as many tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lattice_jax.cache import POLICIES, make_policy
from lattice_jax.config import CacheConfig, Config, ModelConfig
from lattice_jax.config_text import apply_overrides
from lattice_jax.domains import did_you_mean


def cache_overrides(text: str) -> list[str]:
  """The overrides of a config that `--cache=policy:field=value,…` stands for. Raises ValueError for other forms."""
  policy, _, fields = text.partition(":")
  if policy not in POLICIES:
    raise ValueError(
      f"--cache={text} names the policy {policy!r}; {', '.join(POLICIES)} are known.{did_you_mean(policy, POLICIES)}")
  wrong = [field for field in fields.split(",") if fields and field.count("=") != 1]
  if wrong:
    raise ValueError(f"--cache={text}: {wrong[0]!r} must have the form field=value, as in lagkv:lag=128,ratio=0.25.")
  return [f"model.cache.policy={policy}", *(f"model.cache.{field}" for field in fields.split(",") if field)]


def parse_caches(config: Config, texts: Sequence[str]) -> dict[str, CacheConfig]:
  """What was written → the policy. Raises ValueError where one is none, or its budget cannot be kept."""
  return {text: apply_overrides(config, cache_overrides(text)).model.cache for text in texts}


def with_peers(caches: dict[str, CacheConfig], peers: Sequence[str], length: int) -> dict[str, CacheConfig]:
  """The caches, and beside each that drops tokens by partitions its peers, which keep as many of `length` tokens.

  Raises:
    ValueError: a peer is no policy, no cache drops tokens by partitions, or the length of one is not known beforehand.
  """
  for peer in peers:
    if peer not in POLICIES or peer == "full":
      raise ValueError(
        f"--peers names {peer!r}; policies that drop tokens are {', '.join(POLICIES[1:])}."
        f"{did_you_mean(peer, POLICIES[1:])}")
  result = dict(caches)
  for name, cache in caches.items():
    policy = make_policy(cache)
    if not policy.lag:
      continue
    if peers and policy.is_online:
      raise ValueError(
        f"--peers keep as many tokens as a cache, and how many --cache={name} leaves is known only once it has read; "
        "leave out --peers, and give fixed budgets around it as further --cache.")
    if "window" in peers and policy.config.skip_layers:
      raise ValueError(
        f"--peers=window drops in every layer, and --cache={name} skips {policy.config.skip_layers}; leave out window, "
        "or skip_layers.")
    for peer in peers:
      kept = policy.kept_length(length)
      like = {"tokens": kept, "keep": 0} if peer == "window" else {"tokens": 0, "keep": policy.keep}
      result[f"{peer} like {name}"] = dataclasses.replace(cache, policy=peer, ratio=0.0, text_len=0, **like)
  if peers and len(result) == len(caches):
    raise ValueError(
      f"--peers={','.join(peers)} keep as many tokens as a --cache that compresses partitions, and none was given; add "
      "one, such as --cache=lagkv:ratio=0.25.")
  return result


def with_cache(model: ModelConfig, cache: CacheConfig) -> ModelConfig:
  return dataclasses.replace(model, cache=cache)
