"""The page of `gainmtl browse`: who lacks its token is refused, whatever is asked."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import webbrowser
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from browsed import write_browsed_run

from gainmtl_lib.browser.serve import ADDRESS, NAME, ClosedVoila, ServeError, serve_browser
from gainmtl_lib.runs import RunError

STARTED = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from gainmtl_lib.browser.serve import serve_browser\n"
    "serve_browser(sys.argv[1:], open_browser=False)\nprint('ended')"
)


class Page:
    """A page in a process of its own."""

    def __init__(self, folder, run):
        self.folder, self.log = folder, folder.parent / "page.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", STARTED, str(run.folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
            )
        until = time.monotonic() + 90
        while "Ctrl-C" not in self.said:
            assert self.process.poll() is None and time.monotonic() < until, self.said
            time.sleep(0.1)
        self.address, self.query = next(w for w in self.said.split() if w.startswith("http")).split("?")

    @property
    def said(self):
        return self.log.read_text()

    def status(self, path, query="", **headers):
        request = urllib.request.Request(self.address + path + (f"?{query}" if query else ""), headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_browsed_run(tmp_path_factory.mktemp("served"), pictures=False)
    page = Page(tmp_path_factory.mktemp("temporary"), run)
    yield page
    page.process.kill()


SCRIPT = "voila/static/voila.js"
KERNEL = f"api/kernels/{uuid.UUID(int=1)}"


@pytest.mark.parametrize(
    "path", ["", "login", "logout", "any/path", KERNEL, f"{KERNEL}/channels", "voila/files/picture.png", "api/contents",
             "voila/labextensions/anywidget/package.json", "static/style.css", SCRIPT, f"{SCRIPT}.gone",
             "voila/templates/lab/static/voila.js", "voila/templates/none/static/none", "favicon.ico", "robots.txt",
             "voila/api/themes/none/index.css", "voila/api/shutdown/1"],
)  # fmt: skip
def test_without_the_token_everything_is_refused(page, path):
    assert page.status(path) == 403
    assert page.status(path, "token=guessed") == 403
    assert page.status(path, Authorization="token guessed") == 403
    websocket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    assert page.status(path, **websocket) == 403


def test_with_the_token_requests_are_heard_but_no_file_is_handed_out(page):
    assert page.status(KERNEL, page.query) == 404  # no such kernel, which the holder of the token may know
    assert page.status(SCRIPT, page.query) == page.status("voila/templates/lab/static/voila.js", page.query) == 200
    for file in (quote(f"{NAME}.ipynb"), "open.html", "../page.log", "%2e%2e/page.log"):
        assert page.status(f"voila/files/{file}", page.query) == 403


def test_it_listens_on_no_other_address(page):
    port = int(page.address.rsplit(":", 1)[1].strip("/"))
    assert page.address == f"http://{ADDRESS}:{port}/"
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(2)
        other.connect(("127.0.0.2", port))


def test_ctrl_c_ends_it_and_leaves_nothing_behind(page):
    assert any(page.folder.iterdir())
    page.process.send_signal(signal.SIGINT)
    assert page.process.wait(30) == 0
    assert page.said.endswith("ended\n") and "Traceback" not in page.said
    assert not any(page.folder.iterdir())


def test_the_web_browser_is_given_a_file_that_only_this_user_can_read(tmp_path, monkeypatch):
    found = []

    def look(uri):
        path = next((tmp_path / "made").glob("*/open.html"))
        found.append((uri == path.as_uri(), path.stat().st_mode & 0o777, "token=" in path.read_text()))

    (tmp_path / "made").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "made"))
    monkeypatch.setattr(webbrowser, "open", look)
    monkeypatch.setattr(ClosedVoila, "start", lambda app: None)
    at_once = SimpleNamespace(add_callback=lambda ready: ready())
    monkeypatch.setattr("gainmtl_lib.browser.serve.IOLoop.current", lambda: at_once)
    serve_browser([write_browsed_run(tmp_path, pictures=False).folder])
    assert found == [(True, 0o600, True)] and not any((tmp_path / "made").iterdir())


def test_what_cannot_be_served_is_said_before_anything_starts(tmp_path, capsys):
    with pytest.raises(RunError, match="no run here"):
        serve_browser([tmp_path])
    run = write_browsed_run(tmp_path, pictures=False)
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} .* cannot be used"):
            serve_browser([run.folder], port=port, open_browser=False)
    assert "data_root" in capsys.readouterr().out
