"""Sizes of any memory by one set of names."""

from __future__ import annotations

import dataclasses

from lattice_jax.memories.registry import find_section


def section_with(name, **sizes):
  """{section of the memory: its config}; a section takes those sizes whose fields it has."""
  section = find_section(name)
  fields = {field.name for field in dataclasses.fields(section.config)}
  return {section.name: section.config(**{field: size for field, size in sizes.items() if field in fields})}


def faithful_section(name, **sizes):
  """As `section_with`, of the published layer; what that has in one way only is as there."""
  (section, config), = section_with(name, **sizes).items()
  return {section: dataclasses.replace(config, **find_section(name).published(name, config), faithful=True)}
