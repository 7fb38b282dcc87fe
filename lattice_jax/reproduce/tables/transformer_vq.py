"""Transformer-VQ (Lingle, arXiv 2309.16354): main results, the ablations of codebook and cache, throughput."""

from __future__ import annotations

from lattice_jax.reproduce.readers import Curve, StepTime, Stored
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

PAPER = "Transformer-VQ, arXiv 2309.16354"
_SEEDS = (0, 1, 2)
_BITS, _DIMS = "eval_validation_cold/bits_per_byte", "eval_validation_cold/bits_per_dim"
_VALIDATION, _TEST = ("--split=validation",), ("--split=test",)
_STEPS = 800
_PHOTOS = f"photos_sample, 107,587 parameters, {_STEPS} updates"


def _main(name: str, config: str, data: str, steps: int, *overrides: str) -> Measurement:
  return Measurement(
    name, Train(config, (f"train.steps={steps}", *overrides)), f"{data}, {steps} updates", 1.5)


def _ablation(name: str, variant: str, minutes: float) -> Measurement:
  return Measurement(
    name, Train(f"configs/ablation_vq.py:{variant}", (f"train.steps={_STEPS}",), _SEEDS), _PHOTOS, minutes)


_EIGHT_CHIPS = "v5e:2x4"  # as many as TPU v3 cores in the paper
_HEADS = {
  "shga": (),
  "mqa": ("model.block=mlp", "model.layers=24", "model.mlp=squared_relu", "model.mlp_dim=3072",
          "model.{}.heads=6", "model.{}.kv_heads=1", "model.{}.value_dim=128", "model.{}.gated=False"),
  "mha": ("model.block=mlp", "model.layers=24", "model.mlp=squared_relu", "model.mlp_dim=3072",
          "model.{}.heads=6", "model.{}.kv_heads=6", "model.{}.value_dim=128", "model.{}.gated=False")}


def _update(config: str, section: str, head: str, length: int) -> Paper:
  """A training of 20 updates whose speed is the row's figure."""
  sizes = (f"data.seq_len={length}", f"data.update_len={length}", "data.batch=8", "train.steps=20",
           "train.log_every=5", "optimizer.warmup_steps=2")
  heads = tuple(text.format(section) for text in _HEADS[head])
  return Paper(Train(config, (*sizes, *heads)), metric="speed", topology=_EIGHT_CHIPS)


_BENCH = ("lattice_jax.bench.vq", "lattice_jax.bench.harness")


def _bench(name: str, head: str, lengths: str, minutes: float, *more: str) -> Measurement:
  words = ("scripts/bench.py", "vq", f"--head={head}", f"--lengths={lengths}", *more, "--out={out}")
  return Measurement(
    name, Program(words, _BENCH, starts_over=("bench.jsonl",)),
    "the attention op alone, one row, float32, random numbers", minutes)


def _times_faster(head: str, length: int, mode: str = "fwd+bwd") -> Stored:
  of = {"head": head, "T": length, "mode": mode}
  return Stored("bench.jsonl", ({**of, "case": "softmax T×T"}, "median"), ({**of, "case": "vq input_scan"}, "median"))


def _throughput(head: str, length: int, text: str, source: str, measurement: str, mode: str = "fwd+bwd") -> Row:
  quadratic = f"{head}_{length}_quadratic"
  ours = _update("configs/vq_enwik8.py", "vq", head, length)
  return Row(
    f"{head}_{length}", f"{head.upper()}, {length:,} tokens: tokens a second of VQ over those of all T×T scores",
    Published(text, "times", source), Paper(ours.make, metric="speed", over=quadratic, topology=_EIGHT_CHIPS),
    Sample(measurement, _times_faster(head, length, mode), "times"))


def _quadratic(head: str, length: int, measurement: str) -> Row:
  return Row(
    f"{head}_{length}_quadratic", f"{head.upper()}, {length:,} tokens: tokens a second of all T×T scores",
    Published("", "tokens/s", "missing"), _update("configs/full_enwik8.py", "attention", head, length),
    Sample(measurement, Stored("bench.jsonl", ({"T": length, "case": "softmax T×T"}, "tokens_per_second")), "tokens/s"))


