"""Evaluates a trained model: bits per byte of a split, loss by position, compressors beside it, a text it writes.

python eval.py --workdir=runs/quickstart --split=test [--protocol=both] [--compressors] [--generate=500 --prompt="The "]
python eval.py --pretrained=smollm2 --prompt="Who wrote Faust?" --chat [--cache=lagkv:ratio=0.25]
python eval.py --pretrained=smollm2 --task=passkey --cache=lagkv:ratio=0.25 --peers=window,knorm
"""

from __future__ import annotations

from lattice_jax.commands import interrupt

interrupt.exit_on_signals()

import sys

from lattice_jax.commands import eval as evaluate
from lattice_jax.commands import run

if __name__ == "__main__":
  run.run_command(evaluate.main, sys.argv)
