"""Pages say what is published, what was measured, and «not run yet» of all else."""

from __future__ import annotations

from lattice_jax.reproduce.page import Found, list_text, number, overview, paper_page, spread_text
from lattice_jax.reproduce.paper import Made
from lattice_jax.reproduce.registry import PAGES, TABLES
from lattice_jax.reproduce.results import Result, RowResult


def found(**readings):
  """Rows of lattice_slots that have these seeds; all others have nothing."""
  sample = {
    f"{table.name}/{row.name}": RowResult((), (), 3) for table in TABLES.values() for row in table.rows}
  for name, values in readings.items():
    sample[f"lattice_slots/{name}"] = RowResult(tuple(
      Result(str(seed), {}, {str(seed): value}, f"python train.py {seed}", "0123456789ab+", "a machine", 1.5)
      for seed, value in enumerate(values)), (), 3)
  return Found(sample, {})


def row_of(page, name):
  return [line for line in page.splitlines() if line.startswith(f"| `{name}`")]


def test_without_results_everything_is_not_run_yet():
  nothing = found()
  page = paper_page(PAGES["lattice"], nothing)
  assert "15.52 perplexity" in row_of(page, "m16")[0] and "| not run yet |" in row_of(page, "m16")[0]
  assert "not run yet" in row_of(page, "m16")[1]
  text = overview(nothing, "command")
  claims = text[text.index("## Claims"):text.index("## How it is judged")]
  assert claims.count("not run yet") >= sum(len(table.claims) for table in TABLES.values())
  assert "**No row has been run at the paper's size yet.**" in text


def test_results_are_shown_with_their_command_commit_machine_and_time_and_claims_are_judged():
  page = paper_page(PAGES["lattice"], found(m16=(3.1, 3.2, 3.15), m192=(2.9, 3.01, 2.96)))
  assert "| yes |" in row_of(page, "m192")[1] and "2.957 ± 0.0551 (3)" in row_of(page, "m192")[1]
  assert "`python train.py 0`; and seeds 1, 2; commit 0123456+; a machine; 4.5 minutes" in page
  (claim,) = [line for line in page.splitlines() if line.startswith("| more slots help")]
  assert "| 3 | holds |" in claim and "+0.1933" in claim


def test_a_claim_waits_for_all_seeds_of_its_rows():
  page = paper_page(PAGES["lattice"], found(m16=(3.1, 3.2, 3.15), m192=(2.9, 3.01)))
  assert "| 2 of 3 |" in row_of(page, "m192")[1]
  assert "| not run yet |" in next(line for line in page.splitlines() if line.startswith("| more slots help"))


def test_a_row_that_stands_beside_a_claim_does_not_hold_up_its_verdict():
  known = found()
  known.sample["local_equal_memory/latency_chosen"] = RowResult((
    Result("once", {}, {"once": 48.0}, "python", "abc", "a machine", 1.0),), (), 1)
  page = paper_page(PAGES["local_attention"], known)
  claim = next(line for line in page.splitlines() if line.startswith("| local attention cuts"))
  assert "beside it `loss_chosen`: not run yet" in claim and claim.endswith("| +48.00 | – | 1 | holds |")


def test_results_of_other_code_are_shown_as_such_and_judge_nothing():
  known = found(m16=(3.1, 3.2, 3.15))
  old = Result("0", {"code": "old"}, {"0": 2.5}, "python", "abcdef0123", "a machine", 1.0)
  known.sample["lattice_slots/m192"] = RowResult((), (old,), 3)
  page = paper_page(PAGES["lattice"], known)
  assert "2.500 (other code, commit abcdef0)" in row_of(page, "m192")[1] and "not run yet" in row_of(page, "m192")[1]
  assert "| not run yet |" in next(line for line in page.splitlines() if line.startswith("| more slots help"))


def test_a_figure_at_the_papers_size_is_judged():
  def made(figure):
    return [Made(figure, "runs/a", "abcdef0123", "64 × TPU v5e", 430.5)]

  known = Found(found().sample, {
    "vq_main/enwik8": made(0.991), "vq_main/pg19": made(27.0), "lattice_slots/m16": made(15.52)})
  page = paper_page(PAGES["transformer_vq"], known)
  assert row_of(page, "enwik8")[0].endswith("| 0.9910 | agrees |")
  assert "- `enwik8`: 0.9910, `runs/a`, commit abcdef0, 64 × TPU v5e, 430.5 chip-hours." in page
  assert row_of(page, "pg19")[0].endswith("| 27.00 | differs |")
  assert row_of(paper_page(PAGES["lattice"], known), "m16")[0].endswith("| 15.52 | not comparable |")


def test_the_list_counts_stored_results():
  table = TABLES["lattice_slots"]
  text = list_text([(table, row) for row in table.rows], {
    f"lattice_slots/{row.name}": count for row, count in zip(table.rows, (3, 1, 0, 0), strict=True)})
  assert [line.split(" | ")[3].strip() for line in text.splitlines()[4:]] == [
    "measured", "1 of 3", "not run yet", "not run yet"]


def test_numbers_have_four_digits():
  assert [number(value) for value in (0.01234, 1.2345, 12.345, 123.45, 1234.5)] == [
    "0.0123", "1.234", "12.35", "123.5", "1,234"]
  assert number(-1e-9, "+") == "+0.0000"
  assert spread_text([1.0, 2.0]) == "1.500 ± 0.7071 (2)"
