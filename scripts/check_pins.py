"""Checks the pinned requirements without a network, against pyproject.toml and what is installed.

python scripts/check_pins.py [--files=requirements.txt,requirements-test.txt]

For every line: one exact version, inside pyproject's range where that names the package, installed, made for this
Python, and under a licence that its metadata call permissive. What the libraries need in turn must be installed in the
versions that they ask for. Known vulnerabilities, versions that an index has withdrawn, and whether a file is the one
that was published cannot be known offline: `pip-audit -r requirements.txt` asks for the first two over a network.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, some_of
from lattice_jax.commands.run import run_script

_ROOT = Path(__file__).resolve().parents[1]
_FILES = ("requirements.txt", "requirements-test.txt")
_PIN = re.compile(r"([A-Za-z0-9_.-]+)==([0-9][0-9A-Za-z.]*)\s*(?:#.*)?")
_PERMISSIVE = re.compile(
  r"\b(apache|mit|bsd|isc|psf|python software foundation|unlicense|hpnd|zlib|matplotlib|mit-cmu|0bsd|cc0)\b", re.I)
_COPYLEFT = re.compile(r"\b(a?gpl|lgpl|mpl|eupl|sspl|cc-by-nc)\b|general public", re.I)
# Copyleft that binds only changes of these libraries' own files, which are neither changed nor handed on here.
_FILE_COPYLEFT = ("hypothesis",)  # MPL-2.0; a tool of the tests


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--files", type=some_of(*_FILES), default=_FILES, help="requirement files, commas between")
  names = parser.parse_args().files
  faults, count = [], 0
  ranges = ranges_of((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
  for name in names:
    for pin in (_ROOT / name).read_text(encoding="utf-8").splitlines():
      if not pin.strip() or pin.startswith("#"):
        continue
      count += 1
      faults += [f"{name}: {fault}" for fault in faults_of(pin, ranges)]
  print("\n".join(faults) or f"{count} pins: no fault")
  return 1 if faults else 0


def ranges_of(pyproject: str) -> dict[str, list[str]]:
  """The ranges of each package in a pyproject.toml, its extras too, as in {"jax": [">=0.10.2,<0.13"]}."""
  project = tomllib.loads(pyproject)["project"]
  ranges: dict[str, list[str]] = {}
  extras = project["optional-dependencies"].values()
  for line in itertools.chain(project["dependencies"], *extras):
    name, rest = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*(.*)", line).groups()
    ranges.setdefault(canonical(name), []).extend([rest] if rest else [])
  return ranges


def canonical(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()


def faults_of(line: str, ranges: dict[str, list[str]]) -> Iterator[str]:
  """What is wrong with one line of a requirement file."""
  from packaging.specifiers import SpecifierSet

  found = _PIN.fullmatch(line.strip())
  if not found:
    yield f"{line.strip()!r} is not one exact version, as in jax==0.10.2."
    return
  name, version = canonical(found[1]), found[2]
  for allowed in ranges[name] if name in ranges else []:
    if version not in SpecifierSet(allowed):
      yield f"{name}=={version} is outside {allowed} of pyproject.toml."
  try:
    installed = importlib.metadata.distribution(found[1])
  except importlib.metadata.PackageNotFoundError:
    yield f"{name}=={version} is not installed."
    return
  if installed.version != version:
    yield f"{name}=={version} is pinned, and {installed.version} is installed."
  yield from _needs(name, installed)
  yield from _licence(name, installed.metadata)


def _needs(name: str, installed: importlib.metadata.Distribution) -> Iterator[str]:
  """Requirements of an installed package, also of the Python, that are not met."""
  from packaging.requirements import Requirement
  from packaging.specifiers import SpecifierSet

  python = installed.metadata["Requires-Python"]
  if python and ".".join(map(str, sys.version_info[:3])) not in SpecifierSet(python):
    yield f"{name} needs Python {python}."
  for requirement in map(Requirement, installed.requires or ()):
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
      continue
    try:
      version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
      yield f"{name} needs {requirement}, which is not installed."
      continue
    if not requirement.specifier.contains(version, prereleases=True):
      yield f"{name} needs {requirement}, and {version} is installed."


def _licence(name: str, metadata: importlib.metadata.PackageMetadata) -> Iterator[str]:
  said = " ".join(filter(None, [
    metadata["License-Expression"], (metadata["License"] or "")[:200], *(
      line for line in metadata.get_all("Classifier") or () if line.startswith("License"))]))
  if name in _FILE_COPYLEFT:
    return
  if _COPYLEFT.search(said) or not _PERMISSIVE.search(said):
    yield f"{name} states the licence {said[:80]!r}, which is not known as permissive; read it, then name it here."


if __name__ == "__main__":
  run_script(main)
