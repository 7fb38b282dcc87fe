"""This project as a side of scripts/bench.py peers: python with_lattice_jax.py MODEL [CACHE]"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sides import answer_requests, prompt

from lattice_jax.evaluation.caches import cache_overrides
from lattice_jax.evaluation.loaded_model import load_pretrained_model
from lattice_jax.inference.generate import GenerateOptions, TokenStream
from lattice_jax.runtime import enable_compilation_cache


def main() -> None:
  enable_compilation_cache()
  overrides = [override for text in sys.argv[2:] for override in cache_overrides(text)]
  loaded = load_pretrained_model(sys.argv[1], workdir=None, dtype="float32", overrides=overrides)
  options = GenerateOptions(temperature=0.0, banned=(), start_ids=(), marker=loaded.marker)

  def answer(length: int, tokens: int) -> tuple[float, float]:
    stream = TokenStream(
      loaded.config.model, loaded.variables, [prompt(length)], length=tokens + 1, options=options)
    for _ in stream:
      pass
    return stream.timing.first_token_seconds, stream.timing.decode_seconds / stream.timing.tokens

  answer_requests(answer)


if __name__ == "__main__":
  main()
