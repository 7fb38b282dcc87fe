"""Checks the shipped samples, and trains tokenizers for them."""

from __future__ import annotations

from pathlib import Path

from lattice_jax.config import DataConfig
from lattice_jax.data.progress import Report
from lattice_jax.data.published import SAMPLES, read_sample, sample_files
from lattice_jax.data.source import SPLITS
from lattice_jax.data.sources import read_raw
from lattice_jax.data.tokenizers.tokenizer import model_path
from lattice_jax.data.tokenizers.train_bpe import train_bpe

# The subfolders of a sample that have files.
_FOLDERS = ("", *SPLITS)


def prepare_sample(name: str, root: str | Path, report: Report, *, tokenizer: str = "") -> None:
  """Checks every file of the sample, and trains a BPE model if it is not shipped.

  tokenizer: "" and "bytes" need no model.

  Raises ValueError if a file is missing or damaged.
  """
  files = [file for folder in _FOLDERS for file in sample_files(str(Path(name) / folder))]
  size = sum(len(read_sample(file)) for file in files)
  report(f"{name}: {size:,} bytes, verified, shipped at {SAMPLES / name}")
  if tokenizer in ("", "bytes"):
    return
  data = DataConfig(source=name, path=str(root), tokenizer=tokenizer)
  path = model_path(data)
  if not path.is_file():
    train_bpe((raw.decode("utf-8") for raw in read_raw(data, "train")), tokenizer, path)
  report(f"the model of {tokenizer} is at {path}")
