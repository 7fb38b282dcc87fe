"""A program for tests: the tiny decoder trains in a workdir, and at a named moment something happens to it.

python -m tests.faults.faulty_run WORKDIR MOMENT FAULT

MOMENT: import, data, compile, update, evaluate, last_evaluate, save.
FAULT: SIGINT, SIGTERM, both_SIGINT, deaf_SIGINT, full_disk, full_metrics, read_only, file_for_folder.

Without arguments it trains, left alone, in each workdir that a line of its input names, and says so when it has ended.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import resource
import shutil
import signal
import sys
import threading
import types

from lattice_jax.commands import interrupt

STEPS = 12
ROOM = 12_000  # bytes: more than the metrics of all updates, less than one checkpoint


def obey_permissions():
  """Permissions do not bind root; without two capabilities they do. Threads that begin later inherit the loss."""
  version_3, override, read_search = 0x20080522, 1, 2
  header = (ctypes.c_uint32 * 2)(version_3, 0)
  sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; of the lower and the upper 32 capabilities
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.capget(header, sets):
    raise OSError(ctypes.get_errno(), "capget")
  for place in (0, 1):
    sets[place] &= ~(1 << override | 1 << read_search)
  if libc.capset(header, sets):
    raise OSError(ctypes.get_errno(), "capset")


def press_ctrl_c_while_deaf():
  """Ctrl-C, again and again, while the main thread is where Python hears of no signal, as in a compilation."""
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # another thread takes it, and nothing wakes this one

  def press():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    while True:
      os.kill(os.getpid(), signal.SIGINT)
      ctypes.CDLL(None).usleep(10_000)

  threading.Thread(target=press, daemon=True).start()
  ctypes.CDLL(None).sleep(1000)


def put_file_for_folder(folder, moved):
  folder.rename(moved)
  while True:
    try:
      return folder.write_text("")
    except IsADirectoryError:  # a save in progress has made it again
      shutil.rmtree(folder, ignore_errors=True)


def make_fault(name, workdir):
  """What happens, as a function."""
  def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

  return {
    "full_disk": lambda: limit_files(ROOM),
    "full_metrics": lambda: limit_files((workdir / "metrics.jsonl").stat().st_size),
    "read_only": lambda: (workdir / "checkpoints").chmod(0o555),
    "file_for_folder": lambda: put_file_for_folder(workdir / "checkpoints", workdir / "moved"),
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "deaf_SIGINT": press_ctrl_c_while_deaf,
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "both_SIGINT": lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)],
  }[name]


class AtImport:
  """Acts when a library is imported that comes late in the program's start."""

  def __init__(self, fault):
    self._fault = fault

  def find_spec(self, name, path=None, target=None):
    if name == "orbax":
      self._fault()


def act_at(moment, fault):
  """Puts the fault into the program."""
  from lattice_jax import writers
  from lattice_jax.training import loop, start

  def before(name, is_due=lambda *args: True, module=loop):
    inner = getattr(module, name)

    def outer(*args, **kwargs):
      if is_due(*args):
        fault()
      return inner(*args, **kwargs)

    setattr(module, name, outer)

  class AtUpdate(writers.Writer):
    def update(self, record):
      if moment == "update" and record["step"] == 7:
        fault()

  writers.WRITERS["hook"] = lambda info: AtUpdate()
  calls = {"evaluate": [1], "last_evaluate": [2]}
  if moment in calls:
    evaluations = []
    before("evaluate_protocols", lambda *args: evaluations.append(1) or [len(evaluations)] == calls[moment])
  elif moment == "data":
    before("load_source", module=start)
  elif moment == "compile":
    before("make_program")
  elif moment == "save":
    inner, moments = loop.Checkpoints.save, [False] * STEPS + [True]

    def save(self, *args, **kwargs):
      inner(self, *args, **kwargs)
      if moments.pop():
        fault()  # while the files are written

    loop.Checkpoints.save = save


def make_config():
  from tests.training import tiny

  return tiny.make_config(train__steps=STEPS, train__eval_every=6, train__writers=("jsonl", "hook"))


def main(arguments):
  from lattice_jax.training import loop
  from tests.training import tiny

  tiny.use_tiny_decoder(types.SimpleNamespace(setattr=setattr))
  if arguments:
    workdir, moment, name = pathlib.Path(arguments[0]), *arguments[1:]
    act_at(moment, make_fault(name, workdir))
    loop.train(make_config(), workdir)
    return
  act_at("never", None)
  for line in sys.stdin:
    loop.train(make_config(), pathlib.Path(line.strip()))
    sys.stdout.write("ended\n")
    sys.stdout.flush()


def meddle(workdir, moment, name):
  """What has to be done before the program's own imports."""
  if name == "read_only" and os.geteuid() == 0:
    obey_permissions()
  if moment == "import":
    sys.meta_path.insert(0, AtImport(make_fault(name, pathlib.Path(workdir))))


if __name__ == "__main__":
  interrupt.exit_on_signals()
  if sys.argv[1:]:
    meddle(*sys.argv[1:])
  from lattice_jax.commands.run import run_script

  run_script(lambda: main(sys.argv[1:]))
