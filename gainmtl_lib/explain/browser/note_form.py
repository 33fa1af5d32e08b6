"""A mark and a note on a picture, saved as soon as they are left, to the picture that stood there.

The page says with every change which picture it showed: while the kernel is busy, somebody may already have asked for
the next one and still be marking this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from gainmtl_lib.explain.notes import NOTHING_SAID, Note, NotesError
from gainmtl_lib.files import FileError


class NoteForm(anywidget.AnyWidget):
    """The form, which only reports what was changed in it.

    Args:
        on_save: called with run, picture and what was changed, ``check_label`` or ``text``; gives the note that then
            counts and a line on where it lies. What keeps it from being saved is raised and told in the form.

    Attributes:
        shown: of which run and picture the form speaks, what was last said of it, and a line on its state.
    """

    _esm = """
    const HTML = `
      <label><input type="checkbox"> check this label</label>
      <textarea rows="3" aria-label="note on this picture" data-lm-suppress-shortcuts="true"
        placeholder="note on this picture, saved when you leave this field"></textarea>
      <p class="gainmtl-quiet" role="status"></p>`;

    function render({ model, el }) {
      el.innerHTML = HTML;
      const [mark, text, state] = ["input", "textarea", "p"].map((name) => el.querySelector(name));
      const unanswered = new Set();
      let about = { run: "", image: "", text: "" };  // what the form speaks of, which is what a change is saved to

      const save = (changed) => {
        const id = Math.random().toString(36);
        unanswered.add(id);
        model.send({ run: about.run, image: about.image, id, ...changed });
      };
      const saveText = () => {
        if (text.value === about.text) return;
        about.text = text.value;
        save({ text: text.value });
      };
      const show = () => {
        const next = model.get("shown");
        unanswered.delete(next.answered);
        const same = next.run === about.run && next.image === about.image;
        const typing = document.activeElement === text && text.value !== about.text;
        if (!same && typing) {
          state.textContent = `This note is on ${about.image}. Leave the field to save it and to go on.`;
          return;
        }
        state.textContent = next.state;
        if (same && unanswered.size) return;  // the answer to an earlier change knows nothing of the last one
        if (!same) saveText();
        about = { ...next, text: next.kept ? next.text : null };  // one that was not kept is saved anew when it is left
        mark.checked = next.check_label;
        if (!typing) text.value = next.text;
        mark.disabled = text.disabled = !next.image;
      };

      mark.addEventListener("change", () => save({ check_label: mark.checked }));
      text.addEventListener("keydown", (event) => event.stopPropagation());
      text.addEventListener("blur", () => { saveText(); show(); });
      model.on("change:shown", show);
      show();
      return () => { saveText(); model.off("change:shown", show); };
    }
    export default { render };
    """

    shown = traitlets.Dict().tag(sync=True)

    def __init__(self, on_save: Callable[..., tuple[Note, str]]) -> None:
        super().__init__()
        self._on_save = on_save
        self.on_msg(self._hear)
        self.show("", "", NOTHING_SAID)
        self.add_class("gainmtl-group").add_class("gainmtl-note")

    def show(self, run: str, image: str, note: Note, state: str = "") -> None:
        """Put in what was last said of a picture; no picture locks the form."""
        state = state or (f"saved {note.time.replace('T', ' ')[:16]}" if note.time else "")
        self._put(run, image, note, state)

    def _put(self, run: str, image: str, note: Note, state: str, *, answered: str = "", kept: bool = True) -> None:
        self.shown = {"run": run, "image": image, "check_label": note.check_label, "text": note.text, "state": state,
                      "answered": answered, "kept": kept}  # fmt: skip

    def _hear(self, _: Any, content: dict[str, Any], __: Any) -> None:
        run, image, answered = (content.get(key) for key in ("run", "image", "id"))
        changed = {name: content[name] for name, kind in SAID.items() if isinstance(content.get(name), kind)}
        if not (isinstance(run, str) and isinstance(image, str) and isinstance(answered, str) and changed):
            return
        kept = True
        try:
            note, state = self._on_save(run, image, **changed)
        except (FileError, NotesError) as error:
            kept, state = "text" not in changed, f"not saved: {error}"
            typed = self.shown | changed
            note = Note(bool(typed["check_label"]), str(typed["text"]))
        if (run, image) == (self.shown["run"], self.shown["image"]):
            self._put(run, image, note, state, answered=answered, kept=kept)
        else:
            self.shown = self.shown | {"state": f"{image}: {state}", "answered": answered}


SAID = {"check_label": bool, "text": str}
"""What the page may report as changed."""
