"""What mkdocs needs to build the site from the repository as it is.

Pages keep the paths that they have in the repository, so that one relative link works on GitHub and
on the site. The glossary is collected from the tables of terms at the notebooks' ends.
"""

from __future__ import annotations

import json
import posixpath
from pathlib import Path

from bs4 import BeautifulSoup
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority, get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("README.md", "CONTRIBUTING.md", "LICENSE", "kaggle-metadata.json", "docs/*.md",
         "docs/*.png", "docs/*.gif", "docs/*.svg", "docs/*.json", "docs/assets/*.css",
         "docs/assets/*/*", "notebooks/0*.ipynb", "benchmarks/**/*.md", "benchmarks/**/*.json",
         "benchmarks/**/*.png")
TERMS = "| term | meaning |\n|---|---|\n"
log = get_plugin_logger("site")


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages from the repository's root instead of docs/ alone, before other plugins."""
    theme = [file for file in files if not file.abs_src_path.startswith(config.docs_dir)]
    paths = sorted(path for pattern in SHOWN for path in ROOT.glob(pattern))
    pages = [File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, False)
             for path in paths]
    return Files([*theme, *pages, File.generated(config, "glossary.md", content=glossary())])


def glossary() -> str:
    """Return the terms of all notebooks in alphabetical order, each with a link to its notebook."""
    rows = []
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        if TERMS not in text:
            raise PluginError(f"{path.name} has no table of terms for the glossary.")
        table = text.split(TERMS)[1].split("\n\n")[0]
        rows += [f"{row.rstrip('| ')} | [{path.name[:2]}](notebooks/{path.name}) |"
                 for row in table.splitlines()]
    return "\n".join(["# Glossary", "", "| term | meaning | notebook |", "|---|---|---|",
                      *sorted(rows, key=str.lower)])


@event_priority(-100)
def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point a notebook's links at pages of the site; a dead one warns, which stops the build."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    tree = BeautifulSoup(html, "html.parser")
    for script in tree.find_all("script"):
        if "cdnjs" in script.get_text():              # mermaid, which no notebook uses
            script.decompose()
    for link in tree.find_all("a", href=True):
        target, mark, anchor = link["href"].partition("#")
        if not target or ":" in target:
            continue
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        found = files.get_file_from_path(path)
        if found is None and (ROOT / path).is_file():
            link.unwrap()                             # source code has no page
        elif found is None:
            log.warning("%s links to %s, which is not on the site", page.file.src_uri, target)
        else:
            link["href"] = found.url_relative_to(page.file) + mark + anchor
    return str(tree)
