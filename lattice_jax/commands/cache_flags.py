"""Flags of eval.py about caches: the one that the model has, and the --task that compares several."""

from __future__ import annotations

from lattice_jax.commands.domains import COUNT, POSITIVE, Several
from lattice_jax.commands.flags import define, define_several
from lattice_jax.domains import SEED, Names, Number, Text

TASKS = ("passkey", "needles", "copy", "pairs", "text")

CACHE = define_several(
  "cache", Text(),
  "What attention keeps, as in lagkv:lag=128,ratio=0.25; a --task takes several, and compares them with the full one.")
TASK = define(
  "task", Text(TASKS), None,
  "Compare caches: passkey, needles, copy and pairs ask for what a prompt said; text reads on in a text.")
PEERS = define(
  "peers", Names(), (),
  "Policies to compare too: each scores tokens in the frame of every --cache, and keeps as many.")
LENGTHS = define("lengths", Several(POSITIVE), (1024,), "With --task: tokens of the prompts, or of the texts.")
ANSWERS = define("answers", Several(POSITIVE), (7,), "With --task: digits, or words, of an answer.")
DEPTHS = define(
  "depths", Several(Number(float, 0, 1)), (0.0, 0.25, 0.5, 0.75, 1.0),
  "With --task: where the answers stand in the prompt, from 0, its start, to 1, its end.")
TRIALS = define("trials", POSITIVE, 10, "With --task: prompts of each kind, or texts.")
EXAMPLES = define("examples", COUNT, 5, "With --task: answers of each kind that the model writes itself.")
ROWS = define("rows", POSITIVE, 5, "With --task: prompts that are read in one batch.")
TASK_SEED = define("task_seed", SEED, 0, "With --task: of what is asked, and where it stands.")


def cache_overrides() -> list[str]:
  """The changes of the config that --cache stands for; none with a --task, which takes the caches one by one."""
  from lattice_jax.evaluation import caches  # needs JAX

  if TASK.value:
    return []
  if len(CACHE.value) > 1:
    raise ValueError("--cache was given several times; only a --task compares caches.")
  return [override for text in CACHE.value for override in caches.cache_overrides(text)]
