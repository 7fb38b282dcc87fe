"""A program for tests: one of several processes that do nothing but talk to each other, for ever.

python -m tests.peer_run
"""

from __future__ import annotations

import sys

from lattice_jax.commands.run import run_script
from lattice_jax.members import Membership
from lattice_jax.runtime import initialize_distributed


def main():
  initialize_distributed(Membership())
  from jax.experimental import multihost_utils

  while True:
    multihost_utils.sync_global_devices("all are here")
    sys.stdout.write("talked\n")
    sys.stdout.flush()


if __name__ == "__main__":
  run_script(main)
