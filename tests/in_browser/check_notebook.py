"""Notebook 08 in JupyterLab as a person uses it: run all, then look through the browser at its end.

Needs Chromium and the finished runs of the quick study (``make run``); run it with ``make browser``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from looking import MAP_PICTURE, changes, close, drag_to_the_left, pixels, run_all_cells
from playwright.sync_api import expect
from servers import jupyterlab

from gainmtl_lib.runs import load_run
from gainmtl_lib.settings import repository_root

NOTEBOOK = "08_cam_explanation.ipynb"
MINUTES = 8 * 60_000  # ms; on two idle cores it takes less than one


@pytest.fixture(scope="module")
def notebook(tmp_path_factory) -> Iterator[str]:
    """Address of a copy, so that running it changes nothing in the repository."""
    for strategy in ("s1", "s3", "s5"):
        load_run(repository_root() / "outputs" / "quick" / strategy / "seed42")  # says what is missing
    folder = tmp_path_factory.mktemp("lab")
    (folder / "files").mkdir()
    shutil.copy(repository_root() / "notebooks" / NOTEBOOK, folder / "files")
    with jupyterlab(folder) as address:
        yield address.format(NOTEBOOK)


def test_notebook_08_runs_and_its_browser_answers(chromium, notebook, screenshots: Path):
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(notebook)
    run_all_cells(page)
    picture = page.locator(MAP_PICTURE)
    picture.wait_for(timeout=MINUTES)
    said = page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").all_text_contents()
    assert not [text for text in said if re.search("Traceback|Error|Warning", text)]
    picture.scroll_into_view_if_needed()

    count = page.locator(".gainmtl-count")
    place = count.inner_text()
    changes(page, lambda: drag_to_the_left(page, "Threshold"))
    changes(page, lambda: page.get_by_role("button", name="next ›").click())
    assert count.inner_text() != place
    changes(page, lambda: page.keyboard.press("ArrowRight"))
    lead = page.get_by_label("Run", exact=True)
    beside = {"S1", "S3", "S5"} - {lead.input_value()}
    for strategy in sorted(beside):
        page.get_by_role("button", name=strategy, exact=True).click()
    expect(page.locator(".gainmtl-panel:visible")).to_have_count(2 + len(beside))
    pictures = page.locator(".gainmtl-panel:visible img")
    assert len({pixels(picture) for picture in pictures.all()}) == 2 + len(beside)  # each strategy shows its own map
    page.screenshot(path=screenshots / "notebook_08_beside.png")
    page.get_by_role("button", name=max(beside), exact=True).click()
    expect(page.locator(".gainmtl-panel:visible")).to_have_count(1 + len(beside))
    changes(page, lambda: lead.select_option(min(beside)))
    page.screenshot(path=screenshots / "notebook_08.png")
    close(page)
