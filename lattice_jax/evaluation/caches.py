"""Cache policies as written on the command line, such as `lagkv:lag=128,ratio=0.25`, and peers of equal budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lattice_jax.cache.config import own_fields, unread_fields
from lattice_jax.cache.policies.registry import DROPPING, POLICIES
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, Config, ModelConfig
from lattice_jax.config_text import apply_overrides
from lattice_jax.domains import did_you_mean


def cache_overrides(text: str, argument: str = "--cache") -> list[str]:
  """The config overrides that `--cache=policy:field=value,…` stands for. Raises ValueError for any other form.

  A field is the policy's own if it has one of that name, else one that all policies share. `argument` is what messages
  call the text.
  """
  policy, _, fields = text.partition(":")
  if policy not in POLICIES:
    raise ValueError(
      f"{argument}={text} names the policy {policy!r}; {', '.join(POLICIES)} are known."
      f"{did_you_mean(policy, POLICIES)}")
  wrong = [field for field in fields.split(",") if fields and field.count("=") != 1]
  if wrong:
    raise ValueError(f"{argument}={text}: {wrong[0]!r} must have the form field=value, as in lagkv:lag=128,ratio=0.25.")
  own, names = own_fields(policy), [field.partition("=")[0] for field in fields.split(",") if field]
  if unread := [name for name in names if name in unread_fields(policy)]:
    raise ValueError(
      f"{argument}={text}: {unread[0]} means nothing to the policy {policy!r}, which would do the same without it; "
      f"leave it out.{_readers(unread[0])}")
  paths = [f"{policy}." * (field.partition("=")[0] in own) + field for field in fields.split(",") if field]
  return [f"model.cache.policy={policy}", *(f"model.cache.{path}" for path in paths)]


def _readers(field: str) -> str:
  readers = [policy for policy in POLICIES if field not in unread_fields(policy)]
  return f" These read it: {', '.join(readers)}." if readers else ""


def parse_cache(text: str) -> CacheConfig:
  """Text → cache config, for use without a model. Raises ValueError as `parse_caches`."""
  config = Config(model=ModelConfig(pattern=("attention",)))
  return apply_overrides(config, cache_overrides(text, "policy")).model.cache


def parse_caches(config: Config, texts: Sequence[str]) -> dict[str, CacheConfig]:
  """Text → its cache config. Raises ValueError if a text names no policy, or a budget that cannot be kept."""
  return {text: apply_overrides(config, cache_overrides(text)).model.cache for text in texts}


def with_peers(caches: dict[str, CacheConfig], peers: Sequence[str], length: int) -> dict[str, CacheConfig]:
  """Adds to each cache that drops tokens by partitions its peers, which keep equally many of `length` tokens.

  Raises:
    ValueError: a peer is no policy, no cache drops tokens by partitions, or how many one keeps is not known beforehand.
  """
  for peer in peers:
    if peer not in DROPPING:
      raise ValueError(
        f"--peers names {peer!r}; policies that drop tokens are {', '.join(DROPPING)}.{did_you_mean(peer, DROPPING)}")
  result = dict(caches)
  for name, cache in caches.items():
    policy = make_policy(cache)
    if not policy.lag:
      continue
    if peers and policy.is_online:
      raise ValueError(
        f"--peers keep as many tokens as a cache, and how many --cache={name} leaves is known only once it has read; "
        "leave out --peers, and give fixed budgets around it as further --cache.")
    unable = [peer for peer in peers if policy.config.skip_layers and not POLICIES[peer].compresses]
    if unable:
      raise ValueError(
        f"--peers={unable[0]} drops in every layer, and --cache={name} skips {policy.config.skip_layers}; leave out "
        f"{unable[0]}, or skip_layers.")
    for peer in peers:
      like = {"tokens": 0, "keep": policy.keep} if POLICIES[peer].compresses else {
        "tokens": policy.length_after(length), "keep": 0}
      result[f"{peer} like {name}"] = as_peer(cache, peer, ratio=0.0, text_len=0, **like)
  if peers and len(result) == len(caches):
    raise ValueError(
      f"--peers={','.join(peers)} keep as many tokens as a --cache that compresses partitions, and none was given; add "
      "one, such as --cache=lagkv:ratio=0.25.")
  return result


def as_peer(cache: CacheConfig, peer: str, **budget: float) -> CacheConfig:
  """The policy `peer` with this budget; it takes fields that both policies share by name from `cache`."""
  common = {field: getattr(cache.own, field) for field in own_fields(cache.policy) & own_fields(peer)}
  own = {peer: dataclasses.replace(getattr(cache, peer), **common)} if common else {}
  return dataclasses.replace(cache, policy=peer, **own, **budget)
