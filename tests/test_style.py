"""House rules that can be counted."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted(
  path for part in ("*.py", "configs/**/*.py", "lattice_jax/**/*.py", "pallas_kernels/**/*.py", "scripts/**/*.py")
  for path in ROOT.glob(part))
MAX_LINES, MAX_KERNEL_LINES, MAX_ENTRY_LINES, MAX_FUNCTION_LINES = 300, 500, 80, 60


def name_of(path):
  return str(path.relative_to(ROOT))


@pytest.fixture(params=SOURCES, ids=name_of)
def source(request):
  return request.param


def test_file_is_short(source):
  limit = MAX_KERNEL_LINES if "pallas_kernels" in source.parts else MAX_LINES
  if source.parent == ROOT:
    limit = MAX_ENTRY_LINES
  lines = len(source.read_text(encoding="utf-8").splitlines())
  assert lines <= limit, f"{name_of(source)} has {lines} lines, at most {limit}: split it by idea"


def test_functions_are_short(source):
  for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
    if isinstance(node, ast.FunctionDef):
      lines = node.end_lineno - node.lineno + 1
      assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"


def test_module_says_what_it_is(source):
  tree = ast.parse(source.read_text(encoding="utf-8"))
  assert not tree.body or ast.get_docstring(tree), "a file that holds code starts with a docstring"


def test_defaults_live_in_the_config(source):
  calls = [
    node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"
    and len(node.args) == 2]
  assert not calls, f"line {calls[0].lineno}: `.get(name, default)` is a second place for a default"


def test_no_left_overs(source):
  marks = re.findall(r"\b(?:TODO|FIXME|XXX|breakpoint\(|NotImplementedError)", source.read_text(encoding="utf-8"))
  assert not marks


def test_shell_scripts_stop_at_the_first_error():
  for path in [ROOT / ".ci" / "run", *(ROOT / "scripts").glob("[!_]*.sh")]:
    assert "set -euo pipefail" in path.read_text(encoding="utf-8"), name_of(path)


def test_requirements_are_exact_and_name_each_package_once():
  lines = [
    line.split("#")[0].strip() for file in ROOT.glob("requirements*.txt")
    for line in file.read_text(encoding="utf-8").splitlines()]
  pins = [line for line in lines if line]
  assert all(re.fullmatch(r"[A-Za-z0-9_-]+==[0-9][0-9.]*", pin) for pin in pins), pins
  packages = [pin.split("==")[0].lower() for pin in pins]
  assert len(packages) == len(set(packages))
  assert {"jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml_collections", "wandb"} <= set(packages)
