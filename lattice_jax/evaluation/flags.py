"""The flags by which eval.py judges cache policies; `cache_flags` does what they ask for."""

from __future__ import annotations

from lattice_jax.arguments import COUNT, POSITIVE, Several, define, define_several
from lattice_jax.domains import SEED, Names, Number, Text

TASKS = ("passkey", "needles", "copy", "pairs", "text")

CACHE = define_several(
  "cache", Text(), "What attention keeps, as in lagkv:lag=128,ratio=0.25; of a --task several, beside the full cache.")
TASK = define(
  "task", Text(TASKS), None,
  "Judge caches: passkey, needles, copy, pairs ask for what a prompt said; text goes on with a text.")
PEERS = define(
  "peers", Names(), (),
  "Policies that are judged too, by their scores in the frame of each --cache, keeping as many tokens.")
LENGTHS = define("lengths", Several(POSITIVE), (1024,), "Of a --task: tokens of the prompts, or of the texts.")
ANSWERS = define("answers", Several(POSITIVE), (7,), "Of a --task: digits, or words, to be said.")
DEPTHS = define(
  "depths", Several(Number(float, 0, 1)), (0.0, 0.25, 0.5, 0.75, 1.0),
  "Of a --task: where they are, 0, the start, to 1, the end.")
TRIALS = define("trials", POSITIVE, 10, "Of a --task: prompts of each kind, or texts.")
EXAMPLES = define("examples", COUNT, 5, "Of a --task: answers of each kind that the model writes itself.")
ROWS = define("rows", POSITIVE, 5, "Of a --task: prompts that are read together.")
TASK_SEED = define("task_seed", SEED, 0, "Of what is asked, and where.")
