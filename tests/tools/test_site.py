"""The site: a strict build, no dead link, nothing from the network, every term in the glossary."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import build_site

from brats_helpers.tools.series import NAMES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built once."""
    return build_site(tmp_path_factory.mktemp("site"))


def test_every_link_leads_somewhere_and_nothing_comes_from_elsewhere(site: Path) -> None:
    bs4 = pytest.importorskip("bs4")
    pages = {path: bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
             for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= 24
    for path, page in pages.items():
        for tag, name in (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")):
            for found in page.find_all(tag, attrs={name: True}):
                url = urlsplit(found[name])
                if url.scheme or url.netloc:
                    assert tag == "a" or url.scheme == "data", (path.name, found[name])
                    continue
                target = (path.parent / unquote(url.path)).resolve() if url.path else path
                target = target / "index.html" if target.is_dir() else target
                assert target.is_file(), (path.name, found[name])
                if url.fragment and target in pages:
                    assert pages[target].find(id=unquote(url.fragment)), (path.name, found[name])


def test_search_knows_every_page_and_the_glossary_every_notebook(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert found >= {"glossary.html", "docs/teaching.html"}
    assert found >= {f"notebooks/{name}.html" for name in NAMES}
    glossary = (site / "glossary.html").read_text(encoding="utf-8").lower()
    assert all(f'href="notebooks/{name}.html"' in glossary for name in NAMES)
    assert all(f"{term}</td>" in glossary for term in ("affine", "skip connection", "z-score"))


def test_viewers_work_without_a_kernel(site: Path) -> None:
    for name in ("02_extraction", "05_training_evaluation"):
        page = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "showPatient(root, {" in page and "<canvas" in page


def test_the_readme_is_short_and_shows_no_address_that_it_does_not_know() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.split()) <= 700
    patterns = ("*.md", "docs/*.md", "notebooks/0*", "pyproject.toml", "kaggle-metadata.json")
    shown = [path for pattern in patterns for path in ROOT.glob(pattern)]
    assert not [path for path in shown if "INSERT_" in path.read_text(encoding="utf-8")]


def test_the_results_are_the_stored_ones() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    runs = json.loads((ROOT / "docs" / "results.json").read_text())["runs"]
    for run in runs:
        spans = [(run["dice"][region], *run["dice_ci95"][region]) for region in run["dice"]]
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*span) for span in spans]
        far = ", ".join(f"{run['hd95_mm'][region]:.1f}" for region in run["dice"])
        row = [run["seed"], *cells, far, f"{run['flair_threshold_wt_dice']:.3f}"]
        assert f"| {' | '.join(map(str, row))} |" in page
        if run["seed"] == 0:
            short = ["{:.2f} ({:.2f} to {:.2f})".format(*span) for span in spans]
            assert f"| {run['cases']} unseen synthetic patients | {' | '.join(short)} |" in readme
