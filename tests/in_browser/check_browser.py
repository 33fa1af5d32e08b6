"""The CAM browser in a real web browser: JupyterLab and the page of `gainmtl browse`, every step seen to change it.

Not collected with the unit tests: it needs Chromium and a minute. Run it with ``make browser``, or
``SCREENSHOTS=folder pytest tests/in_browser/check_browser.py``.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from looking import MAP_PICTURE, SLOW, changes, close, drag_to_the_left, milliseconds_to_the_next, run_all_cells
from playwright.sync_api import Page, expect
from servers import Started, jupyterlab
from tiny import tiny_settings

from gainmtl_lib.evaluation.evaluate import evaluate
from gainmtl_lib.training.fit import fit

SIZES = ((1440, 900), (1024, 768))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("study")
    made = [fit(tiny_settings(folder, strategy, learning_rate=3e-3)) for strategy in ("S5", "S3")]
    for run in made:
        evaluate(run)
    return [run.folder for run in made]


@pytest.fixture(scope="module")
def lab(runs, tmp_path_factory) -> Iterator[str]:
    """Address of a notebook that shows the browser."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [
        nbformat.v4.new_markdown_cell("# Looking through two runs"),
        nbformat.v4.new_code_cell(
            "from gainmtl_lib.explain.browser import CamBrowser\n\n"
            f"browser = CamBrowser({[str(run) for run in runs]})\nbrowser"
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "files").mkdir()
    nbformat.write(notebook, folder / "files" / "look.ipynb")
    with jupyterlab(folder) as address:
        yield address.format("look.ipynb")


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
    page.goto(lab)
    run_all_cells(page)
    look_through(page, screenshots, "lab")
    check_keys_of_the_notebook(page)
    close(page)
    assert "seen in lab" in (runs[0] / "notes.csv").read_text()


def test_on_the_page_of_its_own(chromium, page_of_its_own, screenshots, runs):
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    abroad = []
    page.on("requestfinished", lambda request: abroad.append(request.url) if "//127.0.0.1" not in request.url else None)
    page.goto(page_of_its_own, timeout=SLOW)
    look_through(page, screenshots, "page")
    assert not [url for url in abroad if url.startswith("http")]
    close(page)
    assert "seen in page" in (runs[0] / "notes.csv").read_text()


@pytest.mark.parametrize("path", ["", "login", "voila/files/look.png", "api/kernels", "api/kernels/1/channels"])
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

    note = page.get_by_placeholder("note on this picture", exact=False)
    note.fill(f"seen in {name}")
    place = count.inner_text()
    page.keyboard.press("ArrowLeft")  # moves the cursor, not the picture
    page.get_by_label("check this label").click()
    expect(page.locator(".gainmtl-right")).to_contain_text("notes.csv")  # of what was saved now; earlier ones say when
    assert count.inner_text() == place
    page.screenshot(path=screenshots / f"{name}_note.png")


def check_keys_of_the_notebook(page: Page) -> None:
    """In a cell's text an arrow moves the cursor, wherever the mouse is."""
    page.get_by_label("Verdict", exact=True).select_option(index=0)
    count = page.locator(".gainmtl-count")
    page.wait_for_timeout(500)
    before = count.inner_text()
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.locator(MAP_PICTURE).hover()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert count.inner_text() == before
