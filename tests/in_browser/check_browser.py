"""The CAM browser in a real web browser: JupyterLab and the page of `gainmtl browse`, every step seen to change it.

Not collected with the unit tests: it needs Chromium and a minute. Run it with ``make browser``, or
``SCREENSHOTS=folder pytest tests/in_browser/check_browser.py``.
"""

from __future__ import annotations

import csv
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from looking import MAP_PICTURE, SLOW, changes, close, drag_to_the_left, milliseconds_to_the_next, run_all_cells
from playwright.sync_api import Page, Request, expect
from servers import Started, jupyterlab
from tiny import tiny_settings

from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.train import fit

SIZES = ((1440, 900), (1024, 768))
STOPPED_BY_THE_PAGE = "csp"
"""Chromium's reason for a request that the page's own policy kept from being sent."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("study")
    made = [fit(tiny_settings(folder, strategy, learning_rate=3e-3)) for strategy in ("S5", "S3")]
    for run in made:
        evaluate(run)
    return [run.folder for run in made]


@pytest.fixture(scope="module")
def lab(runs, tmp_path_factory) -> Iterator[str]:
    """Address of two notebooks, for `{}` look.ipynb and several.ipynb."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "files").mkdir()
    both = [str(run) for run in runs]
    write_notebook(folder / "files" / "look.ipynb", f"browser = CamBrowser({both})\nbrowser")
    write_notebook(
        folder / "files" / "several.ipynb",
        f"one, other = (CamBrowser(run) for run in {both})\ndisplay(one, one, other)",
    )
    with jupyterlab(folder) as address:
        yield address


def write_notebook(path: Path, source: str) -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# Looking through two runs"),
        nbformat.v4.new_code_cell(f"from gainmtl_lib.explain.browser import CamBrowser\n\n{source}"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def page_of_its_own(runs, tmp_path_factory) -> Iterator[str]:
    """Address of the page, token included."""
    folder = tmp_path_factory.mktemp("page")
    source = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gainmtl_lib.serve import serve_browser\nserve_browser(sys.argv[1:], open_browser=False)"
    )
    command = [sys.executable, "-c", source, *map(str, runs)]
    started = Started(command, "Ctrl-C", folder / "log", TMPDIR=str(folder))
    yield next(word for word in started.log.read_text().split() if word.startswith("http://"))
    assert started.end() == 0, started.log.read_text()
    assert [path.name for path in folder.iterdir()] == ["log"]  # notebook and connection files are gone


def test_in_jupyterlab(chromium, lab, screenshots, runs):
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(lab.format("look.ipynb"))
    run_all_cells(page)
    look_through(page, screenshots, "lab")
    check_notes(page, screenshots, "lab", runs[0])
    check_keys(page)
    stays(page, lambda: page.locator(".jp-CodeCell .cm-content").first.click(), "ArrowRight")
    close(page)


def test_browsers_on_one_page_step_apart(chromium, lab):
    """Two views of one browser, then another browser: one key is one step of one of them."""
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(lab.format("several.ipynb"))
    run_all_cells(page)
    browsers = page.locator(".gainmtl-browser")
    expect(browsers).to_have_count(3, timeout=SLOW)
    counts = page.locator(".gainmtl-count")
    expect(counts).to_have_count(3, timeout=SLOW)

    def places() -> list[int]:
        page.wait_for_timeout(1500)
        return [int(text.split()[0]) for text in counts.all_inner_texts()]

    assert places() == [1, 1, 1]
    for under_the_mouse in (1, 2):
        browsers.nth(0).locator(".gainmtl-headline").click()
        browsers.nth(under_the_mouse).locator(".gainmtl-headline").hover()
        page.keyboard.press("ArrowRight")
        assert places() == [1 + under_the_mouse, 1 + under_the_mouse, 1]
    page.get_by_role("heading", name="Looking through").click()
    browsers.nth(2).locator(".gainmtl-headline").hover()
    page.keyboard.press("ArrowRight")
    assert places() == [3, 3, 2]
    close(page)


def test_on_the_page_of_its_own(chromium, page_of_its_own, screenshots, runs):
    (runs[0] / "notes.csv").unlink(missing_ok=True)  # of the same pictures in JupyterLab
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request))  # answered or not: without a network none is
    page.goto(page_of_its_own, timeout=SLOW)
    look_through(page, screenshots, "page")
    check_notes(page, screenshots, "page", runs[0])
    check_keys(page)
    abroad = [request for request in asked if re.match(r"(http|ws)s?://(?!127\.0\.0\.1[:/])", request.url)]
    assert len(asked) > 10 and not [request.url for request in abroad if request.failure != STOPPED_BY_THE_PAGE]
    close(page)


@pytest.mark.parametrize(
    "path",
    ["", "login", "logout", "voila/files/look.png", "voila/static/voila.js", "voila/templates/lab/static/voila.js",
     "voila/labextensions/anywidget/package.json", "static/style.css", "favicon.ico", "api/kernels",
     "api/kernels/1/channels"],
)  # fmt: skip
@pytest.mark.parametrize("query", ["", "?token=guessed"])
def test_without_the_token_everything_is_refused(page_of_its_own, path, query):
    address = page_of_its_own.split("?")[0]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(address + path + query)


def test_without_the_token_the_browser_sees_nothing(chromium, page_of_its_own):
    page = chromium.new_context().new_page()
    answer = page.goto(page_of_its_own.split("?")[0])
    assert answer is not None and answer.status == 403
    expect(page.locator("body")).to_contain_text("needs the token")
    page.close()


