"""Tokenizers and chat templates of pretrained models: tokenizer.json and GGUF alike, through our own interface."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from lattice_jax.config import DataConfig
from lattice_jax.data.tokenizers.pretrained import read_pretrained_tokenizer
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, get_tokenizer
from tests.models.tiny_files import LLAMA, write_folder, write_gguf

SPECIAL = ("<|endoftext|>", "<|bos|>", "<|end|>")
TEXTS = [
  "", "  ", "In 1984, 12345 cats' tails", "don't we'LL\r\n\n  go   ", "naïve café 東京 🙂", "½ of 3²",
  "<|bos|>hi there<|end|> <|endoftext|>x", "\t\tthe  the\n"]
TEMPLATE = (
  "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{{ eos_token }}{% endfor %}"
  "{% if add_generation_prompt %}[assistant]{% endif %}")


@functools.lru_cache
def trained(cut):
  """(tokens, merges) of a byte-level BPE that was trained on a few words."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = PRE_TOKENIZERS[cut]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=330, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
  tokenizer.train_from_iterator(["the cats of 1984 don't go there, 12 of 123 tails hi  the the\n\n"] * 5, trainer)
  model = json.loads(tokenizer.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  return tokens, [tuple(merge) for merge in model["merges"]]


BYTES = functools.partial(pre_tokenizers.ByteLevel, add_prefix_space=False)
PRE_TOKENIZERS = {
  "gpt-2": BYTES(use_regex=True),
  "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES(use_regex=True)]),
}


def write_json(folder, cut="smollm", **config):
  """A folder with the tokenizer as model hubs keep it."""
  tokens, merges = trained(cut)
  tokenizer = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
  tokenizer.pre_tokenizer, tokenizer.decoder = PRE_TOKENIZERS[cut], decoders.ByteLevel()
  tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
  tokenizer.save(str(folder / "tokenizer.json"))
  config = {"bos_token": "<|bos|>", "eos_token": {"content": "<|end|>"}, "chat_template": TEMPLATE} | config
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  write_folder(folder, LLAMA | {"eos_token_id": [2, 0]}, {})
  return folder


def write_header(path, cut="smollm", **changes):
  """A GGUF file without weights, with the tokenizer in its header."""
  tokens, merges = trained(cut if cut in PRE_TOKENIZERS else "gpt-2")
  fields = {
    "add_tokenizer_model": "gpt2", "add_tokenizer_pre": cut, "add_token_list": tokens,
    "add_token_merges": [" ".join(pair) for pair in merges], "add_token_types": [3, 3, 3] + [1] * (len(tokens) - 3),
    "add_bos_token_id": 1, "add_eos_token_id": 2, "add_chat_template": TEMPLATE} | changes
  fields = [(method, value) for method, value in fields.items() if value is not None]
  return write_gguf(path, LLAMA, {"output_norm.weight": np.ones(2, np.float32)}, fields=fields)[0]


def read(path):
  return read_pretrained_tokenizer("tiny", path)


@pytest.mark.parametrize("cut", PRE_TOKENIZERS)
def test_gguf_and_json_give_the_same_ids_and_texts(cut, tmp_path):
  from_json, from_gguf = read(write_json(tmp_path, cut)), read(write_header(tmp_path / "a.gguf", cut))
  assert isinstance(from_gguf, Tokenizer)
  for text in TEXTS:
    ids = from_json.encode(text.encode())
    np.testing.assert_array_equal(from_gguf.encode(text.encode()), ids)
    plain = text
    for token in SPECIAL:
      plain = plain.replace(token, "")
    assert from_gguf.decode(ids) == from_json.decode(ids) == plain.encode()
  assert (from_gguf.vocab_size, from_gguf.eos_id, from_gguf.start_ids) == (len(trained(cut)[0]), 0, ())
  assert from_gguf.stop_ids == from_json.stop_ids == (2, 0)
  assert from_gguf.encode(b"<|bos|>x")[0] == 1


def test_digits_stand_alone_where_the_file_says_so(tmp_path):
  digits, words = (
    read(write_header(tmp_path / f"{cut}.gguf", cut)).encode(b"1984 1984") for cut in ("smollm", "gpt-2"))
  assert len(digits) == 9
  assert len(words) < 9


@pytest.mark.parametrize(
  ("cut", "text", "pieces"), [
    ("llama-bpe", "12345", ["123", "45"]), ("qwen2", "12345", ["1", "2", "3", "4", "5"]),
    ("llama-bpe", "(Don't", ["(Don", "'t"]), ("qwen2", "a\n\n b", ["a", "ĊĊ", "Ġb"]), ("qwen2", "é", ["Ã©"])])
def test_texts_are_cut_as_the_published_models_cut_them(cut, text, pieces, tmp_path):
  tokenizer = read(write_header(tmp_path / "a.gguf", cut)).pieces.tokenizer
  text = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
  assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_a_text_starts_with_bos_where_the_model_wants_it(tmp_path):
  tokenizer = read(write_header(tmp_path / "a.gguf", "gpt-2", add_add_bos_token=True))
  assert (tokenizer.start_ids, tokenizer.eos_id) == ((1,), 1)
  assert 1 not in tokenizer.encode(b"hi")
  assert read(write_header(tmp_path / "b.gguf", "llama-bpe")).start_ids == (1,)


def test_chat_is_put_as_the_template_says(tmp_path):
  messages = [{"role": "user", "content": "Hi <there>"}]
  wanted = "<|bos|>[user] Hi <there><|end|>[assistant]"
  assert read(write_header(tmp_path / "a.gguf")).chat(messages) == wanted
  assert read(write_json(tmp_path)).chat(messages) == wanted
  named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
  assert read(write_json(tmp_path, chat_template=named)).chat(messages) == wanted
  (tmp_path / "chat_template.jinja").write_text("of a file {{ messages | tojson }}")
  assert read(write_json(tmp_path)).chat([]) == "of a file []"


def test_a_template_that_fails_names_the_model(tmp_path):
  tokenizer = read(write_json(tmp_path, chat_template="{{ raise_exception('no system message') }}"))
  with pytest.raises(ValueError, match=r"^the chat template of tiny failed: no system message\.$"):
    tokenizer.chat([{"role": "user", "content": "x"}])


def test_without_a_template_there_is_no_chat(tmp_path):
  with pytest.raises(ValueError, match="the model tiny has no chat"):
    read(write_json(tmp_path, chat_template=None)).chat([])
  with pytest.raises(ValueError, match=r"data\.tokenizer=bytes has no chat template"):
    ByteTokenizer().chat([])


@pytest.mark.parametrize(
  ("changes", "message"), [
    ({"add_tokenizer_model": None}, "holds no tokenizer"),
    ({"add_tokenizer_model": "bert"}, "of kind 'bert' that splits text as 'smollm'; kind 'gpt2' with gpt-2, smollm"),
    ({"add_tokenizer_pre": "viking"}, "splits text as 'viking'"),
    ({"add_token_merges": None}, "without tokens or merges"),
    ({"add_token_merges": ["Ġ zzzz"]}, "the merge 'Ġ zzzz' of tokens that it does not have"),
    ({"add_token_types": [3]}, "does not say which tokens are special"),
    ({"add_token_list": ["a", "aa", "a"], "add_token_merges": ["a a"]}, "a token twice"),
  ], ids=["none", "kind", "cut", "no-merges", "merge", "types", "twice"])
def test_a_header_without_a_tokenizer_is_refused(changes, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    read(write_header(tmp_path / "a.gguf", **changes))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  write_folder(tmp_path, LLAMA, {})
  with pytest.raises(ValueError, match=r"holds neither tokenizer\.json nor"):
    read(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="not a tokenizer that the tokenizers library reads"):
    read(tmp_path)


def test_the_config_may_name_it(tmp_path):
  folder = write_json(tmp_path)
  tokenizer = get_tokenizer(DataConfig(tokenizer=f"pretrained:{folder}"))
  assert tokenizer.name == f"pretrained:{folder}"
  with pytest.raises(ValueError, match="text is not UTF-8: byte 0xff at offset 1"):
    tokenizer.encode(b"a\xff")
  with pytest.raises(ValueError, match="'nothing' is neither a known name"):
    get_tokenizer(DataConfig(tokenizer="pretrained:nothing"))
