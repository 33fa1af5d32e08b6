"""The audit report in a real web browser with the network off; run it with ``make browser``."""

from gainmtl_lib.audit.report import write_report
from gainmtl_lib.runs import load_run


def test_it_opens_offline_asks_for_nothing_and_prints(chromium, runs, tmp_path):
    report = write_report(load_run(runs[0]), tmp_path / "audit report.html")
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_offline(True)
    page, complaints, asked = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) > 5 and min(widths) > 0 and complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") > 3
    context.close()
