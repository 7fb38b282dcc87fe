"""Compares a pretrained model here with the same model in `transformers`: logits, greedy text, tokens, chat.

    <other environment>/bin/python scripts/pretrained_reference.py --model=MODEL --output=figures.npz
    python scripts/check_pretrained.py --pretrained=MODEL --figures=figures.npz

The first script's docstring says how to make its environment. The exit status is 1 if something differs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, place
from lattice_jax.commands.run import run_script
from lattice_jax.config import DataConfig, ModelConfig
from lattice_jax.data.tokenizers.tokenizer import PRETRAINED, get_tokenizer

TOLERANCE = 1e-3  # for the largest error of a token's logits, relative to the largest logit


def compare_logits(model: ModelConfig, variables: dict, figures: dict) -> tuple[bool, str]:
  import jax  # --help need not wait for JAX

  from lattice_jax.models.decoder import Decoder, init_state
  from lattice_jax.types import whole_segment

  tokens = figures["ids"][None]

  @jax.jit
  def all_logits(variables, tokens):
    output = Decoder(model).apply(variables, tokens, init_state(model, 1), whole_segment(1, tokens.shape[1]))
    return Decoder(model).apply(variables, output.features_BTD, method=Decoder.logits)[0]

  ours_TA, theirs_TA = np.float64(all_logits(variables, tokens)), np.float64(figures["logits"])
  error = (np.abs(ours_TA - theirs_TA).max(axis=1) / np.abs(theirs_TA).max(axis=1)).max()
  rms = np.sqrt(((ours_TA - theirs_TA) ** 2).mean() / (theirs_TA**2).mean())
  agree = (ours_TA.argmax(axis=1) == theirs_TA.argmax(axis=1)).sum()
  return error <= TOLERANCE, (
    f"largest relative error {error:.1e}, RMS ratio {rms:.1e}, same most likely token at {agree} of {len(ours_TA)}")


def compare_greedy(model: ModelConfig, variables: dict, figures: dict, prompt_len: int = 32) -> tuple[bool, str]:
  from lattice_jax.inference.generate import generate

  wanted = figures["greedy"]
  text = generate(
    model, variables, [figures["ids"][:prompt_len]], length=len(wanted), temperature=0.0, banned=(), start_ids=())[0]
  same = int((np.cumprod(text == wanted)).sum())
  return same == len(wanted), f"{same} of {len(wanted)} tokens"


def compare_tokenizer(tokenizer, texts: dict) -> tuple[bool, str]:
  pairs = zip(texts["lines"], texts["encoded"], texts["decoded"], strict=True)
  wrong = [
    line for line, encoded, decoded in pairs
    if tokenizer.encode(line.encode()).tolist() != encoded or tokenizer.decode(encoded) != decoded.encode()]
  first = f"; the first is {wrong[0]!r}" if wrong else ""
  started = [*tokenizer.start_ids, *tokenizer.encode(b"x").tolist()]
  if started != texts["started"]:
    first += f"; «x» starts as {started} here and as {texts['started']} there"
  return not first, f"{len(texts['lines']) - len(wrong)} of {len(texts['lines'])} lines there and back{first}"


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--pretrained", type=place, required=True,
                      help="smollm2, a folder of safetensors, or a .gguf file")
  parser.add_argument("--figures", type=path, required=True, help="what pretrained_reference.py wrote")
  arguments = parser.parse_args()
  if not arguments.figures.is_file():
    raise ValueError(f"--figures={arguments.figures} does not exist; scripts/pretrained_reference.py writes it.")
  with np.load(arguments.figures, allow_pickle=False) as file:
    figures = dict(file)
  texts = json.loads(str(figures["texts"]))
  tokenizer = get_tokenizer(DataConfig(tokenizer=PRETRAINED + arguments.pretrained))
  results = {"tokenizer": compare_tokenizer(tokenizer, texts)}
  if texts["rendered"]:
    rendered = tokenizer.chat(texts["chat"])
    is_same = rendered == texts["rendered"]
    results["chat template"] = (is_same, "the same text" if is_same else f"here {rendered!r}")
  if "logits" in figures:
    from lattice_jax.models.pretrained import load_pretrained

    model, params = load_pretrained(arguments.pretrained)
    variables = {"params": params, "buffers": {}}
    results[f"logits of {len(figures['ids'])} tokens"] = compare_logits(model, variables, figures)
    results["greedy text"] = compare_greedy(model, variables, figures)
  for name, (is_same, report) in results.items():
    print(f"{'ok  ' if is_same else 'WRONG'} {name}: {report}")
  return 0 if all(is_same for is_same, _ in results.values()) else 1


if __name__ == "__main__":
  run_script(main)
