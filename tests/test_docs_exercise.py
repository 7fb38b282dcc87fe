"""docs/add_a_memory.md: its code blocks, put where they say, make a memory that keeps the laws by two changed lines."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_memory.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'(?ms)^```python title="([^",]+)(?:, below the line of (\w+))?"\n(.*?)^```$', PAGE)
CHEAP_LAWS = "L4 or L5 or L8 or test_padding"  # they share compiled functions


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  """A copy of the tree with the exercise done."""
  copy = tmp_path_factory.mktemp("exercise")
  for name in ("lattice_jax", "pallas_kernels", "configs", "tests", "scripts"):
    shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "samples"))
  for name in ("pyproject.toml", "train.py", "eval.py"):
    shutil.copy(ROOT / name, copy)
  for path, below, code in BLOCKS:
    file = copy / path
    if below:
      head, line, tail = re.split(rf'(?m)^(.*"{below}".*\n)', file.read_text(encoding="utf-8"), maxsplit=1)
      file.write_text(head + line + code + tail, encoding="utf-8")
    else:
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(code, encoding="utf-8")
  return copy


def run(tree, *command):
  done = subprocess.run(
    [sys.executable, *command], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True,
    check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_two_lines_of_existing_files_change(tree):
  changed = {}
  for path in tree.rglob("*.py"):
    before = ROOT / path.relative_to(tree)
    if before.exists() and before.read_bytes() != path.read_bytes():
      old, new = (file.read_text(encoding="utf-8").splitlines() for file in (before, path))
      changed[str(path.relative_to(tree))] = len(new) - len(old)
      assert [line for line in new if line in old] == old, "an existing line is another one"
  assert changed == {"lattice_jax/memories/registry.py": 1, "tests/contract/memories.py": 1}
  added = {path.parent for path, *_ in ((pathlib.Path(name), below) for name, below, _ in BLOCKS if not below)}
  assert added == {pathlib.Path("lattice_jax/memories/moving_average"), pathlib.Path("tests/memories/moving_average")}


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(600)  # a process of its own, with all the imports of the laws
def test_the_memory_keeps_the_cheapest_laws(tree):
  said = run(
    tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"moving_average and ({CHEAP_LAWS})",
    "tests/contract/test_laws.py", "tests/memories/moving_average")
  assert re.search(r"\b6 passed", said), said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_page_are_accepted_and_the_code_is_clean(tree):
  commands, = re.findall(r"(?ms)^```console\n(.*?)^```$", PAGE)
  page = tree / "page.md"
  page.write_text(f"```bash\n{commands}```\n")
  assert " 0 mistakes." in run(tree, "scripts/check_docs.py", str(page))
  run(tree, "-m", "ruff", "check", "--no-cache", "lattice_jax/memories", "tests/memories", "tests/contract")
