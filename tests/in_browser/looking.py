"""Steps in a web browser, each seen to change what the CAM browser shows."""

from __future__ import annotations

import time
from collections.abc import Callable

from playwright.sync_api import Locator, Page

MAP_PICTURE = ".gainmtl-panel:nth-of-type(2) img"
COUNT = ".gainmtl-count"
SLOW = 90_000  # ms; a kernel imports torch before it shows anything

SERVE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from gainmtl_lib.browser.serve import serve_browser\nserve_browser(sys.argv[1:], open_browser=False)"
)


def run_all_cells(page: Page) -> None:
    """JupyterLab's own menu, once the kernel is there."""
    page.locator(".jp-Notebook .jp-Cell").nth(1).wait_for(timeout=SLOW)
    page.get_by_text("| Idle").wait_for(timeout=SLOW)  # before that, Run asks which kernel is meant
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def changes(page: Page, act: Callable[[], object]) -> None:
    """Do something; the map's picture must become another one."""
    picture = page.locator(MAP_PICTURE).first
    before = pixels(picture)
    act()
    until = time.monotonic() + 10
    while pixels(picture) == before:
        assert time.monotonic() < until, "the picture stayed as it was"
        page.wait_for_timeout(20)


def stays(page: Page, place_the_cursor: Callable[[], object], key: str) -> None:
    """A key that belongs to what has the cursor moves no picture, wherever the mouse is."""
    count = page.locator(COUNT)
    before = count.inner_text()
    place_the_cursor()
    page.locator(MAP_PICTURE).hover()
    page.keyboard.press(key)
    page.wait_for_timeout(700)
    assert count.inner_text() == before


def pixels(picture: Locator) -> str:
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


def drag_to_the_left(page: Page, label: str) -> None:
    box = page.locator(f".gainmtl-slider:has-text('{label}') .noUi-handle").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 25, y, steps=5)
    page.mouse.up()
