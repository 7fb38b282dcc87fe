"""The parameters of a sweep: W&B's distributions, for a grid and for Optuna."""

from __future__ import annotations

import abc
import math
import sys
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol, runtime_checkable

from lattice_jax.domains import Number, checked

Value = bool | int | float | str

_TAIL = 1e-6  # probability that is cut off at each end of a normal distribution
_MOST_STEPS = 2**53  # integers that a float can represent
_DIGITS = 12  # significant digits of a multiple of q, so that 3 × 0.1 is 0.3


@runtime_checkable
class OptunaTrial(Protocol):
  """The methods of `optuna.Trial` that parameters use."""

  def suggest_categorical(self, name: str, choices: tuple[Value, ...]) -> Value: ...

  def suggest_int(self, name: str, low: int, high: int) -> int: ...

  def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True)
class Parameter(abc.ABC):
  """A parameter and the values that a trial may give it."""

  name: str

  def num_choices(self) -> int | None:
    """The number of possible values, or None where there is a continuum of them."""
    return None

  def choices(self) -> tuple[Value, ...] | None:
    """All possible values in order, or None where there is a continuum of them."""
    return None

  @abc.abstractmethod
  def extremes(self) -> tuple[Value, ...]:
    """Values such that all are allowed in a config if these are."""

  @abc.abstractmethod
  def draw(self, trial: OptunaTrial) -> Value:
    """The sampler's value, or the one that this trial drew before."""


@dataclass(frozen=True)
class Choice(Parameter):
  """One of several values; a constant has one."""

  values: tuple[Value, ...]

  def num_choices(self) -> int:
    return len(self.values)

  def choices(self) -> tuple[Value, ...]:
    return self.values

  def extremes(self) -> tuple[Value, ...]:
    return self.values

  def draw(self, trial: OptunaTrial) -> Value:
    return self.values[0] if len(self.values) == 1 else trial.suggest_categorical(self.name, self.values)


