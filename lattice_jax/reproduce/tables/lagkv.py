"""LagKV (Liang and others, arXiv 2504.04704): ratio × lag × passkey, and RULER beside two other policies."""

from __future__ import annotations

from lattice_jax.reproduce.readers import Answers
from lattice_jax.reproduce.rows import Claim, Measurement, Paper, Program, Published, Row, Sample, Table

PAPER = "LagKV, arXiv 2504.04704"
_MODELS = {"llama": "Llama-3.1-8B-Instruct", "qwen": "Qwen2.5-7B-Instruct"}
_TIMES = {"2x": "0.5", "4x": "0.25", "6x": "0.167", "8x": "0.125"}
_SAMPLE_LAGS = {1024: 256, 512: 128, 128: 32}
# Needle, 64 digits, partial match: full cache, then by lag the four ratios.
_FULL = {"llama": "99.44", "qwen": "100.00"}
_NEEDLE = {
  "llama": {1024: "99.27 96.57 91.77 86.26", 512: "97.02 85.73 75.67 68.25", 128: "92.76 73.41 38.48 25.01"},
  "qwen": {1024: "99.75 96.98 77.47 66.88", 512: "97.07 75.89 42.70 30.00", 128: "65.93 20.83 16.18 15.07"}}
# RULER at 16K tokens, mean of 13 tasks, by share of the cache that is dropped: SnapKV, StreamingLLM, LagKV.
_RULER_FULL = {"llama": "92.6", "qwen": "90.8"}
_RULER = {
  "llama": {"0.25": "81.3 69.0 88.2", "0.50": "66.8 50.3 80.0", "0.75": "43.0 30.3 62.9", "0.875": "29.4 21.3 48.9"},
  "qwen": {"0.25": "60.7 72.5 82.5", "0.50": "46.1 55.2 73.5", "0.75": "34.4 33.4 56.6", "0.875": "26.9 23.7 42.4"}}
_MEAN = "RULER-16K, mean of 13"
_METHODS = {"snapkv": "SnapKV", "window": "sinks + window (StreamingLLM)", "lagkv": "LagKV"}
# LagKV with lag 32 that leaves 768, 512, 256 and 128 of 1,024 tokens, as far as whole tokens of a partition allow.
_RATIOS = {"0.25": "0.73", "0.50": "0.47", "0.75": "0.2", "0.875": "0.067"}
_PASSKEY = ("eval.py", "--pretrained=smollm2", "--task=passkey", "--answers=16", "--lengths=1024", "--trials=6",
            "--depths=0.25,0.5,0.75", "--examples=0", "--workdir={out}")
_CODE = ("lattice_jax.cache", "lattice_jax.evaluation.caches", "lattice_jax.evaluation.retrieval.run",
         "lattice_jax.memories.softmax", "lattice_jax.models.decoder", "lattice_jax.models.pretrained")
_INCOMPARABLE = (
  "eval.py scores digits, each given the right ones before it, in prompts of its own; the paper scores what the model "
  "writes, in its own prompts")


def _cache(lag: int, ratio: str) -> str:
  return f"lagkv:lag={lag},ratio={ratio}"


MEASUREMENTS = (
  Measurement(
    "lagkv_passkey", Program((
      *_PASSKEY, *(f"--cache={_cache(lag, ratio)}" for lag in _SAMPLE_LAGS.values() for ratio in _TIMES.values())),
      _CODE, "smollm2", "books_sample"),
    "SmolLM2-135M, 16 digits in 1,024 tokens of books_sample, 18 prompts", 2.2),
  Measurement(
    "lagkv_methods", Program((
      *_PASSKEY, *(f"--cache={_cache(32, ratio)}" for ratio in _RATIOS.values()), "--peers=window,snapkv"),
      _CODE, "smollm2", "books_sample"),
    "SmolLM2-135M, 16 digits in 1,024 tokens of books_sample, 18 prompts", 2.2))


def _ask(model: str, digits: int, *caches: str) -> Paper:
  words = ("eval.py", f"--pretrained=models/{_MODELS[model]}", "--dtype=bfloat16", "--task=passkey",
           f"--answers={digits}", "--lengths=16384", *(f"--cache={cache}" for cache in caches))
  return Paper(Program(words), metric="token_accuracy", incomparable=_INCOMPARABLE)


def _needle(model: str, lag: int, times: str, text: str) -> Row:
  return Row(
    f"{model}_lag{lag}_{times}", f"{_MODELS[model]}, lag {lag}, {times}", Published(text, "% of 64 digits", "paper"),
    _ask(model, 64, _cache(lag, _TIMES[times])),
    Sample("lagkv_passkey", Answers(_cache(_SAMPLE_LAGS[lag], _TIMES[times])), "% of digits"))


PASSKEY = Table(
  "lagkv_passkey", "Passkey by lag and ratio", PAPER, tuple(
    row for model in _MODELS for row in (
      Row(f"{model}_full", f"{_MODELS[model]}, full cache", Published(_FULL[model], "% of 64 digits", "paper"),
          _ask(model, 64), Sample("lagkv_passkey", Answers("full"), "% of digits")),
      *(_needle(model, lag, times, text) for lag, texts in _NEEDLE[model].items()
        for times, text in zip(_TIMES, texts.split(), strict=True)))),
  (Claim("lag_long", "at equal ratio a long lag keeps more of the answer (4x, lag 1,024 and 128)", "paper", "more",
         "llama_lag1024_4x", "llama_lag128_4x"),
   Claim("twice", "almost nothing is lost at 2x with the longest lag, here 5 points", "paper", "equal",
         "llama_lag1024_2x", "llama_full", 5.0)),
  "One small model stands for both at sample scale, with lags a quarter as long (256, 128, 32) in prompts of 1,024 "
  "tokens and answers of 16 digits, so its rows of Llama and of Qwen are the same figures.")


def _ruler(model: str, dropped: str, method: str, text: str) -> Row:
  cache = _cache(32, _RATIOS[dropped])
  name = cache if method == "lagkv" else f"{method} like {cache}"
  asked = _ask(model, 64, _cache(128, _RATIOS[dropped]))
  if method != "lagkv":
    asked = Paper(Program((*asked.make.words, f"--peers={method}")), metric=asked.metric,
                  incomparable=asked.incomparable)
  return Row(
    f"{model}_{dropped}_{method}", f"{_MODELS[model]}, {float(dropped):.1%} dropped, {_METHODS[method]}",
    Published(text, _MEAN, "paper"), asked, Sample("lagkv_methods", Answers(name), "% of digits"))


RULER = Table(
  "lagkv_ruler", "RULER at 16K tokens, beside other policies", PAPER, tuple(
    row for model in _MODELS for row in (
      Row(f"{model}_full", f"{_MODELS[model]}, full cache", Published(_RULER_FULL[model], _MEAN, "paper"),
          _ask(model, 64), Sample("lagkv_methods", Answers("full"), "% of digits")),
      *(_ruler(model, dropped, method, text) for dropped, texts in _RULER[model].items()
        for method, text in zip(_METHODS, texts.split(), strict=True)))),
  tuple(
    Claim(f"lagkv_window_{dropped}", f"LagKV beats sinks + window at equal bytes, {float(dropped):.1%} dropped "
          f"({1 / (1 - float(dropped)):.3g}×)", "paper", "more", f"llama_{dropped}_lagkv", f"llama_{dropped}_window")
    for dropped in _RATIOS),
  "RULER's tasks are not part of this program; passkeys stand for them at both scales, so that no figure can be "
  "compared with the published mean of 13 tasks. Published figures by task are left out.")

TABLES = (PASSKEY, RULER)
