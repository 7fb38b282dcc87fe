"""`transformers` as a side of scripts/bench.py peers: python with_transformers.py FOLDER, in float32."""

from __future__ import annotations

import sys
import time

import torch
from sides import answer_requests, prompt
from transformers import AutoModelForCausalLM


def main() -> None:
  model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()

  def answer(length: int, tokens: int) -> tuple[float, float]:
    ids = torch.tensor([prompt(length)])
    with torch.inference_mode():
      start = time.perf_counter()
      output = model(ids, use_cache=True, logits_to_keep=1)
      token = output.logits[:, -1].argmax(-1, keepdim=True)
      first = time.perf_counter()
      for _ in range(tokens):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
      int(token)
    return first - start, (time.perf_counter() - first) / tokens

  answer_requests(answer)


if __name__ == "__main__":
  main()
