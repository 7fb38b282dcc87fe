"""YAML as `yaml.safe_load` reads it, but for what it takes without a word: a key that stands twice, and aliases that
unfold to far more than the file holds."""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 100_000


def read_yaml(text: str) -> Any:
  """The first document of the text. Raises ValueError where it is not YAML, ambiguous, or unfolds without end."""
  loader = None
  try:
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    if node is None:
      return None
    if _size(node, {}) > MAX_NODES:
      raise ValueError(f"its aliases unfold to more than {MAX_NODES:,} values")
    return loader.construct_document(node)
  except yaml.YAMLError as error:
    raise ValueError(str(error)) from error
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error
  finally:
    if loader is not None:
      loader.dispose()


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
  """How many nodes there are when every alias is written out; checks keys on the way. None marks what is being read."""
  if isinstance(node, yaml.ScalarNode):
    return 1
  if id(node) in known:
    size = known[id(node)]
    if size is None:
      raise ValueError(f"line {node.start_mark.line + 1} holds itself by an alias")
    return size
  known[id(node)] = None
  if isinstance(node, yaml.MappingNode):
    _check_keys(node)
    children = [child for pair in node.value for child in pair]
  else:
    children = node.value
  size = 1 + sum(_size(child, known) for child in children)
  known[id(node)] = size
  return size


def _check_keys(node: yaml.MappingNode) -> None:
  seen: set[tuple[str, str]] = set()
  for key, _ in node.value:
    if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
      if (key.tag, key.value) in seen:
        raise ValueError(f"line {key.start_mark.line + 1} holds the key {key.value!r} a second time; remove one")
      seen.add((key.tag, key.value))
