"""The CAM browser in a real web browser: JupyterLab and the page of `gainmtl browse`, every step seen to change it.

Not collected with the unit tests: it needs Chromium and a minute. Run it with ``make browser``, or
``SCREENSHOTS=folder pytest tests/in_browser/check_browser.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tiny import tiny_settings

from gainmtl_lib.evaluation.evaluate import evaluate
from gainmtl_lib.training.fit import fit

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
SIZES = ((1440, 900), (1024, 768))
MAP_PICTURE = ".gainmtl-panel:nth-of-type(2) img"
SLOW = 90_000  # ms; a kernel imports torch before it shows anything


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("study")
    made = [fit(tiny_settings(folder, strategy, learning_rate=3e-3)) for strategy in ("S5", "S3")]
    for run in made:
        evaluate(run)
    return [run.folder for run in made]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail(f"no web browser to check with; install one of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Started:
    """A server in a process of its own that says when it is ready, ended as Ctrl-C would."""

    def __init__(self, command: list[str], ready: str, log: Path, **environment: str) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
            )
        until = time.monotonic() + 90
        while ready not in log.read_text():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                pytest.fail(f"{command[:4]} did not get ready:\n{log.read_text()}")
            time.sleep(0.2)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def lab(runs, tmp_path_factory) -> Iterator[str]:
    """Address of a notebook that shows the browser, in a JupyterLab that knows nothing of the user's own settings."""
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
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    options = [
        "--ServerApp.port=0",
        f"--ServerApp.root_dir={folder / 'files'}",
        "--IdentityProvider.token=check",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
    ]
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    started = Started([*command, *options], "/lab?token=", folder / "log", **own)
    address = next(line for line in started.log.read_text().split() if line.startswith("http://127.0.0.1"))
    yield address.split("/lab?")[0] + "/lab/tree/look.ipynb?token=check"
    started.end()


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
    page.set_default_timeout(20_000)
    page.locator(".jp-Notebook .jp-Cell").nth(1).wait_for(timeout=SLOW)
    page.get_by_text("| Idle").wait_for(timeout=SLOW)  # before that, Run asks which kernel is meant
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
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


def changes(page: Page, act) -> None:
    """Do something; the map's picture must become another one."""
    before = pixels(page)
    act()
    until = time.monotonic() + 10
    while pixels(page) == before:
        assert time.monotonic() < until, "the picture stayed as it was"
        page.wait_for_timeout(20)


def pixels(page: Page) -> str:
    """What the map's picture shows, not where it comes from: its address changes with every message."""
    return page.locator(MAP_PICTURE).evaluate(
        """async (image) => {
            await image.decode().catch(() => {});
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL();
        }"""
    )


def milliseconds_to_the_next(page: Page) -> float:
    """From the click to the map's picture being there, through kernel and network."""
    return page.locator(MAP_PICTURE).evaluate(
        """(image) => new Promise((done) => {
            const started = performance.now();
            image.addEventListener("load", () => done(performance.now() - started), { once: true });
            [...document.querySelectorAll(".gainmtl-top button")].at(-1).click();
        })"""
    )


def drag_to_the_left(page: Page, label: str) -> None:
    handle = page.locator(f".gainmtl-slider:has-text('{label}') .noUi-handle")
    box = handle.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 25, y, steps=5)
    page.mouse.up()


def close(page: Page) -> None:
    page.close(run_before_unload=True)
