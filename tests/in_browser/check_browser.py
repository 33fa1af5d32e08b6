"""The CAM browser in a real web browser: JupyterLab and the page of `gainmtl browse`, every step seen to change it.

Not collected with the unit tests: it needs Chromium and a minute. Run it with ``make browser``, or
``SCREENSHOTS=folder pytest tests/in_browser/check_browser.py``.
"""

import csv
import re
import time
from pathlib import Path

import nbformat
from playwright.sync_api import expect

STOPPED_BY_THE_PAGE = "csp"
"""Chromium's reason for a request that the page's own policy kept from being sent."""
MAP_PICTURE = ".gainmtl-panel:nth-of-type(2) img"
COUNT = ".gainmtl-count"
SLOW = 90_000  # ms; a kernel imports torch before it shows anything


def test_in_jupyterlab(page, lab, screenshots, runs, tmp_path):
    open_notebook(page, lab, tmp_path / "look.ipynb", f"CamBrowser({[str(run) for run in runs]})")
    look_through(page, screenshots, "lab")
    check_notes(page, runs[0], "lab")
    check_keys(page)
    stays(page, lambda: page.locator(".jp-CodeCell .cm-content").first.click(), "ArrowRight")


def test_browsers_on_one_page_step_apart(page, lab, runs, tmp_path):
    """Two views of one browser, then another browser: one key is one step of one of them."""
    source = f"one, other = (CamBrowser(run) for run in {[str(run) for run in runs]})\ndisplay(one, one, other)"
    open_notebook(page, lab, tmp_path / "several.ipynb", source)
    browsers, counts = page.locator(".gainmtl-browser"), page.locator(COUNT)
    expect(counts).to_have_count(3, timeout=SLOW)
    for under_the_mouse, places in ((1, ["2", "2", "1"]), (2, ["2", "2", "2"])):
        browsers.nth(under_the_mouse).locator(".gainmtl-headline").hover()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1500)
        assert [text.split()[0] for text in counts.all_inner_texts()] == places


def test_on_the_page_of_its_own(page, own_page, screenshots, runs):
    asked = []
    page.on("request", lambda request: asked.append(request))  # answered or not: without a network none is
    page.goto(own_page, timeout=SLOW)
    look_through(page, screenshots, "page")
    check_notes(page, runs[0], "page")
    check_keys(page)
    abroad = [request for request in asked if re.match(r"(http|ws)s?://(?!127\.0\.0\.1[:/])", request.url)]
    assert len(asked) > 10 and not [request.url for request in abroad if request.failure != STOPPED_BY_THE_PAGE]


def test_without_the_token_the_browser_sees_nothing(chromium, own_page):
    page = chromium.new_context().new_page()
    answer = page.goto(own_page.split("?")[0])
    assert answer is not None and answer.status == 403
    expect(page.locator("body")).to_contain_text("needs the token")
    page.close()


