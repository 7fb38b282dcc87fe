"""Writes a Llama-shaped model as safetensors, config.json and tokenizer files, which `transformers` loads.

python scripts/export.py --workdir=runs/mine --output=exported [--step=N] [--dtype=bfloat16]
python scripts/export.py --pretrained=smollm2 --output=exported
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, count, one_of, path, place
from lattice_jax.commands.run import run_script
from lattice_jax.config import DataConfig


def main() -> None:
  parser = Parser(__doc__)
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--workdir", type=path, help="folder of a training run")
  source.add_argument("--pretrained", type=place, help="smollm2, a folder of safetensors, or a .gguf file")
  parser.add_argument("--step", type=count, help="checkpoint of the run; by default the newest")
  parser.add_argument("--dtype", type=one_of("float32", "bfloat16"), default="float32", help="of the weights written")
  parser.add_argument("--output", type=path, required=True, help="folder that does not exist yet")
  arguments = parser.parse_args()
  from lattice_jax.checkpoint import load_for_eval  # --help need not wait for JAX
  from lattice_jax.data.tokenizers.export import export_tokenizer, special_ids
  from lattice_jax.data.tokenizers.tokenizer import PRETRAINED, get_tokenizer
  from lattice_jax.models.pretrained import open_pretrained
  from lattice_jax.models.pretrained.export import export_model

  if arguments.pretrained:
    pretrained = open_pretrained(arguments.pretrained)
    data = DataConfig(tokenizer=PRETRAINED + arguments.pretrained)
    model, params, context_len = pretrained.model, pretrained.params(), pretrained.context_len
  else:
    config, params, _, _ = load_for_eval(arguments.workdir, arguments.step)
    model, data, context_len = config.model, config.data, config.model.context_len or config.data.seq_len
  tokenizer = get_tokenizer(data)
  export_model(
    model, params, arguments.output, context_len=context_len, dtype=arguments.dtype, special_ids=special_ids(tokenizer))
  written = export_tokenizer(tokenizer, data, arguments.output)
  print(f"wrote {arguments.output}: weights, config.json, {', '.join(written)}")


if __name__ == "__main__":
  run_script(main)
