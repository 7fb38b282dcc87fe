"""The byte-level BPE tokenizer in the header of a GGUF file, which calls it «gpt2», with some ways to split text."""

from __future__ import annotations

from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lattice_jax.data.tokenizers.backend import starts_with
from lattice_jax.data.tokenizers.special_tokens import CONTROL, USER_DEFINED, header_flag, header_id
from lattice_jax.formats.gguf_file import GGUFFile

# Words with a preceding character, {} digits at a time, punctuation with the line ends after it, white space.
_CUT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+")
# Names of tokenizer.ggml.pre → how a text is split before its pieces are merged.
CUTS = {
  "gpt-2": "gpt2", "smollm": "digits", "starcoder": "digits", "refact": "digits", "command-r": "digits",
  "llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2"}


def bpe_of_gguf(file: GGUFFile) -> tokenizers.Tokenizer:
  """Raises ValueError if the file has no tokenizer or one of another kind."""
  fields = file.fields
  if "tokenizer.ggml.model" not in fields:
    raise ValueError(f"{file.path} holds no tokenizer, so the model cannot read or write text; use a file that does.")
  kind, cut = file.text("tokenizer.ggml.model"), file.text("tokenizer.ggml.pre")
  if kind != "gpt2" or cut not in CUTS:
    raise ValueError(
      f"{file.path} has a tokenizer of kind {kind!r} that splits text as {cut!r}; kind 'gpt2' with {', '.join(CUTS)} "
      "can be read, and kind 'llama': use the model's safetensors with its tokenizer.json.")
  tokens, pairs = _lists(file)
  cut = CUTS[cut]
  # in Llama 3 a whole piece that is a token is not built by merges
  model = models.BPE({token: id for id, token in enumerate(tokens)}, pairs, ignore_merges=cut == "llama3")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = _pre_tokenizer(cut)
  tokenizer.decoder = decoders.ByteLevel()
  if cut == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  _add_whole_tokens(tokenizer, file, tokens)
  bos, says = header_id(file, "bos"), header_flag(file, "add_bos_token")
  # a text starts with bos in Llama 3, even if the file does not say so
  if bos is not None and (cut == "llama3" if says is None else says):
    tokenizer.post_processor = starts_with(tokens[bos], bos)
  return tokenizer


def _lists(file: GGUFFile) -> tuple[list[str], list[tuple[str, str]]]:
  """(tokens, merges), checked against each other."""
  tokens, merges = file.fields.get("tokenizer.ggml.tokens"), file.fields.get("tokenizer.ggml.merges")
  if not isinstance(tokens, list) or not isinstance(merges, list):
    raise ValueError(f"{file.path} holds a tokenizer without tokens or merges; get the file again.")
  known = set(tokens)
  pairs = [tuple(merge.split(" ")) for merge in merges]
  wrong = next((pair for pair in pairs if len(pair) != 2 or not known.issuperset((*pair, "".join(pair)))), None)
  if wrong is not None or len(known) != len(tokens):
    problem = "a token twice" if wrong is None else f"the merge {' '.join(wrong)!r} of tokens that it does not have"
    raise ValueError(f"{file.path} holds a tokenizer with {problem}; get the file again.")
  return tokens, pairs


def _pre_tokenizer(cut: str) -> Any:
  if cut == "gpt2":
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  if cut == "digits":
    return pre_tokenizers.Sequence([
      pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
  pattern = Regex(_CUT.format("{1,3}" if cut == "llama3" else ""))
  return pre_tokenizers.Sequence([
    pre_tokenizers.Split(pattern, behavior="isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _add_whole_tokens(tokenizer: tokenizers.Tokenizer, file: GGUFFile, tokens: list[str]) -> None:
  """Adds the tokens that are found in a text before it is split."""
  types = file.fields.get("tokenizer.ggml.token_type")
  if not isinstance(types, np.ndarray) or len(types) != len(tokens):
    raise ValueError(f"{file.path} holds a tokenizer that does not say which tokens are special; get the file again.")
  tokenizer.add_special_tokens([
    AddedToken(tokens[id], normalized=False) for id in np.flatnonzero(types == CONTROL).tolist()])
  tokenizer.add_tokens([
    AddedToken(tokens[id], normalized=False) for id in np.flatnonzero(types == USER_DEFINED).tolist()])
