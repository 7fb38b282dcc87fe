"""What a table consists of: rows with a published figure, what makes each at either scale, and claims about rows."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.reproduce.readers import Reader

# How sure a published figure is; a row's figure has one of these tags.
SOURCES = {
  "paper": "read in the paper",
  "code": "read in the authors' code",
  "secondary": "reported about the paper by others, such as its summaries and reviews; not checked against the paper",
  "unverified": "known from memory alone, so no figure is quoted",
  "missing": "the paper has such a row or claim; its figure was not found",
  "ours": "no paper has such a row; it is here for comparison"}


@dataclass(frozen=True)
class Published:
  """A figure as printed, such as "0.99", "> 3" or ">= 30"; "" where none is quoted. source: a key of `SOURCES`."""

  text: str
  unit: str
  source: str

  def __post_init__(self) -> None:
    if self.source not in SOURCES:
      raise ValueError(f"the source {self.source!r} is not one of {', '.join(SOURCES)}.")


@dataclass(frozen=True)
class Train:
  """Trainings with `train.py`, one for each seed. overrides: SECTION.FIELD=VALUE."""

  config: str
  overrides: tuple[str, ...] = ()
  seeds: tuple[int, ...] = (0,)
  init_from: str = ""


@dataclass(frozen=True)
class Program:
  """A command, in words behind `python`.

  {out} stands for its folder, and {runs} for the folders of the runs that it needs. code: modules that compute the
  result. pretrained, source, files: of which weights, which sample and which other files it is. starts_over: files that
  an attempt which did not end leaves behind, and to which the next would append.
  """

  words: tuple[str, ...]
  code: tuple[str, ...] = ()
  pretrained: str = ""
  source: str = ""
  files: tuple[str, ...] = ()
  starts_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
  """What is run once at sample scale, and may serve several rows.

  data: in words, what the result is of. minutes: expected, on two cores of which each trains one run. needs: other
  measurements whose runs it reads.
  """

  name: str
  make: Train | Program
  data: str
  minutes: float
  needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
  """A row's figure at sample scale: of which measurement, and where it stands in what that leaves behind."""

  measurement: str
  reader: Reader
  unit: str


@dataclass(frozen=True)
class Paper:
  """How a row is made at the paper's size.

  evaluate: arguments of `eval.py` behind --workdir; without, the figure stands in the training's log. metric: the field
  of the evaluation, "speed", tokens a second, or "time", its inverse. over: the row (or TABLE/ROW) by whose figure this
  one's is divided. topology: the machine it is meant for, where that is not the usual one. incomparable: why the figure
  that comes out could not be compared with the published one; "" where it can.
  """

  make: Train | Program
  evaluate: tuple[str, ...] = ()
  metric: str = ""
  over: str = ""
  topology: str = ""
  incomparable: str = ""


@dataclass(frozen=True)
class Row:
  """A row of a published table. paper and sample are None only together with a reason in `missing`.

  missing: why there is no such run.
  """

  name: str
  what: str
  published: Published
  paper: Paper | None
  sample: Sample | None
  missing: str = ""

  def __post_init__(self) -> None:
    if (self.paper is None or self.sample is None) != bool(self.missing):
      raise ValueError(f"row {self.name}: say in `missing` why there is no run, and only then.")


@dataclass(frozen=True)
class Claim:
  """What a paper says of rows, judged at sample scale. kind:

  less, more: the figure of `first` is below, above that of `second`;
  equal: the two differ by less than `bound`;
  at_least: the figure of `first` is at least `bound`;
  grows: `first` less `second` (both pairs of rows, joined by " - ") is above zero.

  beside: rows whose figures must be read along with the claim.
  """

  name: str
  text: str
  source: str
  kind: str
  first: str
  second: str = ""
  bound: float = 0.0
  beside: tuple[str, ...] = ()

  @property
  def judged(self) -> tuple[str, ...]:
    """The rows by which it is judged."""
    return tuple(name for text in (self.first, self.second) if text for name in text.split(" - "))

  @property
  def rows(self) -> tuple[str, ...]:
    """Every row that the claim reads."""
    return (*self.judged, *self.beside)


@dataclass(frozen=True)
class Table:
  """A published table. notes: what a reader must know of it."""

  name: str
  title: str
  paper: str
  rows: tuple[Row, ...]
  claims: tuple[Claim, ...] = ()
  notes: str = ""
