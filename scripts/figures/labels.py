"""Results of a sample that are labelled with the name of the data set it was taken from."""

from __future__ import annotations

import re

_SET = re.compile(r"enwik8|PG-?19|ImageNet-?64", re.IGNORECASE)
_RESULT = re.compile(r"\d.*(?:bits per (?:byte|dim)|bpb|perplexity|\bnats\b|accuracy)", re.DOTALL)
_SOURCE = re.compile(r"sample|paper|reports?\b|whole", re.IGNORECASE)


def mislabelled(text: str) -> list[str]:
  """First lines of paragraphs, and rows of tables, with a loss and a data set's name, that do not say whose loss it is.

  It is that of a sample, one that a paper reports, or that of the whole set, and one of these words must be there.
  """
  parts = [part for block in re.split(r"\n\s*\n", text)
           for part in (block.splitlines() if block.lstrip().startswith("|") else [block])]
  return [part.strip().splitlines()[0] for part in parts
          if _SET.search(part) and _RESULT.search(part) and not _SOURCE.search(part)]
