"""EfficientAD and a strategy side by side on the page of ``gainmtl browse``, the novel flag included.

Needs Chromium and the finished runs of the quick study (``make run``); run it with ``make browser``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from looking import MAP_PICTURE, SLOW, changes, close, pixels
from playwright.sync_api import expect
from servers import Started

from gainmtl_lib.efficientad.evaluate import find_novel
from gainmtl_lib.efficientad.train import open_run
from gainmtl_lib.runs import load_run
from gainmtl_lib.settings import repository_root

PARTS = "efficientad", "s5"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Of copies, so that looking changes nothing in the repository."""
    folder = tmp_path_factory.mktemp("page")
    runs = [folder / "runs" / part / "seed42" for part in PARTS]
    for part, run in zip(PARTS, runs):
        shutil.copytree(open_run(repository_root() / "outputs" / "quick" / part / "seed42").folder, run)
    find_novel(load_run(runs[1]), runs[0])
    source = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gainmtl_lib.serve import serve_browser\nserve_browser(sys.argv[1:], open_browser=False)"
    )
    started = Started([sys.executable, "-c", source, *map(str, runs)], "Ctrl-C", folder / "log", TMPDIR=str(folder))
    yield next(word for word in started.log.read_text().split() if word.startswith("http://"))
    assert started.end() == 0, started.log.read_text()


def test_both_systems_show_the_same_picture_side_by_side(chromium, address, screenshots: Path):
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(address, timeout=SLOW)
    page.locator(MAP_PICTURE).wait_for(timeout=SLOW)
    headline = page.locator(".gainmtl-headline")
    expect(headline).to_contain_text("anomaly score")
    changes(page, lambda: page.get_by_role("button", name="next ›").click())
    page.get_by_role("button", name="S5", exact=True).click()
    expect(page.locator(".gainmtl-panel:visible")).to_have_count(3)
    pictures = page.locator(".gainmtl-panel:visible img")
    assert len({pixels(picture) for picture in pictures.all()}) == 3  # the picture, and each system's own map
    expect(page.get_by_text("random (untrained teacher").first).to_be_visible()
    page.screenshot(path=screenshots / "both_systems.png")
    page.get_by_label("Run", exact=True).select_option("S5")
    expect(headline).to_contain_text("p(defect)")
    page.get_by_label("novel only").check()
    expect(headline).to_contain_text("novel")
    page.screenshot(path=screenshots / "novel.png")
    close(page)
