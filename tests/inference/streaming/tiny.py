"""A tiny pretrained model on disk, read through every budget that matters."""

from __future__ import annotations

import threading

import numpy as np

from lattice_jax.inference.generate import GenerateOptions, TokenStream
from lattice_jax.inference.streaming import StreamedModel
from lattice_jax.inference.streaming.budget import least_budget
from lattice_jax.inference.streaming.source import Options
from lattice_jax.models.pretrained import open_pretrained
from tests.models.tiny_files import LLAMA, make_tensors, write_folder, write_gguf

LAYERS = 5
CONFIG = LLAMA | {"num_hidden_layers": LAYERS}
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 3]]
LENGTH = 5
HUGE = 1 << 40
OPTIONS = {"temperature": 0.0, "banned": (), "start_ids": (), "block_len": 2, "prefill_len": 4}


def write(folder, kind, config=CONFIG):
  if kind == "safetensors":
    return write_folder(folder / "model", config, make_tensors(config))
  return write_gguf(folder / "model.gguf", config, make_tensors(config), kind=kind)[0]


def open_tiny(folder, kind="Q8_0", config=CONFIG):
  return open_pretrained(write(folder, kind, config))


def stream(model, variables, **options):
  return TokenStream(model, variables, PROMPTS, length=LENGTH, options=GenerateOptions(**(OPTIONS | options)))


def draw(model, variables, **options):
  """(ids of every row, logits after each block) of the greedy texts."""
  texts = stream(model, variables, **options)
  logits = [np.asarray(texts.session.state.logits_BA) for _ in texts]
  return [text.ids for text in texts.texts], np.stack(logits)


def sizes_of(pretrained, model=None, **options):
  """What a budget must hold, by what programs and state turn out to need; nothing is read for it."""
  streamed = StreamedModel(pretrained, HUGE)
  stream(model or pretrained.model, streamed, **options)
  return streamed.usage.sizes


def streamed(pretrained, num_pinned, model=None, *, depth=1, prefill_len=4, **options):
  """Streamed through the least budget in which so many layers stay."""
  sizes = sizes_of(pretrained, model, prefill_len=prefill_len)
  return StreamedModel(
    pretrained, least_budget(sizes, num_pinned, depth=depth), options=Options(depth=depth, **options))


def loader_threads():
  return [thread for thread in threading.enumerate() if thread.name == "layer loader"]
