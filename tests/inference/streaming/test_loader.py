"""The thread that reads: the first layer is computed before the last is read, and every end is an end of the thread."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from lattice_jax.inference.streaming import StreamedModel, unpack
from lattice_jax.inference.streaming.layers import read_parts
from lattice_jax.inference.streaming.source import Options
from tests.inference.streaming import tiny
from tests.models.tiny_files import make_tensors, write_folder

ROOM = {"batch": 1, "max_len": 16, "chunk_len": 4}
PATIENCE = 60  # seconds after which a test fails that would otherwise never end


def session_of(pretrained, num_pinned=0, **options):
  sizes = StreamedModel(pretrained, tiny.HUGE)
  sizes.open_session(pretrained.model, **ROOM)
  model = tiny.streamed(pretrained, num_pinned, **options)
  model.budget = tiny.least_budget(sizes.usage.sizes, num_pinned, depth=1)
  return model.open_session(pretrained.model, **ROOM)


@pytest.fixture(autouse=True)
def no_thread_is_left():
  yield
  assert not tiny.loader_threads()


def test_the_first_layer_is_computed_before_the_last_is_read(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  may_read_last, computed = threading.Event(), []

  def read(layer, outs, is_stopped):
    if layer.name == f"layer {tiny.LAYERS - 1}":
      assert may_read_last.wait(PATIENCE), "the last layer was waited for before the first was computed"
    read_parts(layer, outs, is_stopped)

  model = StreamedModel(pretrained, tiny.HUGE, options=Options(read=read))
  session = model.open_session(pretrained.model, **ROOM)
  run = session.source.run

  def run_and_note(compute):
    def note(layer, params):
      done = compute(layer, params)
      done.block_until_ready()
      computed.append(layer)
      if layer == 0:
        may_read_last.set()
      return done

    run(note)

  session.source.run = run_and_note
  session.read([np.array([3, 4])])
  assert computed == [*range(tiny.LAYERS)] and np.isfinite(session.state.logits_BA).all()
  session.close()


def test_hits_and_misses_are_those_of_the_pinned_set(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  session = session_of(pretrained, 2)
  layers, passes = session.source._files.layers, 4
  for token in range(passes):
    session.step(np.array([token]))
  session.close()
  counters, pinned = session.source.usage.counters, session.source.usage.plan.pinned
  assert len(pinned) == 2
  assert (counters.hits, counters.misses) == (2 * (passes - 1), tiny.LAYERS + (tiny.LAYERS - 2) * (passes - 1))
  once = session.source._files.outside.file_bytes + sum(layer.file_bytes for layer in layers)
  again = sum(layer.file_bytes for index, layer in enumerate(layers) if index not in pinned)
  read_ahead = counters.bytes_read - once - (passes - 1) * again
  assert 0 <= read_ahead <= 2 * max(layer.file_bytes for layer in layers)
  assert 0 < counters.stalls <= passes * tiny.LAYERS and counters.stall_seconds > 0


@pytest.mark.parametrize(("error", "sentence"), [
  (OSError(5, "Input/output error"), r"layer 3 of \S+ could not be read \(.*Input/output error\); get the file again"),
  (ValueError("the disk said no."), r"^the disk said no\.$"),
  (MemoryError(), r"layer 3 of \S+model.gguf could not be read \(MemoryError\); get the file again\.")],
  ids=["os", "value", "memory"])
def test_a_loader_that_fails_says_so_where_the_layer_is_needed(tmp_path, error, sentence):
  pretrained = tiny.open_tiny(tmp_path)

  def read(layer, outs, is_stopped):
    if layer.name == "layer 3":
      raise error
    read_parts(layer, outs, is_stopped)

  session = session_of(pretrained, read=read)
  with pytest.raises(ValueError, match=sentence):
    session.step(np.array([1]))
  with pytest.raises(ValueError, match=sentence):
    session.step(np.array([1]))


def test_a_file_that_is_cut_while_it_is_read_is_a_sentence(tmp_path):
  path = tiny.write(tmp_path, "Q8_0")
  session = session_of(tiny.open_pretrained(path))
  session.step(np.array([1]))
  os.truncate(path, 5000)
  with pytest.raises(ValueError, match=r"was cut to 5,000 of [\d,]+ bytes while it was being read; get it again"):
    for _ in range(3):
      session.step(np.array([1]))


def test_a_tensor_that_is_not_finite_is_refused_when_it_is_first_read(tmp_path):
  tensors = make_tensors(tiny.CONFIG)
  tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = np.nan
  session = session_of(tiny.open_pretrained(write_folder(tmp_path / "model", tiny.CONFIG, tensors)))
  with pytest.raises(ValueError, match=r"tensor model.layers.2.mlp.up_proj.weight holds NaN or infinity; get the file"):
    session.step(np.array([1]))


def test_a_text_that_is_given_up_ends_the_thread(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  blocks = iter(tiny.stream(pretrained.model, tiny.streamed(pretrained, 1)))
  next(blocks)
  assert len(tiny.loader_threads()) == 1
  blocks.close()
  assert not tiny.loader_threads()


def test_a_pass_that_is_interrupted_ends_the_thread_and_the_session(tmp_path):
  """As Ctrl-C does, also while the loader is in the middle of a layer that it cannot end."""
  pretrained = tiny.open_tiny(tmp_path)
  is_reading, stopped = threading.Event(), []

  def read(layer, outs, is_stopped):
    if layer.name == "layer 4":
      is_reading.set()
      while not is_stopped():
        pass
      stopped.append(True)
    else:
      read_parts(layer, outs, is_stopped)

  session = session_of(pretrained, read=read)
  acquire = session.source._started().acquire

  def interrupted(index):
    if index == 3:
      assert is_reading.wait(PATIENCE)
      raise KeyboardInterrupt
    return acquire(index)

  session.source._started().acquire = interrupted
  with pytest.raises(KeyboardInterrupt):
    session.step(np.array([1]))
  assert stopped and session.source.is_closed and not tiny.loader_threads()
  session.source._started().acquire = acquire
  with pytest.raises(ValueError, match="this session was closed or interrupted; open another"):
    session.step(np.array([1]))


def test_a_session_that_nobody_holds_takes_its_thread_along(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  session = session_of(pretrained, 1)
  session.step(np.array([1]))
  assert tiny.loader_threads()
  del session
  assert not tiny.loader_threads()


def test_reading_goes_on_while_a_layer_is_computed(tmp_path):
  """While layer 0 is held, the loader fills the other buffers, and no more than those."""
  pretrained = tiny.open_tiny(tmp_path)
  read_names, filled = [], threading.Event()

  def read(layer, outs, is_stopped):
    read_parts(layer, outs, is_stopped)
    read_names.append(layer.name)
    if layer.name == "layer 1":
      filled.set()

  session = session_of(pretrained, read=read)
  loader = session.source._started()
  loader.acquire(0)
  assert filled.wait(PATIENCE)
  with loader._condition:
    assert not loader._free and sorted(loader._ready) == [-1, 0, 1]
  assert read_names == ["what is outside the layers", "layer 0", "layer 1"]
  session.close()


class Unfinished:
  """An array that is computed when its event is set. asked: that somebody waits for it."""

  def __init__(self):
    self.asked, self.is_computed = threading.Event(), threading.Event()

  def block_until_ready(self):
    self.asked.set()
    assert self.is_computed.wait(PATIENCE)


def test_a_buffer_is_filled_only_when_what_reads_it_has_been_computed(tmp_path):
  pretrained = tiny.open_tiny(tmp_path)
  read_names, filled = [], threading.Event()

  def read(layer, outs, is_stopped):
    read_names.append(layer.name)
    read_parts(layer, outs, is_stopped)
    if layer.name == "layer 2":
      filled.set()

  session = session_of(pretrained, read=read)
  loader, reader = session.source._started(), Unfinished()
  loader.acquire(0)
  loader.release(0, reader)
  assert reader.asked.wait(PATIENCE) and "layer 2" not in read_names
  reader.is_computed.set()
  assert filled.wait(PATIENCE)
  session.close()


def test_codes_are_taken_apart_only_where_nothing_reads_those_before(tmp_path, monkeypatch):
  monkeypatch.setattr(unpack, "_SCRATCH", 1 << 12)
  pretrained = tiny.open_tiny(tmp_path, "Q4_1")
  session = session_of(pretrained)
  loader, unpacker = session.source._started(), session.source._unpacker
  readers = [Unfinished() for _ in range(3)]
  for reader in readers:
    reader.is_computed.set()
  slot = loader.acquire(0)
  for number, reader in enumerate(readers):
    unpacker.unpack(slot)
    unpacker.reads_until(reader)
    assert [one.asked.is_set() for one in readers] == [number == 2, False, False]
  session.close()


def test_what_was_copied_leaves_the_process_and_where_asked_the_page_cache(tmp_path):
  path = tiny.write(tmp_path, "Q8_0")
  with path.open("rb") as file:
    os.fsync(file.fileno())  # pages that are not on the disk yet stay
  pretrained = tiny.open_pretrained(path)
  told = []
  file = StreamedModel(pretrained, tiny.HUGE).files.layers[0].spans[0][0]
  for name in ("will_need", "release", "drop"):
    setattr(file, name, lambda start, stop, name=name: told.append((name, start, stop)))
  for drop_pages in (False, True):
    told.clear()
    session = session_of(pretrained, drop_pages=drop_pages)
    session.step(np.array([1]))
    session.close()
    span = session.source._files.layers[2].spans[0][1:]
    assert ("will_need", *span) in told and ("drop" if drop_pages else "release", *span) in told
    assert not any(name == ("release" if drop_pages else "drop") for name, *_ in told)


def test_the_system_is_told_ahead_only_of_what_is_read_through_the_mapping(tmp_path):
  quantised, floats = (
    StreamedModel(tiny.open_tiny(tmp_path, kind), tiny.HUGE).files.layers[0] for kind in ("Q8_0", "safetensors"))
  assert quantised.mapped == quantised.spans
  # the norms' gains are converted one by one
  gains = {part.tensor.start for part in floats.parts if part.is_cast}
  assert {start for _, start, _ in floats.mapped} <= gains and floats.mapped != floats.spans
