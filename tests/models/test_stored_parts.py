"""Parts copied out of a file are what the ordinary loader makes of it, bit by bit; other kinds are refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.formats.mapped_file import MappedFile
from lattice_jax.models.pretrained import open_pretrained
from lattice_jax.models.pretrained.stored_parts import block_parts, outside_parts
from lattice_jax.ops.packed_weight import is_packed
from lattice_jax.ops.stored_weight import StoredWeight
from tests.models.tiny_files import LLAMA, QWEN2, make_tensors, write_folder, write_gguf
from tests.thorough import further

BIASED = LLAMA | {"attention_bias": True, "num_hidden_layers": 4}


def write(folder, config, kind):
  if kind in ("F32 folder", "two files"):
    return write_folder(folder / "model", config, make_tensors(config), shards=1 + (kind == "two files"))
  if kind == "F16 folder":
    return write_folder(
      folder / "model", config, {name: tensor.astype(np.float16) for name, tensor in make_tensors(config).items()})
  return write_gguf(folder / "model.gguf", config, make_tensors(config), kind=kind)[0]


def filled(parts):
  """As copies are made, each into memory of its own."""
  def fill(part):
    out = np.empty(part.shape, part.dtype)
    part.fill(out)
    assert part.nbytes == out.nbytes and part.is_finite(out)
    return out

  return jax.tree.map(fill, parts)


def floats(tree):
  """Matrices as they are multiplied, [outputs, inputs]."""
  def convert(leaf):
    leaf = jax.tree.map(jnp.asarray, leaf)
    leaf = leaf.with_codes(leaf.codes()) if is_packed(leaf) else leaf
    return leaf._floats() if isinstance(leaf, StoredWeight) else leaf

  return jax.tree.map(convert, tree, is_leaf=lambda leaf: is_packed(leaf) or isinstance(leaf, StoredWeight))


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, floats(one), floats(other))


@pytest.mark.parametrize(("config", "kind"), [
  (BIASED, "F32 folder"), (BIASED, "two files"), (QWEN2, "F16"), (LLAMA, "BF16"), (BIASED, "Q8_0"), (QWEN2, "Q4_1"),
  *further((LLAMA, "F16 folder"), (BIASED, "F32"), (LLAMA, "Q4_0"), (LLAMA, "Q4_1"))],
  ids=lambda value: value if isinstance(value, str) else value["model_type"])
def test_parts_are_what_the_ordinary_loader_reads(tmp_path, config, kind):
  pretrained = open_pretrained(write(tmp_path, config, kind))
  stored = pretrained.params(stored=True)
  for layer in range(pretrained.model.layers):
    wanted = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stored["groups"]["block_0"])
    for packed in (True, False):
      parts = filled(block_parts(pretrained, layer, packed=packed))
      has_packed = any(map(is_packed, jax.tree.leaves(parts, is_leaf=is_packed)))
      assert has_packed == (packed and kind in ("Q4_0", "Q4_1"))
      assert_same(parts, wanted)
  assert_same(filled(outside_parts(pretrained)), {name: leaf for name, leaf in stored.items() if name != "groups"})


def test_a_pattern_of_two_takes_every_second_layer(tmp_path):
  pretrained = open_pretrained(write(tmp_path, BIASED, "F32"))
  model = dataclasses.replace(
    pretrained.model, pattern=("attention", "anchor"))
  mixed = pretrained.with_memories(model)
  for layer in range(4):
    jax.tree.map(
      np.testing.assert_array_equal, *(filled(block_parts(one, layer, packed=True)) for one in (mixed, pretrained)))


def test_four_bit_layers_take_half_of_the_memory(tmp_path):
  pretrained = open_pretrained(write(tmp_path, LLAMA, "Q4_1"))
  packed, apart = (
    sum(part.nbytes for part in jax.tree.leaves(block_parts(pretrained, 0, packed=packed))) for packed in (True, False))
  numbers = sum(np.prod(tensor.shape) for name, tensor in make_tensors(LLAMA).items() if ".0." in name)
  assert packed < 0.66 * numbers < 1.1 * numbers < apart


def test_a_kind_that_would_have_to_be_converted_is_refused(tmp_path):
  pretrained = open_pretrained(write(tmp_path, LLAMA, "Q5_0"))
  sentence = "has type Q5_0, and weights are streamed in F32, F16, BF16, Q8_0, Q4_0 or Q4_1 only; use a file in one"
  with pytest.raises(ValueError, match=rf"tensor model.layers.1.\S+ {sentence}"):
    block_parts(pretrained, 1, packed=True)


def test_not_finite_numbers_are_seen_where_there_are_any(tmp_path):
  pretrained = open_pretrained(write(tmp_path, LLAMA, "Q8_0"))
  parts = block_parts(pretrained, 0, packed=True)["mlp"]["up"]
  codes, scales = (np.zeros(part.shape, part.dtype) for part in (parts.code_NK, parts.scale_NS))
  scales[2, 0] = np.inf
  assert parts.code_NK.is_finite(codes) and not parts.scale_NS.is_finite(scales)


def test_matrices_of_floats_are_read_past_the_mapping(tmp_path, monkeypatch):
  parts = block_parts(open_pretrained(write(tmp_path, LLAMA, "F32 folder")), 0, packed=True)
  wanted = {(part.tensor.start, part.nbytes) for part in jax.tree.leaves(parts) if not part.is_cast}
  read = set()
  monkeypatch.setattr(MappedFile, "read_into", lambda self, start, out: read.add((start, out.nbytes)))
  for part in jax.tree.leaves(parts):
    part.fill(np.empty(part.shape, part.dtype))
  assert read == wanted and len(wanted) == 7
