"""The CAM browser in a real web browser: JupyterLab and the page of `gainmtl browse`, every step seen to change it.

Not collected with the unit tests: it needs Chromium and a minute. Run it with ``make browser``.
"""

import re
import time

import nbformat
import pandas as pd
from playwright.sync_api import expect

MAP_PICTURE = ".gainmtl-panel:nth-of-type(2) img"
COUNT = ".gainmtl-count"
SLOW = 90_000  # ms; a kernel imports torch before it shows anything


def test_notes_and_keys_in_jupyterlab(page, lab, runs, tmp_path):
    """Two views of one browser, then another browser: one key is one step of one of them, and none of a field's."""
    source = f"one, other = (CamBrowser(run) for run in {[str(run) for run in runs]})\ndisplay(one, one, other)"
    source = f"from gainmtl_lib.browser.app import CamBrowser\n\n{source}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "look.ipynb")
    page.goto(f"{lab}look.ipynb?token=check&reset")
    page.get_by_text("| Idle").wait_for(timeout=SLOW)  # before that, Run asks which kernel is meant
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    browsers, counts = page.locator(".gainmtl-browser"), page.locator(COUNT)
    expect(counts).to_have_count(3, timeout=SLOW)
    for under_the_mouse, places in ((1, ["2", "2", "1"]), (2, ["2", "2", "2"])):
        browsers.nth(under_the_mouse).locator(".gainmtl-headline").hover()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1500)
        assert [text.split()[0] for text in counts.all_inner_texts()] == places

    first = browsers.first
    picture, note = first.locator(".gainmtl-headline b"), first.locator(".gainmtl-note textarea")
    noted_on, mark = picture.inner_text(), first.get_by_label("check this label")
    note.fill("seen")
    mark.click()
    expect(first.locator(".gainmtl-note")).to_contain_text("notes.csv")  # of what was saved now
    note.fill("left by going on")
    first.get_by_role("button", name="next ›").click()
    expect(note).to_have_value("")
    notes = pd.read_csv(runs[0] / "notes.csv")
    assert set(notes["image"].str.rsplit("/").str[-1]) == {noted_on}
    assert notes.iloc[-1][["check_label", "note"]].tolist() == ["yes", "left by going on"]
    first.get_by_role("button", name="‹ previous").click()
    expect(note).to_have_value("left by going on")

    overlay = first.locator(".gainmtl-slider:has-text('Overlay')")
    before, place = overlay.locator(".widget-readout").inner_text(), counts.first.inner_text()
    cell = page.locator(".jp-CodeCell .cm-content").first
    for field in (note, first.get_by_label("Split", exact=True), overlay.locator(".noUi-handle"), cell):
        field.focus()
        first.locator(MAP_PICTURE).hover()
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(700)
        assert counts.first.inner_text() == place
    assert overlay.locator(".widget-readout").inner_text() != before
    mark.focus()
    changes(page, lambda: page.keyboard.press("ArrowLeft"))


def test_the_page_of_its_own(page, own_page):
    """Everything is used once; after each step the picture or a sentence must be another one."""
    asked = []
    page.on("request", lambda request: asked.append(request))  # answered or not: without a network none is
    page.goto(own_page, timeout=SLOW)
    page.locator(MAP_PICTURE).wait_for(timeout=SLOW)
    split, count = page.get_by_label("Split", exact=True), page.locator(COUNT)
    total = re.sub(r"\D", "", split.locator("option").first.inner_text())
    split.select_option(index=0)
    expect(count).to_contain_text(f"of {total}")
    changes(page, page.get_by_role("button", name="per image").click)
    for act, place in (
        (page.get_by_role("button", name="next ›").click, 2), (lambda: page.keyboard.press("ArrowRight"), 3),
        (page.locator("[data-gainmtl-place='5']").click, 6), (lambda: page.keyboard.press("ArrowLeft"), 5),
    ):  # fmt: skip
        changes(page, act)
        expect(count).to_have_text(f"{place} of {total}")

    page.get_by_role("button", name="S3", exact=True).click()
    panels = page.locator(".gainmtl-panel:visible img")
    expect(panels).to_have_count(3)
    assert len({pixels(panel) for panel in panels.all()}) == 3
    changes(page, page.get_by_role("button", name="attention", exact=True).click)
    page.get_by_label("Verdict", exact=True).select_option(index=1)
    expect(page.locator(".gainmtl-headline")).to_contain_text("TP")
    page.get_by_role("button", name="What if").click()
    expect(page.locator(".gainmtl-right")).to_contain_text("Computed now, by the run's model", timeout=SLOW)

    abroad = [request for request in asked if re.match(r"(http|ws)s?://(?!127\.0\.0\.1[:/])", request.url)]
    # "csp" is Chromium's reason for a request that the page's own policy kept from being sent.
    assert len(asked) > 10 and not [request.url for request in abroad if request.failure != "csp"]


def changes(page, act):
    """Do something; the map's picture must become another one."""
    picture = page.locator(MAP_PICTURE).first
    before = pixels(picture)
    act()
    until = time.monotonic() + 10
    while pixels(picture) == before:
        assert time.monotonic() < until, "the picture stayed as it was"
        page.wait_for_timeout(20)


def pixels(picture):
    """What a picture shows, not where it comes from: its address changes with every message."""
    return picture.evaluate("""async (image) => {
        await image.decode().catch(() => {});
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0);
        return canvas.toDataURL();
    }""")
