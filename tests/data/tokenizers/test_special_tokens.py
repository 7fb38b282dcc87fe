"""Which tokens a model's files name, under which ids, and which of them end an answer; contradictions are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from lattice_jax.data.tokenizers.pretrained import read_pretrained_tokenizer
from tests.data.tokenizers import test_backend
from tests.data.tokenizers.test_pretrained import SPECIAL, read, trained, write_header, write_json

FIRST = len(trained("gpt-2")[0])  # the first id behind the tokenizer's own
START = {"content": "<|im_start|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
         "special": True}


def write_files(folder, files, **config):
  """A folder with a tokenizer and such further files; None takes one away."""
  write_json(folder, "gpt-2", **config)
  for name, content in files.items():
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
  return folder


def write_named(path, names, **changes):
  """A GGUF file with further control tokens of such names."""
  tokens, _ = trained("gpt-2")
  kinds = [3, 3, 3] + [1] * (len(tokens) - 3) + [3] * len(names)
  return write_header(path, "gpt-2", add_token_list=[*tokens, *names], add_token_types=kinds, **changes)


@pytest.mark.parametrize(
  ("names", "changes", "stops"), [
    ([], {}, (2, 0)),
    (["<a>", "<b>"], {"add_eot_token_id": FIRST}, (2, FIRST, 0)),
    (["<a>", "<b>"], {"add_eot_token_id": FIRST + 1, "add_eom_token_id": FIRST}, (2, FIRST + 1, FIRST, 0)),
    (["<|eot_id|>", "<|eom_id|>", "<|start|>"], {}, (2, 0, FIRST, FIRST + 1)),
    (["<|im_end|>"], {"add_eos_token_id": None}, (0, 2, FIRST)),
    (["<a>"], {"add_eot_token_id": 2**32 - 1}, (2, 0))],
  ids=["eos", "eot", "eom", "well-known", "no-eos", "none"])
def test_every_id_that_a_header_names_ends_an_answer(names, changes, stops, tmp_path):
  assert read(write_named(tmp_path / "a.gguf", names, **changes)).stop_ids == stops


def test_a_piece_of_plain_text_ends_nothing(tmp_path):
  tokens, _ = trained("gpt-2")
  path = write_header(
    tmp_path / "a.gguf", "gpt-2", add_token_list=[*tokens, "<|im_end|>"],
    add_token_types=[1, 3, 3] + [1] * (len(tokens) - 2))
  assert read(path).stop_ids == (2,)


def test_sentencepiece_headers_name_them_too(tmp_path):
  path = test_backend.write_header(tmp_path / "a.gguf", add_eot_token_id=7)
  assert read(path).stop_ids == (2, 7)


@pytest.mark.parametrize(
  ("files", "config", "stops"), [
    ({}, {}, (2, 0)), ({"generation_config.json": {"eos_token_id": 1}}, {}, (1, 2, 0)),
    ({"generation_config.json": {"eos_token_id": [9, 0]}, "config.json": {"eos_token_id": 9}}, {}, (9, 0, 2)),
    ({"config.json": {}}, {}, (2,)), ({"config.json": {}}, {"eos_token": None}, ()),
    ({"config.json": {}, "special_tokens_map.json": {"eos_token": "<|bos|>"}}, {"eos_token": None}, (1,))],
  ids=["config", "generation", "both", "tokenizer", "none", "map"])
def test_every_id_that_a_folder_names_ends_an_answer(files, config, stops, tmp_path):
  assert read(write_files(tmp_path, files, **config)).stop_ids == stops


@pytest.mark.parametrize(
  ("files", "config", "start", "end"), [
    ({}, {"added_tokens_decoder": {FIRST: START, FIRST + 1: START | {"content": "<e>"}}}, FIRST, FIRST + 1),
    ({"added_tokens.json": {"<e>": FIRST + 1, "<|im_start|>": FIRST}}, {}, FIRST, FIRST + 1),
    ({"added_tokens.json": {"<|im_start|>": FIRST + 9}}, {"added_tokens_decoder": {FIRST + 4: {"content": "<e>"}}},
     FIRST + 9, FIRST + 4),
    ({"added_tokens.json": {"<|im_start|>": FIRST}}, {
      "added_tokens_decoder": {FIRST: START, FIRST + 2: START | {"content": "<e>"}}}, FIRST, FIRST + 2)],
  ids=["decoder", "json", "gaps", "both"])
def test_added_tokens_have_the_ids_that_are_stated(files, config, start, end, tmp_path):
  tokenizer = read(write_files(tmp_path, files, **config))
  assert tokenizer.encode(b"<|im_start|>hi<e>").tolist() == [start, *tokenizer.encode(b"hi"), end]
  assert tokenizer.vocab_size == max(start, end) + 1
  assert tokenizer.encode(b"the <|bos|>").tolist()[-1] == 1


def test_special_ones_give_no_text_and_others_do(tmp_path):
  config = {"added_tokens_decoder": {FIRST: START, FIRST + 1: {"content": "<e>", "rstrip": True}}}
  tokenizer = read(write_files(tmp_path, {}, **config))
  ids = tokenizer.encode(b"<|im_start|>hi<e>  x")
  assert ids.tolist() == [FIRST, *tokenizer.encode(b"hi"), FIRST + 1, *tokenizer.encode(b"x")]
  assert tokenizer.decode(ids) == b"hi<e>x"


def test_a_tokenizer_json_is_held_to_its_own_ids(tmp_path):
  """The library alone would number them anew, without a word."""
  write_json(tmp_path, "gpt-2")
  file = tmp_path / "tokenizer.json"
  content = json.loads(file.read_text())
  content["added_tokens"].append(START | {"id": FIRST + 5})
  file.write_text(json.dumps(content))
  assert Tokenizer.from_file(str(file)).token_to_id("<|im_start|>") == FIRST
  assert read(tmp_path).encode(b"<|im_start|>").tolist() == [FIRST + 5]


def test_tokens_are_added_to_a_sentencepiece_model(tmp_path):
  num_pieces = len(test_backend.pieces())
  (tmp_path / "tokenizer.model").write_bytes(test_backend.trained())
  write = (tmp_path / "added_tokens.json").write_text
  write(json.dumps({"<|im_start|>": num_pieces + 1, "<|im_end|>": num_pieces, "</s>": 2}))
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(
    {"bos_token": "<s>", "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}))
  tokenizer = read(tmp_path)
  hi = tokenizer.encode(b"hi").tolist()
  assert tokenizer.encode(b"<|im_start|>hi<|im_end|>").tolist() == [num_pieces + 1, *hi, num_pieces]
  assert (tokenizer.stop_ids, tokenizer.start_ids, tokenizer.vocab_size) == ((num_pieces,), (1,), num_pieces + 2)
  assert tokenizer.decode(np.array([1, num_pieces + 1, *hi, num_pieces])) == b"hi"
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
  assert read(tmp_path).start_ids == ()
  for wrong in ({"<|im_start|>": num_pieces + 1}, {"<x>": 5}, {"<s>": num_pieces}):
    write(json.dumps(wrong))
    with pytest.raises(ValueError, match=r"the id \d+, which cannot be: tokenizer\.model with what is added before"):
      read(tmp_path)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json", "version-5"])
def test_templates_see_special_tokens_without_a_role(where, tmp_path):
  template, tokens = "{{ additional_special_tokens | join }} {{ pad_token }}", ["<|im_start|>", {"content": "<e>"}]
  config = {"added_tokens_decoder": {FIRST: START, FIRST + 1: {"content": "<e>"}}, "chat_template": template}
  name = "extra_special_tokens" if where == "version-5" else "additional_special_tokens"
  roles = {"pad_token": SPECIAL[0], name: tokens}
  files = {where: roles} if where == "special_tokens_map.json" else {}
  tokenizer = read(write_files(tmp_path, files, **config, **({} if files else roles)))
  assert tokenizer.chat([]) == "<|im_start|><e> <|endoftext|>"
  assert tokenizer.pad_id == 0


@pytest.mark.parametrize(
  ("files", "config", "message"), [
    ({"added_tokens.json": {"<|bos|>": 9}}, {}, r"the token '<\|bos\|>' the ids 1 and 9"),
    ({"added_tokens.json": {"<x>": 1}}, {}, r"the id 1 to the tokens '<\|bos\|>' and '<x>'"),
    ({"added_tokens.json": {"<x>": 9}}, {}, "the id 9 to the tokens"),
    ({"added_tokens.json": {"<x>": FIRST}}, {"added_tokens_decoder": {FIRST + 1: {"content": "<x>"}}}, "the ids"),
    ({"added_tokens.json": {"<x>": "9"}}, {}, "gives '<x>' the id \"9\"; it must be a number"),
    ({"added_tokens.json": []}, {}, "holds no JSON object"),
    ({"special_tokens_map.json": {"eos_token": "<|bos|>"}}, {}, "in tokenizer_config.json and '<|bos|>' in"),
    ({}, {"added_tokens_decoder": {"x": START}}, "of the added token 'x'"),
    ({}, {"added_tokens_decoder": {FIRST: "<x>"}}, "it must be an id and a token"),
    ({}, {"added_tokens_decoder": [1]}, r"added_tokens_decoder=\[1\]; it must be an object"),
    ({}, {"eos_token": "<nowhere>"}, "no token '<nowhere>', which its files say is its eos_token"),
    ({}, {"bos_token": 7}, "bos_token=7; it must be a text"),
    ({}, {"additional_special_tokens": 7}, "it must be a list of tokens"),
    ({}, {"split_special_tokens": "no"}, "split_special_tokens=\"no\"; it must be true or false"),
    ({"generation_config.json": {"eos_token_id": "2"}}, {}, "it must be an id, or a list of ids"),
    ({"config.json": {"eos_token_id": [True]}}, {}, r"eos_token_id=\[true\]; it must be an id"),
    ({}, {"chat_template": [{"name": ["x"], "template": "a"}]}, "list of chat templates that are not all texts"),
    ({}, {"chat_template": [{"name": "x", "template": "a"}]}, "one of them 'default'"),
    ({}, {"chat_template": {"default": "a"}}, "it must be a text, or a list of named ones")],
  ids=["two-ids", "two-tokens", "of-the-model", "two-files", "number", "list", "roles", "key", "text", "array",
       "no-eos", "bos", "extra", "flag", "stop", "bool", "name", "default", "object"])
def test_contradictions_and_other_types_are_refused(files, config, message, tmp_path):
  with pytest.raises(ValueError, match=message) as caught:
    read_pretrained_tokenizer("tiny", write_files(tmp_path, files, **config))
  assert "\n" not in str(caught.value)
