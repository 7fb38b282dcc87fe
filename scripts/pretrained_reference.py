"""Records what `transformers` computes with a model, for scripts/check_pretrained.py. Needs its own environment:

    python -m venv hf && hf/bin/pip install torch transformers gguf accelerate
    hf/bin/python scripts/pretrained_reference.py --model=MODEL --output=figures.npz

MODEL is a .gguf file or a folder of safetensors. Nothing is downloaded. `transformers` does not read tokenizer.ggml.pre
of GGUF files, so the one way of splitting text that it would miss, SmolLM2's single digits, is set here.
--tokenizer_only records only tokens and chat of a folder, and needs only transformers and jinja2.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

try:
  import numpy as np
  from tokenizers import pre_tokenizers
  from transformers import AutoTokenizer
except ImportError as error:
  sys.stderr.write(f"pretrained_reference.py: {error}; run it in an environment of its own, as its first lines say.\n")
  raise SystemExit(2) from error

SAMPLES = Path(__file__).parents[1] / "lattice_jax" / "data" / "samples"
NUM_LINES, NUM_TOKENS, NUM_PROMPT, NUM_GREEDY = 1000, 512, 32, 64
TRICKY = [
  "", " ", "\n\n\t x", "In 1984, 12,345 cats’ tails — ½ of 3²", "don't we'LL I'M  they’ve",
  "naïve café 東京 🙂‍↔️ \u200b\ufeff",
  "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n", "<|endoftext|><|im_end|>a<repo_name> b<|im_start|>",
  "a\r\nb\rc   \n   d", "def f(x):\n\treturn x**2  # ok\n"]


def read_samples() -> dict[str, str]:
  texts = {path.name: path for path in sorted((SAMPLES / "books_sample" / "test").glob("*.xz"))}
  texts["enwiki"] = SAMPLES / "enwiki_sample" / "enwiki.xml.xz"
  return {name: lzma.decompress(path.read_bytes()).decode("utf-8", errors="ignore") for name, path in texts.items()}


def pick_lines(texts: dict[str, str]) -> list[str]:
  """1,000 evenly spaced lines of all samples, and some that are difficult for tokenizers."""
  share = -(-NUM_LINES // len(texts))
  lines = []
  for text in texts.values():
    full = [line for line in text.split("\n") if line.strip()]
    lines += [full[index] for index in np.linspace(0, len(full) - 1, share).astype(int)]
  return lines[:NUM_LINES] + TRICKY


def says_single_digits(path: Path) -> bool:
  import gguf

  return gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == "smollm"


def read_model(place: dict, ids: list[int]) -> dict[str, np.ndarray]:
  """The logits of all ids, and the greedy continuation of the first ones."""
  import torch
  from transformers import AutoModelForCausalLM

  model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, attn_implementation="eager").eval()
  with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0].float().numpy()
    return {"logits": logits, "greedy": write_greedily(torch, model, ids[:NUM_PROMPT])}


def write_greedily(torch, model, ids: list[int]) -> np.ndarray:
  """Ignores the model's own generation settings, such as a repetition penalty."""
  output, written = model(torch.tensor([ids])), []
  while len(written) < NUM_GREEDY:
    written.append(int(output.logits[0, -1].argmax()))
    output = model(torch.tensor([written[-1:]]), past_key_values=output.past_key_values)
  return np.int32(written)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", type=Path, required=True)
  parser.add_argument("--output", type=Path, required=True)
  parser.add_argument("--tokenizer_only", action="store_true")
  arguments = parser.parse_args()
  place = (
    {"pretrained_model_name_or_path": arguments.model.parent, "gguf_file": arguments.model.name}
    if arguments.model.is_file() else {"pretrained_model_name_or_path": arguments.model})
  tokenizer = AutoTokenizer.from_pretrained(**place)
  if arguments.model.is_file() and says_single_digits(arguments.model):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
  texts = read_samples()
  lines = pick_lines(texts)
  encoded = [tokenizer(line, add_special_tokens=False).input_ids for line in lines]
  decoded = [tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in encoded]
  text = next(iter(texts.values()))[:20_000]
  ids = tokenizer(text, add_special_tokens=False).input_ids[:NUM_TOKENS]
  figures = {} if arguments.tokenizer_only else read_model(place, ids)
  chat = [{"role": "user", "content": "Who wrote Faust?"}]
  rendered = tokenizer.chat_template and tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
  texts_json = json.dumps({
    "lines": lines, "decoded": decoded, "encoded": encoded, "chat": chat, "rendered": rendered,
    "started": tokenizer("x").input_ids})
  np.savez(arguments.output, ids=np.int32(ids), **figures, texts=np.array(texts_json))
  print(f"wrote {arguments.output}: {len(ids)} tokens, {', '.join(figures) or 'no model'}, {len(lines)} lines")


if __name__ == "__main__":
  main()
