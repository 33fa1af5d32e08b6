// Arrow keys and clicks on thumbnails, heard in the page and told to the kernel.
const ROOT = ".gainmtl-browser";
const TYPED_INTO = "textarea, select, [contenteditable]:not([contenteditable='false']), [role='slider'], "
  + "[role='textbox'], input:not([type='checkbox']):not([type='radio'])";

function render({ model, el }) {
  const stop = new AbortController();
  const listen = (type, act) => window.addEventListener(type, act, { capture: true, signal: stop.signal });
  const root = () => el.closest(ROOT);
  const browserOf = (node) => (node instanceof Element ? node.closest(ROOT) : null);
  const inside = (node) => root() !== null && browserOf(node) === root();
  let waiting = false, byMouse = false;

  // A key pressed in a browser is that one's. One pressed in none is for the browser under the mouse, or for the only one.
  const meant = ({ target }) => browserOf(target) ? inside(target)
    : root()?.matches(":hover") || (target === document.body && document.querySelectorAll(ROOT).length === 1);

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

  listen("click", ({ target }) => {
    const thumbnail = inside(target) && target.closest("[data-gainmtl-place]");
    if (thumbnail) model.send({ place: Number(thumbnail.dataset.gainmtlPlace) });
  });

  // After a list or a slider was used with the mouse the arrows are for pictures again; Tab reaches it as ever.
  listen("pointerdown", () => { byMouse = true; });
  listen("change", ({ target }) => { if (byMouse && inside(target) && target.matches("select")) target.blur(); });
  listen("pointerup", () => setTimeout(() => {
    const active = document.activeElement;
    if (inside(active) && active.matches("[role='slider']")) active.blur();
  }));
  return () => stop.abort();
}
export default { render };
