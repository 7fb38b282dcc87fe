"""What every side of scripts/bench.py peers does. Needs nothing but Python: each has an environment of its own."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from collections.abc import Callable


def prompt(length: int) -> list[int]:
  """Token ids, the same for every side."""
  draw = random.Random(length)
  return [draw.randrange(5, 40_000) for _ in range(length)]


def answer_requests(answer: Callable[[int, int], tuple[float, float]]) -> None:
  """Answers lines {"length", "tokens"} of stdin until it ends.

  answer: (tokens of the prompt, tokens to draw after the first) → seconds to the first token, seconds a token after it.
  """
  say = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print, from whatever language, goes to stderr
  for line in sys.stdin:
    request = json.loads(line)
    first, each = answer(request["length"], request["tokens"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"first": first, "each": each, "peak_bytes": peak}), file=say, flush=True)
