"""Runs a command or a script: a user's mistake ends it with one sentence and exit status 2, never with a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lattice_jax.commands import help
from lattice_jax.commands.domains import POSITIVE
from lattice_jax.commands.flags import define, parse_flags
from lattice_jax.runtime import leave, quieten_checkpoints, show_log

CPU_DEVICES = define(
  "cpu_devices", POSITIVE, None,
  "Without accelerator: devices to simulate. By default train.py takes one a core, as far as they divide the batch.")


def run_command(main: Callable[[], int | None], argv: list[str]) -> None:
  """Reads the flags and calls `main`. --help prints them below the docstring of the program."""
  if any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in argv[1:]):
    sys.stdout.write(help.describe_command(sys.modules["__main__"].__doc__))
    return

  def parse_and_run() -> int | None:
    parse_flags(argv)
    show_log()
    if CPU_DEVICES.value is not None:
      import jax

      jax.config.update("jax_num_cpu_devices", CPU_DEVICES.value)
    return main()

  run_script(parse_and_run)


def print_now(text: str = "", end: str = "\n") -> None:
  """Prints, and does not wait for more where the output is a file or a pipe."""
  sys.stdout.write(text + end)
  sys.stdout.flush()


def run_script(main: Callable[[], int | None]) -> None:
  """Calls `main`, which reads its own arguments and returns the exit status."""
  quieten_checkpoints()
  try:
    status = main()
  except (Exception, KeyboardInterrupt) as error:
    leave(error)
  if status:
    sys.exit(status)
