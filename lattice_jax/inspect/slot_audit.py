"""The slot audit of a stored run on one text: numbers, heat maps and a page to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lattice_jax.data.sources import load_source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer, get_tokenizer
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.inspect.slot_inputs import lattice_layers, read_inputs, rule_of
from lattice_jax.inspect.slot_plots import plot_layer
from lattice_jax.inspect.slot_report import LayerAudit, write_html, write_json
from lattice_jax.inspect.slot_trace import trace_slots
from lattice_jax.inspect.slot_writes import summarize
from lattice_jax.memories.lattice.op import APPROXIMATE_FORMS

START = "⟨start⟩"  # of the document, in place of eos


def text_tokens(
  loaded: LoadedModel, text: Path | None, split: str, document: int, length: int) -> tuple[str, np.ndarray]:
  """(name of the text, at most `length` token ids) of a file, or of a document of the run's own data.

  Raises:
    ValueError: the file cannot be read or is empty, or there is no such document.
  """
  if text is not None:
    try:
      raw = text.read_bytes()
    except OSError as error:
      raise ValueError(f"{text} cannot be read: {error.strerror}; give a text file with --text.") from error
    ids = get_tokenizer(loaded.config.data).encode(raw)[:length]
    if not len(ids):
      raise ValueError(f"{text} is empty; give a text with --text.")
    return str(text), ids
  source = load_source(loaded.config.data, split)
  if not 0 <= document < source.num_documents:
    raise ValueError(
      f"document {document} is not one of the {source.num_documents} of {source.name} {split}; use --document=0.")
  start, stop = source.offsets[document:document + 2].tolist()
  return f"{source.name}, {split}, document {document}", source.tokens[start:min(stop, start + length)]


def audit(loaded: LoadedModel, where: str, ids_T: np.ndarray, out: Path, *, threshold: float, top: int) -> list[Path]:
  """Writes audit.json, audit.html and the PNGs to `out`; returns the paths of the first two.

  Layers with an approximate form are replayed exactly, so that their slots differ a little from the model's own.
  """
  model, config = loaded.config.model, loaded.config
  lattice_layers(model)  # refuses a model without slots before anything is written
  tokenizer = get_tokenizer(config.data)
  texts = [START, *_texts(tokenizer, ids_T[:-1])]
  inputs = read_inputs(model, loaded.params, loaded.buffers, np.concatenate([[tokenizer.eos_id], ids_T[:-1]]))
  out.mkdir(parents=True, exist_ok=True)
  layers = []
  for layer, layer_inputs in inputs.items():
    trace, name = trace_slots(layer_inputs, rule_of(model.lattice)), f"layer {layer}"
    layers.append(LayerAudit(
      name, trace, summarize(layer, trace, texts, threshold=threshold, top=top),
      plot_layer(name, trace, out, threshold=threshold)))
  form = model.lattice.form
  facts = {
    "run": config.name, "workdir": str(loaded.workdir), "step": loaded.step, "text": where, "tokens read": len(texts),
    "objective": model.lattice.objective, "state": model.lattice.state,
    "form": f"{form}, replayed exactly" if form in APPROXIMATE_FORMS else form, "threshold": threshold}
  paths = [out / "audit.json", out / "audit.html"]
  write_json(paths[0], facts, texts, layers)
  write_html(paths[1], facts, layers)
  return paths


def _texts(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
  """The text of each token; a byte that is not a whole character shows as �."""
  return [tokenizer.decode(np.array([token])).decode("utf-8", errors="replace") for token in ids.tolist()]
