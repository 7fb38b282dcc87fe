"""Pages opened in a real browser: the Chromium, Chrome or Edge of this machine, without a window.

python -m tests.browser says what to install where there is none, and ends with status 1.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
MISSING = ("No Chromium was found, so the tests that open pages in a browser do not run: apt-get install chromium, or "
           "name one with LATTICE_JAX_BROWSER=/path/to/chrome.")


def find():
  """The path of a browser, or None."""
  named = os.environ.get("LATTICE_JAX_BROWSER")
  return named or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def opened():
  """A browser for as long as the block runs."""
  from playwright.sync_api import sync_playwright  # not among what other tests need

  path = find()
  if path is None:
    raise AssertionError(MISSING)
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path)
    yield browser
    browser.close()


class Page:
  """A page from the disk. troubles: errors of its scripts, and what it asked for beside itself."""

  def __init__(self, browser, file: pathlib.Path, *, width=1280, scheme="light"):
    self.troubles: list[str] = []
    self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
    self.page.on("console", lambda message: self.troubles.append(message.text))
    self.page.on("request", lambda request: request.url == file.as_uri() or self.troubles.append(request.url))
    self.page.goto(file.as_uri())

  def run(self, expression, argument=None):
    return self.page.evaluate(expression, argument)

  def texts(self, selector):
    return self.page.locator(selector).all_inner_texts()

  def is_too_wide(self):
    return self.run("document.documentElement.scrollWidth > innerWidth")


def main():
  if find() is None:
    sys.stdout.write(f"{MISSING}\n")
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
