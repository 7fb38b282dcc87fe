"""AnLLM (Pang and others, arXiv 2402.07616): full attention, the mask, and the reduced cache."""

from __future__ import annotations

from lattice_jax.reproduce.readers import Stored
from lattice_jax.reproduce.rows import Claim, Measurement, Paper, Program, Published, Row, Sample, Table, Train

PAPER = "AnLLM, arXiv 2402.07616"
_CALL, _REDUCED = "one call, no cache", "reduced cache, token by token"
_ACCURACY = "mean accuracy of 8 tasks, %"
_INCOMPARABLE = "the eight common-sense tasks are not part of this program; ours is the loss of a text"
# 850,000 documents of RedPajama, about a billion tokens, which this program does not prepare.
_TRAIN = Train(
  "configs/anchor_smollm2.py:all", ("data.source=text:data/redpajama_sample", "data.batch=512", "train.steps=1950"),
  init_from="models/Llama-2-7B")

MEASUREMENTS = (
  Measurement("anchor_run", Train("configs/anchor_smollm2.py", ("train.steps=100",), init_from="smollm2"),
              "SmolLM2-135M, its last eight layers trained for 100 updates on books_sample", 10.0),
  Measurement(
    "anchor_report", Program((
      "scripts/anchors.py", "--pretrained=smollm2", "--after={runs}", "--parts=text,cache", "--steps=8", "--out={out}"),
      ("lattice_jax.inspect.anchors.run", "lattice_jax.memories.anchor", "lattice_jax.memories.softmax",
       "lattice_jax.models.decoder", "lattice_jax.models.pretrained"), "smollm2", "books_sample"),
    "SmolLM2-135M on books_sample, test", 6.0, needs=("anchor_run",)))


def _loss(reader: str, how: str = _CALL, field: str = "nats_per_token") -> Sample:
  return Sample(
    "anchor_report", Stored("report.json", ("text", "readings", {"reader": reader, "how": how}, field)), "nats a token")


def _evaluate(*words: str) -> Paper:
  return Paper(_TRAIN, ("--split=test", *words), "nll_per_token", incomparable=_INCOMPARABLE)


def _time(row: str, text: str, what: str, published: str) -> Row:
  of = ("cache", "times", {"what": what}, "ms")
  return Row(
    row, text, Published(published, "times", "secondary"), Paper(
      Program(("scripts/anchors.py", "--workdir=runs/reproduce_paper/anllm_modes/ep_full", "--parts=cache",
               "--out=runs/reproduce_paper/anllm_cache")), incomparable="the paper's prompts are those of its tasks"),
    Sample("anchor_report", Stored("report.json", of, ("cache", "times", {"what": "anchor cache"}, "ms")), "times"))


MODES = Table(
  "anllm_modes", "Full attention, the mask and the reduced cache", PAPER, (
    Row("base_full", "the base model, full attention, 0-shot", Published("65.8", _ACCURACY, "secondary"),
        Paper(Program(("eval.py", "--pretrained=models/Llama-2-7B", "--dtype=bfloat16")), metric="nll_per_token",
              incomparable=_INCOMPARABLE), _loss("full")),
    Row("ep_full", "AnLLM-EP (ends of sentences), full attention, 0-shot", Published("64.6", _ACCURACY, "secondary"),
        _evaluate("--set=model.pattern=attention"), _loss("after: full")),
    Row("ac_full", "AnLLM-AC (added tokens), full attention, 0-shot", Published("65.1", _ACCURACY, "secondary"),
        Paper(Train(_TRAIN.config, (*_TRAIN.overrides, "data.anchors.rule=token:<AC>", "data.anchors.insert=sentence"),
                    init_from=_TRAIN.init_from), ("--split=test", "--set=model.pattern=attention"), "nll_per_token",
              incomparable=_INCOMPARABLE), None,
        "no run of the sample adds tokens to a pretrained model"),
    Row("base_masked", "the base model under the mask, without training", Published("", _ACCURACY, "missing"),
        Paper(Program(("eval.py", "--pretrained=models/Llama-2-7B", "--dtype=bfloat16", "--anchors=punctuation",
                       "--set=model.pattern=anchor")), metric="nll_per_token", incomparable=_INCOMPARABLE),
        _loss("masked")),
    Row("masked", "AnLLM under the mask", Published("", _ACCURACY, "missing"), _evaluate(), _loss("after: masked")),
    Row("ac_reduced", "AnLLM with the reduced cache", Published("", _ACCURACY, "missing"), _evaluate("--chunk_len=64"),
        _loss("after: masked", _REDUCED))),
  (Claim("training_helps", "after training the mask costs less than before", "secondary", "grows",
         "base_masked - base_full", "masked - ep_full"),
   Claim("reduced_is_masked", "the reduced cache gives what the mask gives, to 0.0001 nats", "paper", "equal",
         "ac_reduced", "masked", 1e-4)),
  "With five demonstrations the mask is reported to cost about 1.5 points of accuracy. Cells of the paper's tables are "
  "pictures and were not read; averages are from its prose, at second hand.")

CACHE = Table(
  "anllm_cache", "Cache and speed", PAPER, (
    Row("ep_bytes", "AnLLM-EP: cache saved, 5-shot", Published("90", "%", "secondary"), Paper(
      Program(("scripts/anchors.py", "--workdir=runs/reproduce_paper/anllm_modes/ep_full", "--parts=cache",
               "--out=runs/reproduce_paper/anllm_cache")), incomparable="the paper's prompts are those of its tasks"),
      Sample("anchor_report", Stored(
        "report.json", ("cache", "rules", {"rule": "punctuation"}, "saved"), factor=100), "% of bytes")),
    Row("ac_bytes", "AnLLM-AC: cache saved, 5-shot, one anchor a demonstration", Published("99", "%", "secondary"),
      Paper(Program(("scripts/anchors.py", "--workdir=runs/reproduce_paper/anllm_modes/ac_full", "--parts=cache",
                     "--out=runs/reproduce_paper/anllm_cache")),
            incomparable="the paper's prompts are those of its tasks"),
      Sample("anchor_report", Stored(
        "report.json", ("cache", "rules", {"rule": "every:10"}, "saved"), factor=100), "% of bytes")),
    _time("speed_no_cache", "time of a token without a cache over that with the anchor cache, at most",
          "no cache, the prefix read again", "3.5"),
    _time("speed_full_cache", "time of a token with the full cache over that with the anchor cache", "full cache",
          "1.03")),
  (Claim("anchor_bytes", "anchors cut the cache by at least 89 %", "secondary", "at_least", "ep_bytes", bound=89.0),),
  "At sample scale ends of sentences close segments in running text (`ep_bytes`), and every tenth token does "
  "(`ac_bytes`); the loss at which the cache shrinks so stands in the table above. Times are of one machine under the "
  "load of that hour.")

TABLES = (MODES, CACHE)
