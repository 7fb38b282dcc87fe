"""Every reader of bytes from outside that is fuzzed, by name; their modules are imported when one is asked for."""

from __future__ import annotations

import importlib

from tests.fuzz.harness import Reader

NAMES = {
  "data_files": ("zip", "npz", "corpus", "texts", "photos", "records"),
  "model_files": ("gguf", "safetensors", "tokenizer", "sentencepiece", "gguf_tokenizer"),
  "run_files": ("run", "checkpoint", "state", "trial", "rollout", "answers", "local"),
  "texts": ("overrides", "sweep", "request"),
}


def find_reader(name: str) -> Reader:
  """The reader of that name. Raises StopIteration if there is none."""
  module = next(module for module, names in NAMES.items() if name in names)
  readers = importlib.import_module(f"tests.fuzz.{module}").READERS
  assert tuple(reader.name for reader in readers) == NAMES[module]
  return readers[NAMES[module].index(name)]
