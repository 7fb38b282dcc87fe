"""Local attention for cheap inference: windows at equal memory, and the latency that a 2024 paper is said to save."""

from __future__ import annotations

from lattice_jax.reproduce.readers import PerText, Stored
from lattice_jax.reproduce.rows import Claim, Measurement, Paper, Program, Published, Row, Sample, Table

PAPER = "local attention for cheap inference (a summary of a paper of 2024 that could not be identified)"
_PROFILE = "docs/results/local_windows_long/smollm2.json"
_WHAT = {
  "full": "full attention", "uniform": "sinks + one window for all heads, at the bytes of `chosen`",
  "chosen": "windows of single heads",
  "retrieval_heads": "a few heads whole, all others short, at the bytes of `chosen`"}
_COMPARE = ("scripts/compare_windows.py", "--pretrained=smollm2", f"--profile={_PROFILE}")
_CODE = ("lattice_jax.bench.local_decode", "lattice_jax.inspect.windows.losses", "lattice_jax.memories.local",
         "lattice_jax.memories.softmax", "lattice_jax.models.decoder", "lattice_jax.models.pretrained")
_INCOMPARABLE = "the paper's model, length and hardware are not known"

MEASUREMENTS = (
  Measurement(
    "local_loss", Program((
      *_COMPARE, "--parts=loss", "--seq_len=8192", "--scored=6144", "--texts=2", "--out={out}"),
      _CODE, "smollm2", "books_sample", (_PROFILE,)),
    "SmolLM2-135M, texts of 8,192 tokens of books_sample", 9.0),
  Measurement(
    "local_latency", Program((
      *_COMPARE, "--parts=latency", "--lengths", "8192", "--batch=1", "--batch_length=8192", "--steps=20",
      "--out={out}"),
      _CODE, "smollm2", files=(_PROFILE,)),
    "SmolLM2-135M, a decode step of one row after 8,192 tokens", 1.5))


def _paper(part: str) -> Paper:
  return Paper(
    Program(("scripts/compare_windows.py", "--pretrained=models/Llama-3.1-8B-Instruct", "--profile=llama.json",
             f"--parts={part}", "--seq_len=8192", "--scored=6144", "--out=runs/reproduce_paper/local")),
    incomparable=_INCOMPARABLE)


def _loss(arm: str) -> Row:
  return Row(
    f"loss_{arm}", f"loss above full attention: {_WHAT[arm]}", Published("", "nats a token", "missing"), _paper("loss"),
    Sample("local_loss", PerText(
      "report.json", ("loss", "arms", {"name": arm}, "by_text"), ("loss", "arms", {"name": "full"}, "by_text")),
      "nats a token"))


def _saved(arm: str, text: str, source: str) -> Row:
  return Row(
    f"latency_{arm}", f"latency cut: {_WHAT[arm]}", Published(text, "%", source), _paper("latency"),
    Sample("local_latency", Stored(
      "report.json", ("latency", {"length": 8192, "batch": 1}, "arms", {"name": arm}, "saved_p50"), factor=100), "%"))


EQUAL_MEMORY = Table(
  "local_equal_memory", "Windows at equal memory", PAPER, (
    _loss("uniform"), _loss("chosen"), _loss("retrieval_heads"), _saved("uniform", "", "missing"),
    _saved("chosen", ">= 30", "secondary")),
  (Claim("local_latency", "local attention cuts the latency by at least 30 %, here of a decode step after 8,192 tokens",
         "secondary", "at_least", "latency_chosen", bound=30.0, beside=("loss_chosen",)),
   Claim("chosen_windows", "windows of single heads lose less than one window for all, at equal bytes", "ours", "less",
         "loss_chosen", "loss_uniform")),
  "The summary says: latency down by 30 % or more at equal quality. It names neither model, length nor hardware.")

TABLES = (EQUAL_MEMORY,)