MEASUREMENTS = (
  _main("vq_wiki", "configs/vq_enwik8.py:sample", "enwiki_sample, 1.65M parameters", 72),
  _main("vq_books", "configs/vq_pg19.py:sample", "books_sample, 2.3M parameters", 60),
  _main("vq_photos", "configs/vq_imagenet64.py:sample", "photos_sample", 60),
  _main("vq_photos_small", "configs/vq_imagenet64.py:sample", "photos_sample, half as wide", 60,
        "model.dim=64", "model.vq.value_dim=128"),
  _ablation("vq_codes64", "codes64", 1.4), _ablation("vq_codes128", "base", 1.6),
  _ablation("vq_codes256", "codes256", 2.4), _ablation("vq_nocache", "nocache", 1.4),
  _bench("vq_speed_shga", "shga", "2048,8192", 1.0, "--modes=fwd+bwd", "--cases=input_scan,T×T", "--rounds=2"),
  _bench("vq_speed_mqa", "mqa", "2048,8192", 2.5, "--modes=fwd+bwd", "--cases=input_scan,T×T", "--rounds=2"),
  _bench("vq_speed_mha", "mha", "2048,8192", 2.5, "--modes=fwd+bwd", "--cases=input_scan,T×T", "--rounds=2"),
  _bench("vq_speed_long", "shga", "32768", 3.0, "--modes=fwd", "--cases=input_scan,T×T", "--rounds=2", "--max_gb=10"),
  _bench("vq_speed_longest", "shga", "8192,131072", 1.5, "--modes=fwd", "--cases=input_scan", "--rounds=2"))

MAIN = Table(
  "vq_main", "Main results", PAPER, (
    Row("enwik8", "190M parameters, Enwik8, test, bits per byte", Published("0.99", "bits per byte", "secondary"),
        Paper(Train("configs/vq_enwik8.py"), _TEST, "bits_per_byte"),
        Sample("vq_wiki", Curve(_BITS), "bits per byte")),
    Row("pg19", "1.3B parameters, PG-19, test, word perplexity", Published("26.6", "word perplexity", "secondary"),
        Paper(Train("configs/vq_pg19.py", ("data.tokenizer=bpe_paper:32000",)), _TEST, "word_perplexity"),
        Sample("vq_books", Curve(_BITS), "bits per byte")),
    Row("imagenet64", "1.2B parameters, ImageNet64, bits per dim", Published("3.16", "bits per dim", "secondary"),
        Paper(Train("configs/vq_imagenet64.py"), _TEST, "bits_per_byte"),
        Sample("vq_photos", Curve(_DIMS), "bits per dim")),
    Row("imagenet64_190m", "190M parameters, ImageNet64, bits per dim", Published("3.22", "bits per dim", "secondary"),
        Paper(Train("configs/vq_imagenet64.py:190m"), _TEST, "bits_per_byte"),
        Sample("vq_photos_small", Curve(_DIMS), "bits per dim"))),
  notes="Samples have other data, sizes and lengths of training than the rows: their figures show that the programs "
        "run, and nothing about the published ones.")


def _codes(name: str, codes: int, published: Published, sample: str, cache: bool = True) -> Row:
  overrides = (f"model.vq.codes={codes}", *([] if cache else ["model.vq.cache=False"]))
  return Row(
    name, f"S = {codes}{'' if cache else ', without the compressive cache'}: Enwik8, validation", published,
    Paper(Train("configs/vq_enwik8.py", overrides), _VALIDATION, "bits_per_byte"),
    Sample(sample, Curve(_DIMS), "bits per dim"))


def _latency(name: str, codes: int, text: str, source: str, sample: str, cache: bool = True) -> Row:
  overrides = (f"model.vq.codes={codes}", *([] if cache else ["model.vq.cache=False"]))
  return Row(
    name, f"S = {codes}{'' if cache else ', without the compressive cache'}: time of an update over that with S = 512",
    Published(text, "times", source),
    Paper(Train("configs/vq_enwik8.py", overrides), metric="time", over="vq_codes/s512"),
    Sample(sample, StepTime(), "s a million tokens"))


def _published(text: str, source: str) -> Published:
  return Published(text, "bits per byte", source)


