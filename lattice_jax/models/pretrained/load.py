"""Loads the weights of a Llama-family model into the parameters of our decoder, one tensor at a time."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lattice_jax.config import ModelConfig
from lattice_jax.formats.locate import find_pretrained
from lattice_jax.formats.safetensors_folder import SafetensorsFolder
from lattice_jax.formats.stored_tensor import StoredTensor
from lattice_jax.memories.registry import FOLDERS, find_memory
from lattice_jax.models.pretrained.config_json import read_model_config
from lattice_jax.models.pretrained.gguf_weights import GGUFWeights
from lattice_jax.models.pretrained.tensors import (
  EMBEDDING,
  HEAD,
  block_shape,
  file_names,
  from_file,
  is_in_block,
  is_matrix,
  leaf_name,
  parameter_shapes,
  sizing_tensors,
  wanted_tensors,
)
from lattice_jax.ops.rotary import scaled_frequencies
from lattice_jax.ops.stored_weight import StoredWeight
from lattice_jax.shown import shown_name

_OLD_FREQUENCIES = ".self_attn.rotary_emb.inv_freq"


@runtime_checkable
class Weights(Protocol):
  """The open files of a model: its config.json, the names and shapes of its tensors, and each tensor's values."""

  path: Path
  config: dict[str, Any]
  shapes: dict[str, tuple[int, ...]]

  def read(self, name: str) -> np.ndarray:
    """The tensor in float32."""

  def read_codes(self, name: str) -> tuple[np.ndarray, ...] | None:
    """The codes, scales and offsets of a `StoredWeight`; None for a tensor that is not stored as such."""

  def stored(self, name: str) -> StoredTensor:
    """The tensor where it lies in its file."""


