"""Splits the tokens of every memory over two and four devices, and compares with one device (law L14).

python scripts/check_sequence.py --out=sequence [--memories=lattice,vq] [--shards=2,4]

A layer of each memory reads 23 or 24 tokens of eight rows with documents that end anywhere, in fp32, on simulated
devices of this machine's CPU. Prints and writes to OUT/README.md, for each memory and number of devices, the largest
difference of outputs, state and gradients from those of one device, as RMS over RMS of an array, and the bytes that
a device receives for a layer's outputs and gradients of 32 and of 64 tokens of two rows, as its compiled program says.
The sizes, the comparison and its limits are those of tests/contract. Ends with an error where a limit is passed. Takes
about ten minutes of processor time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positives, some_of
from lattice_jax.commands.run import run_script
from lattice_jax.markdown import markdown_table
from lattice_jax.memories.registry import FOLDERS

_LENGTHS = 32, 64  # tokens of the programs whose bytes are counted


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--out", type=path, required=True, help="folder for the table")
  parser.add_argument("--memories", type=some_of(*FOLDERS), default=tuple(FOLDERS), help="by default all")
  parser.add_argument("--shards", type=positives, default=(2, 4), help="devices that share a row's tokens")
  arguments = parser.parse_args()
  import jax  # --help need not wait for JAX

  simulate_devices(2 * max(arguments.shards))
  from lattice_jax.evaluation.result_tables import write_text

  rows = [["memory", "hands on", "devices", "outputs", "state", "gradients", *(f"bytes, T = {T}" for T in _LENGTHS)]]
  for memory in arguments.memories:
    for has_room in _rooms(memory):
      for shards in arguments.shards:
        rows.append(compare(memory, shards, has_room=has_room))
        print(*rows[-1], sep=" | ", flush=True)
  command = f"python scripts/check_sequence.py --out={arguments.out}"
  if arguments.memories != tuple(FOLDERS) or arguments.shards != (2, 4):  # the page says what it is of
    command += f" --memories={','.join(arguments.memories)} --shards={','.join(map(str, arguments.shards))}"
  write_text(arguments.out / "README.md", "\n".join([
    "# Tokens of a row on several devices", "", f"`{command}` printed this, with jax {jax.__version__}.",
    "Differences from one device are RMS over RMS, the largest of all arrays; allowed are 1e-5 of outputs and states",
    "and 1e-4 of gradients, in fp32. Bytes are those that a device receives for the outputs and gradients of a layer",
    "with two rows, by a ring's algorithm, counted in the compiled program as often as its loops turn.", "",
    markdown_table(rows, "llrrrr" + "r" * len(_LENGTHS)), ""]))
  return 0


def simulate_devices(count: int) -> None:
  import jax

  jax.config.update("jax_num_cpu_devices", count)


def _rooms(memory: str) -> tuple[bool, ...]:
  """Whether calls have a token cache with room; without one keys are exchanged in another way."""
  return (True, False) if _row(memory).memory.needs_token_cache else (True,)


def _row(memory: str) -> Any:
  from tests.contract.memories import ROWS

  return next(row for row in ROWS if row.name == memory)


def compare(memory: str, shards: int, *, has_room: bool) -> list[str]:
  """A line of the table.

  Raises:
    AssertionError: a difference is above its limit.
  """
  from lattice_jax.memories.registry import find_memory
  from tests.contract import meshes
  from tests.contract.tolerances import recorded

  row = _row(memory)
  with recorded() as largest:
    meshes.sequence_shards_agree(row, shards, has_room=has_room)
  found = [f"{largest[name]:.1e}" if largest else "too few tokens" for name in ("output", "state", "gradient")]
  is_cached = has_room and row.memory.needs_token_cache
  moved = ["" if is_cached else received(memory, length, shards) for length in _LENGTHS]
  name = f"{memory}, with a cache" if is_cached else memory
  return [name, find_memory(memory).exchange, str(shards), *found, *moved]


def received(memory: str, length: int, shards: int) -> str:
  """Bytes that a device receives, for the table."""
  from lattice_jax.inspect.traffic import read_traffic
  from lattice_jax.ops.sequence import AXIS
  from tests.contract.sequence_programs import compiled_text

  return f"{read_traffic(compiled_text(memory, length, shards=shards), {AXIS: shards}).received_bytes:,.0f}"


if __name__ == "__main__":
  run_script(main)