CODES = Table(
  "vq_codes", "Size of the codebook", PAPER, (
    _codes("s256", 256, _published("1.010", "secondary"), "vq_codes64"),
    _codes("s512", 512, _published("", "unverified"), "vq_codes128"),
    _codes("s1024", 1024, _published("", "unverified"), "vq_codes256"),
    _latency("s256_time", 256, "", "unverified", "vq_codes64"),
    _latency("s512_time", 512, "1.000", "secondary", "vq_codes128"),
    _latency("s1024_time", 1024, "1.109", "secondary", "vq_codes256")),
  (Claim("larger_codebook", "a larger codebook helps", "secondary", "less", "s1024", "s256"),),
  "At sample scale a quarter as many codes stand for the paper's: 64, 128, 256. Runs of sweeps share cores, so their "
  "times are not judged.")

CACHE = Table(
  "vq_cache", "The compressive cache", PAPER, (
    _codes("off", 256, _published("1.026", "secondary"), "vq_nocache", cache=False),
    _codes("on", 256, _published("1.010", "secondary"), "vq_codes64"),
    _latency("off_time", 256, "0.836", "secondary", "vq_nocache", cache=False)),
  (Claim("cache", "the compressive cache helps", "secondary", "less", "on", "off"),),
  "The paper's pair has 256 codes, the sample's 64.")

_SPEED = "vq_speed_shga", "vq_speed_mqa", "vq_speed_mha"
THROUGHPUT = Table(
  "vq_throughput", "Throughput of training", PAPER, (
    _throughput("shga", 2048, "", "missing", _SPEED[0]),
    _throughput("shga", 8192, "> 3", "secondary", _SPEED[0]),
    _throughput("shga", 32_768, "> 12", "secondary", "vq_speed_long", "fwd"),
    Row("shga_131072", "SHGA, 131,072 tokens: tokens a second of VQ over those at 8,192",
        Published("", "times", "unverified"),
        Paper(_update("configs/vq_enwik8.py", "vq", "shga", 131_072).make, metric="speed",
              over="shga_8192_vq", topology=_EIGHT_CHIPS),
        Sample("vq_speed_longest", Stored(
          "bench.jsonl", ({"T": 131_072}, "tokens_per_second"), ({"T": 8192}, "tokens_per_second")), "times")),
    _throughput("mqa", 2048, "", "missing", _SPEED[1]),
    _throughput("mqa", 8192, "> 6", "secondary", _SPEED[1]),
    _throughput("mha", 2048, "", "missing", _SPEED[2]),
    _throughput("mha", 8192, "> 6", "secondary", _SPEED[2]),
    Row("shga_8192_vq", "SHGA, 8,192 tokens: tokens a second of VQ", Published("", "tokens/s", "missing"),
        _update("configs/vq_enwik8.py", "vq", "shga", 8192),
        Sample(_SPEED[0], Stored("bench.jsonl", ({"T": 8192, "case": "vq input_scan"}, "tokens_per_second")),
               "tokens/s")),
    _quadratic("shga", 2048, _SPEED[0]), _quadratic("shga", 8192, _SPEED[0]),
    _quadratic("shga", 32_768, "vq_speed_long"), _quadratic("mqa", 2048, _SPEED[1]),
    _quadratic("mqa", 8192, _SPEED[1]), _quadratic("mha", 2048, _SPEED[2]), _quadratic("mha", 8192, _SPEED[2])),
  (Claim("faster_at_8192", "more than 3 times faster at 8,192 tokens (SHGA)", "secondary", "at_least", "shga_8192",
         bound=3.0),
   Claim("faster_at_32768", "more than 12 times faster at 32,768 tokens (SHGA)", "secondary", "at_least", "shga_32768",
         bound=12.0)),
  "The paper times whole updates of a 190M model, 8 sequences on 8 cores of TPU v3, and leaves tokens a second to "
  "tables that could not be found. The sample times the attention op alone on a CPU, with gradients; at 32,768 "
  "tokens, where all scores take 17 GB with gradients, without them. All T×T scores are softmax attention without "
  "fused kernels, as in the paper.")

TABLES = (MAIN, CODES, CACHE, THROUGHPUT)
