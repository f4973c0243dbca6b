"""Test widgets in JupyterLab and rendered pages in a real browser, by mouse and keyboard."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nbformat
import pytest
from conftest import build_site
from nbformat.v4 import new_code_cell, new_notebook

from brats_helpers.tools import series

api = pytest.importorskip("playwright.sync_api",
                          reason="playwright is not installed: make test-browser does that")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
SHOW = """from brats_helpers.data.cases import Patient
from brats_helpers.phantoms.anatomy import brats_affine
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.lessons import viewers
import numpy as np
small = make_patient(0, 0, 4.0)
def enlarged(volume):
    return volume.repeat(4, -1).repeat(4, -2).repeat(4, -3)[..., :155]
images = enlarged(small.images)
# no slice like the next
images[images > 0] += np.random.default_rng(0).integers(0, 99, (images > 0).sum(), np.int16)
patient = Patient("P", images, enlarged(small.reference), brats_affine(1.0))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab on loopback, and the folder that it shows."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}", "--LabApp.news_url=", "--expose-app-in-browser"],
        cwd=series.ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(series.ROOT)})
    url = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{url}/api", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
    yield url, folder
    process.terminate()
    process.wait()


def opened(browser: object, lab: tuple[str, Path], name: str, code: str,
           shows: str = "img.widget-image") -> object:
    """Open and run a notebook of one cell, about a patient of 240 x 240 x 155 voxels."""
    url, folder = lab
    nbformat.write(new_notebook(cells=[new_code_cell(SHOW + code)], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}),
        folder / f"{name}.ipynb")
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(f"{url}/lab/tree/{name}.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=60_000)
    for _ in range(3):  # the first key may come before the kernel listens
        page.click(".jp-Notebook .jp-CodeCell .cm-content")
        page.keyboard.press("Control+Enter")
        with contextlib.suppress(api.TimeoutError):
            page.wait_for_selector(shows, timeout=20_000)
            return page
    raise AssertionError("the cell shows no widget")


def source(page: object) -> str:
    """Where the widget's picture comes from; another for every picture."""
    return page.get_attribute("img.widget-image", "src")


def changed(page: object, before: str, act: object) -> float:
    """Seconds from an action to another picture."""
    begin = time.perf_counter()
    act()
    page.wait_for_function("old => document.querySelector('img.widget-image').src != old",
                           arg=before, timeout=10_000,
                           polling=5)
    return time.perf_counter() - begin


SHOTS = series.ROOT / "runs" / "screenshots"
STEPS = """n => { const canvas = document.querySelectorAll('.brats canvas')[n], took = [];
for (let i = 0; i < 15; i++) { const begin = performance.now();
  canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: i % 2 ? 1 : -1, cancelable: true}));
  for (const each of document.querySelectorAll('.brats canvas'))
    each.getContext('2d').getImageData(0, 0, 1, 1);
  took.push(performance.now() - begin); }
return took.sort((a, b) => a - b)[7]; }"""


def changes(page: object, act: Callable[[], object]) -> list[bool]:
    """Return which of the slice viewer's four pictures an action changes."""
    def pixels() -> list[str]:
        return page.evaluate("[...document.querySelectorAll('.brats canvas')]"
                             ".map(canvas => canvas.toDataURL())")

    before = pixels()
    act()
    return [a != b for a, b in zip(before, pixels(), strict=True)]


def use_slice_viewer(page: object) -> None:
    """Operate every control; each must change the pictures that it should, and no other."""
    views = page.locator(".brats canvas")
    slices = [page.locator(f".brats input[name={name}]")
              for name in ("axial", "coronal", "sagittal")]

    def check(act: Callable[[], object], *expected: bool) -> None:
        assert changes(page, act) == list(expected)

    def pull(name: str) -> None:
        page.locator(f".brats input[name={name}]").focus()
        page.keyboard.press("ArrowRight")

    slices_only, all_four, turned = (True,) * 3 + (False,), (True,) * 4, (False,) * 3 + (True,)
    check(partial(pull, "opacity"), *slices_only)
    check(lambda: page.locator(".brats input[name=label2]").click(), *all_four)
    check(partial(pull, "turn"), *turned)
    views.nth(3).hover()
    check(lambda: (page.mouse.down(), page.mouse.move(30, 30), page.mouse.up()), *turned)
    views.nth(0).scroll_into_view_if_needed()
    views.nth(0).hover()
    # the others' crosshairs move along
    check(lambda: (page.mouse.wheel(0, -100), page.wait_for_timeout(200)), *slices_only)
    before = [int(each.input_value()) for each in slices]
    check(lambda: views.nth(0).click(position={"x": 100, "y": 130}), *slices_only)
    after = [int(each.input_value()) for each in slices]
    # linked: two planes follow
    assert before[0] == after[0] and before[1] != after[1] and before[2] != after[2]
    check(lambda: page.keyboard.press("ArrowUp"), *slices_only)
    assert int(slices[0].input_value()) == after[0] + 1
    check(lambda: page.keyboard.press("4"), *slices_only)
    assert page.locator(".brats select[name=image]").input_value() == "3"
    check(lambda: page.locator(".brats select[name=image]").select_option(index=1), *slices_only)
    for name in ("axial", "coronal", "sagittal", "width", "level"):
        check(partial(pull, name), *slices_only)


@pytest.mark.parametrize("width", [1280, 400])
def test_the_slice_viewer_needs_no_kernel(browser, tmp_path: Path, width: int) -> None:
    from brats_helpers.lessons.viewers import slice_viewer
    from brats_helpers.phantoms.kinds import make_patient
    patient = make_patient(0, 0, 4.0)
    (tmp_path / "viewer.html").write_text(slice_viewer(patient, patient.reference,
                                                       synthetic=True).data)
    page, problems = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "viewer.html").as_uri())
    page.wait_for_selector(".brats canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    use_slice_viewer(page)
    assert not problems


def test_the_slice_viewer_in_jupyterlab_answers_within_100_ms(browser, lab) -> None:
    page = opened(browser, lab, "slices", "viewers.slice_viewer(patient, synthetic=True)",
                  ".brats canvas")
    took = {name: page.evaluate(STEPS, n) for n, name in enumerate(
        ("axial", "coronal", "sagittal", "outside"))}
    print("\na step at 240 x 240 x 155, wheel to picture:",
          {name: f"{ms:.0f} ms" for name, ms in took.items()})
    assert max(took.values()) < 100
    use_slice_viewer(page)
    page.screenshot(path=SHOTS / "slice_viewer.png")


def test_the_threshold_explorer_changes_scores_and_picture(browser, lab) -> None:
    page = opened(browser, lab, "threshold", "from scipy import ndimage\n"
                  "p = ndimage.gaussian_filter((patient.reference > 0).astype(float), 2)\n"
                  "viewers.threshold_explorer(patient, p, synthetic=True)")
    before = page.locator(".widget-label", has_text="Dice").inner_text()
    page.locator(".noUi-handle").first.focus()
    changed(page, source(page), lambda: page.keyboard.press("ArrowRight"))
    assert page.locator(".widget-label", has_text="Dice").inner_text() != before
    slices = page.locator(".noUi-base").last
    changed(page, source(page), lambda: slices.click(position={"x": 30, "y": 2}))
    page.screenshot(path=SHOTS / "threshold_explorer.png")


def test_the_comparison_shows_the_worst_patient_and_then_any_other(browser, lab) -> None:
    page = opened(browser, lab, "comparison",
                  "from brats_helpers.evaluation.metrics import score_case\n"
                  "empty = np.zeros_like(patient.reference)\n"
                  "score = lambda mask: score_case(mask, patient.reference, patient.spacing)\n"
                  "masks = {'good': patient.reference, 'bad': empty}\n"
                  "rows = [{'name': name, **score(mask)} for name, mask in masks.items()]\n"
                  "viewers.comparison_viewer(rows, lambda name: (patient, masks[name]), True)")
    assert page.locator(".widget-select option").first.inner_text().endswith("bad")
    changed(page, source(page),
            lambda: page.locator(".widget-select select").select_option(index=1))
    page.locator(".noUi-handle").first.focus()
    changed(page, source(page), lambda: page.keyboard.press("ArrowRight"))
    page.screenshot(path=SHOTS / "comparison_viewer.png")


def test_every_slider_of_the_playground_moves_by_key_and_mouse(browser, lab) -> None:
    page = opened(browser, lab, "playground",
                  "from brats_helpers.data.preprocessing import prepare\n"
                  "viewers.augmentation_playground(prepare(patient, 2.0), synthetic=True)")
    handles, rails = page.locator(".noUi-handle"), page.locator(".noUi-base")
    for n in range(handles.count()):
        changed(page, source(page), partial(rails.nth(n).click, position={"x": 30, "y": 2}))
        handles.nth(n).focus()
        changed(page, source(page), partial(page.keyboard.press, "ArrowLeft"))
    page.screenshot(path=SHOTS / "augmentation_playground.png")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", series.NAMES)
def test_pages_are_legible_whole_and_folded(browser, tmp_path: Path, name: str, width: int) -> None:
    copy = Path(shutil.copy(series.FOLDER / f"{name}.ipynb", tmp_path))
    series.render(copy)
    page, problems = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda message: problems.append(message.text)
            if message.type == "error" else None)
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto(copy.with_suffix(".html").as_uri())
    assert not problems and page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0 && i.alt.length > 3)")
    assert page.evaluate("document.images.length") >= 8
    folded = page.locator("details").first
    assert folded.evaluate("d => d.children.length > 1 && !d.open")
    folded.locator("summary").click()
    assert folded.evaluate("d => d.open")
    size = page.evaluate("getComputedStyle(document.querySelector('.jp-RenderedMarkdown p'))"
                         ".fontSize")
    assert float(size.removesuffix("px")) >= 12


def test_the_site_is_searched_and_fits_a_phone(browser, tmp_path: Path) -> None:
    site = build_site(tmp_path)
    page, asked = browser.new_page(viewport={"width": 400, "height": 800}), []
    page.on("request", lambda request: asked.append(request.url))
    for path in site.rglob("*.html"):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path.name
    page.goto((site / "index.html").as_uri())
    page.locator("label[for=__search]").first.click()
    page.locator(".md-search__input").press_sequentially("skip connection")
    page.locator(".md-search-result__item a").first.click()
    assert "skip connection" in page.locator("body").inner_text().lower()
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
