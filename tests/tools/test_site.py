"""The site: every link leads somewhere, nothing comes from the network, the search knows every page."""

from __future__ import annotations

import json
import re
from pathlib import Path

from brats_helpers.tools import series
from brats_helpers.tools.site import build_site


def test_links_lead_somewhere_and_the_search_knows_every_page(tmp_path: Path) -> None:
    pages = build_site(tmp_path / "site")
    assert len(pages) == 13
    for page in pages:
        text = page.read_text()
        for target in re.findall(r"(?:href|src)=[\"']([^\"'#]+)", text):
            if not target.startswith(("http", "data:", "mailto:")):
                assert (page.parent / target).exists(), (page.name, target)
        assert not re.search(r"(?:src|href)=[\"']https?://[^\"']*\.(?:js|css)", text)
        assert text.count("id='bar'") == 1
    index = json.loads((tmp_path / "site"
                        / "search.js").read_text().removeprefix("const INDEX=").split(
                            ";\nconst words")[0])
    assert {entry[0] for entry in index} >= {f"{name}.html"
                                             for name in series.NAMES} | {"index.html",
                                                                          "teaching.html"}
    for page, anchor, _, _ in index:
        assert not anchor or re.search(f"id=[\"']{re.escape(anchor)}[\"']",
                                       (tmp_path / "site" / page).read_text())
    glossary = (tmp_path / "site" / "glossary.html").read_text()
    assert all(term in glossary
               for term in ("affine", "skip connection", "calibration", "mixed precision",
                            "z-score"))
