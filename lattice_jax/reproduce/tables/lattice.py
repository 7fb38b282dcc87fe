"""Lattice (Karami and Mirrokni, arXiv 2504.05646): slots, chunks, normalisation, context length, recall."""

from __future__ import annotations

from lattice_jax.reproduce.readers import Curve, Lengths
from lattice_jax.reproduce.rows import (
  Claim,
  Measurement,
  Paper,
  Program,
  Published,
  Row,
  Sample,
  Table,
  Train,
)

PAPER = "Lattice, arXiv 2504.05646"
_SEEDS = (0, 1, 2)
_BITS, _ACCURACY = "eval_validation_cold/bits_per_byte", "eval_validation_cold/accuracy"
_STEPS = 160
_TEXT = f"enwiki_sample, 439,000 parameters, {_STEPS} updates"
_UNKNOWN = "which model and text the published figures belong to is not known; the config is our reading"
_VALIDATION = ("--split=validation",)
# The recurrences that the paper compares with, as it names them, and ours.
_OTHERS = {"ttt_linear": "TTT-Linear", "deltanet": "DeltaNet", "gla": "GLA", "scalar_decay": "Mamba-2 (scalar decay)"}
_LENGTHS = (512, 8192)


def _variant(name: str, variant: str, minutes: float) -> Measurement:
  return Measurement(name, Train(f"configs/ablation_lattice.py:{variant}", (f"train.steps={_STEPS}",), _SEEDS), _TEXT,
                     minutes)


def _recall(memory: str) -> Measurement:
  return Measurement(
    f"recall_{memory}", Train(f"configs/recall.py:short,{memory}"),
    "synthetic recall, up to 8 pairs in 64 tokens, 1,000 updates, one seed", 1.3)


_RECALLED = ("lattice", *_OTHERS, "attention")
_MEMORIES = {"lattice64": "Lattice", "lattice_ttt_linear": "TTT-Linear", "lattice_nonorm": "DeltaNet",
             "lattice_gla": "GLA", "lattice_scalar_decay": "Mamba-2 (scalar decay)"}

MEASUREMENTS = (
  _variant("lattice64", "base", 1.0), _variant("lattice16", "slots16", 0.8), _variant("lattice192", "slots192", 1.6),
  _variant("lattice_ttt_linear", "ttt_linear", 1.3), _variant("lattice_chunk4", "frozen4", 1.6),
  _variant("lattice_nonorm", "nonorm", 1.0), _variant("lattice_noproject", "noproject", 1.0),
  _variant("lattice_forget", "forget", 1.0), _variant("lattice_gla", "gla", 1.0),
  _variant("lattice_scalar_decay", "scalar_decay", 1.0),
  Measurement(
    "lattice_lengths", Program((
      "scripts/lengths.py", "{runs}", f"--lengths={','.join(map(str, _LENGTHS))}", "--out={out}"),
      ("lattice_jax.sweep.lengths", "lattice_jax.evaluation.evaluator"), source="enwiki_sample"),
    "enwiki_sample, test, runs of 512 bytes a window", 5.0, needs=tuple(_MEMORIES)),
  *map(_recall, _RECALLED))


def _paper(*overrides: str, config: str = "configs/lattice_pg19.py") -> Paper:
  return Paper(Train(config, overrides), _VALIDATION, "word_perplexity", incomparable=_UNKNOWN)


def _slots(slots: int, text: str, sample: str) -> Row:
  return Row(
    f"m{slots}", f"Lattice, {slots} slots: perplexity",
    Published(text, "perplexity", "secondary" if text else "missing"),
    _paper(f"model.lattice.slots={slots}"), Sample(sample, Curve(_BITS), "bits per byte"))


SLOTS = Table(
  "lattice_slots", "Slots", PAPER, (
    _slots(16, "15.52", "lattice16"), _slots(64, "", "lattice64"), _slots(192, "14.71", "lattice192"),
    Row("ttt64", "TTT-Linear, 64 slots: perplexity", Published("15.60", "perplexity", "secondary"),
        _paper(config="configs/delta_pg19.py:ttt_linear"),
        Sample("lattice_ttt_linear", Curve(_BITS), "bits per byte"))),
  (Claim("more_slots", "more slots help", "secondary", "less", "m192", "m16"),
   Claim("sixteen_slots", "16 slots are better than TTT-Linear with 64", "secondary", "less", "m16", "ttt64")),
  "The sweep has at least 16 to 192 slots; only these three figures were found. At sample scale the MLP gives what "
  "slots cost, so that all have as many parameters.")

