"""Adding a policy is a file and two lines: its name in the registry, its row in the table of the laws."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
REGISTRY, LAWS = "lattice_jax/cache/policies/registry.py", "tests/cache/test_laws.py"
POLICY = '''
"""The oldest tokens of a partition stay, or every second one."""

from dataclasses import dataclass

from lattice_jax.cache.policies.record import PolicyRecord
from lattice_jax.fields import positive


@dataclass(frozen=True)
class OldestConfig:
  step: int = positive(1, "of this many tokens one goes before the others")


def score(own, partitions):
  position_BHNL = partitions.position_BHNL[:, :, :-1]
  return -(position_BHNL + 1000 * (position_BHNL % own.step > 0)).astype("float32")


POLICY = PolicyRecord(doc="the policy \\"oldest\\"", chooses="partition", score=score, section=OldestConfig)
'''
CHECK = '''
from lattice_jax.config import Config, ModelConfig
from lattice_jax.evaluation.caches import parse_caches
from tests.cache.streams import as_they_come, positions_of


def test_oldest():
  model = Config(model=ModelConfig(pattern=("attention",)))
  cache = parse_caches(model, ["oldest:step=2,sinks=3,lag=8,keep=3"]).popitem()[1]
  assert cache.oldest.step == 2 and cache.own is cache.oldest
  want = [0, 1, 2, 4, 6, 8, 12, 14, 16, 20, 22, 24, *range(27, 41)]
  assert positions_of(as_they_come(cache, 0), 1).tolist() == [want] * 2
'''


def change(root, path, old, new):
  text = (root / path).read_text()
  assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
  (root / path).write_text(text.replace(old, new))


@pytest.mark.slow
def test_a_policy_more_changes_two_lines(tmp_path):
  for folder in ("lattice_jax", "pallas_kernels", "tests"):
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copy(ROOT / "pyproject.toml", tmp_path)
  (tmp_path / "lattice_jax/cache/policies/oldest.py").write_text(POLICY)
  (tmp_path / "tests/cache/test_oldest.py").write_text(CHECK)
  change(tmp_path, REGISTRY, '"tova")', '"tova", "oldest")')
  change(tmp_path, LAWS, '"tova": ("L4", "L5", "L6")}', '"tova": ("L4", "L5", "L6"), "oldest": ("L6",)}')
  tests = ("tests/cache/test_oldest.py", f"{LAWS}::test_law_holds[oldest-L6]",
           f"{LAWS}::test_every_policy_has_a_row_here_or_is_exempt_from_nothing_in_the_contract")
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=0", *tests]
  result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert result.returncode == 0 and "3 passed" in result.stdout, result.stdout + result.stderr
