"""The page of a report in a real browser: it stands alone, draws, sorts, hides, and fits dark and narrow screens."""

from __future__ import annotations

import copy

import pytest

from lattice_jax.report.page import write_page
from lattice_jax.report.workdir import read_runs
from tests import browser
from tests.report import workdirs

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def chromium():
  with browser.opened() as found:
    yield found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  folder = workdirs.write_run(tmp_path_factory.mktemp("one") / "tiny")
  workdirs.write_results(folder)
  return report(folder)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
  """Six runs of a sweep; the loss of the fourth is the lowest, and the fifth has no evaluation."""
  folder = tmp_path_factory.mktemp("several")
  for index, floor in enumerate([3.0, 10.0, 2.0, 1.0, 5.0, 4.0]):
    config = copy.deepcopy(workdirs.CONFIG)
    config["train"]["seed"] = index
    workdirs.write_run(folder / f"seed={index}", floor=floor, config=config)
  lines = (folder / "seed=4" / "metrics.jsonl").read_text().splitlines(keepends=True)
  (folder / "seed=4" / "metrics.jsonl").write_text("".join(line for line in lines if "split" not in line))
  return report(folder)


def report(folder):
  runs, _ = read_runs([folder])
  write_page(folder / "report.html", runs, title="A title", origin="made here")
  return folder / "report.html"


def test_a_page_draws_all_it_holds_and_asks_for_nothing_else(chromium, one):
  page = browser.Page(chromium, one)
  assert page.troubles == [] and page.run("window.broken") is None, "a text of the run was executed"
  headings = ["Results", "Curves", "Evaluations", "Loss by position", "Config", "Slots", "Codebooks", "Anchors",
              "Caches", "Samples", "Environment"]
  assert page.texts("section > h2") == headings
  assert page.texts("#main h3") == [
    "Loss (nats per token)", "Bits per byte", "Learning rate", "Speed (tokens per second)", "Gradient norm"]
  assert page.run("[...document.querySelectorAll('#main svg')].every(svg => svg.querySelector('g path'))")
  assert page.page.locator("#main svg circle").count() == 2, "an evaluation is missing"
  colors = page.run("""[...document.querySelectorAll('.map > canvas')].map(canvas => new Set(
    new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size)""")
  assert len(colors) == 7 and min(colors) > 1
  assert "The <b>end</b> & </script>" in page.texts("#samples pre")[0]


def test_the_pointer_reads_charts_and_maps(chromium, one):
  page = browser.Page(chromium, one)
  box = page.page.locator("#main svg").first.bounding_box()
  page.page.mouse.move(box["x"] + box["width"] - 12, box["y"] + box["height"] - 60)
  assert page.texts("#tip") == ["tiny: 1.05 at 40 updates"]
  box = page.page.locator("#anchors canvas").first
  box.scroll_into_view_if_needed()
  place = box.bounding_box()
  page.page.mouse.move(place["x"] + 4, place["y"] + 4)
  assert page.texts("#tip") == ["layer 0, own segment: 0.752"]  # a byte for 0.75


def test_a_column_sorts_both_ways_and_what_is_missing_stays_last(chromium, several):
  page = browser.Page(chromium, several)

  def order():
    return page.texts("#results-table tbody td:nth-child(2)")

  header = page.page.locator("#results-table th button", has_text="last bits/byte")
  header.click()
  assert order() == [f"seed={seed}" for seed in (3, 2, 0, 5, 1, 4)]
  header.click()
  assert order() == [f"seed={seed}" for seed in (1, 5, 0, 2, 3, 4)]
  assert page.texts("#differences thead th") == ["run", "train.seed"]


def test_runs_are_hidden_and_found(chromium, several):
  page = browser.Page(chromium, several)
  loss = page.page.locator("#main .chart").first
  assert loss.locator("[data-line]").count() == 6
  page.page.locator("#results-table tbody tr").nth(1).locator("input").uncheck()
  assert loss.locator("[data-line]").count() == 5 and page.texts("#shown") == ["5 of 6 shown"]
  assert not page.page.locator('#evaluations [data-run="1"]').is_visible()
  page.page.fill("#filter", "SEED=2")
  assert loss.locator("[data-line]").count() == 1 and page.texts("#shown") == ["1 of 6 shown"]
  page.page.click("#none")
  assert loss.inner_text().endswith("No run is shown.")
  page.page.click("#all")
  page.page.check("#log")
  page.page.select_option("#axis", "minutes")
  assert loss.locator("[data-line]").count() == 6 and loss.locator("text").last.text_content() == "minutes"
  assert page.troubles == []


def test_dark_as_the_screen_asks_or_as_the_switch_says(chromium, one):
  def ground(page):
    return page.run("getComputedStyle(document.body).backgroundColor")

  light, dark = (browser.Page(chromium, one, scheme=scheme) for scheme in ("light", "dark"))
  by_screen = ground(light), ground(dark)
  assert by_screen == ("rgb(246, 247, 249)", "rgb(18, 21, 26)")
  for page, clicks, expected in ((light, 2, by_screen[1]), (dark, 1, by_screen[0]), (dark, 2, by_screen[1])):
    for _ in range(clicks):
      page.page.click("#theme")
    assert ground(page) == expected


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_reaches_beyond_the_screen(chromium, one, several, width):
  for file in (one, several):
    page = browser.Page(chromium, file, width=width)
    assert not page.is_too_wide()
    assert page.run("[...document.querySelectorAll('#main svg')].every(svg => svg.getBoundingClientRect().width > 200)")
