"""A Griffe extension: lines «name: meaning» of a docstring become the items of a list."""

from __future__ import annotations

import re

import griffe


class FieldLists(griffe.Extension):
  def on_object(self, *, obj, **_):
    if obj.docstring:
      obj.docstring.value = re.sub(r"(?m)^(\w+(?:, \w+)*): (?=\S)", r"- `\1`: ", obj.docstring.value)