@dataclass(frozen=True)
class Interval(Parameter):
  """Any number from low to high, uniformly or log-uniformly."""

  low: float
  high: float
  log: bool = False

  def extremes(self) -> tuple[Value, ...]:
    return self.low, self.high

  def draw(self, trial: OptunaTrial) -> Value:
    return trial.suggest_float(self.name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Multiples(Parameter):
  """Multiples of q from low to high; integers where q is 1."""

  low: float
  high: float
  q: float

  def num_choices(self) -> int:
    low, high = self._bounds()
    return max(0, high - low + 1)

  def choices(self) -> tuple[Value, ...]:
    low, high = self._bounds()
    return tuple(self._multiple(count) for count in range(low, high + 1))

  def extremes(self) -> tuple[Value, ...]:
    return tuple(self._multiple(count) for count in self._bounds())

  def draw(self, trial: OptunaTrial) -> Value:
    return self._multiple(trial.suggest_int(self.name, *self._bounds()))

  def _bounds(self) -> tuple[int, int]:
    return math.ceil(round(self.low / self.q, _DIGITS)), math.floor(round(self.high / self.q, _DIGITS))

  def _multiple(self, count: int) -> Value:
    return count * self.q if isinstance(self.q, int) else float(f"{count * self.q:.{_DIGITS}g}")


@dataclass(frozen=True)
class Normal(Parameter):
  """A normal distribution; the sampler draws the cumulative probability of the value."""

  mu: float
  sigma: float

  def extremes(self) -> tuple[Value, ...]:
    return tuple(NormalDist(self.mu, self.sigma).inv_cdf(part) for part in (_TAIL, 1 - _TAIL))

  def draw(self, trial: OptunaTrial) -> Value:
    return NormalDist(self.mu, self.sigma).inv_cdf(trial.suggest_float(self.name, _TAIL, 1 - _TAIL))


# The fields of each distribution beside "distribution"; those in brackets are optional.
FIELDS = {
  "constant": ("value",), "categorical": ("values",), "uniform": ("min", "max"), "int_uniform": ("min", "max"),
  "q_uniform": ("min", "max", "[q]"), "log_uniform_values": ("min", "max"), "normal": ("[mu]", "[sigma]"),
}


def parse_parameter(name: str, entry: Any) -> Parameter:
  """An entry of `parameters`, such as {min: 16, max: 256, distribution: int_uniform}. Raises ValueError."""
  if not isinstance(entry, dict):
    raise ValueError(f"parameter {name} is {entry!r}, but must hold value, values, or min and max.")
  if "parameters" in entry:
    raise ValueError(f"parameter {name} is nested; write each of its parameters as one name, as in {name}.NAME.")
  distribution = _distribution(name, entry)
  given, known = set(entry) - {"distribution"}, FIELDS[distribution]
  for field in sorted(map(str, given - {field.strip("[]") for field in known})):
    raise ValueError(f"parameter {name}: {field!r} is not a field of distribution {distribution}, which has "
                     f"{', '.join(known)}.")
  for field in known:
    if field not in given and not field.startswith("["):
      raise ValueError(f"parameter {name}: distribution {distribution} needs {field!r}.")
  return _build(name, distribution, entry)


def _distribution(name: str, entry: dict[str, Any]) -> str:
  """The distribution that is named, or the one that W&B assumes for these fields."""
  if "distribution" in entry:
    if entry["distribution"] not in tuple(FIELDS):
      raise ValueError(
        f"parameter {name}: distribution {entry['distribution']!r} is not one of {', '.join(FIELDS)}.")
    return entry["distribution"]
  if "value" in entry:
    return "constant"
  if "values" in entry:
    return "categorical"
  if {"min", "max"} <= set(entry):
    return "int_uniform" if isinstance(entry["min"], int) and isinstance(entry["max"], int) else "uniform"
  raise ValueError(
    f"parameter {name} has {', '.join(sorted(map(str, entry))) or 'nothing'}, but needs value, values, or min and max.")


def _build(name: str, distribution: str, entry: dict[str, Any]) -> Parameter:
  if distribution == "constant":
    return Choice(name, (_scalar(name, entry["value"]),))
  if distribution == "categorical":
    values = entry["values"]
    if not isinstance(values, list) or not values:
      raise ValueError(f"parameter {name}: values={values!r} must be a list with at least one value.")
    return Choice(name, tuple(_scalar(name, value) for value in values))
  if distribution == "normal":
    mu, sigma = (_number(name, field, entry[field]) if field in entry else default
                 for field, default in (("mu", 0.0), ("sigma", 1.0)))
    if sigma <= 0:
      raise ValueError(f"parameter {name}: sigma={sigma} must be positive.")
    return Normal(name, mu, sigma)
  low, high = (_number(name, field, entry[field]) for field in ("min", "max"))
  if not low < high:
    raise ValueError(f"parameter {name}: min={low} must be less than max={high}.")
  if distribution == "int_uniform":
    if not (isinstance(low, int) and isinstance(high, int)):
      raise ValueError(f"parameter {name}: min={low} and max={high} of int_uniform must be whole numbers.")
    return _multiples(name, low, high, 1)
  if distribution == "q_uniform":
    return _multiples(name, low, high, _number(name, "q", entry["q"]) if "q" in entry else 1)
  if distribution == "log_uniform_values" and low <= 0:
    raise ValueError(f"parameter {name}: min={low} of log_uniform_values must be positive.")
  return Interval(name, low, high, log=distribution == "log_uniform_values")


def _multiples(name: str, low: float, high: float, q: float) -> Multiples:
  if q <= 0:
    raise ValueError(f"parameter {name}: q={q} must be positive.")
  if not max(abs(low), abs(high)) < _MOST_STEPS * q:
    raise ValueError(f"parameter {name}: between 0 and min={low} or max={high} lie more than {_MOST_STEPS:,} multiples "
                     f"of {q}; use smaller numbers, or the distribution uniform.")
  multiples = Multiples(name, low, high, q)
  if not multiples.num_choices():
    raise ValueError(f"parameter {name}: no multiple of q={q} lies between min={low} and max={high}.")
  return multiples


def _number(name: str, field: str, value: Any) -> int | float:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise ValueError(f"parameter {name}: {field}={value!r} must be a number.{_yaml_hint(value)}")
  if not abs(value) <= sys.float_info.max:  # false for NaN too
    raise ValueError(f"parameter {name}: {field}={value} must be finite.")
  return value


def _scalar(name: str, value: Any) -> Value:
  if not isinstance(value, Value):
    raise ValueError(f"parameter {name}: {value!r} must be a number, a text, true or false.")
  if _yaml_hint(value):
    raise ValueError(f"parameter {name}: {value!r} is a text.{_yaml_hint(value)}")
  if isinstance(value, float):
    checked(Number(float), f"parameter {name}: value", value)
  return value


def _yaml_hint(value: Any) -> str:
  """The right spelling of a number such as 1e-4, which YAML 1.1, and so W&B, reads as text; "" for others."""
  try:
    number = float(value) if isinstance(value, str) and "e" in value.lower() else math.inf
  except ValueError:
    number = math.inf
  if not math.isfinite(number):
    return ""
  mantissa, _, exponent = value.lower().partition("e")
  return f" YAML reads it as text; write {float(mantissa)}e{int(exponent):+03d}."
