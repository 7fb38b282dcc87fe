"""How much a policy keeps: a config's budget as tokens per partition, and cache lengths in closed form."""

from __future__ import annotations

from lattice_jax.cache.config import CacheConfig

_BUDGETS = ("keep", "ratio", "tokens")


def window_size(config: CacheConfig) -> int:
  """Tokens that a query of the policy "window" sees beside the sinks.

  Raises:
    ValueError: none, or more than one, of window and tokens says so, or nothing is left beside the sinks.
  """
  window = config.window.window
  if (window > 0) == (config.tokens > 0):
    raise ValueError(
      "model.cache.policy='window' takes its size from model.cache.window.window, or from model.cache.tokens with the "
      f"sinks included, not window={window} and tokens={config.tokens}; set one of them and leave the other 0.")
  if config.tokens and config.tokens <= config.sinks:
    raise ValueError(
      f"model.cache.tokens={config.tokens} has no room for a window beside model.cache.sinks={config.sinks}; "
      f"use at least {config.sinks + 1} tokens, or fewer sinks.")
  return window or config.tokens - config.sinks


def keep_of_partition(config: CacheConfig) -> int:
  """Tokens of a partition that each head keeps, 1 ≤ keep ≤ lag, in whichever way the budget is given.

  An online budget keeps at most as many on average. The budget "drift" needs no other, and may then keep all.

  Raises:
    ValueError: the budget is given in no way or several, keeps nothing of a partition, or more than all.
  """
  given = [name for name in _BUDGETS if getattr(config, name)]
  if config.budget == "drift" and not given:
    return config.lag
  if len(given) != 1:
    said = " and ".join(f"model.cache.{name}={getattr(config, name)}" for name in given) or "none"
    raise ValueError(
      f"model.cache.policy={config.policy!r} needs its budget as one of model.cache.keep, model.cache.ratio and "
      f"model.cache.tokens, not {said}; set one and leave the others 0.")
  if config.tokens:
    return _keep_for_tokens(config)
  # 1e-6: 0.29 · 100 is a little less than 29 in binary
  keep = config.keep or int(config.ratio * config.lag + 1e-6)
  if not 1 <= keep <= config.lag:
    raise ValueError(
      f"model.cache.{given[0]}={getattr(config, given[0])} keeps {keep} tokens of a partition of "
      f"model.cache.lag={config.lag}; at least one and at most all must stay: use a keep from 1 to {config.lag}, or a "
      f"ratio from {1 / config.lag:.3g} to 1.")
  return keep


def _keep_for_tokens(config: CacheConfig) -> int:
  """The largest keep with which `text_len` tokens leave at most `tokens`."""
  length, sinks, lag = config.text_len, config.sinks, config.lag
  if length < sinks + 2 * lag:
    raise ValueError(
      f"model.cache.tokens={config.tokens} is a budget for model.cache.text_len={length} tokens, of which nothing is "
      f"dropped: that takes sinks + 2·lag = {sinks + 2 * lag}; set model.cache.text_len to the length of the longest "
      "text, or use a smaller model.cache.lag.")
  partitions, rest = divmod(length - sinks, lag)
  keep = min(lag, (config.tokens - sinks - lag - rest) // (partitions - 1))
  if keep < 1:
    raise ValueError(
      f"model.cache.tokens={config.tokens} is under what stays in any case of model.cache.text_len={length} tokens: "
      f"{sinks} sinks, the last {lag + rest} tokens and one token of each of {partitions - 1} partitions; use at least "
      f"{compressed_length(length, sinks=sinks, lag=lag, keep=1)} tokens, or a smaller model.cache.lag.")
  return keep


def compressed_length(num_tokens: int, *, sinks: int, lag: int, keep: int) -> int:
  """Slots in use after `num_tokens` tokens of a document, however they arrived."""
  partitions, rest = divmod(num_tokens - sinks, lag)
  if partitions < 2:
    return num_tokens
  return sinks + keep * (partitions - 1) + lag + rest


def most_slots(num_tokens: int, *, sinks: int, lag: int, keep: int, call_len: int) -> int:
  """Slots ever in use before compaction while up to `num_tokens` tokens arrive in calls of at most `call_len`."""
  partitions = max(0, -(-(num_tokens - sinks) // lag) - 2)
  return min(num_tokens, sinks + keep * partitions + 2 * lag + call_len - 1)