CHUNK = Table(
  "lattice_chunk", "Length of chunks", PAPER, (
    Row("c1", "chunks of 1 token: quality", Published("", "perplexity", "missing"), _paper("model.lattice.form=scan"),
        Sample("lattice64", Curve(_BITS), "bits per byte")),
    Row("c4", "chunks of 4 tokens: quality", Published("", "perplexity", "missing"),
        _paper("model.lattice.form=frozen", "model.lattice.chunk_len=4"),
        Sample("lattice_chunk4", Curve(_BITS), "bits per byte"))),
  (Claim("chunk_of_four", "chunks of 4 are as good as of 1, here to 0.01 bits per byte", "secondary", "equal", "c4",
         "c1", 0.01),),
  "It is reported that chunks of 4 are as good as of 1; figures were not found.")

NORM = Table(
  "lattice_norm", "Normalisation", PAPER, (
    Row("base", "slots of length one, projected update, no forget gate", Published("", "perplexity", "missing"),
        _paper(), Sample("lattice64", Curve(_BITS), "bits per byte")),
    Row("no_norm", "slots of any length, and so no projection: the delta rule", Published("", "perplexity", "missing"),
        _paper(config="configs/delta_pg19.py"), Sample("lattice_nonorm", Curve(_BITS), "bits per byte")),
    Row("no_projection", "slots of length one, without the projection", Published("", "perplexity", "missing"),
        _paper("model.lattice.projected=False", "model.lattice.form=scan"),
        Sample("lattice_noproject", Curve(_BITS), "bits per byte")),
    Row("forget", "with a forget gate", Published("", "perplexity", "missing"),
        _paper("model.lattice.forget=True", "model.lattice.form=scan"),
        Sample("lattice_forget", Curve(_BITS), "bits per byte"))),
  (Claim("normalisation", "normalisation helps", "paper", "less", "base", "no_norm"),
   Claim("projection", "the projection helps", "secondary", "less", "base", "no_projection"),
   Claim("forget_gate", "the forget gate matters little, here 0.01 bits per byte", "secondary", "equal", "forget",
         "base", 0.01)),
  "The abstract's summary names normalisation as a key factor; figures were not found.")


def _at_length(measurement: str, name: str, length: int) -> Row:
  config = {"lattice64": "configs/lattice_pg19.py", "lattice_nonorm": "configs/delta_pg19.py"}
  variant = measurement.removeprefix("lattice_")
  make = Train(config[measurement] if measurement in config else f"configs/delta_pg19.py:{variant}")
  return Row(
    f"{variant.replace('lattice64', 'lattice').replace('nonorm', 'deltanet')}_{length}",
    f"{name}, windows of {length:,} bytes", Published("", "perplexity", "missing"),
    Paper(make, (*_VALIDATION, f"--seq_len={length}"), "word_perplexity", incomparable=_UNKNOWN),
    Sample("lattice_lengths", Lengths(measurement, length), "bits per byte"))


LENGTH = Table(
  "lattice_length", "Perplexity by the length of the context", PAPER,
  tuple(_at_length(measurement, name, length) for measurement, name in _MEMORIES.items() for length in _LENGTHS),
  (*(Claim(f"best_at_{length}_{other}", f"Lattice is better than {_OTHERS[other]} at {length:,} bytes", "paper", "less",
           f"lattice_{length}", f"{other}_{length}") for length in _LENGTHS for other in _OTHERS),
   Claim("margin_grows", "the margin over TTT-Linear grows with the length", "paper", "grows",
         f"ttt_linear_{_LENGTHS[1]} - lattice_{_LENGTHS[1]}", f"ttt_linear_{_LENGTHS[0]} - lattice_{_LENGTHS[0]}")),
  "The abstract claims the best perplexity at every tested length, by a margin that grows; lengths and figures were "
  "not found. The sample's models were trained on windows of 512 bytes, so 8,192 is far beyond their training.")

RECALL = Table(
  "lattice_recall", "Associative recall", PAPER, tuple(
    Row(memory, f"{_OTHERS[memory] if memory in _OTHERS else memory.capitalize()}: right answers",
        Published("", "%", "missing"),
        Paper(Train(f"configs/recall.py:{memory}"), ("--split=test",), "accuracy", topology="v5e:1x1",
              incomparable="sizes of the paper's task were not found"),
        Sample(f"recall_{memory}", Curve(_ACCURACY), "share right")) for memory in _RECALLED),
  notes="The second version adds multi-query associative recall; accuracies were not found.")

TABLES = (SLOTS, CHUNK, NORM, LENGTH, RECALL)
