"""The code that a result depends on: the modules that its roots reach by imports, without comments and docstrings.

Of the working tree, or of a commit, so that a result of an older commit can be told to be of the same code.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import lattice_jax

ROOT = Path(lattice_jax.__file__).parents[1]
_PACKAGES = ("lattice_jax", "pallas_kernels")
# Modules, or packages with all of theirs, that read, check, store and print. They change no result; the values of a
# config are digested by themselves.
STORES = (
  "lattice_jax.allocator", "lattice_jax.byte_size", "lattice_jax.checkpoint", "lattice_jax.checkpoint_folder",
  "lattice_jax.config", "lattice_jax.config_checks", "lattice_jax.config_dict", "lattice_jax.config_text",
  "lattice_jax.domains", "lattice_jax.failures", "lattice_jax.fields", "lattice_jax.files", "lattice_jax.markdown",
  "lattice_jax.members", "lattice_jax.memories.registry", "lattice_jax.memories.section", "lattice_jax.metrics",
  "lattice_jax.page_style", "lattice_jax.processes", "lattice_jax.run_file", "lattice_jax.runtime",
  "lattice_jax.save_failures", "lattice_jax.shown", "lattice_jax.stored_config", "lattice_jax.writers")
_NO_PART = ("/cases.py", "/config.py", "/fla.py")  # of a memory's folder: for tests and benchmarks; for other libraries

Sources = Mapping[str, bytes]  # by path below the root


@functools.cache
def tree_sources(root: Path = ROOT) -> Sources:
  """The Python files as they are."""
  return {
    path.relative_to(root).as_posix(): path.read_bytes()
    for package in _PACKAGES for path in sorted((root / package).rglob("*.py"))}


@functools.cache
def commit_sources(commit: str, root: Path = ROOT) -> Sources | None:
  """Those of a commit; None where the repository does not have it, or the commit's "+" says that files differed."""
  if not commit or commit.endswith("+"):
    return None
  try:
    archive = subprocess.run(
      ["git", "-C", str(root), "archive", "--format=tar", commit, *_PACKAGES], capture_output=True, timeout=60,
      check=True).stdout
  except (OSError, subprocess.SubprocessError):
    return None
  with tarfile.open(fileobj=io.BytesIO(archive)) as files:
    return {
      member.name: files.extractfile(member).read() for member in files
      if member.isfile() and member.name.endswith(".py")}


def code_digest(roots: Iterable[str], sources: Sources, left_out: Sequence[str]) -> str:
  """Of the modules that `roots` (modules, or packages with all that they hold) reach through their imports.

  left_out: modules, or packages with all of theirs, that are no part of it, and through which nothing is reached.

  Raises:
    ValueError: a root is not among the sources.
  """
  digest = hashlib.sha256()
  for path in reached(roots, sources, left_out):
    digest.update(f"{path}\0{_plain(sources[path])}\0".encode())
  return digest.hexdigest()


def reached(roots: Iterable[str], sources: Sources, left_out: Sequence[str]) -> list[str]:
  """The paths of these modules, sorted."""
  waiting, found = [], set()
  for root in roots:
    paths = _below(root, sources)
    if not paths:
      raise ValueError(f"there is no module {root}.")
    waiting += paths
  while waiting:
    path = waiting.pop()
    if path in found:
      continue
    found.add(path)
    waiting += [other for name in _imports(sources[path]) for other in _resolved(name, sources, left_out)]
  return sorted(found)


def _below(root: str, sources: Sources) -> list[str]:
  """The files of a module or package."""
  start = root.replace(".", "/")
  return [
    path for path in sources
    if path == f"{start}.py" or (path.startswith(f"{start}/") and not path.endswith(_NO_PART))]


def _resolved(name: str, sources: Sources, left_out: Sequence[str]) -> Iterator[str]:
  """The file of a module, or of the module that holds the name; none of those left out."""
  for module in (name, name.rpartition(".")[0]):
    start = module.replace(".", "/")
    if module == "lattice_jax":
      return
    for path in (f"{start}.py", f"{start}/__init__.py"):
      if path in sources:
        is_part = not (path.startswith("lattice_jax/memories/") and path.endswith(_NO_PART))
        if is_part and not any(module == part or module.startswith(f"{part}.") for part in left_out):
          yield path
        return


@functools.cache
def _imports(source: bytes) -> tuple[str, ...]:
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      found += [f"{node.module}.{alias.name}" for alias in node.names]
  return tuple(name for name in found if name.split(".")[0] in _PACKAGES)


@functools.cache
def _plain(source: bytes) -> str:
  """The code without comments, docstrings and layout."""
  tree = ast.parse(source)
  for node in ast.walk(tree):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
      first = node.body[0] if node.body else None
      if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]
  return ast.unparse(tree)
