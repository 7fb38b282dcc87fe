"""Puts a data set where training expects it, after checking that it is the published one.

python scripts/prepare_data.py enwik8        downloads 35 MB, writes data/enwik8/enwik8 (100 MB)
python scripts/prepare_data.py pg19          downloads 12 GB of books, trains a 32,000-token tokenizer, writes tokens
python scripts/prepare_data.py pg19 --tokenizer=bpe_paper:32000      the paper's tokenizer, which loses newlines
python scripts/prepare_data.py imagenet64    downloads 14 GB of zips, writes 16 GB of pixels
python scripts/prepare_data.py books_sample  checks a shipped sample and says where it is

--from PATH takes a local copy: enwik8 raw or zipped; the folder of PG-19's {train,validation,test}/*.txt and
metadata.csv; the folder of ImageNet64's three npz zips; or, for each, a folder of prepared TFDS records (array_record).
After an interruption the same command resumes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lattice_jax.commands.arguments import Parser, one_of, path, positive
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.data.published import ENWIK8, IMAGENET64, PG19
from lattice_jax.runtime import Stop

SAMPLE_NAMES = ("enwiki_sample", "books_sample", "photos_sample")


def prepare(arguments: argparse.Namespace) -> None:
  """Imports only what the data set needs, so that samples are checked quickly."""
  name, root, origin = arguments.name, str(arguments.path), arguments.origin
  if arguments.tokenizer and name not in ("pg19", "books_sample"):
    raise ValueError(f"{name} is read as bytes; --tokenizer is for pg19 and books_sample.")
  if arguments.insert and name != "pg19":
    raise ValueError(f"{name} is tokenized when it is read; --insert is for pg19, else use data.anchors.insert.")
  if arguments.copies > 1 and not arguments.insert:
    raise ValueError(f"--copies={arguments.copies} has no effect without --insert; add --insert=sentence.")
  if name in SAMPLE_NAMES:
    from lattice_jax.data.prepare.samples import prepare_sample
    if origin is not None or arguments.tfds:
      raise ValueError(f"{name} is shipped with the code; run the command without --from and --tfds.")
    prepare_sample(name, root, print_now, tokenizer=arguments.tokenizer)
  elif name == "enwik8":
    from lattice_jax.data.prepare.enwik8 import prepare_original, write_records
    prepare_original(ENWIK8, root, print_now, origin=origin)
    if arguments.tfds:
      write_records(ENWIK8, root, print_now)
  elif name == "pg19":
    from lattice_jax.data.prepare.books import prepare_books
    tokenizer = arguments.tokenizer or "bpe_lossless:32000"
    prepare_books(
      PG19, root, print_now, tokenizer=tokenizer, insert=arguments.insert or "none", copies=arguments.copies,
      origin=origin, use_tfds=arguments.tfds)
  else:
    from lattice_jax.data.prepare.images import prepare_images
    prepare_images(IMAGENET64, root, print_now, origin=origin, use_tfds=arguments.tfds)


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("name", type=one_of("enwik8", "pg19", "imagenet64", *SAMPLE_NAMES))
  parser.add_argument("--from", dest="origin", type=path, metavar="PATH", help="a local copy; see above")
  parser.add_argument("--path", type=path, default="data", help="the folder of prepared data (data.path in configs)")
  parser.add_argument(
    "--tokenizer", default="", help="of pg19 and books_sample: bytes, bpe_lossless:VOCAB or bpe_paper:VOCAB")
  parser.add_argument(
    "--insert", default="", help="of pg19: where the token <AC> stands (data.anchors.insert): sentence or every:N")
  parser.add_argument(
    "--copies", type=positive, default=1, help="of --insert: <AC> in each such place (data.anchors.copies)")
  parser.add_argument(
    "--tfds", action="store_true",
    help="pg19, imagenet64: TFDS's own builder makes the records, which needs TensorFlow; enwik8: write records too")
  try:
    prepare(parser.parse_args())
  except KeyboardInterrupt as error:
    raise Stop("stopped; the same command resumes from here.", 130) from error


if __name__ == "__main__":
  run_script(main)
