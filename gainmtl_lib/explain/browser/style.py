"""How the browser looks: quiet greys, one accent, colours that any colour vision tells apart.

The thumbnails stand in 14 columns, one for each of a page (`thumbnails.PAGE`), in fewer where there is no room.
"""

STYLE = """
.gainmtl-browser { font-size: 13px; line-height: 1.4; color: #1f2933; gap: 8px; padding: 4px 2px; overflow: visible;
  --line: #d5dbe1; --quiet: #5c6873; }
.gainmtl-browser:focus { outline: none; }
.gainmtl-browser:focus-visible { outline: 2px solid #a8c7fa; }
.gainmtl-browser * { overflow-wrap: anywhere; }
.gainmtl-browser p { margin: 2px 0; }
.gainmtl-browser .widget-html-content { line-height: 1.45; }
.gainmtl-browser .mod-active { background: #1f4e79; color: #fff; }
.gainmtl-browser .widget-checkbox label { display: flex; align-items: center; gap: 6px; }
.gainmtl-browser .widget-checkbox input { margin: 0; }
.gainmtl-filters { flex-wrap: wrap; gap: 6px 12px; align-items: flex-end; padding-bottom: 8px;
  border-bottom: 1px solid var(--line); overflow: visible; }
.gainmtl-browser .gainmtl-field { flex-direction: column; align-items: stretch; height: auto; margin: 0; }
.gainmtl-browser .gainmtl-field > label, .gainmtl-label { width: auto; text-align: left; font-size: 12px; height: 18px;
  line-height: 18px; color: var(--quiet); margin: 0; }
.gainmtl-browser .gainmtl-field > select { flex: none; height: 28px; margin: 0; width: auto; min-width: 84px;
  max-width: 240px; }
.gainmtl-browser .gainmtl-field button { padding: 0 9px; }
.gainmtl-note { display: flex; flex-direction: column; padding-inline: 2px; }
.gainmtl-note label { display: flex; align-items: center; gap: 6px; height: 28px; }
.gainmtl-note input { margin: 0; }
.gainmtl-note textarea { font: inherit; color: inherit; background: #fff; box-sizing: border-box; width: 100%;
  height: 58px; padding: 4px 8px; border: 1px solid #9e9e9e; border-radius: 0; resize: vertical; }
.gainmtl-note textarea:focus { border-color: #64b5f6; outline: none; }
.gainmtl-chips button { margin: 0 4px 0 0; }
.gainmtl-notices { background: #fff6e0; border-left: 3px solid #e69f00; padding: 4px 10px; margin: 0; }
.gainmtl-notices:empty { display: none; }
.gainmtl-body { flex-wrap: wrap; gap: 10px 18px; align-items: flex-start; overflow: visible; }
.gainmtl-left { flex: 1 1 420px; min-width: 0; gap: 8px; overflow: visible; }
.gainmtl-right { flex: 0 1 272px; min-width: 240px; gap: 10px; overflow: visible; }
.gainmtl-group { gap: 4px; padding-bottom: 10px; border-bottom: 1px solid var(--line); overflow: visible; }
.gainmtl-group:last-child { border-bottom: none; }
.gainmtl-top { justify-content: space-between; align-items: flex-start; gap: 8px; flex-wrap: wrap; overflow: visible; }
.gainmtl-headline { flex: 1 1 300px; margin: 0; min-height: 38px; }
.gainmtl-browser i { color: #9aa5b1; font-style: normal; }
.gainmtl-count { color: var(--quiet); margin-right: 8px; }
.gainmtl-browser .gainmtl-stage { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 10px;
  align-items: start; overflow: visible; }
.gainmtl-panel { min-width: 0; max-width: 640px; overflow: visible; }
.gainmtl-panel img { width: 100%; height: auto; max-height: max(220px, calc(100vh - 340px));
  object-fit: contain; object-position: left top;
  margin: 0; border-radius: 3px; }
.jp-NotebookPanel .gainmtl-panel img { max-height: max(220px, calc(100vh - 470px)); }
.gainmtl-verdict { color: #fff; border-radius: 3px; padding: 0 6px; white-space: nowrap; }
.gainmtl-TP { background: #0072b2; } .gainmtl-FN { background: #b34700; }
.gainmtl-FP { background: #8f6400; } .gainmtl-TN { background: #5c6873; }
.gainmtl-flag { color: #7a1f5c; border: 1px solid #cc79a7; background: #fbeff6; border-radius: 3px; padding: 0 6px;
  white-space: nowrap; }
.gainmtl-flag.gainmtl-novelty { color: #00563d; border-color: #009e73; background: #ecf8f4; }
.gainmtl-strip { align-items: center; gap: 4px; overflow: visible; }
.gainmtl-strip .gainmtl-arrow { width: 28px; padding: 0; flex: none; }
.gainmtl-thumbnails { flex: 1 1 auto; margin: 0; min-width: 0; }
.gainmtl-thumbnails .widget-html-content { display: grid; gap: 6px; padding: 3px;
  grid-template-columns: repeat(auto-fill, minmax(max(56px, (100% - 78px) / 14), 1fr)); }
.gainmtl-thumbnails button { border: none; background: none; padding: 0; font: inherit; font-size: 11px; color: inherit;
  cursor: pointer; border-radius: 3px; max-width: 84px; }
.gainmtl-thumbnails img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #eef1f4;
  border-radius: 3px; }
.gainmtl-thumbnails span { color: #fff; border-radius: 2px; padding: 0 3px; }
.gainmtl-thumbnails .gainmtl-wrong { background: #7a1f5c; }
.gainmtl-thumbnails .gainmtl-novel { background: #00563d; }
.gainmtl-quiet { color: var(--quiet); font-size: 12px; }
.gainmtl-browser .gainmtl-slider > label { width: 66px; text-align: left; }
.gainmtl-browser .gainmtl-slider .widget-readout { min-width: 40px; text-align: right; }
"""
