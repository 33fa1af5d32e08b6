"""Arrow keys and clicks on thumbnails, heard in the page and told to the kernel.

Heard on the window and then judged: a key that somebody types into a text field, a list or a slider stays there.
(ipyevents swallows every key while the mouse is over what it watches, and takes the focus away from text fields.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget

ROOT = "gainmtl-browser"
PLACE = "data-gainmtl-place"


class Touch(anywidget.AnyWidget):
    """Takes no room; belongs inside an element of class `ROOT`.

    Args:
        on_step: called with -1 or 1 for the left and right arrow.
        on_pick: called with the number of a clicked thumbnail, an element with the attribute `PLACE`.
    """

    _esm = """
    const TYPED_INTO = "textarea, select, [contenteditable]:not([contenteditable='false']), [role='slider'], "
      + "[role='textbox'], input:not([type='checkbox']):not([type='radio']):not([type='button'])";

    function render({ model, el }) {
      const stop = new AbortController();
      const listen = (type, act) => window.addEventListener(type, act, { capture: true, signal: stop.signal });
      const root = () => el.closest(".ROOT");
      const browserOf = (node) => (node instanceof Element ? node.closest(".ROOT") : null);
      const inside = (node) => browserOf(node) !== null && browserOf(node) === root();
      let waiting = false, byMouse = false;

      // A key pressed in a browser is that one's. Only one pressed in none is for the browser under the mouse, or for
      // the only one there is.
      const meant = ({ target }) => browserOf(target) ? inside(target)
        : root()?.matches(":hover") || (target === document.body && document.querySelectorAll(".ROOT").length === 1);

      listen("keydown", (event) => {
        byMouse = false;
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
        if (event.target.closest?.(TYPED_INTO) || !meant(event)) return;
        event.preventDefault();
        event.stopImmediatePropagation();  // every browser of the page listens, also a second view of this one
        if (event.repeat && waiting) return;  // a held key goes on as fast as pictures come, and stops with the key
        waiting = true;
        model.send({ step });
      });
      model.on("msg:custom", () => { waiting = false; });

      listen("click", (event) => {
        const thumbnail = inside(event.target) && event.target.closest("[PLACE]");
        if (thumbnail) model.send({ place: Number(thumbnail.getAttribute("PLACE")) });
      });

      // After a list or a slider was used with the mouse the arrows are for pictures again; Tab reaches it as ever.
      const handBack = () => root()?.focus({ preventScroll: true });
      listen("pointerdown", () => { byMouse = true; });
      listen("change", ({ target }) => { if (byMouse && inside(target) && target.matches("select")) handBack(); });
      listen("pointerup", () => setTimeout(() => {
        const active = document.activeElement;
        if (inside(active) && active.matches("[role='slider']")) handBack();
      }));
      // Boxes take no focus of their own accord, and this one is put on the page only after its contents.
      const placed = setInterval(() => {
        if (!root()) return;
        root().tabIndex = 0;
        clearInterval(placed);
      }, 50);
      return () => { stop.abort(); clearInterval(placed); };
    }
    export default { render };
    """.replace("ROOT", ROOT).replace("PLACE", PLACE)

    def __init__(self, on_step: Callable[[int], None], on_pick: Callable[[int], None]) -> None:
        super().__init__()
        self._on_step, self._on_pick = on_step, on_pick
        self.on_msg(self._hear)

    def _hear(self, _: Any, content: dict[str, Any], __: Any) -> None:
        if content.get("step") in (-1, 1):
            self._on_step(content["step"])
            self.send({"done": True})
        elif isinstance(content.get("place"), int):
            self._on_pick(content["place"])
