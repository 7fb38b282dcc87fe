"""Puts a data set where training looks for it, after checking that it is what its name says.

python scripts/prepare_data.py enwik8                      downloads 35 MB, writes data/enwik8/enwik8 (100 MB)
python scripts/prepare_data.py enwik8 --from enwik8.zip    takes a local copy, raw or zipped
python scripts/prepare_data.py enwiki_sample               checks the shipped sample and says where it is
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lattice_jax.data.files import ENWIK8, SAMPLES, read_sample
from lattice_jax.data.prepare import prepare_original

SAMPLE = "enwiki_sample/enwiki.xml.xz"


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("name", choices=["enwik8", "enwiki_sample"])
  parser.add_argument("--from", dest="origin", type=Path, metavar="FILE", help="a local copy, raw or zip")
  parser.add_argument("--path", default="data", help="the folder of prepared data (data.path in configs)")
  arguments = parser.parse_args()
  try:
    if arguments.name == "enwik8":
      prepare_original(ENWIK8, arguments.path, lambda line: print(line, flush=True), origin=arguments.origin)
    elif arguments.origin is not None:
      raise ValueError("enwiki_sample is shipped with the code; run the command without --from.")
    else:
      print(f"enwiki_sample: {len(read_sample(SAMPLE)):,} bytes, verified, shipped at {SAMPLES / SAMPLE}")
  except (ValueError, OSError) as error:
    print(error, file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("stopped; the same command goes on from here.", file=sys.stderr)
    return 130
  return 0


if __name__ == "__main__":
  sys.exit(main())
