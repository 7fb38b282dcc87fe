"""What is installed: scripts/_venv.sh reports it in few lines, and the package holds all that it needs."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parent.parent
PIP_SAYS = "\n".join([
  "Collecting jax==0.10.2 (from -r requirements.txt (line 3))",
  "  Downloading jax-0.10.2-py3-none-any.whl.metadata (13 kB)",
  "  Downloading jax-0.10.2-py3-none-any.whl (3.1 MB)",
  "  Downloading https://host/path/jaxlib-0.10.2-cp311-cp311-manylinux_2_27_x86_64.whl (83.4 MB)",
  "  Using cached scipy-1.17.0-cp311-cp311-manylinux.whl (35 MB)",
  "Requirement already satisfied: pip in ./.venv/lib",
  *(f"Collecting package{number}>=1 (from jax==0.10.2)" for number in range(2, 42)),
  "Installing collected packages: jax, jaxlib, scipy", "Successfully installed jax-0.10.2"]) + "\n"


def install(folder, status):
  """As `install` with a pip that speaks as above and ends with a status."""
  (folder / "python").write_text(f"#!/bin/sh\ncat {folder}/says\nexit {status}\n")
  (folder / "python").chmod(0o755)
  (folder / "says").write_text(PIP_SAYS)
  (folder / "wanted.txt").write_text("jax==0.10.2\n")
  command = 'set -euo pipefail; source scripts/_venv.sh; install "$0/python" "$0/wanted.txt" "$0/stamp" --no-deps'
  return subprocess.run(
    ["bash", "-c", command, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_large_steps_are_told_and_nothing_is_done_twice(tmp_path):
  done = install(tmp_path, 0)
  lines = done.stdout.splitlines()
  assert done.returncode == 0 and not done.stderr
  assert lines[0] == f"Installing {tmp_path}/wanted.txt, which takes minutes the first time …"
  assert lines[1:-1] == [
    "  jaxlib, 83.4 MB", "  scipy, 35 MB", "  20 packages found, up to package20>=1",
    "  40 packages found, up to package40>=1", "  unpacking 3 packages …"]
  assert lines[-1].startswith("  done in ")
  assert not install(tmp_path, 1).stdout, "what the stamp says is there is not installed again"


@pytest.mark.parametrize("status", [1, 2])
def test_where_pip_fails_the_script_ends(tmp_path, status):
  done = install(tmp_path, status)
  assert done.returncode == 1 and not (tmp_path / "stamp").exists()
  assert "failed; the lines above say why. Run the same command again to retry." in done.stderr


def pins(file):
  """Package → version, names written as PyPI compares them."""
  lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
  return {name(package): version for package, version in (line.split("==") for line in lines if line)}


def name(package):
  return re.sub(r"[-_.]+", "-", package).lower()


def ranges(which):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
  listed = project["dependencies"] if which == "core" else project["optional-dependencies"][which]
  return {name(requirement.name): requirement.specifier for requirement in map(Requirement, listed)}


@pytest.mark.parametrize(("file", "which"), [("requirements.txt", "core"), ("requirements-test.txt", "dev")])
def test_every_pin_is_the_lower_end_of_its_range(file, which):
  pinned, allowed = pins(file), ranges(which)
  assert pinned.keys() == allowed.keys(), "both files list the same packages"
  for package, version in pinned.items():
    low, high = (next((part.version for part in allowed[package] if part.operator == operator), None)
                 for operator in (">=", "<"))
    assert version == low and high and allowed[package].contains(version), f"{package}=={version}: {allowed[package]}"


def test_those_who_test_have_what_serving_needs():
  serve, dev = ranges("serve"), ranges("dev")
  assert set(serve) == {"starlette", "uvicorn", "prometheus-client"}
  assert serve.items() <= dev.items()


def test_accelerators_take_the_jax_that_the_core_allows():
  assert {which: set(ranges(which)) for which in ("gpu", "tpu")} == {"gpu": {"jax"}, "tpu": {"jax"}}


def test_package_holds_every_file_of_the_library(tmp_path):
  command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
  subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
  held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
  wanted = {
    path.relative_to(ROOT).as_posix() for package in ("lattice_jax", "pallas_kernels")
    for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc"}
  assert len(wanted) > 200 and wanted <= held, sorted(wanted - held)
  assert {path.split("/")[0].split("-")[0] for path in held} == {"lattice_jax", "pallas_kernels"}
