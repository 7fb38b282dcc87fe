"""Trains a model, or goes on where the workdir stands.

python train.py --config=configs/quickstart.py --workdir=runs/a

Any field can be changed on the command line: --config.train.steps=100. Errors are one sentence and exit status 2
(set LATTICE_JAX_TRACEBACK=1 to see where they come from); a run stopped by a signal exits with 128 + its number.
"""

from __future__ import annotations

from lattice_jax.commands import interrupt

interrupt.exit_on_signals()

from lattice_jax.allocator import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()

import sys

from lattice_jax.commands import run, train

if __name__ == "__main__":
  run.run_command(train.main, sys.argv)
