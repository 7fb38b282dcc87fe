"""Cache policies as they are written on the command line, and peers that keep as many tokens."""

from __future__ import annotations

import pytest

from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, Config, ModelConfig
from lattice_jax.evaluation.caches import parse_caches, with_peers

CONFIG = Config(model=ModelConfig(pattern=("attention",)))
PEERS = ("window", "knorm", "snapkv", "h2o", "random")


def test_a_policy_is_written_with_its_fields():
  caches = parse_caches(CONFIG, ["full", "lagkv:lag=64,ratio=0.25,sinks=4", "window:window=7"])
  assert caches["full"] == CacheConfig()
  assert caches["lagkv:lag=64,ratio=0.25,sinks=4"] == CacheConfig(policy="lagkv", lag=64, ratio=0.25, sinks=4)
  assert caches["window:window=7"] == CacheConfig(policy="window", window=WindowConfig(window=7))


@pytest.mark.parametrize(("text", "message"), [
  ("lagvk:ratio=0.5", r"names the policy 'lagvk'; full, window, .* Did you mean 'lagkv'"),
  ("lagkv:ratio", "'ratio' must have the form field=value, as in"),
  ("lagkv:ration=0.5", "Did you mean 'ratio'"), ("lagkv:ratio=2", r"model\.cache\.ratio=2.* must lie in"),
  ("window:tokens=3,sinks=4", "has no room for a window beside"), ("lagkv", "needs its budget as one of"),
  ("window:tokens=64,ratio=0.5", "ratio means nothing to the policy 'window', which would do the same without it"),
  ("full:sinks=4", "leave it out. These read it: window, lagkv, "), ("full:policy=window", "policy means nothing"),
  ("h2o:keep=4,budget=memory", "budget means nothing to the policy 'h2o'")], ids=str)
def test_what_is_no_policy_is_refused_in_one_sentence(text, message):
  with pytest.raises(ValueError, match=message):
    parse_caches(CONFIG, [text])


@pytest.mark.parametrize("length", [100, 300, 1000, 1024])
def test_peers_keep_as_many_tokens_at_every_length(length):
  caches = parse_caches(CONFIG, ["full", "lagkv:lag=64,ratio=0.25,sinks=4", "window:window=9"])
  beside = with_peers(caches, PEERS, length)
  assert list(beside)[:3] == list(caches)
  assert [name.partition(" like ")[0] for name in list(beside)[3:]] == list(PEERS)
  kept = make_policy(caches["lagkv:lag=64,ratio=0.25,sinks=4"]).length_after(length)
  assert {make_policy(cache).length_after(length) for name, cache in beside.items() if " like " in name} == {kept}


def test_peers_of_a_length_that_is_not_known_beforehand_are_refused():
  caches = parse_caches(CONFIG, ["lagkv:ratio=0.25,budget=memory", "lagkv:budget=drift,drift=0.5"])
  assert with_peers(caches, [], 1000) == caches
  with pytest.raises(ValueError, match=r"how many --cache=lagkv:ratio=0\.25,budget=memory leaves is known only once"):
    with_peers(caches, ["knorm"], 1000)


def test_a_peer_that_drops_nothing_is_refused():
  caches = parse_caches(CONFIG, ["lagkv:keep=8"])
  for peer in ("full", "h20"):
    with pytest.raises(ValueError, match=rf"--peers names '{peer}'; policies that drop tokens are window, lagkv, "):
      with_peers(caches, [peer], 1000)


def test_peers_of_nothing_are_refused():
  with pytest.raises(ValueError, match=r"--peers names 'h20'; .* Did you mean 'h2o'"):
    with_peers(parse_caches(CONFIG, ["full"]), ["h20"], 1000)
  with pytest.raises(ValueError, match=r"--peers=h2o,window keep as many tokens as a --cache .* none was given; add"):
    with_peers(parse_caches(CONFIG, ["full", "window:window=9"]), ["h2o", "window"], 1000)
  with pytest.raises(ValueError, match="--peers=window drops in every layer, and --cache=lagkv:keep=8,skip_layers=1"):
    with_peers(parse_caches(CONFIG, ["lagkv:keep=8,skip_layers=1"]), ["window"], 1000)
