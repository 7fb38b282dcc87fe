"""Text while it is drawn: pieces add up to the whole, no half characters, nothing beyond a stop string."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lattice_jax.config import DataConfig, ModelConfig
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer, get_tokenizer
from lattice_jax.inference.generate import GenerateOptions, generate
from lattice_jax.inference.text import TextPieces, write_texts
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import unbox

TEXT = "naïve café 東京 🙂 stop! and st"
MODEL = ModelConfig(dim=16, layers=1, block="gau", vq=VQConfig(key_dim=4, value_dim=8, codes=5, block_len=4))


@pytest.mark.parametrize("name", ["bytes", "bpe_lossless:2048"])
@pytest.mark.parametrize("block", [1, 3])
def test_pieces_add_up_and_hold_whole_characters(name, block):
  tokenizer = get_tokenizer(DataConfig(source="books_sample", tokenizer=name))
  ids = tokenizer.encode(TEXT.encode()).tolist()
  text = TextPieces(tokenizer, tokenizer.encode(b"He said: ").tolist())
  pieces = [text.push(ids[start:start + block]) for start in range(0, len(ids), block)]
  assert "".join([*pieces, text.finish()]) == TEXT
  assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
  assert sum(map(bool, pieces)) > len(pieces) // 2


def test_bytes_that_are_no_character_come_at_the_end():
  text = TextPieces(ByteTokenizer(), [])
  assert [text.push(ByteTokenizer().encode(raw).tolist()) for raw in (b"a", b"\xe6", b"\x9d")] == ["a", "", ""]
  assert text.finish() == "\N{REPLACEMENT CHARACTER}"
  assert text.finish() == ""


@pytest.mark.parametrize(("stops", "kept"), [
  (["stop!"], "naïve café 東京 🙂 "), (["stop!", "京 "], "naïve café 東"), (["stop?", "stx"], TEXT), (["n"], "")],
  ids=str)
def test_a_stop_string_ends_the_text_before_it_and_its_beginning_is_held_back(stops, kept):
  text, given = TextPieces(ByteTokenizer(), [], stops), ""
  for id in ByteTokenizer().encode(TEXT.encode()).tolist():
    given += text.push([id])
    assert kept.startswith(given)
    assert not any(given.endswith(stop[0]) for stop in stops if len(stop) > 1 and not text.is_stopped)
  assert given + text.finish() == kept
  assert text.is_stopped == (kept != TEXT)


def test_texts_of_a_batch_end_at_stop_strings_and_are_shown_as_they_come():
  variables = jax.jit(lambda: jax.tree.map(lambda leaf: 3 * leaf, unbox(init_variables(MODEL, jax.random.key(0)))))()
  tokenizer, prompts, seed = ByteTokenizer(), ["ab", "", "xyz"], 2
  ids = generate(MODEL, variables, [tokenizer.encode(p.encode()) for p in prompts], length=24, seed=seed)
  whole = [tokenizer.decode(row).decode(errors="replace") for row in ids]
  stop = next(text[n:n + 2] for text in whole[1:2] for n in range(8, 20) if text[n:n + 2].isascii())
  shown = [""] * 3

  def show(row, piece):
    shown[row] += piece

  written = write_texts(
    MODEL, variables, tokenizer, prompts, length=24, options=GenerateOptions(seed=seed, block_len=5),
    stop_strings=[stop], show=show)
  wanted = [text.partition(stop)[0] for text in whole]
  assert list(written.texts) == shown == wanted
  assert written.finishes == tuple("stop" if stop in text else "length" for text in whole)
  assert written.finishes[1] == "stop"
  assert all(np.array(written.num_tokens) >= [len(text.encode()) // 3 for text in wanted])


def test_an_empty_stop_string_is_refused():
  with pytest.raises(ValueError, match="an empty stop string would end every text"):
    write_texts(MODEL, {}, ByteTokenizer(), ["a"], length=1, options=GenerateOptions(), stop_strings=["x", ""])