@dataclass(frozen=True, eq=False)
class Pretrained:
  """A model whose files hold what its config promises; `params` reads them.

  context_len: the number of tokens that it was made or stretched to read. fitted: parameters that are in no file of the
  model, by their paths, stacked over the repetitions of the pattern.
  """

  model: ModelConfig
  context_len: int
  weights: Weights
  fitted: Mapping[str, np.ndarray] = field(default_factory=dict)

  def with_memories(self, model: ModelConfig) -> Pretrained:
    """The same weights in a model whose layers have other memories, all of which attend.

    Raises:
      ValueError: a memory has other parameters than attention, or the pattern does not repeat evenly.
    """
    other = [name for name in model.pattern if not find_memory(name).is_attention]
    if other:
      able = ", ".join(name for name in FOLDERS if find_memory(name).is_attention)
      raise ValueError(
        f"model.pattern names {other[0]!r}, whose parameters a pretrained model of attention lacks; use {able}.")
    if model.layers % len(model.pattern):
      raise ValueError(
        f"model.pattern names {len(model.pattern)} layers, which do not divide the model's {model.layers}; name one, "
        "or each.")
    return replace(self, model=model)

  def with_fitted(self, model: ModelConfig) -> Pretrained:
    """The same weights with the parameters that the memories of `model` have beside those of attention.

    Raises:
      ValueError: no file is named that holds them, or it was made for other weights.
    """
    fitted = {}
    for block, memory in enumerate(model.pattern):
      record = find_memory(memory).fitted
      arrays = {} if record is None else record.read(model, self.digest)
      fitted |= {
        f"groups/block_{block}/memory/{name}": np.asarray(array)[block::len(model.pattern)]
        for name, array in arrays.items()}
    return replace(self, fitted=fitted)

  @functools.cached_property
  def digest(self) -> str:
    """16 hex digits of the first and the last layer's key projections: which weights these are."""
    names = file_names("groups/block_0/memory/key", replace(self.model, pattern=("attention",)))
    digest = hashlib.blake2b(digest_size=8)
    for name in (names[0], names[-1]):
      digest.update(np.ascontiguousarray(self.weights.read(name)))
    return digest.hexdigest()

  @property
  def shapes(self) -> Any:
    """The tree of the parameters' shapes."""
    shapes = parameter_shapes(self.model)
    groups = {block: {**parts, "memory": dict(parts["memory"])} for block, parts in shapes["groups"].items()}
    for path, array in self.fitted.items():
      _, block, _, name = path.split("/")
      groups[block]["memory"][name] = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return {**shapes, "groups": groups}

  def params(self, shardings: Any = None, *, stored: bool = False) -> Any:
    """Our parameters: matrices in the model's dtype, norms and biases in float32.

    At most one array is in host memory beside those already on devices. `shardings` has the tree of the parameters.
    With `stored`, matrices are each a `StoredWeight` as the file has them, whole on every device.

    Raises ValueError if a tensor holds NaN or infinity, or the head differs from the embedding that it is tied to.
    """
    self.check_head()
    shardings = shardings or jax.tree.map(lambda leaf: None, self.shapes)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, sharding: Any) -> Any:
      name = leaf_name(path)
      if name in self.fitted:
        return jax.device_put(self.fitted[name], sharding)
      if stored and is_matrix(name):
        whole = sharding and NamedSharding(sharding.mesh, PartitionSpec())
        return jax.device_put(self._read_stored(name), whole)
      return jax.device_put(self._read_leaf(name, leaf.shape), sharding)

    return jax.tree_util.tree_map_with_path(fill, self.shapes, shardings)

  def check_head(self) -> None:
    """Raises ValueError if the file holds a head that differs from the embedding to which the config ties it."""
    if not self.model.tied_embeddings or HEAD not in self.weights.shapes:
      return
    # checksums, so that only one matrix is in memory at a time
    embedding, head = (hashlib.blake2b(self.weights.read(name)).digest() for name in (EMBEDDING, HEAD))
    if embedding != head:
      raise ValueError(
        f"{self.weights.path} says tie_word_embeddings=true but holds a {HEAD} that differs from {EMBEDDING}; correct "
        "its config.json if the model has a head of its own, or take the tensor out.")

  def _read_leaf(self, leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    names, one_shape = file_names(leaf, self.model), block_shape(leaf, shape)
    array = np.empty((len(names), *one_shape), jnp.dtype(self.model.dtype) if is_matrix(leaf) else np.float32)
    for index, name in enumerate(names):
      tensor = self.weights.read(name)
      self._check_finite(name, tensor)
      array[index] = from_file(leaf, tensor, one_shape)
    return array.reshape(shape)

  def _read_stored(self, leaf: str) -> StoredWeight:
    """The matrices of all blocks; floats where not all of them are codes."""
    return self._stacked(leaf, self.weights.read_codes) or self._stacked(leaf, lambda name: (self.weights.read(name),))

  def _stacked(self, leaf: str, read: Callable[[str], tuple[np.ndarray, ...] | None]) -> StoredWeight | None:
    names, stack = file_names(leaf, self.model), []
    for index, name in enumerate(names):
      parts = read(name)
      if parts is None:
        return None
      self._check_finite(name, *(parts[1:] or parts))
      stack = stack or [np.empty((len(names), *part.shape), part.dtype) for part in parts]
      for whole, part in zip(stack, parts, strict=True):
        whole[index] = part
    return StoredWeight(*(whole if is_in_block(leaf) else whole[0] for whole in stack))

  def _check_finite(self, name: str, *arrays: np.ndarray) -> None:
    # one pass without a temporary: NaN and infinity carry over to the sum
    if not all(np.isfinite(array.sum(dtype=np.float64)) for array in arrays):
      raise ValueError(f"{self.weights.path}: tensor {name} holds NaN or infinity; get the file again.")


def open_pretrained(name: str | Path, *, dtype: str = "float32", context_len: int = 0) -> Pretrained:
  """Opens a known model, a folder of safetensors or a .gguf file without reading its weights.

  Raises ValueError if it does not exist, is damaged, or is not a model that our decoder can represent.
  """
  path = find_pretrained(str(name))
  weights = SafetensorsFolder(path) if path.is_dir() else GGUFWeights(path)
  model, context_len = read_model_config(weights.config, path, dtype=dtype, context_len=context_len)
  _check_tensors(weights, model)
  return Pretrained(model=model, context_len=context_len, weights=weights)


def load_pretrained(name: str | Path, *, dtype: str = "float32") -> tuple[ModelConfig, Any]:
  """(config, parameters) of a pretrained model; see `open_pretrained`."""
  pretrained = open_pretrained(name, dtype=dtype)
  return pretrained.model, pretrained.params()


def _check_tensors(weights: Weights, model: ModelConfig) -> None:
  """Raises ValueError unless the tensors and their shapes are exactly those that the config promises."""
  _check_wanted(weights, sizing_tensors(model))
  wanted = wanted_tensors(model)
  _check_wanted(weights, wanted)
  spare = {name for name in weights.shapes if name.endswith(_OLD_FREQUENCIES)}
  if model.tied_embeddings and HEAD in weights.shapes:
    spare.add(HEAD)
    _check_wanted(weights, {HEAD: (model.vocab, model.dim)})
  unknown = sorted(set(weights.shapes) - set(wanted) - spare)
  if unknown:
    raise ValueError(
      f"{weights.path} holds the tensor {shown_name(unknown[0])}{_and_others(unknown)}, which no "
      f"{weights.config['model_type']} model has; it is another kind of model than its config says.")
  for name in sorted(spare - {HEAD}):
    _check_frequencies(weights, name, model)


def _check_wanted(weights: Weights, wanted: dict[str, tuple[int, ...]]) -> None:
  missing = sorted(set(wanted) - set(weights.shapes))
  if missing:
    raise ValueError(
      f"{weights.path} lacks the tensor {missing[0]}{_and_others(missing)} that its config promises; get it again.")
  for name, shape in wanted.items():
    if weights.shapes[name] != shape:
      raise ValueError(
        f"{weights.path}: tensor {name} has shape {weights.shapes[name]}, and its config promises {shape}; get the "
        "model again.")


def _check_frequencies(weights: Weights, name: str, model: ModelConfig) -> None:
  """Checks the rotary frequencies of older files, often in half precision, against the config, which implies them."""
  attention = model.attention
  half = attention.key_dim // 2
  known = [attention.rope_theta ** (-np.arange(half) / half)]
  if attention.rope_scaling.kind != "none":
    known.append(scaled_frequencies(attention.rope_scaling, attention.rope_theta, half))
  found = weights.read(name)
  if found.shape != (half,) or not any(np.allclose(found, wanted, rtol=0.01, atol=1e-7) for wanted in known):
    raise ValueError(
      f"{weights.path}: the rotary frequencies in tensor {shown_name(name)} are not those of its config; one of the "
      "two is wrong: get the model again.")


def _and_others(names: Iterable[str]) -> str:
  others = len(list(names)) - 1
  return f" and {others} others" if others > 1 else " and 1 other" if others else ""


def check_no_file(model: ModelConfig, stored: ModelConfig | None = None) -> None:
  """Raises ValueError if the model of a run, whose parameters are its own, is given a file for a pretrained one.

  stored: as the run has it, which may have started from that file.
  """
  for memory in dict.fromkeys(model.pattern):
    record = find_memory(memory).fitted
    given = record and operator.attrgetter(record.field)(model)
    if given and (stored is None or given != operator.attrgetter(record.field)(stored)):
      raise ValueError(
        f"model.{record.field}={given} holds parameters that a pretrained model lacks, and this run has its own; leave "
        "it out.")
