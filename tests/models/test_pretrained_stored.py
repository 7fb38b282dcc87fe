"""Pretrained weights kept as their file has them: the model says the same, and makes no floats of codes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.inference.generate import generate
from lattice_jax.inference.session import read_token, start_state
from lattice_jax.models.decoder import Decoder, init_state
from lattice_jax.models.parameters import count_parameters
from lattice_jax.models.pretrained import open_pretrained
from lattice_jax.ops.stored_weight import StoredWeight
from lattice_jax.types import whole_segment
from tests.models.tiny_files import LLAMA, QWEN2, make_tensors, write_folder, write_gguf

TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 37, (1, 9)))
IS_STORED = {"is_leaf": lambda leaf: isinstance(leaf, StoredWeight)}


def write(folder, config, kind):
  if kind == "safetensors":
    return write_folder(folder / "model", config, make_tensors(config))
  return write_gguf(folder / "model.gguf", config, make_tensors(config), kind=kind)[0]


def logits(model, params):
  @jax.jit
  def run(params):
    output = Decoder(model).apply({"params": params}, TOKENS, init_state(model, 1), whole_segment(1, 9))
    return Decoder(model).apply({"params": params}, output.features_BTD, method=Decoder.logits)

  return np.asarray(run(params))


@pytest.mark.parametrize(("config", "kind"), [
  (LLAMA, "safetensors"), (QWEN2, "safetensors"), (LLAMA, "F16"), (LLAMA, "Q4_0"), (QWEN2, "Q4_1"), (LLAMA, "Q8_0"),
  (LLAMA, "Q5_0")], ids=lambda value: value if isinstance(value, str) else value["model_type"])
def test_the_model_says_the_same(tmp_path, config, kind):
  pretrained = open_pretrained(write(tmp_path, config, kind))
  arrays, stored = pretrained.params(), pretrained.params(stored=True)
  leaves = [leaf for leaf in jax.tree.leaves(stored, **IS_STORED) if isinstance(leaf, StoredWeight)]
  assert len(leaves) == 8 + (config is LLAMA) and count_parameters(stored) == count_parameters(arrays)
  assert {leaf.is_coded for leaf in leaves} == {kind in ("Q4_0", "Q4_1", "Q8_0")}
  np.testing.assert_allclose(logits(pretrained.model, stored), logits(pretrained.model, arrays), rtol=1e-4, atol=1e-4)


def resident_bytes(path):
  """Bytes of the file that lie in this process."""
  resident, is_of_file = 0, False
  for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
      is_of_file = line.endswith(str(path))
    elif is_of_file and line.startswith("Rss:"):
      resident += 1024 * int(line.split()[1])
  return resident


@pytest.mark.skipif(
  not Path("/proc/self/smaps").exists(), reason="Linux alone tells, in /proc/self/smaps, which pages are in memory")
@pytest.mark.parametrize("is_stored", [False, True], ids=["floats", "stored"])
@pytest.mark.parametrize("kind", ["safetensors", "F32", "F16", "Q4_1", "Q8_0"])
def test_pages_of_the_file_do_not_stay_in_memory(tmp_path, kind, is_stored):
  path = write(tmp_path, LLAMA | {"vocab_size": 20_000}, kind)
  pretrained = open_pretrained(path)
  params = pretrained.params(stored=is_stored)  # read, and held while pages are counted
  file = path / "model.safetensors" if path.is_dir() else path
  assert resident_bytes(file) < 0.3 * file.stat().st_size, "pages that were read stay beside the weights made of them"
  assert count_parameters(params) == count_parameters(pretrained.shapes)


def test_it_writes_the_same(tmp_path):
  pretrained = open_pretrained(write(tmp_path, QWEN2, "Q4_1"))
  np.testing.assert_array_equal(*(
    generate(pretrained.model, {"params": params}, [[5, 6]], length=8, temperature=0.0)
    for params in (pretrained.params(), pretrained.params(stored=True))))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_codes_are_the_numbers_that_the_library_reads(tmp_path, kind):
  file = GGUFFile(write(tmp_path, LLAMA, kind))
  for name, tensor in file.tensors.items():
    parts = file.read_codes(name)
    if len(tensor.shape) < 2:
      assert parts is None
      continue
    code, scale, offset = parts
    np.testing.assert_array_equal(
      code * np.repeat(scale, 32, 1) + np.repeat(offset, 32, 1), file.read(name), err_msg=name)


def test_blocks_of_different_kinds_are_floats(tmp_path):
  """Some publishers give some layers more bits."""
  path = write(tmp_path, LLAMA, "Q8_0")
  pretrained = open_pretrained(path)
  whole = pretrained.weights.read_codes
  pretrained.weights.read_codes = lambda name: None if "layers.1.mlp.down" in name else whole(name)
  stored = pretrained.params(stored=True)["groups"]["block_0"]["mlp"]
  assert stored["up"].is_coded and not stored["down"].is_coded
  np.testing.assert_array_equal(
    stored["down"].code_NK, np.swapaxes(pretrained.params()["groups"]["block_0"]["mlp"]["down"], 1, 2))


@pytest.mark.parametrize("tied", [True, False])
def test_a_decode_step_makes_no_floats_of_codes(tmp_path, optimized, tied):
  sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 160}
  config = LLAMA | sizes | {"tie_word_embeddings": tied}
  pretrained = open_pretrained(write(tmp_path, config, "Q8_0"))
  model = pretrained.model

  def two_steps(params, state):
    def step(_, state):
      return read_token(model, {"params": params}, None, jnp.argmax(state.logits_BA, -1), jnp.ones((1,), bool), state)

    return jax.lax.fori_loop(0, 2, step, state)

  start = start_state(model, 1, 64, None)
  compiled = jax.jit(two_steps).lower(pretrained.params(stored=True), start).compile().as_text()
  outside_fusions = "\n".join(
    part for part in compiled.split("\n\n") if not part.lstrip().startswith(("%fused_computation", "%wrapped_")))
  sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"= f32\[([\d,]+)\]", outside_fusions)]
  assert not {160 * 64, 96 * 64} & set(sizes)


def test_a_file_is_read_once_as_long_as_it_stays_the_same(tmp_path):
  path = write(tmp_path, QWEN2, "Q4_0")
  assert GGUFFile.open(path) is GGUFFile.open(path)
  path.unlink()
  assert write(tmp_path, QWEN2, "Q8_0") == path
  kinds = {tensor.kind.name for tensor in GGUFFile.open(path).tensors.values()}
  assert "Q8_0" in kinds and "Q4_0" not in kinds
