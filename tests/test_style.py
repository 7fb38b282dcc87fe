"""House rules that can be counted."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted(
  path for part in ("*.py", "configs/**/*.py", "lattice_jax/**/*.py", "pallas_kernels/**/*.py", "scripts/**/*.py")
  for path in ROOT.glob(part))
MAX_LINES, MAX_KERNEL_LINES, MAX_ENTRY_LINES, MAX_FUNCTION_LINES = 300, 500, 80, 60


def name_of(path):
  return str(path.relative_to(ROOT))


@functools.cache
def text_of(path):
  return path.read_text(encoding="utf-8")


@functools.cache
def nodes_of(path):
  return list(ast.walk(ast.parse(text_of(path))))


def test_files_are_short():
  limits = {
    path: MAX_ENTRY_LINES if path.parent == ROOT else MAX_KERNEL_LINES if "pallas_kernels" in path.parts else MAX_LINES
    for path in SOURCES}
  lines = {path: len(text_of(path).splitlines()) for path in SOURCES}
  long = [f"{name_of(path)} has {lines[path]} lines, at most {limit}" for path, limit in limits.items()
          if lines[path] > limit]
  assert not long, "split by idea"


def test_functions_are_short():
  long = [
    f"{name_of(path)}: {node.name} has {node.end_lineno - node.lineno + 1} lines" for path in SOURCES
    for node in nodes_of(path)
    if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES]
  assert not long, f"at most {MAX_FUNCTION_LINES} lines"


def test_modules_say_what_they_are():
  silent = [
    name_of(path) for path in SOURCES if nodes_of(path)[0].body and not ast.get_docstring(nodes_of(path)[0])]
  assert not silent, "a file that holds code starts with a docstring"


def test_defaults_live_in_the_config():
  calls = [
    f"{name_of(path)}:{node.lineno}" for path in SOURCES for node in nodes_of(path)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"
    and len(node.args) == 2]
  assert not calls, "`.get(name, default)` is a second place for a default"


def test_no_left_overs():
  pattern = r"\b(?:TODO|FIXME|XXX|breakpoint\(|NotImplementedError)"
  assert not [f"{name_of(path)}: {mark}" for path in SOURCES for mark in re.findall(pattern, text_of(path))]


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
