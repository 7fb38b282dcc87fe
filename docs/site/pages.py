"""MkDocs hooks: README.md is the first page, the derivations beside the code join, and links lead from page to page."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(#[^)\s]*)?(?=\))")


def _sources() -> dict[str, str]:
  """Pages from outside docs/: path in the repository → path on the site."""
  derivations = sorted([*ROOT.glob("lattice_jax/memories/*/README.md"), *ROOT.glob("lattice_jax/ops/*/README.md")])
  return {"README.md": "index.md"} | {
    str(path.relative_to(ROOT)): f"derivations/{path.parent.name}.md" for path in derivations}


def on_files(files, config):
  for source, page in _sources().items():
    files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Links are written as they stand in the repository; here they lead to where the site has the page."""
  sources = _sources()
  here = {page: source for source, page in sources.items()}
  source = here[page.file.src_uri] if page.file.src_uri in here else f"docs/{page.file.src_uri}"

  def lead(match: re.Match) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
    if not (ROOT / target).is_file():
      raise PluginError(f"{source} links to {match[1]}, and there is no {target}.")
    if target not in sources and not target.startswith("docs/"):
      raise PluginError(f"{source} links to {target}, which the site does not have; name it as `{target}` instead.")
    uri = sources[target] if target in sources else target.removeprefix("docs/")
    return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".") + (match[2] or "")

  return _LINK.sub(lead, markdown)
