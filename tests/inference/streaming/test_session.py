"""Streamed weights say bit by bit what resident ones say, through every budget, and never hold more than it allows."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import pytest

from lattice_jax.cache.convert import uncompressed
from lattice_jax.config import CacheConfig
from lattice_jax.inference.generate import generate
from lattice_jax.inference.session import Session
from lattice_jax.inference.streaming import StreamedModel, programs, unpack
from lattice_jax.inference.streaming.budget import least_budget
from lattice_jax.inference.streaming.source import Options
from lattice_jax.inference.streaming.tiers import DeviceTier
from lattice_jax.sharding import tree_bytes
from tests.inference.streaming import tiny
from tests.inference.test_generate import compilations
from tests.thorough import further


@pytest.fixture(autouse=True)
def small_scratch(monkeypatch):
  """As little as these layers, so that it pays to keep them packed."""
  monkeypatch.setattr(unpack, "_SCRATCH", 1 << 12)


@pytest.mark.parametrize("kind", ["safetensors", "Q4_1"])
def test_logits_are_those_of_resident_weights_for_every_budget_and_depth(tmp_path, kind):
  pretrained = tiny.open_tiny(tmp_path, kind)
  resident = StreamedModel(pretrained, tiny.HUGE)
  texts, logits = tiny.draw(pretrained.model, resident)
  assert len(resident.usage.plan.pinned) == tiny.LAYERS and not resident.usage.plan.streamed_bytes
  sizes = resident.usage.sizes
  for depth, pinned in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1)):
    model = StreamedModel(pretrained, least_budget(sizes, pinned, depth=depth), options=Options(depth=depth))
    streamed_texts, streamed_logits = tiny.draw(pretrained.model, model)
    usage = model.usage
    assert len(usage.plan.pinned) == pinned and usage.plan.num_buffers == depth + 1
    assert usage.plan.has_codes == (kind == "Q4_1")
    assert streamed_texts == texts
    np.testing.assert_array_equal(streamed_logits, logits, err_msg=f"{pinned} layers stay, depth {depth}")
    assert usage.pool.peak <= model.budget
  ordinary_texts, ordinary_logits = tiny.draw(pretrained.model, {"params": pretrained.params(stored=True)})
  assert texts == ordinary_texts
  # the same numbers in the same order, but another program: only rounding may differ
  np.testing.assert_allclose(logits, ordinary_logits, rtol=1e-4, atol=1e-5)


def test_bytes_are_counted_as_they_are_allocated(tmp_path):
  """The budget holds every array that a text needs, and the count comes first."""
  pretrained = tiny.open_tiny(tmp_path, "Q4_1")
  model = tiny.streamed(pretrained, 2)
  tiny.draw(pretrained.model, model)
  usage, files = model.usage, model.files
  layers = 2 * max(layer.nbytes for layer in files.layers) + sum(
    files.layers[index].nbytes for index in usage.plan.pinned)
  assert usage.sizes.needs["what is outside the layers"] == files.outside.nbytes
  assert usage.pool.peak == sum(usage.sizes.needs.values()) + usage.plan.code_bytes + layers
  session = Session(pretrained.model, {"params": pretrained.params()}, batch=2, max_len=64, chunk_len=4)
  assert usage.sizes.needs["the memory's state"] == tree_bytes(session.state)
  part_bytes = sum(part.nbytes for part in files.layers[0].parts)
  assert part_bytes <= files.layers[0].nbytes < part_bytes + 4096 + 64 * len(files.layers[0].parts)


def test_the_device_tier_reads_each_layer_once_and_says_the_same(tmp_path):
  pretrained = tiny.open_tiny(tmp_path, "Q4_1")
  _, logits = tiny.draw(pretrained.model, StreamedModel(pretrained, tiny.HUGE))
  reads, tiers = [], []

  def make_tier(pool, sharding):
    tiers.append(DeviceTier(pool, sharding))
    return tiers[0]

  def read(layer, outs, is_stopped):
    reads.append(layer.name)
    for part, out in zip(layer.parts, outs, strict=True):
      part.fill(out)

  model = tiny.streamed(pretrained, 2, make_tier=make_tier, read=read)
  _, streamed_logits = tiny.draw(pretrained.model, model)
  np.testing.assert_array_equal(streamed_logits, logits)
  assert reads == ["what is outside the layers", *(f"layer {layer}" for layer in range(tiny.LAYERS))]
  tier = tiers[0]
  assert set(tier._on_host) == {f"layer {layer}" for layer in range(tiny.LAYERS)} - {
    f"layer {layer}" for layer in model.usage.plan.pinned}
  kinds = {leaf.sharding.memory_kind for tree in tier._on_host.values() for leaf in jax.tree.leaves(tree)}
  assert kinds == {"pinned_host"} and tier.host_bytes


@pytest.mark.parametrize("change", [
  *further({"cache": CacheConfig(policy="lagkv", sinks=1, lag=2, keep=1, skip_layers=2)}),
  {"pattern": ("attention", "window")}],
  ids=["dropped by layer", "mixed"])
def test_every_memory_and_policy_works_layer_by_layer(tmp_path, change):
  """A cache that drops tokens in some layers; one that is written in place beside one that is not."""
  pretrained = tiny.open_tiny(tmp_path, config=tiny.CONFIG | {"num_hidden_layers": 4})
  attention = dataclasses.replace(pretrained.model.attention, window=3)
  model = dataclasses.replace(pretrained.model, attention=attention, **change)
  pretrained = pretrained.with_memories(dataclasses.replace(model, cache=pretrained.model.cache))
  ordinary = tiny.draw(model, {"params": pretrained.params(stored=True)}, prefill_len=1)
  texts, logits = tiny.draw(model, tiny.streamed(pretrained, 0, model, prefill_len=1), prefill_len=1)
  assert texts == ordinary[0]
  np.testing.assert_allclose(logits, ordinary[1], rtol=1e-4, atol=1e-5)


def test_a_text_is_what_generate_draws(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  drawn = {"length": 6, "seed": 3, "temperature": 0.9, "top_k": 9, "start_ids": (), "prefill_len": 1}
  np.testing.assert_array_equal(
    generate(pretrained.model, tiny.streamed(pretrained, 1), tiny.PROMPTS, **drawn),
    generate(pretrained.model, {"params": pretrained.params(stored=True)}, tiny.PROMPTS, **drawn))


def test_rows_that_have_ended_are_read_no_more(tmp_path):
  """At a stop id, or where their length ends: the memory stays, so that what was read is counted right."""
  pretrained = tiny.open_tiny(tmp_path)
  texts, _ = tiny.draw(pretrained.model, tiny.streamed(pretrained, 1))
  stop = next(id for id in texts[0] if id not in texts[1])
  stream = tiny.stream(pretrained.model, tiny.streamed(pretrained, 1), stop_ids=(stop,))
  for _ in stream:
    pass
  assert [text.ids for text in stream.texts] == [texts[0][:texts[0].index(stop)], texts[1]]
  read = [len(prompt) + len(text.ids) for prompt, text in zip(tiny.PROMPTS, stream.texts, strict=True)]
  np.testing.assert_array_equal(stream.session.state.position_B, read)


def test_a_fork_goes_its_own_way_and_is_counted(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  room = {"batch": 2, "max_len": 16, "chunk_len": 4}
  session = StreamedModel(pretrained, tiny.HUGE).open_session(pretrained.model, **room)
  session.read([np.array(row) for row in tiny.PROMPTS])
  pool, state = session.source.usage.pool, tree_bytes(session.state)
  before = pool.used
  fork = session.fork()
  assert pool.used == before + state
  fork.step(np.array([1, 2]))
  session.step(np.array([3, 4]))
  assert np.abs(fork.state.logits_BA - session.state.logits_BA).max() > 1e-3
  session.close()
  alone = StreamedModel(pretrained, tiny.HUGE).open_session(pretrained.model, **room)
  for _ in range(2):
    alone.read([np.array(row) for row in tiny.PROMPTS])
    alone.step(np.array([3, 4]))
    np.testing.assert_array_equal(session.state.logits_BA, alone.state.logits_BA)
    alone.restart()
  alone.close()
  del fork
  assert pool.used == before


def test_what_does_not_fit_beside_the_layers_is_refused(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  room = {"batch": 2, "max_len": 16, "chunk_len": 4}
  sizes = StreamedModel(pretrained, tiny.HUGE)
  sizes.open_session(pretrained.model, **room)
  model = StreamedModel(pretrained, least_budget(sizes.usage.sizes, 0, depth=1))
  session = model.open_session(pretrained.model, **room)
  session.read([np.array([3])])
  with pytest.raises(ValueError, match=r"of the memory's state do not fit: .* are in use; give at least"):
    session.fork()
  with pytest.raises(ValueError, match=r"budget=0 must be a number of bytes from 1 to 2\^60"):
    StreamedModel(pretrained, 0)
  with pytest.raises(ValueError, match="a budget is one session's at a time; close the session that is open"):
    model.open_session(pretrained.model, **room)
  session.close()
  model.open_session(pretrained.model, **room)


def test_room_for_a_compressed_state_is_kept_free(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  model = dataclasses.replace(pretrained.model, cache=CacheConfig(policy="lagkv", sinks=1, lag=4, keep=1))
  assert uncompressed(model) != model
  needs = tiny.sizes_of(pretrained, model).needs
  assert needs["the state under the cache policy 'lagkv'"] > 0
  assert "the state under the cache policy 'full'" not in tiny.sizes_of(pretrained).needs


def test_another_prompt_compiles_nothing(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  model = tiny.streamed(pretrained, 1)
  tiny.draw(pretrained.model, model)
  with compilations() as compiled:
    tiny.draw(pretrained.model, model)
  assert compiled == []


def test_layers_share_a_program_that_writes_the_caches_in_place(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  model = StreamedModel(pretrained, tiny.HUGE)
  session = model.open_session(pretrained.model, batch=1, max_len=4096, chunk_len=4)
  steps = session._programs_for(1).layers
  assert len(set(map(id, steps))) == 1
  cache_bytes = tree_bytes(session.state.memory)
  assert steps[0].memory_analysis().alias_size_in_bytes == cache_bytes
  assert programs.work_bytes(steps[0]) < cache_bytes / 20
  assert re.search(r"input_output_alias=\{", steps[0].as_text())
