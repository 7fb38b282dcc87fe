"""Where a folder, a file or a name could mean two things, a sentence says so; nothing is chosen in silence."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from lattice_jax.formats import locate
from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.formats.locate import find_pretrained
from lattice_jax.models.pretrained import load_pretrained, open_pretrained
from tests.models.tiny_files import LLAMA, gguf_bytes, make_tensors, write_folder

TIED = LLAMA | {"tie_word_embeddings": True}
INDEX = "model.safetensors.index.json"


def save(path, **tensors):
  safetensors.numpy.save_file(tensors or {"x": np.ones(2, np.float32)}, path)


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(tmp_path):
  tensors = make_tensors(TIED)
  embedding = tensors["model.embed_tokens.weight"]
  same = write_folder(tmp_path / "same", TIED, tensors | {"lm_head.weight": embedding.copy()})
  assert "head" not in load_pretrained(same)[1]
  other = embedding.copy()
  other[-1, -1] += 1e-3
  pretrained = open_pretrained(write_folder(tmp_path / "other", TIED, tensors | {"lm_head.weight": other}))
  with pytest.raises(ValueError, match=r"tie_word_embeddings=true but holds a lm_head.weight that differs"):
    pretrained.params()
  with pytest.raises(ValueError, match=r"lm_head.weight has shape \(36, 32\)"):
    open_pretrained(write_folder(tmp_path / "short", TIED, tensors | {"lm_head.weight": other[1:]}))


@pytest.mark.parametrize("theta", [100.0, 10_000.0])
def test_old_rotary_frequencies_must_be_those_of_the_config(theta, tmp_path):
  inv_freq = np.float16(theta ** (-np.arange(8) / 8))
  tensors = make_tensors(LLAMA) | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": inv_freq for n in range(2)}
  folder = write_folder(tmp_path, LLAMA, tensors)
  if theta == LLAMA["rope_theta"]:
    assert open_pretrained(folder).model.attention.rope_theta == theta
    return
  with pytest.raises(ValueError, match=r"frequencies in tensor model.layers.0.self_attn.rotary_emb.inv_freq are not"):
    open_pretrained(folder)


def single_beside_index(folder):
  save(folder / "model.safetensors")


def shard_of_another(folder):
  save(folder / "model-00003-of-00003.safetensors")


def gguf_beside(folder):
  (folder / "model.gguf").write_bytes(b"")


def adapter(folder):
  (folder / "adapter_config.json").write_text("{}")


def index_of_another(folder):
  index = json.loads((folder / INDEX).read_text())
  index["weight_map"]["model.norm.weight"] = {"part-0.safetensors": "part-1.safetensors"}.get(
    index["weight_map"]["model.norm.weight"], "part-0.safetensors")
  (folder / INDEX).write_text(json.dumps(index))


def index_without(folder):
  index = json.loads((folder / INDEX).read_text())
  del index["weight_map"]["model.norm.weight"]
  (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
  ("add", "message"), [
    (single_beside_index, r"holds model.safetensors beside the weights that model.safetensors.index.json stands for"),
    (shard_of_another, r"holds model-00003-of-00003.safetensors beside"),
    (gguf_beside, r"holds model.gguf beside"),
    (adapter, r"holds adapter_config.json, and adapters are not applied"),
    (index_of_another, r"do not agree on where tensor model.norm.weight is"),
    (index_without, r"do not agree on where tensor model.norm.weight is"),
  ], ids=lambda value: value.__name__ if callable(value) else "")
def test_a_second_set_of_weights_is_refused(add, message, tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA), shards=2)
  add(folder)
  with pytest.raises(ValueError, match=message):
    open_pretrained(folder)


def test_an_old_shard_beside_a_single_file_is_refused_and_the_same_weights_in_another_layout_are_not(tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA))
  save(folder / "consolidated.00.safetensors")
  (folder / "pytorch_model.bin").write_bytes(b"")
  (folder / "._model.safetensors").write_bytes(b"")
  assert open_pretrained(folder).model.layers == 2
  names = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
  assert open_pretrained(folder).model.layers == 2
  save(folder / "model-00001-of-00002.safetensors")
  with pytest.raises(ValueError, match=r"holds model-00001-of-00002.safetensors beside"):
    open_pretrained(folder)


@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_json_that_says_a_name_twice_is_refused(file, tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA), shards=2)
  text = (folder / file).read_text()
  name = "hidden_size" if file == "config.json" else "model.norm.weight"
  value = "32" if file == "config.json" else '"part-0.safetensors"'
  start = text.index(f'"{name}"')
  (folder / file).write_text(f'{text[:start]}"{name}": {value}, {text[start:]}')
  with pytest.raises(ValueError, match=rf"{file} says '{name}' twice, so one of the two is wrong"):
    open_pretrained(folder)


def test_a_header_that_names_a_tensor_twice_is_refused(tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA))
  raw = (folder / "model.safetensors").read_bytes()
  length = struct.unpack("<Q", raw[:8])[0]
  header = raw[8:8 + length].decode().rstrip()
  start = header.index('"model.norm.weight"')
  entry = header[start:header.index("}", start) + 1].replace("F32", "F16").replace("[32]", "[64]")
  header = f"{header[:-1]},{entry}}}".encode()
  header += b" " * (-len(header) % 8)
  (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length:])
  with pytest.raises(ValueError, match=r"the header of .*model.safetensors says 'model.norm.weight' twice"):
    open_pretrained(folder)


def test_tensors_of_a_gguf_that_overlap_are_refused(tmp_path):
  tensors = {name: np.full((4, 8), value, np.float32) for name, value in (("first", 1), ("second", 2))}
  raw = gguf_bytes({"general.architecture": "llama"}, tensors)
  place = raw.index(b"second") + len(b"second") + 4 + 16 + 4
  path = tmp_path / "a.gguf"
  path.write_bytes(raw)
  assert GGUFFile(path).read("second").max() == 2
  path.write_bytes(raw[:place] + struct.pack("<Q", 64) + raw[place + 8:])
  with pytest.raises(ValueError, match="its tensors first and second overlap"):
    GGUFFile(path)


def test_a_name_that_is_also_a_folder_is_refused(tmp_path, monkeypatch):
  write_folder(tmp_path / "smollm2", LLAMA, make_tensors(LLAMA))
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"'smollm2' is a known name, and also a folder .* write ./smollm2 for"):
    find_pretrained("smollm2")
  assert find_pretrained("./smollm2").is_dir()


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody_of_this_name/model", "a\0b", "line\nbreak"])
def test_a_name_that_cannot_be_a_file_is_refused_in_one_sentence(name):
  with pytest.raises(ValueError, match="pretrained model '") as error:
    find_pretrained(name)
  assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_a_package_or_folder_with_two_files_is_refused(tmp_path, monkeypatch):
  package = tmp_path / "two_files_in_a_package"
  package.mkdir()
  for name in ("a.gguf", "b.gguf"):
    (package / name).write_bytes(b"")
  (package / "__init__.py").write_text("")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setitem(locate.PACKAGES, "smollm2", (package.name, "-"))
  with pytest.raises(ValueError, match=r"the package of 'smollm2' holds 2 .gguf files; give the path of .*a.gguf"):
    find_pretrained("smollm2")
  with pytest.raises(ValueError, match=r"holds no config.json; .* or a .gguf file such as a.gguf"):
    find_pretrained(str(package))