def look_through(page: Page, screenshots: Path, name: str) -> None:
    """Use everything once; after each step the picture or a sentence must be another one."""
    page.locator(MAP_PICTURE).wait_for(timeout=SLOW)
    for width, height in SIZES[::-1]:
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(700)
        page.screenshot(path=screenshots / f"{name}_{width}.png")

    split = page.get_by_label("Split", exact=True)
    total = re.sub(r"\D", "", split.locator("option").first.inner_text())
    split.select_option(index=0)
    count = page.locator(".gainmtl-count")
    expect(count).to_contain_text(f"of {total}")
    changes(page, lambda: page.get_by_role("button", name="per image").click())
    changes(page, lambda: drag_to_the_left(page, "Threshold"))
    taken = milliseconds_to_the_next(page)
    (screenshots / f"{name}_next.txt").write_text(f"next picture after {taken:.0f} ms\n")
    expect(count).to_have_text(f"2 of {total}")
    changes(page, lambda: page.keyboard.press("ArrowRight"))
    expect(count).to_have_text(f"3 of {total}")
    changes(page, lambda: page.locator("[data-gainmtl-place='5']").click())
    expect(count).to_have_text(f"6 of {total}")
    changes(page, lambda: page.keyboard.press("ArrowLeft"))

    page.get_by_role("button", name="S3", exact=True).click()
    expect(page.locator(".gainmtl-panel:visible")).to_have_count(3)
    page.screenshot(path=screenshots / f"{name}_beside.png")
    changes(page, lambda: page.get_by_label("Run", exact=True).select_option("S3"))
    changes(page, lambda: page.get_by_role("button", name="attention", exact=True).click())
    changes(page, lambda: page.get_by_label("Run", exact=True).select_option("S5"))

    page.get_by_label("Verdict", exact=True).select_option(index=1)
    expect(page.locator(".gainmtl-headline")).to_contain_text("TP")
    page.get_by_role("button", name="What if").click()
    expect(page.locator(".gainmtl-group")).to_contain_text(["", "Computed now, by the run's model", ""], timeout=SLOW)


def check_notes(page: Page, screenshots: Path, name: str, run: Path) -> None:
    """What is noted is saved to the picture that stood there, and the keys stay in the field."""
    count, picture = page.locator(".gainmtl-count"), page.locator(".gainmtl-headline b")
    note, mark, form = page.get_by_label("note on this picture"), page.get_by_label("check this label"), ".gainmtl-note"
    noted_on, place = picture.inner_text(), count.inner_text()
    note.fill(f"seen in {name}")
    page.keyboard.press("ArrowLeft")  # moves the cursor, not the picture
    mark.click()
    expect(page.locator(form)).to_contain_text("notes.csv")  # of what was saved now; earlier ones say when
    expect(mark).to_be_checked()
    assert count.inner_text() == place
    page.screenshot(path=screenshots / f"{name}_note.png")
    assert last_notes(run)[noted_on] == ("yes", f"seen in {name}")

    # Somebody asks for the next picture and unmarks this one while it is still there, in whatever order the kernel hears.
    page.evaluate(
        """() => {
            [...document.querySelectorAll(".gainmtl-top button")].at(-1).click();
            document.querySelector(".gainmtl-note input").click();
        }"""
    )
    expect(picture).not_to_have_text(noted_on)
    expect(mark).not_to_be_checked()
    page.wait_for_timeout(1000)
    assert last_notes(run)[noted_on] == ("", f"seen in {name}") and picture.inner_text() not in last_notes(run)

    # Nor does a picture that comes while somebody is typing take the words away.
    typed_on = picture.inner_text()
    note.focus()
    page.evaluate(
        """() => setTimeout(() => [...document.querySelectorAll(".gainmtl-top button")].at(-1).click(), 600)"""
    )
    page.keyboard.type("half a", delay=20)
    expect(picture).not_to_have_text(typed_on)
    expect(page.locator(form)).to_contain_text("This note is on")
    page.keyboard.type(" sentence")
    page.keyboard.press("Tab")
    expect(page.locator(form)).to_contain_text(f"{typed_on}: saved")
    expect(note).to_have_value("")
    assert last_notes(run)[typed_on] == ("", "half a sentence") and picture.inner_text() not in last_notes(run)


def last_notes(run: Path) -> dict[str, tuple[str, str]]:
    """Mark and words of each picture that somebody spoke of, by the picture's name."""
    with (run / "notes.csv").open(encoding="utf-8-sig", newline="") as file:
        return {Path(row["image"]).name: (row["check_label"], row["note"]) for row in csv.DictReader(file)}


def check_keys(page: Page) -> None:
    """A key that belongs to a text field, a slider or a list moves no picture, wherever the mouse is; others do."""
    page.get_by_label("Verdict", exact=True).select_option(index=0)
    page.locator("[data-gainmtl-place='3']").click()
    expect(page.locator(".gainmtl-count")).to_contain_text("4 of")
    stays(page, lambda: page.get_by_label("note on this picture").focus(), "ArrowLeft")
    stays(page, lambda: page.get_by_label("Split", exact=True).focus(), "ArrowLeft")  # at its first value already
    slider = page.locator(".gainmtl-slider:has-text('Overlay')")
    before = slider.locator(".widget-readout").inner_text()
    stays(page, lambda: slider.locator(".noUi-handle").focus(), "ArrowRight")
    assert slider.locator(".widget-readout").inner_text() != before
    page.get_by_label("check this label").focus()
    changes(page, lambda: page.keyboard.press("ArrowLeft"))


def stays(page: Page, place_the_cursor: Callable[[], None], key: str) -> None:
    count = page.locator(".gainmtl-count")
    before = count.inner_text()
    place_the_cursor()
    page.locator(MAP_PICTURE).hover()
    page.keyboard.press(key)
    page.wait_for_timeout(700)
    assert count.inner_text() == before
