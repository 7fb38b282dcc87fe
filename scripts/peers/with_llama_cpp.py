"""llama.cpp, as PyPI's xllamacpp, as a side of scripts/bench.py peers: python with_llama_cpp.py FILE.gguf"""

from __future__ import annotations

import os
import sys

import xllamacpp
from sides import answer_requests, prompt


def main() -> None:
  params = xllamacpp.CommonParams()
  params.model.path = sys.argv[1]
  params.n_ctx, params.n_parallel, params.port = 8192, 1, 0
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
  server = xllamacpp.Server(params)

  def answer(length: int, tokens: int) -> tuple[float, float]:
    said = server.handle_completions({
      "prompt": prompt(length), "n_predict": tokens + 1, "temperature": 0, "cache_prompt": False, "ignore_eos": True})
    times = said["timings"]
    return times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3 / tokens

  answer_requests(answer)


if __name__ == "__main__":
  main()
