"""Imports point one way; a file may import only files of a lower layer, or of its own folder."""

from __future__ import annotations

import ast
import functools
import pathlib

import pytest

from lattice_jax.memories.registry import FOLDERS

ROOT = pathlib.Path(__file__).parent.parent

_FOLDERS = sorted(path.parent.name for path in (ROOT / "lattice_jax" / "memories").glob("*/config.py"))

# From the bottom up. A layer may import those below it; names on one row may not import one another.
LAYERS = (
  ("pallas_kernels", "lattice_jax.allocator", "lattice_jax.markdown", "lattice_jax.page_style", "lattice_jax.shown",
   "lattice_jax.source_code", "lattice_jax.stored_value", "lattice_jax.types"),
  ("lattice_jax.domains", "lattice_jax.failures"),
  ("lattice_jax.chips", "lattice_jax.members"),
  ("lattice_jax.anchor_rule", "lattice_jax.byte_size", "lattice_jax.fields", "lattice_jax.processes"),
  ("lattice_jax.files",),
  ("lattice_jax.cache.policies",),
  ("lattice_jax.cache.config", "lattice_jax.memories.section", "lattice_jax.memories.recurrent_config",
   "lattice_jax.ops.rotary_config"),
  ("lattice_jax.memories.attention_config",),
  (*(f"lattice_jax.memories.{memory}.config" for memory in _FOLDERS),),
  ("lattice_jax.memories.registry",),
  ("lattice_jax.config", "lattice_jax.dispatch"),
  ("lattice_jax.config_dict", "lattice_jax.marks"),
  ("lattice_jax.runtime",),
  ("lattice_jax.formats",),
  ("lattice_jax.ops",),
  ("lattice_jax.cache", "lattice_jax.modules"),
  ("lattice_jax.memories",),
  ("lattice_jax.config_checks",),
  ("lattice_jax.config_text", "lattice_jax.stored_config"),
  ("lattice_jax.models", "lattice_jax.data", "lattice_jax.metrics"),
  ("lattice_jax.sharding", "lattice_jax.writers"),
  ("lattice_jax.training.adafactor",),
  ("lattice_jax.training.optimizer",),
  ("lattice_jax.training.state",),
  ("lattice_jax.run_file",),
  ("lattice_jax.checkpoint_folder", "lattice_jax.save_failures"),
  ("lattice_jax.checkpoint",),
  ("lattice_jax.inference",),
  ("lattice_jax.evaluation",),
  ("lattice_jax.inspect",),
  ("lattice_jax.bench",),
  ("lattice_jax.training",),
  ("lattice_jax.library", "lattice_jax.report", "lattice_jax.sweep"),
  ("lattice_jax.aot", "lattice_jax.self_check"),
  ("lattice_jax.preflight",),
  ("lattice_jax.reproduce",),
  ("lattice_jax.commands",),
  ("lattice_jax.self_check.__main__",),
)
ALSO_ALLOWED = {"lattice_jax.dispatch": ("lattice_jax.config",)}
LIBRARY = sorted([*(ROOT / "lattice_jax").rglob("*.py"), *(ROOT / "pallas_kernels").rglob("*.py")])


def module_name(path):
  return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imported_modules(path):
  return list(_imported_modules(path))


def _imported_modules(path):
  """Absolute names; `from a import b` gives a.b, which is a module or a name in module a."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path} has a relative import; write the whole name"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module, package):
  return module == package or module.startswith(package + ".")


def layer_of(module):
  """(height, name) of the longest layer name that holds the module; None for others' code."""
  rows = [(height, name) for height, row in enumerate(LAYERS) for name in row if is_within(module, name)]
  return max(rows, key=lambda row: len(row[1])) if rows else None


def test_every_module_has_a_place():
  assert not [
    module_name(path) for path in LIBRARY if module_name(path) != "lattice_jax" and layer_of(module_name(path)) is None
  ], "give it one in LAYERS"


def test_imports_point_down():
  upward = []
  for path in LIBRARY:
    here = layer_of(module_name(path))
    for name in imported_modules(path):
      there = layer_of(name)
      if there is None or (here and (there[1] == here[1] or there[1] in ALSO_ALLOWED.get(here[1], ()))):
        continue
      if here is None or there[0] >= here[0]:  # the package itself, which has no layer, imports none of them
        upward.append(f"{module_name(path)} imports {name}, which is not below it")
  assert not upward


def test_library_knows_no_script_config_or_test():
  outside = ("configs", "tests", "scripts", "train", "eval")
  assert not [
    f"{module_name(path)} imports {name}" for path in LIBRARY for name in imported_modules(path)
    if any(is_within(name, package) for package in outside)]


def test_no_flag_is_defined_or_read_below_the_commands():
  """Grain reads flags of its own in worker processes; the loader must declare them parsed where nobody parses any."""
  users = {module_name(path) for path in LIBRARY if any(is_within(n, "absl.flags") for n in imported_modules(path))}
  assert {name for name in users if not is_within(name, "lattice_jax.commands")} == {"lattice_jax.data.loader"}


def test_only_checkpoints_import_orbax():
  users = {module_name(path) for path in LIBRARY if any(is_within(n, "orbax") for n in imported_modules(path))}
  assert users <= {"lattice_jax.checkpoint", "lattice_jax.save_failures"}


def test_kernels_import_jax_only():
  for path in (ROOT / "pallas_kernels").rglob("*.py"):
    for name in imported_modules(path):
      assert name.split(".")[0] in (
        "__future__", "collections", "dataclasses", "functools", "jax", "math", "pallas_kernels", "types"), name


# What is about one memory, and says so: its bench, its audit, and softmax attention's cache.
ABOUT_ONE_MEMORY = (
  "lattice_jax.bench", "lattice_jax.inspect", "lattice_jax.cache.kv_cache", "lattice_jax.library.compress_kv")


def test_a_memory_is_known_to_its_own_folder_alone():
  known = []
  for path in LIBRARY:
    module = module_name(path)
    if any(is_within(module, name) for name in ABOUT_ONE_MEMORY):
      continue
    for name in imported_modules(path):
      folder = name.removeprefix("lattice_jax.memories.").split(".")[0]
      if (name.startswith("lattice_jax.memories.") and folder in _FOLDERS
          and not is_within(module, f"lattice_jax.memories.{folder}")):
        known.append(f"{module} imports {name}")
  assert not known, "ask the memory's record instead"


@pytest.mark.parametrize("part", ["models", "training", "evaluation", "inference"])
def test_nothing_asks_which_memory_it_is(part):
  paths = [path for path in (ROOT / "lattice_jax" / part).rglob("*.py") if path.parent.name != "pretrained"]
  nodes = [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
  asked = [
    f"{path.relative_to(ROOT)}:{node.lineno}" for path, node in nodes if isinstance(node, ast.Compare)
    and any(isinstance(leaf, ast.Constant) and leaf.value in FOLDERS for leaf in ast.walk(node))]
  assert not asked, "ask the memory's record what you need to know"
