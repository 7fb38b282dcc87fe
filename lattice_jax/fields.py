"""Config fields: default, domain and meaning are declared in one place, as in `heads: int = positive(4, "…")`.

--help prints the meaning. `check_fields` checks every domain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from lattice_jax.domains import SEED, Domain, Names, Number, Numbers, Pairs, Place, Switch, Text, checked, did_you_mean


def positive(default: float, doc: str, *, also: tuple[int, ...] = ()) -> Any:
  kind = type(default)
  return declared(Number(kind, 1 if kind is int else 0, is_low_open=kind is float, also=also), default, doc)


def at_least(low: float, default: float, doc: str) -> Any:
  return declared(Number(type(default), low), default, doc)


def fraction(default: float, doc: str) -> Any:
  """From 0 to below 1."""
  return within(0, 1, default, doc, is_high_open=True)


def within(
  low: float, high: float, default: float, doc: str, *, is_low_open: bool = False, is_high_open: bool = False) -> Any:
  return declared(Number(type(default), low, high, is_low_open, is_high_open), default, doc)


def finite(default: float, doc: str) -> Any:
  return declared(Number(type(default)), default, doc)


def seed(default: int, doc: str) -> Any:
  return declared(SEED, default, doc)


def choice(default: str, allowed: tuple[str, ...], doc: str) -> Any:
  return declared(Text(allowed), default, doc)


def text(default: str, doc: str) -> Any:
  return declared(Text(), default, doc)


def place(default: str, doc: str) -> Any:
  return declared(Place(), default, doc)


def switch(default: bool, doc: str) -> Any:
  return declared(Switch(), default, doc)


def names(default: tuple[str, ...], doc: str, *, allowed: tuple[str, ...] = (), fewest: int = 0) -> Any:
  return declared(Names(allowed, fewest), default, doc)


def numbers(default: tuple[int, ...], doc: str, *, low: int = 0, fewest: int = 0) -> Any:
  return declared(Numbers(low, fewest), default, doc)


def pairs(default: tuple[tuple[str, str], ...], doc: str) -> Any:
  return declared(Pairs(), default, doc)


def free(field: Any) -> Any:
  """Marks a field that changes where data lie or what something costs, not results: a run may go on with another."""
  return dataclasses.field(default=field.default, metadata={**field.metadata, "free": True})


def section(cls: type, doc: str) -> Any:
  """A field that holds fields."""
  return dataclasses.field(default_factory=cls, metadata={"doc": doc})


def declared(domain: Domain, default: Any, doc: str) -> Any:
  """A field of a frozen dataclass. Raises ValueError if the default lies outside the domain."""
  return dataclasses.field(default=domain.convert(default), metadata={"domain": domain, "doc": doc})


def domain_of(field: dataclasses.Field) -> Domain | None:
  """The domain of a config field; None for a section."""
  if "domain" in field.metadata:
    return field.metadata["domain"]
  if dataclasses.is_dataclass(field.default_factory):
    return None
  raise TypeError(f"the config field {field.name!r} has no domain; declare it with a function of lattice_jax.fields.")


def find(cls: type, path: str) -> Domain | None:
  """The domain of the field "section.field"; None for a section.

  Raises ValueError if there is no such field; the message lists those of the section.
  """
  section, domain = "", None
  for name in path.split("."):
    if cls is None:
      raise ValueError(f"{path} goes below {section.rstrip('.')!r}, which is a field and not a section.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    check_known([name], list(fields), section)
    domain = domain_of(fields[name])
    cls = fields[name].default_factory if domain is None else None
    section += name + "."
  return domain


def check_known(given: Iterable[Any], known: Collection[str], section: str) -> None:
  """Raises ValueError for the first name that is not a field of the section."""
  for name in given:
    if name not in known:
      raise ValueError(
        f"unknown config field {section}{name}; this section has {', '.join(known)}.{did_you_mean(str(name), known)}")


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
  """(path, field, value) of every field that is not a section, depth first."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if domain_of(field) is None:
      yield from leaves(value, f"{path}{field.name}.")
    else:
      yield path + field.name, field, value


def check_fields(config: Any, path: str = "") -> None:
  """Raises ValueError for the first field whose value lies outside its domain; `path` names the config."""
  for name, field, value in leaves(config, path):
    checked(field.metadata["domain"], name, value)
