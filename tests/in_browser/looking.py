"""Steps in a web browser, each seen to change what the CAM browser shows."""

from __future__ import annotations

import time

from playwright.sync_api import Locator, Page

MAP_PICTURE = ".gainmtl-panel:nth-of-type(2) img"
SLOW = 90_000  # ms; a kernel imports torch before it shows anything


def run_all_cells(page: Page) -> None:
    """JupyterLab's own menu, once the kernel is there."""
    page.set_default_timeout(20_000)
    page.locator(".jp-Notebook .jp-Cell").nth(1).wait_for(timeout=SLOW)
    page.get_by_text("| Idle").wait_for(timeout=SLOW)  # before that, Run asks which kernel is meant
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def changes(page: Page, act) -> None:
    """Do something; the map's picture must become another one."""
    picture = page.locator(MAP_PICTURE)
    before = pixels(picture)
    act()
    until = time.monotonic() + 10
    while pixels(picture) == before:
        assert time.monotonic() < until, "the picture stayed as it was"
        page.wait_for_timeout(20)


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
