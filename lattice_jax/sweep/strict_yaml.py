"""YAML as `yaml.safe_load` reads it, without what that silently accepts: repeated keys and aliases that explode."""

from __future__ import annotations

from typing import Any

import yaml

from lattice_jax.shown import first_line

MAX_NODES = 100_000


def read_yaml(text: str) -> Any:
  """The document of the text. Raises ValueError if it is not YAML, is ambiguous, or expands to too many values."""
  loader = None
  try:
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    if node is None:
      return None
    if _size(node, {}) > MAX_NODES:
      raise ValueError(f"its aliases unfold to more than {MAX_NODES:,} values")
    return _construct(loader, node)
  except yaml.YAMLError as error:
    raise ValueError(str(error)) from error
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error
  finally:
    if loader is not None:
      loader.dispose()


def _construct(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
  try:
    return loader.construct_document(node)
  except yaml.YAMLError:
    raise
  # for a text that does not fit its tag, as in `!!timestamp x`, PyYAML raises whatever the attempt to read it does
  except Exception as error:
    raise ValueError(f"it holds a value that its tag does not allow ({first_line(error)})") from error


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
  """The number of nodes with all aliases expanded; checks keys as well. None in `known` marks a node being read."""
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
