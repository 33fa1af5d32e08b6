"""What `make run` leaves, looked at as a person does: notebook 08 in JupyterLab, and both systems side by side.

Needs Chromium and the finished runs of the quick study; run it with ``make browser``.
"""

from __future__ import annotations

import re
import shutil

from looking import COUNT, MAP_PICTURE, SERVE, SLOW, changes, drag_to_the_left, pixels, run_all_cells
from playwright.sync_api import expect

from gainmtl_lib.efficientad.evaluate import find_novel
from gainmtl_lib.efficientad.train import open_run
from gainmtl_lib.runs import load_run
from gainmtl_lib.settings import repository_root

QUICK = repository_root() / "outputs" / "quick"
NOTEBOOK = repository_root() / "notebooks" / "08_cam_explanation.ipynb"
MINUTES = 8 * 60_000  # ms; on two idle cores it takes less than one


def test_notebook_08_runs_and_its_browser_answers(page, lab, screenshots, tmp_path):
    for strategy in ("s1", "s3", "s5"):
        load_run(QUICK / strategy / "seed42")  # says what is missing
    page.goto(lab(shutil.copy(NOTEBOOK, tmp_path / NOTEBOOK.name)))
    run_all_cells(page)
    page.locator(MAP_PICTURE).wait_for(timeout=MINUTES)
    said = page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").all_text_contents()
    assert not [text for text in said if re.search("Traceback|Error|Warning", text)]
    page.locator(MAP_PICTURE).scroll_into_view_if_needed()
    place = page.locator(COUNT).inner_text()
    changes(page, lambda: drag_to_the_left(page, "Threshold"))
    changes(page, lambda: page.get_by_role("button", name="next ›").click())
    assert page.locator(COUNT).inner_text() != place
    lead = page.get_by_label("Run", exact=True)
    beside = sorted({"S1", "S3", "S5"} - {lead.input_value()})
    for strategy in beside:
        page.get_by_role("button", name=strategy, exact=True).click()
    pictures = page.locator(".gainmtl-panel:visible img")
    expect(pictures).to_have_count(2 + len(beside))
    assert len({pixels(picture) for picture in pictures.all()}) == 2 + len(beside)  # each strategy shows its own map
    changes(page, lambda: lead.select_option(beside[0]))
    page.screenshot(path=screenshots / "notebook_08.png")


def test_both_systems_show_the_same_picture_side_by_side(page, serve, screenshots, tmp_path):
    runs = [tmp_path / part / "seed42" for part in ("efficientad", "s5")]
    for run in runs:  # of copies, so that looking changes nothing in the repository
        shutil.copytree(open_run(QUICK / run.parent.name / run.name).folder, run)
    find_novel(load_run(runs[1]), runs[0])
    page.goto(serve(["-c", SERVE, *map(str, runs)], "Ctrl-C"), timeout=SLOW)
    page.locator(MAP_PICTURE).wait_for(timeout=SLOW)
    headline = page.locator(".gainmtl-headline")
    expect(headline).to_contain_text("anomaly score")
    changes(page, lambda: page.get_by_role("button", name="next ›").click())
    page.get_by_role("button", name="S5", exact=True).click()
    pictures = page.locator(".gainmtl-panel:visible img")
    expect(pictures).to_have_count(3)
    assert len({pixels(picture) for picture in pictures.all()}) == 3  # the picture, and each system's own map
    expect(page.get_by_text("random (untrained teacher").first).to_be_visible()
    page.screenshot(path=screenshots / "both_systems.png")
    page.get_by_label("Run", exact=True).select_option("S5")
    expect(headline).to_contain_text("p(defect)")
    page.get_by_label("novel only").check()
    expect(headline).to_contain_text("novel")