def open_notebook(page, lab, path, source):
    """A notebook of one cell, opened and run by JupyterLab's own menu, once the kernel is there."""
    source = f"from gainmtl_lib.browser.app import CamBrowser\n\n{source}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    page.goto(lab(path))
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=SLOW)
    page.get_by_text("| Idle").wait_for(timeout=SLOW)  # before that, Run asks which kernel is meant
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def look_through(page, screenshots, name):
    """Use everything once; after each step the picture or a sentence must be another one."""
    page.locator(MAP_PICTURE).wait_for(timeout=SLOW)
    for width, height in ((1024, 768), (1440, 900)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(700)
        page.screenshot(path=screenshots / f"{name}_{width}.png")

    split, count = page.get_by_label("Split", exact=True), page.locator(COUNT)
    total = re.sub(r"\D", "", split.locator("option").first.inner_text())
    split.select_option(index=0)
    expect(count).to_contain_text(f"of {total}")
    changes(page, lambda: page.get_by_role("button", name="per image").click())
    changes(page, lambda: drag_to_the_left(page, "Threshold"))
    for act, place in (
        (lambda: page.get_by_role("button", name="next ›").click(), 2),
        (lambda: page.keyboard.press("ArrowRight"), 3),
        (lambda: page.locator("[data-gainmtl-place='5']").click(), 6),
        (lambda: page.keyboard.press("ArrowLeft"), 5),
    ):
        changes(page, act)
        expect(count).to_have_text(f"{place} of {total}")

    page.get_by_role("button", name="S3", exact=True).click()
    panels = page.locator(".gainmtl-panel:visible img")
    expect(panels).to_have_count(3)
    assert len({pixels(panel) for panel in panels.all()}) == 3
    page.screenshot(path=screenshots / f"{name}_beside.png")
    changes(page, lambda: page.get_by_label("Run", exact=True).select_option("S3"))
    changes(page, lambda: page.get_by_role("button", name="attention", exact=True).click())
    changes(page, lambda: page.get_by_label("Run", exact=True).select_option("S5"))

    page.get_by_label("Verdict", exact=True).select_option(index=1)
    expect(page.locator(".gainmtl-headline")).to_contain_text("TP")
    page.get_by_role("button", name="What if").click()
    expect(page.locator(".gainmtl-right")).to_contain_text("Computed now, by the run's model", timeout=SLOW)


def check_notes(page, run, name):
    """What is noted is saved to the picture that stood there, and the keys stay in the field."""

    def last_notes():
        with (run / "notes.csv").open(encoding="utf-8-sig", newline="") as file:
            return {Path(row["image"]).name: (row["check_label"], row["note"]) for row in csv.DictReader(file)}

    count, picture = page.locator(COUNT), page.locator(".gainmtl-headline b")
    note, mark = page.locator(".gainmtl-note textarea"), page.get_by_label("check this label")
    noted_on, place = picture.inner_text(), count.inner_text()
    note.fill(f"seen in {name}")
    page.keyboard.press("ArrowLeft")  # moves the cursor, not the picture
    mark.click()
    expect(page.locator(".gainmtl-note")).to_contain_text("notes.csv")  # of what was saved now
    expect(mark).to_be_checked()
    assert count.inner_text() == place and last_notes()[noted_on] == ("yes", f"seen in {name}")
    note.fill("left by going on")
    page.get_by_role("button", name="next ›").click()
    expect(picture).not_to_have_text(noted_on)
    expect(note).to_have_value("")
    assert last_notes()[noted_on] == ("yes", "left by going on") and picture.inner_text() not in last_notes()
    page.get_by_role("button", name="‹ previous").click()
    expect(note).to_have_value("left by going on")
    mark.click()
    note.fill("")
    note.blur()
    page.wait_for_timeout(500)
    assert last_notes()[noted_on] == ("", "")


def check_keys(page):
    """A key that belongs to a text field, a slider or a list moves no picture; others do."""
    page.get_by_label("Verdict", exact=True).select_option(index=0)
    page.locator("[data-gainmtl-place='3']").click()
    expect(page.locator(COUNT)).to_contain_text("4 of")
    stays(page, lambda: page.locator(".gainmtl-note textarea").focus(), "ArrowLeft")
    stays(page, lambda: page.get_by_label("Split", exact=True).focus(), "ArrowLeft")  # at its first value already
    slider = page.locator(".gainmtl-slider:has-text('Overlay')")
    before = slider.locator(".widget-readout").inner_text()
    stays(page, lambda: slider.locator(".noUi-handle").focus(), "ArrowRight")
    assert slider.locator(".widget-readout").inner_text() != before
    page.get_by_label("check this label").focus()
    changes(page, lambda: page.keyboard.press("ArrowLeft"))


# --- Steps


def changes(page, act):
    """Do something; the map's picture must become another one."""
    picture = page.locator(MAP_PICTURE).first
    before = pixels(picture)
    act()
    until = time.monotonic() + 10
    while pixels(picture) == before:
        assert time.monotonic() < until, "the picture stayed as it was"
        page.wait_for_timeout(20)


def stays(page, place_the_cursor, key):
    """A key that belongs to what has the cursor moves no picture, wherever the mouse is."""
    before = page.locator(COUNT).inner_text()
    place_the_cursor()
    page.locator(MAP_PICTURE).hover()
    page.keyboard.press(key)
    page.wait_for_timeout(700)
    assert page.locator(COUNT).inner_text() == before


def pixels(picture):
    """What a picture shows, not where it comes from: its address changes with every message."""
    return picture.evaluate(
        """async (image) => {
            await image.decode().catch(() => {});
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL();
        }"""
    )


def drag_to_the_left(page, label):
    box = page.locator(f".gainmtl-slider:has-text('{label}') .noUi-handle").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 25, y, steps=5)
    page.mouse.up()
