"""Answers OpenAI's HTTP requests for completions and chats, many at once, with streams.

python scripts/serve.py --workdir=runs/quickstart --port=8000
python scripts/serve.py --pretrained=smollm2 --cache=lagkv:ratio=0.25 --rows=8 --max_len=1024
python scripts/serve.py --pretrained=smollm2 --treatment=lagkv:ratio=0.25 --shadow       # computed beside, not shown
python scripts/serve.py --pretrained=smollm2 --treatment=lagkv:ratio=0.25 --share=0.05   # answers 5 % of the units
python scripts/serve.py --pretrained=smollm2 --treatment=window:tokens=512 --rollout=runs/window   # more and more

POST /v1/completions, POST /v1/chat/completions, GET /v1/models, GET /healthz, GET /metrics, GET /rollout; docs/http.md
says what each takes, docs/serving.md how a rollout decides. SIGTERM or Ctrl-C lets running texts end. Needs starlette
and uvicorn: pip install '.[serve]'.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands import serve, serve_rollout
from lattice_jax.commands.arguments import Parser, count, of, one_of, path, place, positive
from lattice_jax.commands.run import run_script
from lattice_jax.domains import Number, Text

text = of(Text())


def main() -> None:
  parser = Parser(__doc__)
  parser.add_model("model.dtype=bfloat16")
  parser.add_argument("--step", type=count, help="checkpoint of the run; by default the newest")
  parser.add_argument("--dtype", type=one_of("float32", "bfloat16"), help="in which a pretrained model computes")
  parser.add_argument("--cache", type=text, help="what attention keeps, as in lagkv:lag=128,ratio=0.25")
  parser.add_argument("--treatment", type=text, help="the cache of a second arm beside control")
  parser.add_argument("--treatment_workdir", type=path, help="the run of a second arm, with the same tokenizer")
  parser.add_argument("--treatment_set", type=text, action="append", default=[],
                      help="a change of the second arm's model, as in model.pattern=local")
  parser.add_argument("--share", type=of(Number(float, 0, 1)), help="of units (users) that the treatment answers")
  parser.add_argument("--shadow", action="store_true",
                      help="control answers all; the treatment computes the same beside it, for --share (all) of them")
  add_rollout(parser)
  parser.add_argument("--name", type=text, help="by which clients call the model; by default its own")
  parser.add_argument("--rows", type=positive, default=16, help="texts that are written at once, in each arm")
  parser.add_argument("--max_len", type=positive, help="most tokens of prompt and text; by default up to 2,048")
  parser.add_argument("--chunk_len", type=positive, default=64, help="tokens of a prompt read in one call")
  parser.add_argument("--chunks", type=positive, default=1, help="such calls between two decode calls")
  parser.add_argument("--block_len", type=positive, default=1, help="tokens of each row drawn in one decode call")
  parser.add_argument("--queue", type=positive, default=256, help="requests that may wait for a row; then 429")
  parser.add_argument("--host", type=text, default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
  parser.add_argument("--port", type=of(Number(int, 0, 65535)), default=8000, help="0 takes a free one")
  parser.add_argument("--grace", type=of(Number(int, 0, 86_400)), default=30,
                      help="seconds that running texts have to end after SIGTERM")
  arguments = parser.parse_args()
  parser.check_model(arguments)
  serve.check_arguments(arguments)
  serve.run(arguments)


def add_rollout(parser: Parser) -> None:
  parser.add_argument("--rollout", type=path,
                      help="folder of a staged rollout of the treatment, from whose log the command goes on")
  parser.add_argument("--rollout_set", type=text, action="append",
                      help="a change of the rollout's config, as in delta_margin=0.05")
  parser.add_argument("--prompts", type=place,
                      help="what the stage replay reads: a text as data.source names it, which canaries then hide in, "
                           "or a .jsonl file with prompt and answer in each line")
  parser.add_argument("--prompt_len", type=positive, help="tokens of a prompt out of a text")
  parser.add_argument("--scored_len", type=positive, help="tokens of an answer that both arms read again, at most")
  parser.add_argument("--score_queue", type=positive,
                      help="answers that may wait for that; others are not compared, and counted")
  parser.add_argument("--canary_len", type=positive, help="tokens of a canary's prompt")
  parser.add_argument("--canary_every", type=positive, help="compared units for each canary")
  parser.add_argument("--inject", type=of(Number(float, 0, 10)),
                      help="nats by which comparisons take the treatment to be worse than it is, as a drill")
  parser.set_defaults(**serve_rollout.FLAGS)


if __name__ == "__main__":
  run_script(main)
